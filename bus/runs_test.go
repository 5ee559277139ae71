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
				_ = task.Done(ctx)
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
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
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
