// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/faults"
	"github.com/petri-sandbox/petri/schemas"
)

func submission(priority string) schemas.Submission {
	now := time.Now()
	return schemas.Submission{
		ID: schemas.NewID(now), Tenant: "default", Profile: "amd64", Submitted: now,
		Sample: schemas.Sample{Name: priority}, Options: schemas.Options{Priority: priority},
	}
}

func submit(t *testing.T, b *bus.Bus, priority string) schemas.Submission {
	t.Helper()
	s := submission(priority)
	if err := b.Submit(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return s
}

func claim(t *testing.T, q *bus.Queue) *bus.Job {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	j, err := q.Claim(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestQueueOrder(t *testing.T) {
	t.Parallel()
	b := start(t)
	for _, p := range []string{"low", "normal", "high", "normal"} {
		submit(t, b, p)
	}
	q, err := b.Queue(t.Context(), []string{"amd64"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for range 4 {
		j := claim(t, q)
		got = append(got, j.Submission.Options.Priority)
		if err := j.Done(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"high", "normal", "normal", "low"}, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	// An idle queue wakes up when something comes.
	done := make(chan *bus.Job, 1)
	go func() {
		j, _ := q.Claim(t.Context())
		done <- j
	}()
	for _, p := range []string{"high", "normal", "low"} {
		waiting(t, b, "sbx-amd64-"+p)
	}
	s := submit(t, b, "low")
	select {
	case j := <-done:
		if j == nil || j.Submission.ID != s.ID {
			t.Errorf("claimed %+v", j)
		}
	case <-time.After(2 * time.Minute):
		t.Error("it sleeps on")
	}
}

// waiting waits until somebody waits for a consumer of the queue. The server
// tells of that only when it is asked.
func waiting(t *testing.T, b *bus.Bus, consumer string) {
	t.Helper()
	c, err := b.JetStream().Consumer(t.Context(), "JOBS", consumer)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
		info, err := c.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if info.NumWaiting > 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("nobody waits for %s", consumer)
		}
	}
}

func TestReleasedJobComesBack(t *testing.T) {
	t.Parallel()
	b := start(t)
	s := submit(t, b, "normal")
	q, err := b.Queue(t.Context(), []string{"amd64"})
	if err != nil {
		t.Fatal(err)
	}
	j := claim(t, q)
	if err := j.Release(0); err != nil {
		t.Fatal(err)
	}
	j = claim(t, q)
	// As a successor of a sandbox that died gives it back.
	if err := b.ReleaseByToken(j.ReleaseToken()); err != nil {
		t.Fatal(err)
	}
	j = claim(t, q)
	if j.Submission.ID != s.ID {
		t.Errorf("claimed %s", j.Submission.ID)
	}
	if err := b.ReleaseByToken("$JS.ACK.LOG.x"); err == nil {
		t.Error("another stream's token was taken")
	}
}

func TestSubmitChecks(t *testing.T) {
	t.Parallel()
	b := start(t)
	for name, change := range map[string]func(s *schemas.Submission){
		"priority": func(s *schemas.Submission) { s.Options.Priority = "urgent" },
		"tenant":   func(s *schemas.Submission) { s.Tenant = "a.b" },
		"id":       func(s *schemas.Submission) { s.ID = "1" },
		"profile":  func(s *schemas.Submission) { s.Profile = "*" },
	} {
		s := submission("normal")
		change(&s)
		if err := b.Submit(t.Context(), s); err == nil {
			t.Errorf("a submission with a bad %s was taken", name)
		}
	}
}

func TestFullQueue(t *testing.T) {
	t.Parallel()
	s, err := bus.StartServer(t.TempDir(), bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	b, err := s.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if err := b.Reconcile(t.Context(), bus.Limits{Log: 1 << 20, Store: 1 << 20, Jobs: 3}); err != nil {
		t.Fatal(err)
	}
	acked := map[string]bool{}
	for range 3 {
		acked[submit(t, b, "normal").ID] = true
	}
	err = b.Submit(t.Context(), submission("high"))
	var busy *bus.BusyError
	if !errors.Is(err, bus.ErrBusy) || !errors.As(err, &busy) {
		t.Fatalf("got %v", err)
	}
	if busy.Waiting != 3 || busy.Retry < time.Second || busy.Retry > 5*time.Minute {
		t.Errorf("busy: %+v", busy)
	}
	if want := "3 submissions wait or are in work; retry after 1s"; !strings.Contains(err.Error(), want) {
		t.Errorf("%q does not say %q", err, want)
	}
	figures := faults.Figures{Acked: len(acked)}
	queued := map[string]int{}
	if err := b.Queued(t.Context(), func(j bus.QueuedJob) error {
		queued[j.Submission.ID]++
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for id := range acked {
		figures.Doubled += max(0, queued[id]-1)
		if queued[id] == 0 {
			figures.Lost++
		}
	}
	if len(queued) != len(acked) {
		t.Errorf("%d submissions are queued, of %d", len(queued), len(acked))
	}
	figures.Report(t)
}

func TestCancelQueued(t *testing.T) {
	t.Parallel()
	b := start(t)
	s := submit(t, b, "normal")
	if err := b.Cancel(t.Context(), "default", s.ID, "somebody"); err != nil {
		t.Fatal(err)
	}
	entries, err := b.Context(t.Context(), "default", s.ID)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 || entries[0].Event.Name() != "analysis_submitted" || entries[1].Event.Name() != "analysis_cancelled" {
		t.Errorf("%+v", entries)
	}
	if n := messages(t, b, "JOBS"); n != 0 {
		t.Errorf("%d jobs are left", n)
	}
	if err := b.Cancel(t.Context(), "default", s.ID, "somebody"); err == nil {
		t.Error("it was cancelled twice")
	}
	if err := b.Cancel(t.Context(), "default", schemas.NewID(time.Now()), "somebody"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("an analysis that is not there: %v", err)
	}
}

// TestIdleLosesNothing has jobs of two priorities come at the same moment to who
// waits for either: both are given out at once.
func TestIdleLosesNothing(t *testing.T) {
	t.Parallel()
	b := start(t)
	q, err := b.Queue(t.Context(), []string{"amd64"})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 100 {
		var both sync.WaitGroup
		got := make(chan *bus.Job, 2)
		both.Go(func() {
			for range 2 {
				got <- claim(t, q)
			}
		})
		for _, priority := range []string{"high", "low"} {
			both.Go(func() { submit(t, b, priority) })
		}
		both.Wait()
		for range 2 {
			if err := (<-got).Done(t.Context()); err != nil {
				t.Fatalf("job %d: %v", n, err)
			}
		}
	}
}

// TestCancelRetry cancels an analysis that has failed, whose next attempt waits.
func TestCancelRetry(t *testing.T) {
	t.Parallel()
	b := start(t)
	s := submission("normal")
	s.Options.Retries = 1
	if err := b.Submit(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	w, err := b.BeginContext(t.Context(), "default", s.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range []schemas.Typed{schemas.AnalysisSubmitted{Submission: s, Attempt: 1}, schemas.AnalysisFailed{Reason: "x"}} {
		e, err := schemas.NewEvent("default", s.ID, w.NextID(), time.Now(), schemas.OriginHost, data)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Write(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Delete(t.Context(), "default", s.ID, bus.DeleteOptions{}); !errors.Is(err, bus.ErrRunning) {
		t.Errorf("delete: %v", err)
	}
	if err := b.Cancel(t.Context(), "default", s.ID, "somebody"); err != nil {
		t.Fatal(err)
	}
	entries, err := b.Context(t.Context(), "default", schemas.AttemptID(s.ID, 2))
	if err != nil || len(entries) != 2 || entries[1].Event.Name() != schemas.EventCancelled {
		t.Errorf("the second attempt: %+v, %v", entries, err)
	}
	if n := messages(t, b, "JOBS"); n != 0 {
		t.Errorf("%d jobs are left", n)
	}
	if err := b.Cancel(t.Context(), "default", s.ID, "somebody"); err == nil || !strings.Contains(err.Error(), schemas.EventFailed) {
		t.Errorf("once more: %v", err)
	}
}

func TestCancelRunning(t *testing.T) {
	t.Parallel()
	b := start(t)
	a := newAnalysis(t, b)
	a.event(schemas.Custom{Name: "running"})
	by := make(chan string, 1)
	stop, err := b.OnCancel("default", a.id, func(s string) { by <- s })
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Cancel(t.Context(), "default", a.id, "some\nbody"); err != nil {
		t.Fatal(err)
	}
	if s := <-by; s != "some body" {
		t.Errorf("by %q", s)
	}
	stop()
	// Its runner is dead: whoever cancels ends it.
	if err := b.Cancel(t.Context(), "default", a.id, "somebody"); err != nil {
		t.Fatal(err)
	}
	if n := a.names(); n[len(n)-1] != "context analysis_cancelled" {
		t.Errorf("%v", n)
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	b := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.Project(ctx, slog.New(slog.DiscardHandler))
	}()
	queued := submit(t, b, "normal")
	a := newAnalysis(t, b)
	sub := submission("low")
	sub.ID = a.id
	a.event(schemas.AnalysisSubmitted{Submission: sub, Attempt: 1})
	a.event(schemas.AnalysisCompleted{})
	var got []bus.Summary
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); {
		var err error
		if got, err = b.List(t.Context(), "default", 0); err != nil {
			t.Fatal(err)
		}
		if len(got) == 2 && got[1].Ended {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if len(got) != 2 || got[0].Analysis != queued.ID || got[0].Status != "queued" || got[1].Status != "analysis_completed" || got[1].Sample.Name != "low" {
		t.Errorf("%+v", got)
	}
	cancel()
	<-done
}

// TestLease has a worker that stood still while its lease ran out, and somebody
// else took it.
func TestLease(t *testing.T) {
	t.Parallel()
	b := start(t)
	b.SetLeaseEvery(50 * time.Millisecond)
	id := schemas.NewID(time.Now())
	hold := func(worker string) (lost chan error, release func()) {
		ctx, cancel := context.WithCancel(t.Context())
		lost = make(chan error, 1)
		go func() { lost <- b.HoldLease(ctx, id, worker) }()
		return lost, cancel
	}
	holder := func(want string) {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
			l, err := b.Leased(t.Context(), id)
			if err == nil && l.Worker == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("the lease is %+v, %v, not %s's", l, err, want)
			}
		}
	}
	first, _ := hold("first")
	holder("first")
	second, _ := hold("second")
	if err := <-second; !errors.Is(err, bus.ErrFenced) {
		t.Errorf("a lease that is held was taken: %v", err)
	}
	kv, err := b.JetStream().KeyValue(t.Context(), "LEASE")
	if err != nil {
		t.Fatal(err)
	}
	// It runs out, and somebody else is faster.
	if _, err := kv.Put(t.Context(), id, []byte(`{"worker":"third"}`)); err != nil {
		t.Fatal(err)
	}
	if err := <-first; !errors.Is(err, bus.ErrFenced) {
		t.Errorf("the first one did not notice: %v", err)
	}
	holder("third")
	// A sandbox that died comes back for what is its own, and gives it free.
	third, release := hold("third")
	time.Sleep(200 * time.Millisecond)
	holder("third")
	release()
	if err := <-third; err != nil {
		t.Error(err)
	}
	if l, err := b.Leased(t.Context(), id); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("the lease is still %+v, %v", l, err)
	}
}

// TestClaimUntil has a claim that may last for a short time end with that time,
// and with nothing else.
func TestClaimUntil(t *testing.T) {
	t.Parallel()
	b := start(t)
	q, err := b.Queue(t.Context(), []string{"amd64"})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []time.Duration{time.Millisecond, 10 * time.Millisecond, 300 * time.Millisecond, 3 * time.Second} {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		if _, err := q.Claim(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %s: %v", d, err)
		}
		cancel()
	}
	// It takes what comes while there is time.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	sent := make(chan error, 1)
	time.AfterFunc(300*time.Millisecond, func() { sent <- b.Submit(ctx, submission("normal")) })
	if _, err := q.Claim(ctx); err != nil {
		t.Errorf("a job came while there was time: %v", err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}
