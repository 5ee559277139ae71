// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// wait waits for the analyzers of an analysis that has started.
func (a *analysis) wait(limit time.Duration, expected ...string) []schemas.MissingTask {
	a.t.Helper()
	missing, err := a.b.Wait(context.Background(), "default", a.id, time.Now().Add(limit), expected)
	if err != nil {
		a.t.Fatal(err)
	}
	if len(missing) == 0 {
		if err := a.books.Complete(context.Background(), a.b.JetStream(), a.id); err != nil {
			a.t.Fatal(err)
		}
	}
	return missing
}

func TestWaitNamesWhoIsMissing(t *testing.T) {
	t.Parallel()
	b := start(t)
	register(t, b, "slow", schemas.KindSample)
	register(t, b, "gone", schemas.KindSample)
	a := newAnalysis(t, b)
	d := a.artifact(schemas.KindSample, "the sample", 0)
	a.event(schemas.StartAnalysis{})
	withdraw(t, b, "gone")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go b.Heartbeat(ctx, "slow", "test", "1.0.0")
	await(t, b, "KV_REGISTRY", 1)
	got := a.wait(500*time.Millisecond, "slow", "never")
	want := []schemas.MissingTask{
		{Analyzer: "gone", SHA256: &d, Reason: "withdrawn"},
		{Analyzer: "never", Reason: "unregistered"},
		{Analyzer: "slow", SHA256: &d, Reason: "timeout"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	account(t, b, a)
}

// withdraw writes what an analyzer does that ends its interest for good.
func withdraw(t *testing.T, b *bus.Bus, name string) {
	t.Helper()
	e, err := schemas.NewEvent("_registry", "", name+"/gone", time.Now(), schemas.OriginHost, schemas.Unregistration{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.JetStream().Publish(t.Context(), "petri._unregistry."+name, body); err != nil {
		t.Fatal(err)
	}
}

// TestWaitForLatecomers has expected analyzers register behind an announcement:
// they are never given that artifact, and somebody must say so.
func TestWaitForLatecomers(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	a := newAnalysis(t, b)
	early := a.artifact(schemas.KindSample, "announced too early", 0)
	twice := a.artifact(schemas.KindSample, "announced again", 0)
	a.artifact(schemas.KindPcap, "of no interest", 0)
	register(t, b, "static", schemas.KindSample)
	register(t, b, "unexpected", schemas.KindSample)
	a.artifact(schemas.KindSample, "announced again", 1)
	a.event(schemas.StartAnalysis{})
	register(t, b, "summary")
	for _, name := range []string{"static", "unexpected"} {
		task := next(t, b, name)
		if *task.Ref.SHA256 != twice {
			t.Errorf("task %+v", task.Ref)
		}
		finish(t, b, task, schemas.FinishedTask{})
	}
	got := a.wait(time.Minute, "static", "summary", "never")
	want := []schemas.MissingTask{
		{Analyzer: "never", Reason: "unregistered"},
		{Analyzer: "static", SHA256: &early, Reason: "absent"},
		{Analyzer: "summary", Reason: "absent"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	account(t, b, a)
}

// TestWaitPastDeadline waits when there is no time left: what the log has is
// read all the same.
func TestWaitPastDeadline(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "static", schemas.KindSample)
	a := newAnalysis(t, b)
	d := a.artifact(schemas.KindSample, "the sample", 0)
	a.event(schemas.StartAnalysis{})
	want := []schemas.MissingTask{{Analyzer: "static", SHA256: &d, Reason: "absent"}}
	if diff := cmp.Diff(want, a.wait(-time.Hour, "static")); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	finish(t, b, next(t, b, "static"), schemas.FinishedTask{})
	a.wait(time.Minute)
	if missing := a.wait(-time.Hour, "static"); len(missing) != 0 {
		t.Errorf("missing of a complete analysis: %+v", missing)
	}
}

// TestWaitOverClockSteps takes up a wait whose deadline was written before the
// host's clock was set by an hour.
func TestWaitOverClockSteps(t *testing.T) {
	t.Parallel()
	for name, written := range map[string]time.Duration{"set back": time.Hour, "set forward": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			b := start(t)
			clerk(t, b)
			register(t, b, "static", schemas.KindSample)
			a := newAnalysis(t, b)
			d := a.artifact(schemas.KindSample, "the sample", 0)
			a.event(schemas.StartAnalysis{})
			const timeout = time.Second
			at := time.Now().Add(written).Round(0)
			e, err := schemas.NewEvent("default", a.id, a.w.NextID(), at, schemas.OriginHost, schemas.WaitAnalysis{Timeout: schemas.Duration(timeout)})
			if err != nil {
				t.Fatal(err)
			}
			if err := a.w.Write(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			begin := time.Now()
			missing, err := b.Wait(ctx, "default", a.id, at.Add(timeout), []string{"static"})
			if err != nil {
				t.Fatal(err)
			}
			if len(missing) != 1 || missing[0].SHA256 == nil || *missing[0].SHA256 != d {
				t.Errorf("missing: %+v", missing)
			}
			if took := time.Since(begin); took < timeout {
				t.Errorf("the wait ended after %s of %s", took, timeout)
			}
			a.books.Ack(e.ID)
			account(t, b, a)
		})
	}
}

// TestWaitUnreadLog waits while the log cannot be read: that is not an analysis
// of which nothing is missing.
func TestWaitUnreadLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b, s := startAt(t, dir)
	register(t, b, "static", schemas.KindSample)
	a := newAnalysis(t, b)
	a.artifact(schemas.KindSample, "the sample", 0)
	a.event(schemas.StartAnalysis{})
	s.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if missing, err := b.Wait(ctx, "default", a.id, time.Now().Add(100*time.Millisecond), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("missing: %+v, %v", missing, err)
	}
}

// TestWaitForNobody does not wait for who has withdrawn, nor for who has been
// silent for too long.
func TestWaitForNobody(t *testing.T) {
	t.Parallel()
	b := start(t)
	b.SetAbsentGrace(0)
	register(t, b, "gone", schemas.KindSample)
	register(t, b, "silent", schemas.KindSample)
	register(t, b, "changed", schemas.KindSample)
	a := newAnalysis(t, b)
	d := a.artifact(schemas.KindSample, "the sample", 0)
	a.event(schemas.StartAnalysis{})
	if err := b.Unregister(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	register(t, b, "changed", schemas.KindPcap)
	register(t, b, "gone", schemas.KindSample) // begins behind what it has given up
	begin := time.Now()
	want := []schemas.MissingTask{
		{Analyzer: "changed", SHA256: &d, Reason: "withdrawn"},
		{Analyzer: "gone", SHA256: &d, Reason: "withdrawn"},
		{Analyzer: "silent", SHA256: &d, Reason: "absent"},
	}
	if diff := cmp.Diff(want, a.wait(4*time.Minute)); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	if took := time.Since(begin); took > 2*time.Minute {
		t.Errorf("waited for %s", took)
	}
}

// TestNewVersionMidTask has a new version register, for another kind too, while
// the old one works: the task stays whose it was, and what comes is the new
// one's.
func TestNewVersionMidTask(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "static", schemas.KindSample)
	a := newAnalysis(t, b)
	a.artifact(schemas.KindSample, "the sample", 0)
	task := next(t, b, "static")
	r := schemas.Registration{Name: "static", Version: "2.0.0", Kinds: []schemas.Kind{schemas.KindSample, schemas.KindDropped}, Scope: schemas.ScopeArtifact}
	if err := b.Register(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	dropped := a.artifact(schemas.KindDropped, "a file", 0)
	a.event(schemas.StartAnalysis{})
	finish(t, b, task, schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "old", Title: "of the old version"}}})
	task = next(t, b, "static")
	if *task.Ref.SHA256 != dropped {
		t.Errorf("task %+v", task.Ref)
	}
	finish(t, b, task, schemas.FinishedTask{})
	if missing := a.wait(time.Minute); len(missing) != 0 {
		t.Errorf("missing: %+v", missing)
	}
	account(t, b, a)
}
