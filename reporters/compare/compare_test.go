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
