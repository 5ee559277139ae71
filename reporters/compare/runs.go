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
	tasks     map[string]map[string]*answer // by run and task
	adopted   []string
	announced map[schemas.Digest]bool
	derived   map[string]map[derived]bool // by run
}

// derived is that a task of a run has derived bytes.
type derived struct {
	task   string
	parent schemas.Digest // zero: of the analysis as a whole
	digest schemas.Digest
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
// log, and what was announced and derived. Whatever else it is, or that cannot be
// read, is left out. An event may come twice, and so may all those of an analysis.
func (a *Answers) Add(e schemas.Event) {
	var f schemas.FindingCommitted
	var r schemas.Receipt
	var ad schemas.RunAdopted
	var ar schemas.Artifact
	var de schemas.Derivation
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
	case e.Decode(&ar) == nil:
		a.said(e.Analysis).announced[ar.SHA256] = true
	case e.Decode(&de) == nil:
		s, run := a.said(e.Analysis), de.Task.Run
		if s.derived[run] == nil {
			s.derived[run] = map[derived]bool{}
		}
		d := derived{task: taskKey(de.Task), digest: de.Artifact.SHA256}
		if de.Task.SHA256 != nil {
			d.parent = *de.Task.SHA256
		}
		s.derived[run][d] = true
	}
}

func taskKey(t schemas.TaskRef) string { return t.Analyzer + "/" + t.Token() }

func (a *Answers) said(analysis string) *said {
	s := a.analyses[analysis]
	if s == nil {
		s = &said{tasks: map[string]map[string]*answer{}, announced: map[schemas.Digest]bool{}, derived: map[string]map[derived]bool{}}
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
	k := taskKey(t)
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
	out := maps.Clone(s.tasks[schemas.LiveRun])
	for _, run := range s.adopted {
		switch run {
		case schemas.LiveRun: // what was not answered then is not answered
			out = maps.Clone(s.tasks[run])
		case without:
		default:
			out = over(out, s.tasks[run])
		}
	}
	return s.there(out)
}

// over are answers, and over them those that take their place: what a run failed at
// stays as it was.
func over(answers, newer map[string]*answer) map[string]*answer {
	out := maps.Clone(answers)
	if out == nil {
		out = map[string]*answer{}
	}
	for k, t := range newer {
		if have := out[k]; t.receipt != nil && (t.done() || have == nil || !have.done()) {
			out[k] = t
		}
	}
	return out
}

// there takes those answers out that are about bytes which none of the answers has
// derived, or not any more, and which were not announced. It is the report's rule.
func (s *said) there(answers map[string]*answer) map[string]*answer {
	absent := map[schemas.Digest]bool{}
	var of []derived // whose task's answer counts
	for run, list := range s.derived {
		for d := range list {
			absent[d.digest] = !s.announced[d.digest]
			if t := answers[d.task]; t != nil && t.task.Run == run {
				of = append(of, d)
			}
		}
	}
	// Each pass finds what was derived of what the one before it has found.
	for more := true; more; {
		more = false
		for _, d := range of {
			if absent[d.digest] && !absent[d.parent] {
				absent[d.digest], more = false, true
			}
		}
	}
	maps.DeleteFunc(answers, func(_ string, t *answer) bool { return t.task.SHA256 != nil && absent[*t.task.SHA256] })
	return answers
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
// says nothing about the rest; but for those about bytes that the first side has
// derived, and the second, which has done the same work again, has not: what was
// found in them is gone.
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
		still := s.there(over(b, n))
		for k := range b {
			if still[k] == nil && n[k] == nil {
				keys = append(keys, k)
			}
		}
		slices.Sort(keys)
		for _, k := range slices.Compact(keys) {
			x, y := b[k], n[k]
			t := cmp.Or(y, x)
			if y == nil && still[k] == nil {
				old = append(old, x.findings...)
				if x.done() && x.receipt.Result != nil {
					d.Results = add(d, "results", d.Results, ResultChange{
						Analysis: id, Analyzer: t.task.Analyzer, Kind: t.task.Kind, SHA256: t.task.SHA256, Before: x.receipt.Result,
					})
				}
				status[fmt.Sprintf("%s: %s before, about what is not derived now", t.task.Analyzer, x.status())]++
				continue
			}
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
