// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// registerAfter registers an analyzer that begins when the artifacts' tasks
// are closed.
func registerAfter(t *testing.T, b *bus.Bus, name string, deadline time.Duration) {
	t.Helper()
	r := schemas.Registration{Name: name, Version: "1.0.0", Scope: schemas.ScopeAnalysis, After: "artifacts", Deadline: schemas.Duration(deadline)}
	if err := b.Register(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

// receipts lists whose receipts the log has, in its order.
func (a *analysis) receipts() []string {
	a.t.Helper()
	var out []string
	if err := a.b.Read(context.Background(), "default", a.id, 0, func(e bus.Entry) error {
		if e.Event.Family() != "receipt" {
			return nil
		}
		var r schemas.Receipt
		if err := e.Event.Decode(&r); err != nil {
			return err
		}
		out = append(out, r.Task.Analyzer)
		return nil
	}); err != nil {
		a.t.Fatal(err)
	}
	return out
}

// TestAfterArtifacts has a task wait for those of the artifacts, also of those
// that are derived meanwhile, while a task of another analysis overtakes it.
func TestAfterArtifacts(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "static", schemas.KindSample)
	registerAfter(t, b, "summary", time.Second)
	held := newAnalysis(t, b)
	d := held.artifact(schemas.KindSample, "the sample", 0)
	held.event(schemas.StartAnalysis{})
	held.event(schemas.WaitAnalysis{Timeout: schemas.Duration(time.Minute)})
	free := newAnalysis(t, b)
	free.event(schemas.StartAnalysis{})

	task := next(t, b, "summary")
	if task.Ref.Analysis != free.id || task.Attempt != 1 {
		t.Errorf("task %+v, attempt %d", task.Ref, task.Attempt)
	}
	finish(t, b, task, schemas.FinishedTask{})

	given := make(chan *bus.Task, 1)
	go func() {
		task, err := b.NextTask(t.Context(), "summary")
		if err != nil {
			t.Error(err)
		}
		given <- task
	}()
	// The task is held once it has been delivered and not given out.
	eventually(t, func() bool { return acksPending(t, b, "summary") == 1 })
	select {
	case task := <-given:
		t.Fatalf("given out while the sample's task is open: %+v", task.Ref)
	default:
	}
	finish(t, b, next(t, b, "static"), schemas.FinishedTask{})
	select {
	case task = <-given:
	case <-time.After(2 * time.Minute):
		t.Fatal("never given out")
	}
	if task.Ref.Analysis != held.id || task.Attempt != 1 {
		t.Errorf("task %+v, attempt %d", task.Ref, task.Attempt)
	}
	if len(task.Artifacts) != 1 || task.Artifacts[0].SHA256 != d {
		t.Errorf("artifacts: %+v", task.Artifacts)
	}
	finish(t, b, task, schemas.FinishedTask{})
	if missing := held.wait(time.Minute); len(missing) != 0 {
		t.Errorf("missing: %+v", missing)
	}
	if got := held.receipts(); len(got) != 2 || got[0] != "static" || got[1] != "summary" {
		t.Errorf("receipts: %v", got)
	}
}

// TestAfterArtifactsInTime gives a task out that waits for an artifact's of
// which nothing comes, in time for it to be done.
func TestAfterArtifactsInTime(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "slow", schemas.KindSample)
	registerAfter(t, b, "summary", time.Minute)
	a := newAnalysis(t, b)
	a.artifact(schemas.KindSample, "the sample", 0)
	a.event(schemas.StartAnalysis{})
	a.event(schemas.WaitAnalysis{Timeout: schemas.Duration(63 * time.Second)})
	begin := time.Now()
	task := next(t, b, "summary")
	if took := time.Since(begin); took > 62*time.Second {
		t.Errorf("given out after %s of 63 s", took)
	}
	finish(t, b, task, schemas.FinishedTask{})
	missing := a.wait(8 * time.Second)
	if len(missing) != 1 || missing[0].Analyzer != "slow" {
		t.Errorf("missing: %+v", missing)
	}
}

// TestHolderDies has the process die that holds a task: another one takes it
// over.
func TestHolderDies(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b, s := startAt(t, dir)
	clerk(t, b)
	register(t, b, "static", schemas.KindSample)
	registerAfter(t, b, "summary", time.Second)
	a := newAnalysis(t, b)
	a.artifact(schemas.KindSample, "the sample", 0)
	a.event(schemas.StartAnalysis{})
	other, err := bus.Connect(t.Context(), s.Address(), "other")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	taken := make(chan error)
	go func() {
		_, err := other.NextTask(ctx, "summary")
		taken <- err
	}()
	eventually(t, func() bool { return acksPending(t, b, "summary") == 1 })
	cancel()
	if err := <-taken; err == nil {
		t.Fatal("it was given out")
	}
	other.Close()
	finish(t, b, next(t, b, "static"), schemas.FinishedTask{})
	finish(t, b, next(t, b, "summary"), schemas.FinishedTask{})
	if missing := a.wait(time.Minute); len(missing) != 0 {
		t.Errorf("missing: %+v", missing)
	}
}

func acksPending(t *testing.T, b *bus.Bus, analyzer string) int {
	t.Helper()
	cons, err := b.JetStream().Consumer(t.Context(), "LOG", "az-"+analyzer+"-live")
	if err != nil {
		t.Fatal(err)
	}
	return cons.CachedInfo().NumAckPending
}

// eventually waits until something holds.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it never comes to that")
		}
	}
}
