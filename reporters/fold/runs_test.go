// SPDX-License-Identifier: Apache-2.0

package fold_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/schemas"
)

const (
	runA = "r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA"
	runB = "r-01M7WZ5Q0E8T1V4RZ9C3K6XNBB"
)

// rerun is what a run would have answered: every live answer of the log again,
// with findings of another title. Those for which failed is true fail.
func rerun(t testing.TB, list []schemas.Event, run string, failed func(schemas.TaskRef) bool) []schemas.Event {
	t.Helper()
	var out []schemas.Event
	add := func(old schemas.Event, data schemas.Typed) {
		e, err := schemas.NewEvent(old.Tenant, old.Analysis, fmt.Sprintf("%s/%s", old.ID, run), old.Time, schemas.OriginHost, data)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	for _, e := range list {
		var f schemas.FindingCommitted
		var r schemas.Receipt
		switch {
		case e.Decode(&f) == nil && f.Task.Run == schemas.LiveRun:
			if f.Task.Run, f.Finding.Title = run, run+": "+f.Finding.Title; !failed(f.Task) {
				add(e, f)
			}
		case e.Decode(&r) == nil && r.Task.Run == schemas.LiveRun:
			if r.Task.Run, r.Version = run, "2.0.0"; failed(r.Task) {
				r.Status, r.Findings, r.Result = schemas.TaskFailed, 0, nil
			}
			add(e, r)
		}
	}
	return out
}

func never(schemas.TaskRef) bool { return false }

// adopted appends the adoption of runs to a log.
func adopted(t testing.TB, list []schemas.Event, runs ...string) []schemas.Event {
	t.Helper()
	n := 0
	for _, e := range list {
		if e.Family() == "context" {
			n++
		}
	}
	out := slices.Clone(list)
	for i, run := range runs {
		out = append(out, contextEvent(t, list, n+i, schemas.RunAdopted{Run: run, By: "somebody"}))
	}
	return out
}

// byRun counts a report's findings by the run that they are of.
func byRun(r *schemas.Report) map[string]int {
	out := map[string]int{}
	for _, f := range r.Findings {
		out[f.Run]++
	}
	return out
}

// TestAdoptedRuns folds logs with two runs: none counts until it is adopted,
// and then the newest adopted one, where it has not failed.
func TestAdoptedRuns(t *testing.T) {
	live := events(t, "completed")
	before := folded(t, live)
	static := func(r schemas.TaskRef) bool { return r.Analyzer == "static" }
	list := slices.Concat(live, rerun(t, live, runA, never), rerun(t, live, runB, static))
	all := len(before.Findings)
	behavior := 0
	for _, f := range before.Findings {
		if f.Analyzer == "behavior" {
			behavior++
		}
	}
	for _, tt := range []struct {
		name string
		runs []string
		want map[string]int
	}{
		{"none", nil, map[string]int{"": all}},
		{"one", []string{runA}, map[string]int{runA: all}},
		{"one that failed at some", []string{runB}, map[string]int{"": all - behavior, runB: behavior}},
		{"the newer over the older", []string{runA, runB}, map[string]int{runA: all - behavior, runB: behavior}},
		{"the older again", []string{runA, runB, runA}, map[string]int{runA: all}},
		{"back to the live one", []string{runA, schemas.LiveRun}, map[string]int{"": all}},
		{"one that the log does not have", []string{"r-01M7WZ5Q0E8T1V4RZ9C3K6XNBC"}, map[string]int{"": all}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := folded(t, adopted(t, list, tt.runs...))
			if diff := cmp.Diff(tt.want, byRun(r)); diff != "" {
				t.Errorf("findings by run (-want +got):\n%s", diff)
			}
			if r.Outcome.Value != schemas.OutcomeCompleted {
				t.Errorf("the outcome is %s: %q", r.Outcome.Value, r.Outcome.Reasons)
			}
			if len(r.History) != 1+len(tt.runs) || r.History[0].Event != schemas.EventCompleted {
				t.Errorf("the history is %+v", r.History)
			}
			for i, run := range tt.runs {
				if h := r.History[i+1]; h.Run != run || h.By != "somebody" || h.Findings != all {
					t.Errorf("entry %d of the history is %+v", i+1, h)
				}
			}
			sound(t, r)
		})
	}
}

// TestRunFillsGap adopts a run that answers what nobody did while the analysis
// went on.
func TestRunFillsGap(t *testing.T) {
	whole := events(t, "completed")
	answers := rerun(t, whole, runA, never)
	live := without(whole, func(e schemas.Event) bool {
		var r schemas.Receipt
		var f schemas.FindingCommitted
		return e.Decode(&r) == nil && r.Task.Analyzer == "behavior" || e.Decode(&f) == nil && f.Task.Analyzer == "behavior"
	})
	live = edit(t, live, func(d *schemas.AnalysisCompleted) {
		var trace *schemas.Digest
		for _, a := range folded(t, whole).Analyzers {
			if a.Analyzer == "behavior" {
				trace = a.SHA256
			}
		}
		d.Missing = []schemas.MissingTask{{Analyzer: "behavior", SHA256: trace, Reason: "absent"}}
	})
	if r := folded(t, live); r.Outcome.Value != schemas.OutcomeIncomplete {
		t.Fatalf("before the run the outcome is %s", r.Outcome.Value)
	}
	r := folded(t, adopted(t, slices.Concat(live, answers), runA))
	if r.Outcome.Value != schemas.OutcomeCompleted || len(r.Processes) == 0 {
		t.Errorf("with the run the outcome is %s (%q), with %d processes", r.Outcome.Value, r.Outcome.Reasons, len(r.Processes))
	}
	if h := r.History; len(h) != 2 || h[0].Outcome != schemas.OutcomeIncomplete || h[1].Outcome != schemas.OutcomeCompleted {
		t.Errorf("the history is %+v", h)
	}
}

// TestLostFindingOfRun adopts a run of which the log lacks a finding.
func TestLostFindingOfRun(t *testing.T) {
	live := events(t, "completed")
	answers := rerun(t, live, runA, never)
	first := slices.IndexFunc(answers, func(e schemas.Event) bool { return e.Family() == "finding" })
	list := adopted(t, slices.Concat(live, slices.Delete(answers, first, first+1)), runA)
	if r := folded(t, list); r.Outcome.Value != schemas.OutcomeIncomplete {
		t.Errorf("the outcome is %s", r.Outcome.Value)
	}
}

// TestAnyPrefix folds every prefix of logs with runs and adoptions at random
// places, twice: the same bytes, and no log too odd for a report.
func TestAnyPrefix(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 11))
	live := events(t, "completed")
	for range 2 {
		list := slices.Concat(live, rerun(t, live, runA, func(schemas.TaskRef) bool { return rnd.IntN(2) == 0 }), rerun(t, live, runB, never))
		tail := list[len(live):]
		rnd.Shuffle(len(tail), func(i, j int) { tail[i], tail[j] = tail[j], tail[i] })
		list = adopted(t, list, runA, runB, schemas.LiveRun, runA)
		for n := 1; n <= len(list); n++ {
			a, b := folded(t, list[:n]), folded(t, list[:n])
			if encode(t, a) != encode(t, b) {
				t.Fatalf("after %d events two folds differ", n)
			}
			sound(t, a)
		}
	}
}
