// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// earlier asks for an earlier answer until there is one or, if none is wanted,
// once.
func earlier(t *testing.T, b *bus.Bus, f schemas.FinishedTask, want bool) *schemas.TaskRef {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		got, err := b.Earlier(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		if got != nil || !want {
			return got
		}
		if time.Now().After(end) {
			t.Fatal("there is no earlier answer")
		}
	}
}

// TestReuse answers a task from an earlier one, with all that it gave, and not
// where anything differs.
func TestReuse(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "static", schemas.KindSample)
	one := newAnalysis(t, b)
	d := one.artifact(schemas.KindSample, "the same sample", 0)
	inner, size, err := b.Upload(t.Context(), "static", "upload", strings.NewReader("inside"))
	if err != nil {
		t.Fatal(err)
	}
	first := schemas.TaskRef{Tenant: "default", Analysis: one.id, Run: schemas.LiveRun, Analyzer: "static", SHA256: &d, Kind: schemas.KindSample}
	handIn(t, b, first, "one", schemas.FinishedTask{
		Findings: []schemas.Finding{{Kind: "one", Title: "first"}, {Kind: "two", Title: "second", Severity: schemas.SeverityHigh}},
		Derived:  []schemas.Derived{{Kind: schemas.KindDropped, SHA256: inner, Size: size, Name: "inner"}},
	})
	drained(t, b)

	two := newAnalysis(t, b)
	two.artifact(schemas.KindSample, "the same sample", 0)
	work := schemas.FinishedTask{Task: first, Version: "1.0.0"}
	work.Task.Analysis = two.id
	ref := earlier(t, b, work, true)
	if ref.Analysis != one.id {
		t.Errorf("the earlier answer is in %s", ref.Analysis)
	}
	rules := schemas.Sum([]byte("rules"))
	for name, change := range map[string]func(*schemas.FinishedTask){
		"version": func(f *schemas.FinishedTask) { f.Version = "1.0.1" },
		"rules":   func(f *schemas.FinishedTask) { f.Rules = &rules },
		"config":  func(f *schemas.FinishedTask) { f.Config = &rules },
		"tenant":  func(f *schemas.FinishedTask) { f.Task.Tenant = "acme" },
		"kind":    func(f *schemas.FinishedTask) { f.Task.Kind = schemas.KindDropped },
		"bytes":   func(f *schemas.FinishedTask) { f.Task.SHA256 = &rules },
		"itself":  func(f *schemas.FinishedTask) { f.Task.Analysis = one.id },
	} {
		f := work
		change(&f)
		if got := earlier(t, b, f, false); got != nil {
			t.Errorf("another %s is answered from %s", name, got.Analysis)
		}
	}

	handIn(t, b, work.Task, "two", schemas.FinishedTask{Reuse: ref})
	drained(t, b)
	c := readCommitted(t, b)
	r := c.receipts[two.id+"static"+d.Token()]
	if r.Status != schemas.TaskDone || r.Reused == nil || r.Reused.Analysis != one.id || r.Findings != 2 || r.Derived != 1 {
		t.Errorf("receipt %+v", r)
	}
	if f, _ := two.answers(schemas.LiveRun); f != 2 {
		t.Errorf("%d findings", f)
	}

	forced := newAnalysis(t, b)
	forced.event(schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: forced.id, Tenant: "default", Options: schemas.Options{NoReuse: true}}, Attempt: 1})
	f := work
	f.Task.Analysis = forced.id
	if earlier(t, b, f, false) != nil {
		t.Error("a submission that wants the work done is answered from an earlier one")
	}
}

// TestReuseRefused has an analyzer lie about earlier answers.
func TestReuseRefused(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "static", schemas.KindSample)
	a := newAnalysis(t, b)
	refs := a.refs("static", 2)
	handIn(t, b, refs[0], "one", schemas.FinishedTask{})
	drained(t, b)
	for name, lie := range map[string]schemas.FinishedTask{
		"other_bytes": {Reuse: &refs[0]},
		"none":        {Reuse: &schemas.TaskRef{Tenant: "default", Analysis: newAnalysis(t, b).id, Run: schemas.LiveRun, Analyzer: "static", SHA256: refs[1].SHA256, Kind: schemas.KindSample}},
		"subject":     {Reuse: &schemas.TaskRef{Tenant: "default", Analysis: "*", Run: schemas.LiveRun, Analyzer: "static", SHA256: refs[1].SHA256}},
		"own":         {Reuse: &refs[0], Findings: []schemas.Finding{{Kind: "x", Title: "x"}}},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAnalysis(t, b)
			d := a.artifact(schemas.KindSample, "x", 0)
			ref := schemas.TaskRef{Tenant: "default", Analysis: a.id, Run: schemas.LiveRun, Analyzer: "static", SHA256: &d, Kind: schemas.KindSample}
			handIn(t, b, ref, "liar", lie)
			drained(t, b)
			if name == "none" { // it may have been deleted: the work is to be done, and is asked for once
				task := next(t, b, "static")
				for task.Ref.Analysis != a.id || !task.Force {
					if err := task.Done(); err != nil {
						t.Fatal(err)
					}
					task = next(t, b, "static")
				}
				if err := task.Done(); err != nil {
					t.Fatal(err)
				}
				handIn(t, b, ref, "liar again", lie)
				drained(t, b)
			}
			r := readCommitted(t, b).receipts[a.id+"static"+d.Token()]
			if r.Status != schemas.TaskFailed || !strings.Contains(r.Error, "refused by the clerk: reuse: ") || r.Reused != nil {
				t.Errorf("receipt %+v", r)
			}
		})
	}
}

// TestReuseDeleted deletes the analysis that has the earlier answer: the work
// is done once more.
func TestReuseDeleted(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "static", schemas.KindSample)
	a := past(t, b, 1)[0]
	d := schemas.Sum([]byte("sample 0"))
	ref := schemas.TaskRef{Tenant: "default", Analysis: a.id, Run: schemas.LiveRun, Analyzer: "static", SHA256: &d, Kind: schemas.KindSample}
	handIn(t, b, ref, "one", schemas.FinishedTask{})
	drained(t, b)
	f := schemas.FinishedTask{Task: ref, Version: "1.0.0"}
	f.Task.Analysis = newAnalysis(t, b).id
	earlier(t, b, f, true)
	if _, err := b.Delete(t.Context(), "default", a.id, bus.DeleteOptions{}); err != nil && !errors.Is(err, bus.ErrNotFound) {
		t.Fatal(err)
	}
	if got := earlier(t, b, f, false); got != nil {
		t.Errorf("answered from %s, which is deleted", got.Analysis)
	}
}

// TestReuseDeletedMeanwhile deletes the analysis that has the earlier answer
// when the analyzer has looked, and the clerk has not: the work is done all the
// same.
func TestReuseDeletedMeanwhile(t *testing.T) {
	t.Parallel()
	b := start(t)
	register(t, b, "static", schemas.KindSample)
	stop := runClerk(t, b)
	a := past(t, b, 1)[0]
	task := next(t, b, "static")
	finish(t, b, task, schemas.FinishedTask{})
	drained(t, b)
	two := newAnalysis(t, b)
	two.artifact(schemas.KindSample, "sample 0", 0)
	task = next(t, b, "static")
	ref := earlier(t, b, schemas.FinishedTask{Task: task.Ref, Version: "1.0.0"}, true)
	stop()
	finish(t, b, task, schemas.FinishedTask{Reuse: ref})
	// A second runner had the task too.
	handIn(t, b, task.Ref, "two", schemas.FinishedTask{Reuse: ref})
	if _, err := b.Delete(t.Context(), "default", a.id, bus.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	clerk(t, b)
	drained(t, b)
	if _, receipts := two.answers(schemas.LiveRun); receipts != 0 {
		t.Fatal("the task has its receipt, and nobody has done the work")
	}
	again := next(t, b, "static")
	if again.Ref.Analysis != two.id || again.Ref.Run != schemas.LiveRun || !again.Force || again.Artifact == nil || again.Artifact.SHA256 != *task.Ref.SHA256 {
		t.Errorf("given out %+v", again)
	}
	finish(t, b, again, schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "one", Title: "one"}}})
	drained(t, b)
	r := readCommitted(t, b).receipts[two.id+"static"+again.Ref.SHA256.Token()]
	if r.Status != schemas.TaskDone || r.Reused != nil || r.Findings != 1 {
		t.Errorf("receipt %+v", r)
	}
	if n := messages(t, b, "RUNS"); n != 0 {
		t.Errorf("%d tasks are left", n)
	}
}

// TestForce has two runs over the same artifacts; who works is told of which the
// answers are to be new.
func TestForce(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	drive(t, b)
	register(t, b, "static", schemas.KindSample)
	past(t, b, 2)
	forced := map[string]map[bool]int{} // tasks, by run and by what they say
	work := func(run string) schemas.RunState {
		forced[run] = map[bool]int{}
		for len(forced[run]) == 0 || forced[run][false]+forced[run][true] < 2 {
			task := next(t, b, "static")
			f := schemas.FinishedTask{}
			if !task.Force && task.Ref.Run != schemas.LiveRun { // as the runner does it
				ref, err := b.Earlier(t.Context(), schemas.FinishedTask{Task: task.Ref, Version: "1.0.0"})
				if err != nil {
					t.Fatal(err)
				}
				f.Reuse = ref
			}
			finish(t, b, task, f)
			if task.Ref.Run == run {
				forced[run][task.Force]++
			}
		}
		if run == schemas.LiveRun {
			drained(t, b)
			return schemas.RunState{}
		}
		return until(t, b, run, func(r schemas.RunState) bool { return r.Ended() })
	}
	work(schemas.LiveRun)
	hunt := schemas.RunState{Analyzers: []string{"static"}}
	run := startRun(t, b, hunt)
	if r := work(run); r.Done != 2 || r.Reused != 2 || forced[run][true] != 0 {
		t.Errorf("a run that may be answered from earlier receipts: %+v, forced %v", r, forced[run])
	}
	hunt.Force = true
	run = startRun(t, b, hunt)
	if r := work(run); r.Done != 2 || r.Reused != 0 || forced[run][false] != 0 {
		t.Errorf("a run with Force: %+v, forced %v", r, forced[run])
	}
}

// TestReuseArchived answers from an analysis that the log has no longer.
func TestReuseArchived(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "static", schemas.KindSample)
	a := past(t, b, 1)[0]
	d := schemas.Sum([]byte("sample 0"))
	ref := schemas.TaskRef{Tenant: "default", Analysis: a.id, Run: schemas.LiveRun, Analyzer: "static", SHA256: &d, Kind: schemas.KindSample}
	handIn(t, b, ref, "one", schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "one", Title: "one"}}})
	drained(t, b)
	if err := archiver(b).Archive(t.Context(), "default", a.id); err != nil {
		t.Fatal(err)
	}
	two := newAnalysis(t, b)
	two.artifact(schemas.KindSample, "sample 0", 0)
	f := schemas.FinishedTask{Task: ref, Version: "1.0.0"}
	f.Task.Analysis = two.id
	handIn(t, b, f.Task, "two", schemas.FinishedTask{Reuse: earlier(t, b, f, true)})
	drained(t, b)
	if findings, receipts := two.answers(schemas.LiveRun); findings != 1 || receipts != 1 {
		t.Errorf("%d findings and %d receipts", findings, receipts)
	}
}
