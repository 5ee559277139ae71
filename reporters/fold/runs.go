// SPDX-License-Identifier: Apache-2.0

package fold

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// Limits of what is kept of runs until they are adopted, and of adoptions.
const (
	maxRunBytes  = 64 << 20
	maxAdoptions = 1000
	maxHistory   = 20
)

// runAnswers is what one run has said about the analysis. It counts only if
// the run is adopted, which comes later in the log, if at all.
type runAnswers struct {
	receipts map[string]schemas.Receipt // by task
	numbers  map[string]*numbered       // of findings, by task
	findings []schemas.ReportFinding
	derived  map[announced]schemas.Derivation
	order    []announced // of derived
	cut      bool        // there was no room for all of it
}

// adoption says that from there on a run counts.
type adoption struct {
	schemas.RunAdopted
	at time.Time
}

var (
	errAdoptions   = errors.New("too many runs were adopted")
	errLiveDerived = errors.New("what is derived while the analysis goes on is announced")
)

// run is what is kept of a run, or nil if there is no room for n bytes more.
func (f *Fold) run(name string, n int) *runAnswers {
	a := f.runs[name]
	if a == nil {
		a = &runAnswers{receipts: map[string]schemas.Receipt{}, numbers: map[string]*numbered{}, derived: map[announced]schemas.Derivation{}}
		f.runs[name] = a
		n += 128
	}
	if f.runBytes += n; f.runBytes > maxRunBytes {
		a.cut = true
		return nil
	}
	return a
}

func (f *Fold) runFinding(c *schemas.FindingCommitted, size int) {
	a := f.run(c.Task.Run, size)
	if a == nil {
		return
	}
	k := taskKey(c.Task)
	n := a.numbers[k]
	if n == nil {
		n = &numbered{}
		a.numbers[k] = n
	}
	if n.take(c.N) {
		a.findings = append(a.findings, reportFinding(c))
	}
}

// derivation takes what a run has derived.
func (f *Fold) derivation(e schemas.Event) error {
	var d schemas.Derivation
	if err := e.Decode(&d); err != nil {
		return err
	}
	if d.Task.Run == schemas.LiveRun {
		return errLiveDerived
	}
	a := f.run(d.Task.Run, len(e.Data))
	if a == nil {
		return nil
	}
	k := announced{d.Artifact.Kind, d.Artifact.SHA256, d.Artifact.Occurrence}
	if _, ok := a.derived[k]; !ok {
		d.Artifact.Run = d.Task.Run
		a.derived[k] = d
		a.order = append(a.order, k)
	}
	return nil
}

func (f *Fold) runReceipt(r *schemas.Receipt, size int) {
	a := f.run(r.Task.Run, size)
	if a == nil {
		return
	}
	if k := taskKey(r.Task); a.receipts[k].Status == "" { // a task has one receipt, the first
		a.receipts[k] = *r
	}
}

func (f *Fold) runAdopted(e schemas.Event) (detail string, err error) {
	return read(e, func(d schemas.RunAdopted) string {
		f.adopted = append(f.adopted, adoption{d, e.Time})
		return fmt.Sprintf("run %s counts, adopted by %s", d.Run, d.By)
	})
}

// as is the fold as it would be if only the first n adoptions had been: each
// task's answer is that of the newest adopted run that has done it. What a run
// failed at, or left alone, stays as it was. An answer about an artifact that a
// run has derived counts as long as that one of which it was derived does.
func (f *Fold) as(n int) *Fold {
	if n == 0 {
		return f
	}
	g := *f
	g.receipts = maps.Clone(f.receipts)
	from := map[string]string{} // whose answer a task has, if not the live one
	for _, a := range f.adopted[:n] {
		if a.Run == schemas.LiveRun { // what was not answered then is not answered
			g.receipts = maps.Clone(f.receipts)
			clear(from)
			continue
		}
		run := f.runs[a.Run]
		if run == nil {
			continue
		}
		for k, r := range run.receipts {
			if r.Status == schemas.TaskDone || g.receipts[k].Status != schemas.TaskDone {
				g.receipts[k] = r
				from[k] = a.Run
			}
		}
	}
	f.derivedIn(g.receipts, from, &g.r)
	g.whole.findings = maps.Clone(f.whole.findings)
	g.r.Findings = slices.DeleteFunc(slices.Clone(f.r.Findings), func(r schemas.ReportFinding) bool { return from[findingKey(&r)] != "" })
	for k := range from {
		delete(g.whole.findings, k)
	}
	for _, name := range slices.Sorted(maps.Keys(f.runs)) {
		run := f.runs[name]
		for i := range run.findings {
			if from[findingKey(&run.findings[i])] == name {
				g.r.Findings = append(g.r.Findings, run.findings[i])
			}
		}
		for k, n := range run.numbers {
			if from[k] == name {
				g.whole.findings[k] = n
			}
		}
		if run.cut && slices.ContainsFunc(f.adopted[:n], func(a adoption) bool { return a.Run == name }) {
			g.runGaps = append(slices.Clone(g.runGaps), fmt.Sprintf("not all answers of the adopted run %s are in this report: the analysis has too many", name))
		}
	}
	return &g
}

// derivedIn adds to a report what was derived in the tasks whose answer is a
// run's, and takes out of from and receipts what is about artifacts that are not
// there: they were derived in answers that do not count, or not any more.
func (f *Fold) derivedIn(receipts map[string]schemas.Receipt, from map[string]string, r *schemas.Report) {
	runs := map[string]bool{}
	for _, run := range from {
		runs[run] = true
	}
	// What may not be there: all else was announced, or is not in this log.
	absent := map[schemas.Digest]bool{}
	for run := range runs {
		for k := range f.runs[run].derived {
			absent[k.digest] = true
		}
	}
	if len(absent) == 0 {
		return
	}
	said := map[string]bool{}
	for _, a := range f.r.Artifacts {
		delete(absent, a.SHA256)
		said[origin(&a)] = true
	}
	list := slices.Clip(f.r.Artifacts)
	// Each pass finds what was derived of what the one before it has found. Two
	// that are derived one of the other, and of nothing else, are not there.
	for more := true; more; {
		more = false
		for _, name := range slices.Sorted(maps.Keys(runs)) {
			run := f.runs[name]
			for _, k := range run.order {
				d := run.derived[k]
				if from[taskKey(d.Task)] != name || d.Task.SHA256 != nil && absent[*d.Task.SHA256] || said[name+origin(&d.Artifact)] {
					continue
				}
				said[name+origin(&d.Artifact)] = true
				more = more || absent[k.digest]
				delete(absent, k.digest)
				if o := origin(&d.Artifact); !said[o] { // it was not announced
					said[o] = true
					list = append(list, d.Artifact)
				}
			}
		}
	}
	for k := range from {
		if d := receipts[k].Task.SHA256; d != nil && absent[*d] {
			delete(from, k)
			delete(receipts, k)
			if live, ok := f.receipts[k]; ok { // of one that the report had no room for
				receipts[k] = live
			}
		}
	}
	r.Artifacts = list
}

// origin says which bytes an artifact has, and what they were derived from.
func origin(a *schemas.Artifact) string {
	return fmt.Sprintf("%s/%s/%s/%s/%q", a.Kind, a.SHA256, digestText(a.Parent), a.Analyzer, a.Name)
}

// findingKey is the key of the task that gave a finding.
func findingKey(r *schemas.ReportFinding) string {
	return taskKey(schemas.TaskRef{Analyzer: r.Analyzer, SHA256: r.SHA256})
}

func reportFinding(c *schemas.FindingCommitted) schemas.ReportFinding {
	return schemas.ReportFinding{Analyzer: c.Task.Analyzer, Version: c.Version, SHA256: c.Task.SHA256, Run: runName(c.Task.Run), Finding: c.Finding}
}

// runName is how a report names a run: what is live has no name.
func runName(run string) string {
	if run == schemas.LiveRun {
		return ""
	}
	return run
}

// history lists what the report said before each adoption, and says now. All
// of it rests on the answers that are there now; what was known at some time is
// the report of the log up to then.
func (f *Fold) history(now *schemas.Report, docs Documents) ([]schemas.ReportHistory, error) {
	out := []schemas.ReportHistory{}
	if f.r.Analysis.Ended == nil {
		return out, nil
	}
	first := max(0, len(f.adopted)-maxHistory)
	if first > 0 {
		now.Coverage.Omitted["history"] += first
	}
	for n := first; n <= len(f.adopted); n++ {
		r := now
		if n < len(f.adopted) {
			var err error
			if r, err = f.as(n).report(docs); err != nil {
				return nil, err
			}
		}
		h := schemas.ReportHistory{Time: *f.r.Analysis.Ended, Event: f.ending, Outcome: r.Outcome.Value, Verdict: r.Verdict.Value, Findings: len(r.Findings)}
		if n > 0 {
			a := f.adopted[n-1]
			h.Time, h.Event, h.Run, h.By = a.at, schemas.EventRunAdopted, a.Run, a.By
		}
		out = append(out, h)
	}
	return out, nil
}

// remembered reads each document once.
type remembered struct {
	docs Documents
	read map[schemas.Digest][]byte
}

func (m *remembered) Document(d schemas.Digest, limit int64) ([]byte, error) {
	if b, ok := m.read[d]; ok {
		return b, nil
	}
	b, err := m.docs.Document(d, limit)
	if err == nil && len(m.read) < 2 {
		m.read[d] = b
	}
	return b, err
}
