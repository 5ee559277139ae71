// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"crypto/ed25519"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// traces counts what the log has of runs in an analysis: findings and receipts by
// run.
func (a *analysis) traces() map[string][2]int {
	a.t.Helper()
	out := map[string][2]int{}
	err := a.b.Read(a.t.Context(), "default", a.id, 0, func(e bus.Entry) error {
		var f schemas.FindingCommitted
		var r schemas.Receipt
		switch e.Event.Family() {
		case "finding":
			if err := e.Event.Decode(&f); err != nil {
				return err
			}
			n := out[f.Task.Run]
			out[f.Task.Run] = [2]int{n[0] + 1, n[1]}
		case "receipt":
			if err := e.Event.Decode(&r); err != nil {
				return err
			}
			n := out[r.Task.Run]
			out[r.Task.Run] = [2]int{n[0], n[1] + 1}
		}
		return nil
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return out
}

func runIDs(t *testing.T, b *bus.Bus) []string {
	t.Helper()
	list, err := b.Runs(t.Context(), "default")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range list {
		out = append(out, r.Run)
	}
	return out
}

// TestForgetRun forgets runs, the newer before the older: in the end nothing is
// left of them, and everything of the others.
func TestForgetRun(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	drive(t, b)
	register(t, b, "static", schemas.KindSample)
	work(t, b, "static", nil)
	as := past(t, b, 3)
	hunt := func() string {
		run := startRun(t, b, schemas.RunState{Analyzers: []string{"static"}, Force: true})
		until(t, b, run, func(r schemas.RunState) bool { return r.Ended() })
		return run
	}
	one, two, three := hunt(), hunt(), hunt()
	check := func(when string, want map[string][2]int, runs ...string) {
		t.Helper()
		for _, a := range as {
			if diff := cmp.Diff(want, a.traces()); diff != "" {
				t.Errorf("%s, the log has of %s (-want +got):\n%s", when, a.id, diff)
			}
		}
		slices.Sort(runs)
		slices.Reverse(runs) // the newest first
		if diff := cmp.Diff(runs, runIDs(t, b)); diff != "" {
			t.Errorf("%s, the runs are (-want +got):\n%s", when, diff)
		}
	}
	all := map[string][2]int{"live": {1, 1}, one: {1, 1}, two: {1, 1}, three: {1, 1}}
	check("at first", all, one, two, three)

	if err := b.ForgetRun(t.Context(), two); err != nil {
		t.Fatal(err)
	}
	want := maps.Clone(all)
	want[two] = [2]int{1, 0} // behind an older run's of the same subject
	check("without the second", want, one, three)
	if err := b.ForgetRun(t.Context(), two); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("forget it again: %v", err)
	}
	if err := b.ForgetRun(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	delete(want, one)
	delete(want, two)
	check("without the first", want, three)

	// An answer that comes too late is not taken.
	d := schemas.Sum([]byte("sample 0"))
	ref := schemas.TaskRef{Tenant: "default", Analysis: as[0].id, Run: one, Analyzer: "static", SHA256: &d, Kind: schemas.KindSample}
	handIn(t, b, ref, "late", schemas.FinishedTask{})
	drained(t, b)
	check("and a late answer", want, three)

	if _, err := b.Adopt(t.Context(), "default", as[1].id, three, "somebody"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Adopt(t.Context(), "default", as[1].id, schemas.LiveRun, "somebody"); err != nil {
		t.Fatal(err)
	}
	if err := b.ForgetRun(t.Context(), three); !errors.Is(err, bus.ErrAdopted) {
		t.Errorf("forget a run that was adopted once: %v", err)
	}
	check("with an adopted one", want, three)
}

// TestForgetRunArchived finds the adoption also where the analysis was moved to
// the archive since.
func TestForgetRunArchived(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	drive(t, b)
	register(t, b, "static", schemas.KindSample)
	stop, _ := work(t, b, "static", nil)
	a := past(t, b, 1)[0]
	run := startRun(t, b, schemas.RunState{Analyzers: []string{"static"}})
	until(t, b, run, func(r schemas.RunState) bool { return r.Ended() })
	stop()
	if _, err := b.Adopt(t.Context(), "default", a.id, run, "somebody"); err != nil {
		t.Fatal(err)
	}
	if err := archiver(b).Archive(t.Context(), "default", a.id); err != nil {
		t.Fatal(err)
	}
	if err := b.ForgetRun(t.Context(), run); !errors.Is(err, bus.ErrAdopted) {
		t.Errorf("forget: %v", err)
	}
}

// TestForgetRunRunning refuses what goes on.
func TestForgetRunRunning(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	drive(t, b)
	register(t, b, "static", schemas.KindSample)
	a := past(t, b, 1)[0]
	run := startRun(t, b, schemas.RunState{Analyzers: []string{"static"}})
	until(t, b, run, func(r schemas.RunState) bool { return r.State == schemas.RunRunning })
	if err := b.ForgetRun(t.Context(), run); !errors.Is(err, bus.ErrRunning) {
		t.Errorf("forget a run that goes on: %v", err)
	}
	if err := b.OrderRun(t.Context(), run, bus.OrderCancel); err != nil {
		t.Fatal(err)
	}
	until(t, b, run, func(r schemas.RunState) bool { return r.Ended() })
	if err := b.ForgetRun(t.Context(), run); err != nil {
		t.Errorf("forget a cancelled run: %v", err)
	}
	if got := runIDs(t, b); len(got) != 0 {
		t.Errorf("%v are left", got)
	}
	if got := a.traces(); len(got) != 0 {
		t.Errorf("the log has %v", got)
	}
}

// TestForgetRunSigned keeps what a signature is over.
func TestForgetRunSigned(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	drive(t, b)
	register(t, b, "static", schemas.KindSample)
	work(t, b, "static", nil)
	a := past(t, b, 1)[0]
	run := startRun(t, b, schemas.RunState{Analyzers: []string{"static"}, Force: true})
	until(t, b, run, func(r schemas.RunState) bool { return r.Ended() })
	if err := b.NewSigner(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), "default", a.id).Sign(t.Context(), schemas.EventCompleted); err != nil {
		t.Fatal(err)
	}
	if err := b.ForgetRun(t.Context(), run); err == nil || !strings.Contains(err.Error(), "is signed with") {
		t.Errorf("forget: %v", err)
	}
	if got := a.traces()[run]; got != [2]int{1, 1} {
		t.Errorf("the log has %v", got)
	}
}

// TestForgetUnacknowledged forgets a run whose last driver died between its end
// and taking it out of the queue: nobody begins it anew.
func TestForgetUnacknowledged(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	past(t, b, 1)
	register(t, b, "late", schemas.KindSample)
	run := startRun(t, b, schemas.RunState{Analyzers: []string{"late"}})
	work(t, b, "late", nil)
	if err := b.DriveDying(t.Context(), run, func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := b.ForgetRun(t.Context(), run); err != nil {
		t.Fatal(err)
	}
	if r, err := b.Run(t.Context(), run); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("a forgotten run stands at %+v (%v)", r, err)
	}
}
