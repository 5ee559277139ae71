// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// drive runs a driver of runs until the returned function is called.
func drive(t *testing.T, b *bus.Bus) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.DriveRuns(ctx, slog.New(slog.NewTextHandler(t.Output(), nil)))
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(stop)
	return stop
}

// past makes n analyses that have ended, each with one sample of its own.
func past(t *testing.T, b *bus.Bus, n int) []*analysis {
	t.Helper()
	var out []*analysis
	for i := range n {
		a := newAnalysis(t, b)
		a.event(schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: a.id, Tenant: "default"}, Attempt: 1})
		a.artifact(schemas.KindSample, fmt.Sprintf("sample %d", i), 0)
		a.event(schemas.StartAnalysis{})
		a.event(schemas.AnalysisCompleted{Missing: []schemas.MissingTask{}})
		out = append(out, a)
	}
	return out
}

// work answers an analyzer's tasks, each with one finding, until the returned
// function is called. Before an answer it calls before, unless that is nil.
func work(t *testing.T, b *bus.Bus, analyzer string, before func(n int64, task *bus.Task) error) (stop func(), taken *atomic.Int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	taken = new(atomic.Int64)
	heartbeat := make(chan struct{})
	go func() {
		defer close(heartbeat)
		b.Heartbeat(ctx, analyzer, "one", "1.0.0")
	}()
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			task, err := b.NextTask(ctx, analyzer)
			if err != nil {
				continue
			}
			n := taken.Add(1)
			if before != nil && before(n, task) != nil {
				return // killed: neither handed in nor given back
			}
			f := schemas.FinishedTask{
				Task: task.Ref, Version: "1.0.0", Instance: "one", Status: schemas.TaskDone,
				Findings: []schemas.Finding{{Kind: "seen", Title: "seen", Severity: schemas.SeverityHigh}},
			}
			if err := b.Finish(ctx, f); err == nil {
				_ = task.Done()
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
		<-heartbeat
	})
	t.Cleanup(stop)
	return stop, taken
}

func startRun(t *testing.T, b *bus.Bus, r schemas.RunState) string {
	t.Helper()
	r.Tenant = "default"
	r, err := b.StartRun(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return r.Run
}

// until waits for a state of a run for which ok is true.
func until(t *testing.T, b *bus.Bus, run string, ok func(schemas.RunState) bool) schemas.RunState {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var last schemas.RunState
	met := false
	err := b.WatchRun(ctx, run, func(r schemas.RunState) error {
		if last = r; ok(r) {
			met = true
			return bus.ErrStop
		}
		return nil
	})
	if err != nil || !met {
		t.Fatalf("the run stands at %+v (%v)", last, err)
	}
	return last
}

func overAndDone(r schemas.RunState) bool { return r.Ended() }

// answers counts what a run has written about an analysis.
func (a *analysis) answers(run string) (findings, receipts int) {
	a.t.Helper()
	err := a.b.Read(context.Background(), "default", a.id, 0, func(e bus.Entry) error {
		switch e.Event.Family() {
		case "finding":
			var f schemas.FindingCommitted
			if err := e.Event.Decode(&f); err != nil {
				return err
			}
			if f.Task.Run == run {
				findings++
				if want := ".refinding.high."; run != schemas.LiveRun && !strings.Contains(e.Subject, want) {
					a.t.Errorf("a finding of %s under %s", run, e.Subject)
				}
			}
		case "receipt":
			var r schemas.Receipt
			if err := e.Event.Decode(&r); err != nil {
				return err
			}
			if r.Task.Run == run {
				receipts++
			}
		}
		return nil
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return findings, receipts
}

// TestHunt lets an analyzer that nobody knew when the analyses ran loose on
// them, kills it twice and the driver once, and wants each finding once.
func TestHunt(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	list := past(t, b, 12)
	register(t, b, "late", schemas.KindSample)
	live, err := b.JetStream().CreateOrUpdateConsumer(t.Context(), "LOG", jetstream.ConsumerConfig{
		Durable: "a-siem", FilterSubject: "petri.*.*.finding.>", AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := drive(t, b)
	run := startRun(t, b, schemas.RunState{Analyzers: []string{"late"}, Parallel: 4})
	killed := errors.New("killed")
	for _, after := range []int64{3, 2} {
		dead := make(chan struct{})
		end, _ := work(t, b, "late", func(n int64, _ *bus.Task) error {
			if n == after {
				close(dead)
				return killed
			}
			return nil
		})
		<-dead
		end()
		stop()
		stop = drive(t, b)
	}
	work(t, b, "late", nil)
	r := until(t, b, run, overAndDone)
	if r.State != schemas.RunDone || r.Total != 12 || r.Done != 12 || r.Analyses != 12 || r.Failed+r.Skipped+r.Gone != 0 {
		t.Errorf("the run ended as %+v", r)
	}
	for _, a := range list {
		if f, n := a.answers(run); f != 1 || n != 1 {
			t.Errorf("%s has %d findings and %d receipts of the run", a.id, f, n)
		}
		if f, n := a.answers(schemas.LiveRun); f+n != 0 {
			t.Errorf("%s has %d live findings and %d live receipts", a.id, f, n)
		}
	}
	info, err := live.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.NumPending != 0 {
		t.Errorf("whoever follows findings sees %d of the run", info.NumPending)
	}
	if n := messages(t, b, "RUNS"); n != 0 {
		t.Errorf("%d messages are left in the queue of runs", n)
	}
}

// TestPauseResumeCancel steers a run that gives out one task at a time.
func TestPauseResumeCancel(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	past(t, b, 6)
	register(t, b, "late", schemas.KindSample)
	drive(t, b)
	third, on := make(chan struct{}), make(chan struct{})
	_, taken := work(t, b, "late", func(n int64, _ *bus.Task) error {
		if n == 3 {
			close(third)
			<-on
		}
		return nil
	})
	run := startRun(t, b, schemas.RunState{Analyzers: []string{"late"}, Parallel: 2})
	<-third
	if err := b.OrderRun(t.Context(), run, bus.OrderPause); err != nil {
		t.Fatal(err)
	}
	if n := messages(t, b, "RUNS"); n != 1 {
		t.Errorf("%d messages wait in the queue of a paused run, beside the run itself", n-1)
	}
	close(on) // what is in work is finished, also while the run is paused
	r := until(t, b, run, func(r schemas.RunState) bool { return r.Done == 3 })
	if r.State != schemas.RunPaused || taken.Load() != 3 {
		t.Errorf("%d tasks were taken; the run stands at %+v", taken.Load(), r)
	}
	if err := b.OrderRun(t.Context(), run, bus.OrderResume); err != nil {
		t.Fatal(err)
	}
	if r := until(t, b, run, overAndDone); r.State != schemas.RunDone || r.Done != 6 {
		t.Errorf("the run ended as %+v", r)
	}
	if err := b.OrderRun(t.Context(), run, bus.OrderCancel); err == nil {
		t.Error("a run that has ended was cancelled")
	}

	slow := startRun(t, b, schemas.RunState{Analyzers: []string{"late"}, Rate: 0.01})
	until(t, b, slow, func(r schemas.RunState) bool { return r.Done == 1 })
	if err := b.OrderRun(t.Context(), slow, bus.OrderCancel); err != nil {
		t.Fatal(err)
	}
	if r := until(t, b, slow, overAndDone); r.State != schemas.RunCancelled || r.Done != 1 {
		t.Errorf("the run ended as %+v", r)
	}
}

// TestPauseListing pauses a run while its list is made, and kills the driver when
// it has said ok: the next one knows.
func TestPauseListing(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	past(t, b, 2)
	register(t, b, "late", schemas.KindSample)
	run := startRun(t, b, schemas.RunState{Analyzers: []string{"late"}})
	order := func(order string) func() error {
		return func() error { return b.OrderRun(t.Context(), run, order) }
	}
	if err := b.DieListing(t.Context(), run, order(bus.OrderPause)); err != nil {
		t.Fatal(err)
	}
	drive(t, b)
	r := until(t, b, run, func(r schemas.RunState) bool { return r.State != schemas.RunListing })
	if r.State != schemas.RunPaused || r.Total != 2 || r.Hold {
		t.Errorf("the run stands at %+v", r)
	}
	if n := messages(t, b, "RUNS"); n != 1 {
		t.Errorf("%d tasks of a paused run were given out", n-1)
	}
	work(t, b, "late", nil)
	if err := order(bus.OrderResume)(); err != nil {
		t.Fatal(err)
	}
	if r := until(t, b, run, overAndDone); r.State != schemas.RunDone || r.Done != 2 {
		t.Errorf("the run ended as %+v", r)
	}
}

// TestDeleteDuringHunt takes analyses away while a hunt goes over them: their
// tasks count as gone, and the hunt ends.
func TestDeleteDuringHunt(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	list := past(t, b, 5)
	register(t, b, "late", schemas.KindSample)
	drive(t, b)
	first, on := make(chan struct{}), make(chan struct{})
	work(t, b, "late", func(n int64, _ *bus.Task) error {
		if n == 1 {
			close(first)
			<-on
		}
		return nil
	})
	// One is in work, one was given out, and one is only listed.
	run := startRun(t, b, schemas.RunState{Analyzers: []string{"late"}, Parallel: 2})
	<-first
	for _, i := range []int{0, 1, 4} {
		if _, err := b.Delete(t.Context(), "default", list[i].id, bus.DeleteOptions{By: "test"}); err != nil {
			t.Fatal(err)
		}
	}
	close(on)
	r := until(t, b, run, overAndDone)
	if r.State != schemas.RunDone || r.Done != 2 || r.Gone != 3 {
		t.Errorf("the run ended as %+v", r)
	}
	for _, i := range []int{0, 1, 4} {
		if n := inLog(t, b, list[i].id); n > 0 {
			t.Errorf("%s was deleted, and the log has %d messages of it", list[i].id, n)
		}
	}
	account(t, b, list[2], list[3])
}

// TestRunWaits hunts with an analyzer that is not there: the run says so, and
// goes on when it comes.
func TestRunWaits(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	past(t, b, 2)
	register(t, b, "late", schemas.KindSample)
	drive(t, b)
	run := startRun(t, b, schemas.RunState{Analyzers: []string{"late"}})
	r := until(t, b, run, func(r schemas.RunState) bool { return r.Waiting != "" })
	if r.State != schemas.RunRunning || !strings.Contains(r.Waiting, "analyzer late is not running") {
		t.Errorf("the run stands at %+v", r)
	}
	work(t, b, "late", nil)
	if r := until(t, b, run, overAndDone); r.Done != 2 || r.Waiting != "" {
		t.Errorf("the run ended as %+v", r)
	}
	none := startRun(t, b, schemas.RunState{Analyzers: []string{"nobody"}})
	if r := until(t, b, none, overAndDone); r.State != schemas.RunFailed || !strings.Contains(r.Error, "nobody is not registered") {
		t.Errorf("a run of nobody ended as %+v", r)
	}
}

// TestRunOfScope replays an analyzer over an analysis, and one over its
// artifacts, in one run; nothing that comes of it reaches who is live.
func TestRunOfScope(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	list := past(t, b, 2)
	register(t, b, "whole")
	register(t, b, "late", schemas.KindSample)
	register(t, b, "live", schemas.KindDropped)
	drive(t, b)
	run := startRun(t, b, schemas.RunState{Analyzers: []string{"whole", "late"}, Analysis: list[0].id})
	task := next(t, b, "whole")
	if task.Ref.Run != run || task.Ref.SHA256 != nil || len(task.Artifacts) != 1 {
		t.Errorf("the task over the analysis is %+v with %d artifacts", task.Ref, len(task.Artifacts))
	}
	finish(t, b, task, schemas.FinishedTask{})
	task = next(t, b, "late")
	inner, n, err := b.Upload(t.Context(), "late", "upload", strings.NewReader("inner"))
	if err != nil {
		t.Fatal(err)
	}
	finish(t, b, task, schemas.FinishedTask{Derived: []schemas.Derived{{Kind: schemas.KindDropped, SHA256: inner, Size: n}}})
	if r := until(t, b, run, overAndDone); r.Total != 2 || r.Done != 2 {
		t.Errorf("the run ended as %+v", r)
	}
	want := []string{
		"context analysis_submitted", "artifact announced", "context start_analysis", "context analysis_completed",
		"receipt committed", "derivation committed", "receipt committed",
	}
	if diff := cmp.Diff(want, list[0].names()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	if f, n := list[1].answers(run); f+n != 0 {
		t.Errorf("the other analysis has %d findings and %d receipts", f, n)
	}
}

// TestClerkChecksRuns hands in what no run has listed.
func TestClerkChecksRuns(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	list := past(t, b, 2)
	register(t, b, "late", schemas.KindSample)
	register(t, b, "other", schemas.KindSample)
	drive(t, b)
	run := startRun(t, b, schemas.RunState{Analyzers: []string{"late"}, Analysis: list[0].id})
	mine := next(t, b, "late").Ref
	not := schemas.Sum([]byte("not there"))
	for name, change := range map[string]func(*schemas.TaskRef){
		"another's run":      func(r *schemas.TaskRef) { r.Analyzer = "other" },
		"no run":             func(r *schemas.TaskRef) { r.Run = "r-" + schemas.NewID(time.Now()) },
		"another analysis":   func(r *schemas.TaskRef) { r.Analysis = list[1].id },
		"another artifact":   func(r *schemas.TaskRef) { r.SHA256 = &not },
		"no artifact at all": func(r *schemas.TaskRef) { r.SHA256, r.Kind = nil, "" },
	} {
		ref := mine
		change(&ref)
		handIn(t, b, ref, name, schemas.FinishedTask{})
	}
	drained(t, b)
	await(t, b, "DEAD", 5)
	for _, a := range list {
		if f, n := a.answers(run); f+n != 0 {
			t.Errorf("%s has %d findings and %d receipts of the run", a.id, f, n)
		}
	}
}

// TestAdopt adopts a run: once, and not in an analysis that goes on.
func TestAdopt(t *testing.T) {
	t.Parallel()
	b := start(t)
	a := past(t, b, 1)[0]
	run := "r-" + schemas.NewID(time.Now())
	for i, want := range []bool{true, false} {
		if got, err := b.Adopt(t.Context(), "default", a.id, run, "some\nbody"); got != want || err != nil {
			t.Errorf("time %d: %v, %v", i, got, err)
		}
	}
	if names := a.names(); names[len(names)-1] != "context run_adopted" || len(names) != 5 {
		t.Errorf("the log is %v", names)
	}
	if got, err := b.Adopt(t.Context(), "default", a.id, schemas.LiveRun, "test"); !got || err != nil {
		t.Errorf("back to the live one: %v, %v", got, err)
	}
	goes := newAnalysis(t, b)
	goes.event(schemas.AnalysisSubmitted{})
	if _, err := b.Adopt(t.Context(), "default", goes.id, run, "test"); !errors.Is(err, bus.ErrNotEnded) {
		t.Errorf("in an analysis that goes on: %v", err)
	}
	if _, err := b.Adopt(t.Context(), "default", schemas.NewID(time.Now()), run, "test"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("in an analysis that is not there: %v", err)
	}
}

// TestHuntArchive hunts over analyses that have left the log, and adopts.
func TestHuntArchive(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	list := past(t, b, 3)
	x := bus.NewArchiver(b, bus.ArchiverOptions{After: time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	x.SetLate(0)
	for inLog(t, b, list[0].id)+inLog(t, b, list[1].id)+inLog(t, b, list[2].id) > 0 {
		if _, err := x.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	register(t, b, "late", schemas.KindSample)
	register(t, b, "whole")
	drive(t, b)
	work(t, b, "late", nil)
	work(t, b, "whole", nil)
	run := startRun(t, b, schemas.RunState{Analyzers: []string{"late", "whole"}})
	if r := until(t, b, run, overAndDone); r.Total != 6 || r.Done != 6 {
		t.Errorf("the run ended as %+v", r)
	}
	if r := until(t, b, startRun(t, b, schemas.RunState{Analyzers: []string{"late"}, Imported: true}), overAndDone); r.Total != 0 || r.State != schemas.RunDone {
		t.Errorf("a hunt over imported analyses ended as %+v", r)
	}
	for _, a := range list {
		if f, n := a.answers(run); f != 2 || n != 2 {
			t.Errorf("%s has %d findings and %d receipts of the run", a.id, f, n)
		}
		if done, err := b.Adopt(t.Context(), "default", a.id, run, "test"); !done || err != nil {
			t.Errorf("adopt: %v, %v", done, err)
		}
		if done, err := b.Adopt(t.Context(), "default", a.id, run, "test"); done || err != nil {
			t.Errorf("adopt again: %v, %v", done, err)
		}
	}
}

// TestRunSince lists only what was submitted from a time on.
func TestRunSince(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	past(t, b, 2)
	<-time.After(5 * time.Millisecond) // an id tells milliseconds
	since := time.Now()
	past(t, b, 1)
	register(t, b, "late", schemas.KindSample)
	drive(t, b)
	work(t, b, "late", nil)
	if r := until(t, b, startRun(t, b, schemas.RunState{Analyzers: []string{"late"}, Since: since}), overAndDone); r.Total != 1 || r.Done != 1 {
		t.Errorf("the run ended as %+v", r)
	}
}

// TestRunListedLate lets a driver that was taken for dead go on listing while
// another one drives the run: what that one has listed stays as it is.
func TestRunListedLate(t *testing.T) {
	t.Parallel()
	died := errors.New("died")
	dies := func(at string) func(string) error {
		return func(step string) error {
			if step == at {
				return died
			}
			return nil
		}
	}
	t.Run("cleared", func(t *testing.T) {
		t.Parallel()
		b := start(t)
		clerk(t, b)
		past(t, b, 2)
		register(t, b, "late", schemas.KindSample)
		run := startRun(t, b, schemas.RunState{Analyzers: []string{"late"}})
		work(t, b, "late", nil)
		err := b.DriveDying(t.Context(), run, func(step string) error {
			if step != "clear the list" {
				return dies("list a piece")(step)
			}
			if err := b.DriveDying(t.Context(), run, dies("end a piece")); !errors.Is(err, died) {
				t.Errorf("the rival has listed the run and ends with %v", err)
			}
			return nil
		})
		if !errors.Is(err, died) {
			t.Errorf("the late driver has cleared the list and ends with %v", err)
		}
		drive(t, b)
		if r := until(t, b, run, overAndDone); r.State != schemas.RunDone || r.Total != 2 || r.Done != 2 {
			t.Errorf("the run ended as %+v", r)
		}
	})
	t.Run("written", func(t *testing.T) {
		t.Parallel()
		b := start(t)
		clerk(t, b)
		a := past(t, b, 1)[0]
		register(t, b, "late", schemas.KindSample)
		run := startRun(t, b, schemas.RunState{Analyzers: []string{"late"}})
		work(t, b, "late", nil)
		err := b.DriveDying(t.Context(), run, func(step string) error {
			if step != "list a piece" {
				return nil
			}
			if err := b.DriveDying(t.Context(), run, dies("")); err != nil {
				t.Errorf("the rival ends with %v", err)
			}
			_, err := b.Delete(t.Context(), "default", a.id, bus.DeleteOptions{By: "test"})
			return err
		})
		if !errors.Is(err, bus.ErrFenced) {
			t.Errorf("the late driver ends with %v", err)
		}
		if list := listOf(t, b, run, a.id); strings.Contains(list, schemas.Sum([]byte("sample 0")).String()) {
			t.Errorf("the list has the sample of a deleted analysis: %s", list)
		}
	})
}

// TestRunEndsOfDeleted deletes an analysis when all of it is answered, right
// before the driver writes so into the list: names of it do not come back.
func TestRunEndsOfDeleted(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	a := past(t, b, 1)[0]
	register(t, b, "late", schemas.KindSample)
	run := startRun(t, b, schemas.RunState{Analyzers: []string{"late"}})
	work(t, b, "late", nil)
	err := b.DriveDying(t.Context(), run, func(step string) error {
		if step != "end a piece" {
			return nil
		}
		_, err := b.Delete(t.Context(), "default", a.id, bus.DeleteOptions{By: "test"})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := b.Run(t.Context(), run); err != nil || r.State != schemas.RunDone || r.Total != 1 || r.Done+r.Gone != 1 {
		t.Errorf("the run ended as %+v (%v)", r, err)
	}
	if list := listOf(t, b, run, a.id); strings.Contains(list, schemas.Sum([]byte("sample 0")).String()) {
		t.Errorf("the list has the sample of a deleted analysis: %s", list)
	}
}

// listOf returns the first piece of an analysis in a run's list, as it is stored.
func listOf(t *testing.T, b *bus.Bus, run, analysis string) string {
	t.Helper()
	kv, err := b.JetStream().KeyValue(t.Context(), "RUNS")
	if err != nil {
		t.Fatal(err)
	}
	e, err := kv.Get(t.Context(), run+"."+analysis+".0")
	if err != nil {
		t.Fatal(err)
	}
	return string(e.Value())
}
