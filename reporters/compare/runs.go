// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/petri-sandbox/petri/schemas"
)

// Counting names the side that counts: for each task the answer of the newest
// adopted run, and of none where none was adopted. The run that it is compared
// with is left out of it.
const Counting = "counting"

// Answers collects what runs have said about analyses.
type Answers struct {
	analyses map[string]*said
}

// said is what has been said about one analysis.
type said struct {
	tasks   map[string]map[string]*answer // by run and task
	adopted []string
}

// answer is that of one task.
type answer struct {
	task     schemas.TaskRef
	receipt  *schemas.Receipt
	findings []Found
	numbers  map[int]bool
}

// NewAnswers returns an empty collection.
func NewAnswers() *Answers { return &Answers{analyses: map[string]*said{}} }

// Add takes an event: findings, receipts and adoptions, in the order of the
// log. Whatever else it is, or that cannot be read, is left out, and so is what
// comes again.
func (a *Answers) Add(e schemas.Event) {
	var f schemas.FindingCommitted
	var r schemas.Receipt
	var ad schemas.RunAdopted
	switch {
	case e.Decode(&f) == nil:
		t := a.answer(e.Analysis, f.Task)
		if !t.numbers[f.N] {
			t.numbers[f.N] = true
			t.findings = append(t.findings, Found{Analysis: e.Analysis, Analyzer: f.Task.Analyzer, Version: f.Version, SHA256: f.Task.SHA256, Finding: f.Finding})
		}
	case e.Decode(&r) == nil:
		if t := a.answer(e.Analysis, r.Task); t.receipt == nil {
			t.receipt = &r
		}
	case e.Decode(&ad) == nil:
		s := a.said(e.Analysis)
		s.adopted = append(s.adopted, ad.Run)
	}
}

func (a *Answers) said(analysis string) *said {
	s := a.analyses[analysis]
	if s == nil {
		s = &said{tasks: map[string]map[string]*answer{}}
		a.analyses[analysis] = s
	}
	return s
}

func (a *Answers) answer(analysis string, t schemas.TaskRef) *answer {
	s := a.said(analysis)
	tasks := s.tasks[t.Run]
	if tasks == nil {
		tasks = map[string]*answer{}
		s.tasks[t.Run] = tasks
	}
	k := t.Analyzer + "/" + t.Token()
	out := tasks[k]
	if out == nil {
		out = &answer{task: t, numbers: map[int]bool{}}
		tasks[k] = out
	}
	return out
}

// side is what one side says about an analysis, by task.
func (s *said) side(name, without string) map[string]*answer {
	if name != Counting {
		return s.tasks[name]
	}
	out := map[string]*answer{}
	lay := func(run string) {
		for k, t := range s.tasks[run] {
			if have := out[k]; t.receipt != nil && (t.done() || have == nil || !have.done()) || run == schemas.LiveRun {
				out[k] = t
			}
		}
	}
	lay(schemas.LiveRun)
	for _, run := range s.adopted {
		if run != without {
			lay(run)
		}
	}
	return out
}

func (t *answer) status() string {
	if t == nil || t.receipt == nil {
		return "no answer"
	}
	return t.receipt.Status
}

func (t *answer) done() bool { return t.status() == schemas.TaskDone }

// Between compares two runs, or what counted with a run. Only tasks of the
// second side are looked at where the first is [Counting] or live, since a run
// says nothing about the rest.
func (a *Answers) Between(before, after string) *Difference {
	d := newDifference(before, after)
	wide := before != Counting && before != schemas.LiveRun
	var old, now []Found
	status := map[string]int{}
	for _, id := range slices.Sorted(maps.Keys(a.analyses)) {
		s := a.analyses[id]
		b, n := s.side(before, after), s.side(after, before)
		keys := slices.Collect(maps.Keys(n))
		if wide {
			keys = append(keys, slices.Collect(maps.Keys(b))...)
		}
		slices.Sort(keys)
		for _, k := range slices.Compact(keys) {
			x, y := b[k], n[k]
			t := cmp.Or(y, x)
			// Who gave no answer, or could not, has not said that it is not so.
			if x.status() != y.status() {
				status[fmt.Sprintf("%s: %s before, %s now", t.task.Analyzer, x.status(), y.status())]++
			}
			if y.done() || y.status() == schemas.TaskSkipped {
				now = append(now, y.findings...)
				if x != nil {
					old = append(old, x.findings...)
				}
			}
			if x.done() && y.done() && !sameResult(x.receipt.Result, y.receipt.Result) {
				d.Results = add(d, "results", d.Results, ResultChange{
					Analysis: id, Analyzer: t.task.Analyzer, Kind: t.task.Kind, SHA256: t.task.SHA256, Before: x.receipt.Result, After: y.receipt.Result,
				})
			}
		}
	}
	d.findings(old, now, where)
	for _, text := range slices.Sorted(maps.Keys(status)) {
		d.Coverage = add(d, "coverage", d.Coverage, fmt.Sprintf("%s: %d tasks", text, status[text]))
	}
	return d
}

// Reports compares the reports of two analyses. Their artifacts differ, so that
// findings and result documents are matched without them.
func Reports(before, after *schemas.Report) *Difference {
	d := newDifference(before.Analysis.ID, after.Analysis.ID)
	found := func(r *schemas.Report) []Found {
		var out []Found
		for _, f := range r.Findings {
			out = append(out, Found{Analysis: r.Analysis.ID, Analyzer: f.Analyzer, Version: f.Version, SHA256: f.SHA256, Finding: f.Finding})
		}
		return out
	}
	d.findings(found(before), found(after), what)
	d.results(before, after)
	say := func(format string, args ...any) {
		d.Coverage = add(d, "coverage", d.Coverage, fmt.Sprintf(format, args...))
	}
	if before.Outcome.Value != after.Outcome.Value {
		say("outcome: %s before, %s now", before.Outcome.Value, after.Outcome.Value)
	}
	if before.Verdict.Value != after.Verdict.Value {
		say("verdict: %s before, %s now", before.Verdict.Value, after.Verdict.Value)
	}
	for _, g := range before.Coverage.Gaps {
		if !slices.Contains(after.Coverage.Gaps, g) {
			say("no longer missing: %s", g)
		}
	}
	for _, g := range after.Coverage.Gaps {
		if !slices.Contains(before.Coverage.Gaps, g) {
			say("missing now: %s", g)
		}
	}
	return d
}

// results compares result documents by analyzer and kind: those that only one
// report has.
func (d *Difference) results(before, after *schemas.Report) {
	docs := func(r *schemas.Report) map[string][]schemas.ReportRun {
		out := map[string][]schemas.ReportRun{}
		for _, run := range r.Analyzers {
			if run.Result != nil {
				k := strings.Join([]string{run.Analyzer, string(run.Kind)}, "/")
				out[k] = append(out[k], run)
			}
		}
		return out
	}
	old, now := docs(before), docs(after)
	keys := slices.Concat(slices.Collect(maps.Keys(old)), slices.Collect(maps.Keys(now)))
	slices.Sort(keys)
	for _, k := range slices.Compact(keys) {
		b, a := old[k], now[k]
		for _, x := range b {
			i := slices.IndexFunc(a, func(y schemas.ReportRun) bool { return sameResult(x.Result, y.Result) })
			if i >= 0 {
				a = slices.Delete(slices.Clone(a), i, i+1)
				continue
			}
			d.Results = add(d, "results", d.Results, ResultChange{Analysis: before.Analysis.ID, Analyzer: x.Analyzer, Kind: x.Kind, SHA256: x.SHA256, Before: x.Result})
		}
		for _, y := range a {
			d.Results = add(d, "results", d.Results, ResultChange{Analysis: after.Analysis.ID, Analyzer: y.Analyzer, Kind: y.Kind, SHA256: y.SHA256, After: y.Result})
		}
	}
}
