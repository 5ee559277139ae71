// SPDX-License-Identifier: Apache-2.0

package compare_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/reporters/compare"
	"github.com/petri-sandbox/petri/schemas"
)

const (
	analysis = "01M7WWPJGHX01836292GCV681K"
	runA     = "r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA"
	runB     = "r-01M7WZ5Q0E8T1V4RZ9C3K6XNBB"
	runC     = "r-01M7WZ5Q0E8T1V4RZ9C3K6XNBC"
)

var (
	one = schemas.Sum([]byte("one"))
	two = schemas.Sum([]byte("two"))
)

// log makes answers. Each is a task with its status and findings.
type log struct {
	t    *testing.T
	list []schemas.Event
}

func (l *log) event(data schemas.Typed) {
	l.t.Helper()
	e, err := schemas.NewEvent("default", analysis, fmt.Sprint(len(l.list)), time.Unix(1, 0), schemas.OriginHost, data)
	if err != nil {
		l.t.Fatal(err)
	}
	l.list = append(l.list, e)
}

func (l *log) answer(run string, d schemas.Digest, status string, result *schemas.ResultRef, findings ...schemas.Finding) {
	l.t.Helper()
	t := schemas.TaskRef{Tenant: "default", Analysis: analysis, Run: run, Analyzer: "static", SHA256: &d, Kind: schemas.KindSample}
	for n, f := range findings {
		l.event(schemas.FindingCommitted{Task: t, Version: "1.0.0", N: n, Finding: f})
	}
	l.event(schemas.Receipt{Task: t, Version: "1.0.0", Status: status, Findings: len(findings), Result: result})
}

func (l *log) derive(run string, from, d schemas.Digest) {
	l.t.Helper()
	t := schemas.TaskRef{Tenant: "default", Analysis: analysis, Run: run, Analyzer: "static", SHA256: &from, Kind: schemas.KindSample}
	l.event(schemas.Derivation{Task: t, Artifact: schemas.Artifact{Kind: schemas.KindExtracted, SHA256: d, Size: 5}})
}

func (l *log) between(before, after string) *compare.Difference {
	a := compare.NewAnswers()
	for _, e := range l.list {
		a.Add(e)
		a.Add(e) // delivered twice
	}
	return a.Between(before, after)
}

func titles(list []compare.Found) string {
	var out []string
	for _, f := range list {
		out = append(out, f.Title)
	}
	return strings.Join(out, " ")
}

func finding(title, data string, sev schemas.Severity) schemas.Finding {
	return schemas.Finding{Kind: "k", Title: title, Severity: sev, Data: json.RawMessage(data)}
}

func result(text string) *schemas.ResultRef {
	return &schemas.ResultRef{Schema: "petri.result.test.v1", SHA256: schemas.Sum([]byte(text)), Size: 1}
}

func TestBetween(t *testing.T) {
	l := &log{t: t}
	l.answer(schemas.LiveRun, one, schemas.TaskDone, result("x"),
		finding("same", `{"a":1,"b":[2]}`, ""), finding("graver", "", ""), finding("gone", "", ""), finding("twice", "", ""), finding("twice", "", ""))
	l.answer(schemas.LiveRun, two, schemas.TaskDone, nil, finding("fails now", "", ""))
	l.answer(runA, one, schemas.TaskDone, result("y"),
		finding("twice", "", ""), finding("same", `{ "b": [2], "a": 1 }`, schemas.SeverityInfo), finding("graver", "", schemas.SeverityHigh), finding("new", "", ""))
	l.answer(runA, two, schemas.TaskFailed, nil)
	d := l.between(schemas.LiveRun, runA)
	if got := [4]int{d.New, d.Gone, d.Changed, d.Same}; got != [4]int{1, 2, 1, 2} {
		t.Errorf("new, gone, changed, same: %v", got)
	}
	if titles(d.NewFindings) != "new" || titles(d.GoneFindings) != "gone twice" {
		t.Errorf("new %q, gone %q", titles(d.NewFindings), titles(d.GoneFindings))
	}
	if len(d.ChangedFindings) != 1 || d.ChangedFindings[0].After.Severity != schemas.SeverityHigh {
		t.Errorf("changed: %+v", d.ChangedFindings)
	}
	if len(d.Results) != 1 || d.Results[0].Before.SHA256 == d.Results[0].After.SHA256 {
		t.Errorf("results: %+v", d.Results)
	}
	// What could not be answered is not gone.
	if diff := cmp.Diff([]string{"static: done before, failed now: 1 tasks"}, d.Coverage); diff != "" {
		t.Errorf("coverage (-want +got):\n%s", diff)
	}
}

// TestCounting compares a run with what counts, which is the newest adopted
// run, but never the run itself.
func TestCounting(t *testing.T) {
	l := &log{t: t}
	l.answer(schemas.LiveRun, one, schemas.TaskDone, nil, finding("live", "", ""))
	l.answer(runA, one, schemas.TaskDone, nil, finding("a", "", ""))
	l.answer(runB, one, schemas.TaskDone, nil, finding("b", "", ""))
	if d := l.between(compare.Counting, runB); titles(d.GoneFindings) != "live" {
		t.Errorf("without an adopted run gone: %q", titles(d.GoneFindings))
	}
	l.event(schemas.RunAdopted{Run: runA})
	l.event(schemas.RunAdopted{Run: runB})
	if d := l.between(compare.Counting, runB); titles(d.GoneFindings) != "a" || titles(d.NewFindings) != "b" {
		t.Errorf("gone %q, new %q", titles(d.GoneFindings), titles(d.NewFindings))
	}
	if d := l.between(runB, runB); !d.Whole() || d.Same != 1 {
		t.Errorf("a run differs from itself: %+v", d)
	}
}

// TestDerived compares runs of which the first has unpacked something and the
// second, which did the same work, has not: what was found inside is gone. Unless
// the second could not do it, or the analysis has announced the bytes itself.
func TestDerived(t *testing.T) {
	inner, innermost := schemas.Sum([]byte("inner")), schemas.Sum([]byte("innermost"))
	begin := func() *log {
		l := &log{t: t}
		l.answer(schemas.LiveRun, one, schemas.TaskDone, nil, finding("outside", "", ""))
		l.derive(runA, one, inner)
		l.derive(runA, inner, innermost)
		l.answer(runA, one, schemas.TaskDone, nil, finding("outside", "", ""))
		l.answer(runA, inner, schemas.TaskDone, result("x"), finding("inside", "", ""))
		l.answer(runA, innermost, schemas.TaskDone, nil, finding("far inside", "", ""))
		return l
	}
	const notDerived = "static: done before, about what is not derived now: 2 tasks"
	for _, tt := range []struct {
		name     string
		add      func(l *log)
		before   string
		gone     string
		results  int
		coverage []string
	}{
		{"two runs", func(*log) {}, runA, "inside far inside", 1, []string{notDerived}},
		{"what counts", func(l *log) { l.event(schemas.RunAdopted{Run: runA}) }, compare.Counting, "inside far inside", 1, []string{notDerived}},
		{"what does not count", func(*log) {}, compare.Counting, "", 0, []string{}},
		{"live", func(l *log) { l.event(schemas.RunAdopted{Run: runA}) }, schemas.LiveRun, "", 0, []string{}},
		{"announced", func(l *log) {
			l.event(schemas.RunAdopted{Run: runA})
			l.event(schemas.Artifact{Kind: schemas.KindDropped, SHA256: inner, Size: 5})
		}, compare.Counting, "", 0, []string{}},
		{"derived again", func(l *log) {
			l.derive(runB, one, inner)
			l.answer(runB, inner, schemas.TaskDone, result("x"), finding("inside", "", ""))
		}, runA, "far inside", 0, []string{"static: done before, about what is not derived now: 1 tasks"}},
		{"superseded before", func(l *log) { // by a third run, which has found nothing inside
			l.event(schemas.RunAdopted{Run: runA})
			l.answer(runC, one, schemas.TaskDone, nil, finding("outside", "", ""))
			l.event(schemas.RunAdopted{Run: runC})
		}, compare.Counting, "", 0, []string{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := begin()
			l.answer(runB, one, schemas.TaskDone, nil, finding("outside", "", ""))
			tt.add(l)
			d := l.between(tt.before, runB)
			if titles(d.GoneFindings) != tt.gone || d.New != 0 || len(d.Results) != tt.results {
				t.Errorf("gone %q, new %q, %d results", titles(d.GoneFindings), titles(d.NewFindings), len(d.Results))
			}
			if diff := cmp.Diff(tt.coverage, d.Coverage); diff != "" {
				t.Errorf("coverage (-want +got):\n%s", diff)
			}
			if d := l.between(runA, schemas.LiveRun); titles(d.GoneFindings) != "inside far inside" && tt.name != "announced" {
				t.Errorf("gone with what was answered live: %q", titles(d.GoneFindings))
			}
		})
	}
	l := begin()
	l.answer(runB, one, schemas.TaskFailed, nil)
	if d := l.between(runA, runB); d.Gone != 0 || d.New != 0 {
		t.Errorf("a run that failed has %d gone, %d new", d.Gone, d.New)
	}
}

// TestNobodyBefore compares with analyses that the analyzer never saw.
func TestNobodyBefore(t *testing.T) {
	l := &log{t: t}
	l.answer(runA, one, schemas.TaskDone, nil, finding("a", "", ""))
	d := l.between(compare.Counting, runA)
	if d.New != 1 || !slices.Equal(d.Coverage, []string{"static: no answer before, done now: 1 tasks"}) {
		t.Errorf("%+v", d)
	}
}

func TestReports(t *testing.T) {
	report := func(id string, d schemas.Digest, outcome schemas.Outcome, gaps []string, titles ...string) *schemas.Report {
		r := &schemas.Report{Analysis: schemas.ReportAnalysis{ID: id}, Outcome: schemas.ReportOutcome{Value: outcome}, Coverage: schemas.ReportCoverage{Gaps: gaps}}
		for _, title := range titles {
			r.Findings = append(r.Findings, schemas.ReportFinding{Analyzer: "static", SHA256: &d, Finding: finding(title, "", "")})
		}
		r.Analyzers = []schemas.ReportRun{{Analyzer: "static", Kind: schemas.KindSample, SHA256: &d, Result: result(id)}}
		return r
	}
	a := report("one", one, schemas.OutcomeCompleted, nil, "same", "gone")
	b := report("two", two, schemas.OutcomeIncomplete, []string{"no trace"}, "new", "same")
	d := compare.Reports(a, b)
	if titles(d.NewFindings) != "new" || titles(d.GoneFindings) != "gone" || d.Same != 1 {
		t.Errorf("new %q, gone %q, %d same", titles(d.NewFindings), titles(d.GoneFindings), d.Same)
	}
	if diff := cmp.Diff([]string{"outcome: completed before, incomplete now", "missing now: no trace"}, d.Coverage); diff != "" {
		t.Errorf("coverage (-want +got):\n%s", diff)
	}
	if len(d.Results) != 2 {
		t.Errorf("results: %+v", d.Results)
	}
	if d := compare.Reports(a, a); !d.Whole() {
		t.Errorf("a report differs from itself: %+v", d)
	}
}
