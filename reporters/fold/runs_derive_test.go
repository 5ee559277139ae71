// SPDX-License-Identifier: Apache-2.0

package fold_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/schemas"
)

// unpacked is what a run of an unpacking analyzer, and of one that looks at what
// is inside, would have answered about the first sample of a log: each of the
// texts is inside of the one before.
func unpacked(t testing.TB, list []schemas.Event, run string, texts ...string) []schemas.Event {
	t.Helper()
	var sample schemas.Artifact
	for _, a := range folded(t, list).Artifacts {
		if a.Kind == schemas.KindSample {
			sample = a
			break
		}
	}
	var out []schemas.Event
	add := func(id string, data schemas.Typed) {
		id = fmt.Sprintf("%s/%s/%s/%d", list[0].Analysis, id, run, len(out))
		e, err := schemas.NewEvent(list[0].Tenant, list[0].Analysis, id, time.Unix(1e9, 0), schemas.OriginHost, data)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	task := func(analyzer string, d schemas.Digest, kind schemas.Kind) schemas.TaskRef {
		return schemas.TaskRef{Tenant: list[0].Tenant, Analysis: list[0].Analysis, Run: run, Analyzer: analyzer, SHA256: &d, Kind: kind}
	}
	parent, times := sample, map[string]int{}
	for i := 0; i <= len(texts); i++ {
		ref := task("archive", parent.SHA256, parent.Kind)
		if i < len(texts) {
			a := schemas.Artifact{
				Kind: schemas.KindExtracted, SHA256: schemas.Sum([]byte(texts[i])), Name: texts[i], Parent: ref.SHA256, Analyzer: "archive", Depth: i + 1,
				Occurrence: times[texts[i]],
			}
			times[texts[i]]++
			add("derivation", schemas.Derivation{Task: ref, Artifact: a})
			add("receipt", schemas.Receipt{Task: ref, Version: "1.0.0", Status: schemas.TaskDone, Derived: 1})
			of := task("inner", a.SHA256, a.Kind)
			add("finding", schemas.FindingCommitted{Task: of, Version: "1.0.0", Finding: schemas.Finding{Kind: "inside", Title: a.Name}})
			add("receipt", schemas.Receipt{Task: of, Version: "1.0.0", Status: schemas.TaskDone, Findings: 1})
			parent = a
			continue
		}
		add("receipt", schemas.Receipt{Task: ref, Version: "1.0.0", Status: schemas.TaskDone})
	}
	return out
}

// TestAdoptedDerived adopts runs that have derived: what is inside is in the
// report, and what was found in it, as long as the answer counts that it came of.
func TestAdoptedDerived(t *testing.T) {
	live := events(t, "completed")
	before := folded(t, live)
	list := slices.Concat(live, unpacked(t, live, runA, "outer", "inner"), unpacked(t, live, runB, "other"))
	for _, tt := range []struct {
		name string
		runs []string
		want []string // what is inside
		run  string
	}{
		{"none", nil, nil, ""},
		{"one", []string{runA}, []string{"outer", "inner"}, runA},
		{"another one", []string{runB}, []string{"other"}, runB},
		{"the newer over the older", []string{runA, runB}, []string{"other"}, runB},
		{"the older again", []string{runA, runB, runA}, []string{"outer", "inner"}, runA},
		{"back to the live one", []string{runA, schemas.LiveRun}, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := folded(t, adopted(t, list, tt.runs...))
			var got, found []string
			parent := before.Artifacts[slices.IndexFunc(before.Artifacts, func(a schemas.Artifact) bool { return a.Kind == schemas.KindSample })].SHA256
			for _, a := range r.Artifacts[len(before.Artifacts):] {
				got = append(got, a.Name)
				if a.Run != tt.run || a.Parent == nil || *a.Parent != parent {
					t.Errorf("%s is of run %s and inside of %v", a.Name, a.Run, a.Parent)
				}
				parent = a.SHA256
			}
			for _, f := range r.Findings {
				if f.Analyzer == "inner" {
					found = append(found, f.Title)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("derived artifacts (-want +got):\n%s", diff)
			}
			slices.Sort(found)
			want := slices.Sorted(slices.Values(tt.want))
			if diff := cmp.Diff(want, found); diff != "" {
				t.Errorf("found inside (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before.Artifacts, r.Artifacts[:len(before.Artifacts)]); diff != "" {
				t.Errorf("what was announced (-want +got):\n%s", diff)
			}
			if r.Outcome.Value != schemas.OutcomeCompleted {
				t.Errorf("the outcome is %s: %q", r.Outcome.Value, r.Outcome.Reasons)
			}
			sound(t, r)
		})
	}
	if before.Outcome.Value != schemas.OutcomeCompleted {
		t.Errorf("the outcome before is %s", before.Outcome.Value)
	}
}

// TestDerivedOfItself has a run whose artifacts are inside of each other, and of
// nothing that was announced: they are not in the report.
func TestDerivedOfItself(t *testing.T) {
	live := events(t, "completed")
	run := unpacked(t, live, runA, "a", "b", "a")
	// Without the one through which they come in.
	run = without(run, func(e schemas.Event) bool {
		var d schemas.Derivation
		return e.Decode(&d) == nil && d.Artifact.Name == "a" && d.Artifact.Depth == 1
	})
	r := folded(t, adopted(t, slices.Concat(live, run), runA))
	if n := len(r.Artifacts) - len(folded(t, live).Artifacts); n != 0 {
		t.Errorf("%d artifacts came out of nothing", n)
	}
	for _, f := range r.Findings {
		if f.Analyzer == "inner" {
			t.Errorf("something was found in what is not there: %q", f.Title)
		}
	}
}

// TestDerivedAnyOrder shuffles what a run has answered: the report lists the same,
// and two folds of the same log are the same.
func TestDerivedAnyOrder(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 5))
	live := events(t, "completed")
	run := unpacked(t, live, runA, "a", "b", "c", "a", "d")
	set := func(r *schemas.Report) map[string]int {
		out := map[string]int{}
		for _, a := range r.Artifacts {
			out[fmt.Sprintf("%s %v %s", a.SHA256, a.Parent, a.Run)]++
		}
		for _, f := range r.Findings {
			out[f.Title]++
		}
		return out
	}
	want := set(folded(t, adopted(t, slices.Concat(live, run), runA)))
	for range 20 {
		rnd.Shuffle(len(run), func(i, j int) { run[i], run[j] = run[j], run[i] })
		list := adopted(t, slices.Concat(live, run, unpacked(t, live, runB, "z")), runB, runA)
		a, b := folded(t, list), folded(t, list)
		if encode(t, a) != encode(t, b) {
			t.Fatal("two folds differ")
		}
		if diff := cmp.Diff(want, set(a)); diff != "" {
			t.Fatalf("in another order (-want +got):\n%s", diff)
		}
	}
}
