// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// TestAttempts gives tasks back because whoever has them is stopped, more often
// than a task is tried, and dies of them: only that counts.
func TestAttempts(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "static", schemas.KindSample)
	register(t, b, "whole")
	a := newAnalysis(t, b)
	a.artifact(schemas.KindSample, "the sample", 0)
	a.event(schemas.StartAnalysis{})
	for _, analyzer := range []string{"static", "whole"} {
		take := func(attempt int) *bus.Task {
			t.Helper()
			task := next(t, b, analyzer)
			if task.Attempt != attempt {
				t.Fatalf("attempt %d of %s is %d", attempt, analyzer, task.Attempt)
			}
			return task
		}
		begin := func(attempt int) *bus.Task {
			t.Helper()
			task := take(attempt)
			if err := task.Begin(t.Context()); err != nil {
				t.Fatal(err)
			}
			return task
		}
		stop := func(task *bus.Task) {
			t.Helper()
			if err := task.Return(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		die := func(task *bus.Task) {
			t.Helper()
			if err := task.Retry(time.Millisecond); err != nil { // as if its time were up
				t.Fatal(err)
			}
		}
		stop(take(1)) // before it began
		for range 3 {
			stop(begin(1))
		}
		die(begin(1))
		stop(begin(2))
		stop(take(2))
		die(begin(2))
		die(begin(3))
		stop(take(4))
		finish(t, b, begin(4), schemas.FinishedTask{})
	}
	drained(t, b)
	if missing := a.wait(time.Minute); len(missing) > 0 {
		t.Errorf("missing: %+v", missing)
	}
	account(t, b, a)
}

// TestAttemptsUnknown has a server that does not count attempts, as an older one
// has not: every delivery is taken for one, and none is kept from work.
func TestAttemptsUnknown(t *testing.T) {
	t.Parallel()
	b := start(t)
	if err := b.JetStream().DeleteKeyValue(t.Context(), "ATTEMPTS"); err != nil {
		t.Fatal(err)
	}
	register(t, b, "static", schemas.KindSample)
	a := newAnalysis(t, b)
	a.artifact(schemas.KindSample, "the sample", 0)
	task := next(t, b, "static")
	if err := task.Return(t.Context()); err == nil {
		t.Error("what cannot be counted was")
	}
	if task = next(t, b, "static"); task.Attempt != 2 {
		t.Errorf("attempt 2 is %d", task.Attempt)
	}
	if err := task.Begin(t.Context()); err == nil {
		t.Error("what cannot be counted was")
	}
}
