// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// clerk runs a clerk for the test.
func clerk(t *testing.T, b *bus.Bus) {
	t.Helper()
	t.Cleanup(runClerk(t, b))
}

// runClerk runs a clerk until the returned function is called.
func runClerk(t *testing.T, b *bus.Bus) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = bus.NewClerk(b, slog.New(slog.NewTextHandler(t.Output(), nil))).Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

func register(t *testing.T, b *bus.Bus, name string, kinds ...schemas.Kind) {
	t.Helper()
	r := schemas.Registration{Name: name, Version: "1.0.0", Kinds: kinds, Scope: schemas.ScopeArtifact, Deadline: schemas.Duration(time.Minute)}
	if len(kinds) == 0 {
		r.Scope = schemas.ScopeAnalysis
	}
	if err := b.Register(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

// next takes the analyzer's next task.
func next(t *testing.T, b *bus.Bus, analyzer string) *bus.Task {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	task, err := b.NextTask(ctx, analyzer)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

func finish(t *testing.T, b *bus.Bus, task *bus.Task, f schemas.FinishedTask) {
	t.Helper()
	f.Task, f.Version, f.Instance = task.Ref, "1.0.0", "test"
	if f.Status == "" {
		f.Status = schemas.TaskDone
	}
	if err := b.Finish(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	if err := task.Done(); err != nil {
		t.Fatal(err)
	}
}

func TestTaskToReceipt(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	a := newAnalysis(t, b)
	a.artifact(schemas.KindSample, "announced before anybody was interested", 0)
	register(t, b, "static", schemas.KindSample, schemas.KindDropped)
	d := a.artifact(schemas.KindSample, "the sample", 0)
	a.artifact(schemas.KindPcap, "not for static", 0)
	a.event(schemas.StartAnalysis{})

	task := next(t, b, "static")
	if task.Ref.SHA256 == nil || *task.Ref.SHA256 != d || task.Attempt != 1 || task.Artifact.Kind != schemas.KindSample {
		t.Fatalf("task %+v", task)
	}
	result, n, err := b.Upload(t.Context(), "static", "upload", strings.NewReader(`{"schema":"petri.result.test.v1"}`))
	if err != nil {
		t.Fatal(err)
	}
	finish(t, b, task, schemas.FinishedTask{
		Findings: []schemas.Finding{{Kind: "one", Title: "first"}, {Kind: "two", Title: "second", Severity: schemas.SeverityHigh}},
		Result:   &schemas.ResultRef{Schema: "petri.result.test.v1", SHA256: result, Size: n},
	})
	if missing := a.wait(time.Minute); len(missing) != 0 {
		t.Errorf("missing: %+v", missing)
	}
	want := []string{
		"artifact announced", "artifact announced", "artifact announced", "context start_analysis",
		"finding committed", "finding committed", "receipt committed",
	}
	if diff := cmp.Diff(want, a.names()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	if _, err := b.Artifacts().Stat(t.Context(), result); err != nil {
		t.Errorf("the result document: %v", err)
	}
}

// TestRepeatedBytes announces the same bytes again after their receipt: the
// task is not opened again.
func TestRepeatedBytes(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "static", schemas.KindDropped)
	a := newAnalysis(t, b)
	a.artifact(schemas.KindDropped, "same", 0)
	finish(t, b, next(t, b, "static"), schemas.FinishedTask{})
	a.artifact(schemas.KindDropped, "same", 1)
	a.event(schemas.StartAnalysis{})
	if missing := a.wait(time.Minute); len(missing) != 0 {
		t.Errorf("missing: %+v", missing)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if task, err := b.NextTask(ctx, "static"); err == nil {
		t.Errorf("another task: %+v", task.Ref)
	}
}

func TestDerivedKeepsTheAnalysisOpen(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "unpack", schemas.KindSample)
	register(t, b, "static", schemas.KindDropped)
	a := newAnalysis(t, b)
	parent := a.artifact(schemas.KindSample, "an archive", 0)
	a.event(schemas.StartAnalysis{})
	task := next(t, b, "unpack")
	d, n, err := b.Upload(t.Context(), "unpack", schemas.KindDropped, strings.NewReader("what was in it"))
	if err != nil {
		t.Fatal(err)
	}
	finish(t, b, task, schemas.FinishedTask{Derived: []schemas.Derived{{Kind: schemas.KindDropped, SHA256: d, Size: n, Name: "inner"}}})
	inner := next(t, b, "static")
	if inner.Artifact.Parent == nil || *inner.Artifact.Parent != parent || inner.Artifact.Depth != 1 || inner.Artifact.Analyzer != "unpack" {
		t.Errorf("derived: %+v", inner.Artifact)
	}
	missing := a.wait(500*time.Millisecond, "static", "unpack")
	if len(missing) != 1 || missing[0].Analyzer != "static" || *missing[0].SHA256 != d {
		t.Errorf("missing: %+v", missing)
	}
	finish(t, b, inner, schemas.FinishedTask{})
	if missing := a.wait(time.Minute); len(missing) != 0 {
		t.Errorf("missing: %+v", missing)
	}
}

func TestAnalysisScope(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "summary")
	a := newAnalysis(t, b)
	a.event(schemas.StartAnalysis{})
	task := next(t, b, "summary")
	if task.Ref.SHA256 != nil || task.Ref.Analysis != a.id {
		t.Errorf("task %+v", task.Ref)
	}
	finish(t, b, task, schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "summary", Title: "all is well"}}})
	if missing := a.wait(time.Minute); len(missing) != 0 {
		t.Errorf("missing: %+v", missing)
	}
}

// receiptIn is the receipt of an analysis that has one.
func receiptIn(t *testing.T, b *bus.Bus, a *analysis) (r schemas.Receipt) {
	t.Helper()
	if err := b.Read(t.Context(), "default", a.id, 0, func(e bus.Entry) error {
		if e.Event.Family() == "receipt" {
			return e.Event.Decode(&r)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestClerkRefusesTypes hands in JSON that no Go program would write: the task has
// its receipt, which names the field, and so does the dead letter.
func TestClerkRefusesTypes(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "static", schemas.KindSample)
	findings := []schemas.Finding{{Kind: "x", Title: "first"}, {Kind: "x", Title: "second", Severity: schemas.SeverityHigh}}
	list, err := json.Marshal(findings)
	if err != nil {
		t.Fatal(err)
	}
	var all []*analysis
	for says, change := range map[string][2]string{
		"finding 1: field severity: it is a JSON number": {`"severity":"high"`, `"severity":5`},
		"finding 0: unknown field \"titel\"":             {`"title":"first"`, `"titel":"first"`},
		"field took":                                     {`"took":"1s"`, `"took":12`},
		"unknown field \"bogus\"":                        {`"took":"1s"`, `"took":"1s","bogus":1`},
		"derived artifact 0:":                            {`"sha256":"` + strings.Repeat("0", 64), `"sha256":"zz`},
		"findings: that is no JSON list":                 {string(list), "5"},
	} {
		a := newAnalysis(t, b)
		all = append(all, a)
		a.artifact(schemas.KindSample, says, 0)
		a.event(schemas.StartAnalysis{})
		task := next(t, b, "static")
		e, err := schemas.NewEvent("default", a.id, "answer", time.Now(), schemas.OriginHost, schemas.FinishedTask{
			Task: task.Ref, Version: "1.0.0", Instance: "x", Status: schemas.TaskDone, Took: schemas.Duration(time.Second),
			Findings: findings, Derived: []schemas.Derived{{Kind: "dropped", Size: 1}},
		})
		if err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		wrong := strings.Replace(string(body), change[0], change[1], 1)
		if wrong == string(body) {
			t.Fatalf("%q is not in %s", change[0], body)
		}
		if _, err := b.JetStream().Publish(t.Context(), "in.static.x", []byte(wrong)); err != nil {
			t.Fatal(err)
		}
		if missing := a.wait(time.Minute); len(missing) != 0 {
			t.Errorf("%s: missing: %+v", says, missing)
		}
		r := receiptIn(t, b, a)
		if r.Status != schemas.TaskFailed || !strings.Contains(r.Error, says) {
			t.Errorf("receipt %+v does not say %q", r, says)
		}
		eventually(t, func() bool {
			return slices.ContainsFunc(deadLetters(t, b), func(d bus.DeadLetter) bool { return strings.Contains(d.Reason, says) })
		})
		if err := task.Done(); err != nil {
			t.Error(err)
		}
	}
	account(t, b, all...)
}

// TestClerkRefuses hands in what a broken or hostile analyzer might.
func TestClerkRefuses(t *testing.T) {
	t.Parallel()
	missing := schemas.Sum([]byte("never uploaded"))
	tests := map[string]struct {
		change func(f *schemas.FinishedTask)
		says   string // in the receipt; empty: there is none
	}{
		"unknown status":          {func(f *schemas.FinishedTask) { f.Status = "great" }, "status"},
		"a finding without title": {func(f *schemas.FinishedTask) { f.Findings = []schemas.Finding{{Kind: "x"}} }, "finding 0: title"},
		"a bad severity": {func(f *schemas.FinishedTask) {
			f.Findings = []schemas.Finding{{Kind: "x", Title: "x", Severity: "extreme"}}
		}, "severity"},
		"a kind with a dot": {func(f *schemas.FinishedTask) { f.Findings = []schemas.Finding{{Kind: "x.y", Title: "x"}} }, "kind"},
		"too many findings": {func(f *schemas.FinishedTask) { f.Findings = make([]schemas.Finding, schemas.MaxFindings+1) }, "findings"},
		"bytes that are not there": {func(f *schemas.FinishedTask) {
			f.Derived = []schemas.Derived{{Kind: "dropped", SHA256: missing, Size: 3}}
		}, "was not uploaded"},
		"a result that is not there": {func(f *schemas.FinishedTask) {
			f.Result = &schemas.ResultRef{Schema: "petri.result.x.v1", SHA256: missing}
		}, "was not uploaded"},
		"another analysis":          {func(f *schemas.FinishedTask) { f.Task.Analysis = schemas.NewID(time.Now()) }, ""},
		"another artifact":          {func(f *schemas.FinishedTask) { f.Task.SHA256 = &missing }, ""},
		"another analyzer":          {func(f *schemas.FinishedTask) { f.Task.Analyzer = "stranger" }, ""},
		"a replay nobody asked for": {func(f *schemas.FinishedTask) { f.Task.Run = "r-x" }, ""},
	}
	b := start(t)
	clerk(t, b)
	register(t, b, "static", schemas.KindSample)
	var all []*analysis
	for name, tt := range tests {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			a := newAnalysis(t, b)
			all = append(all, a)
			a.artifact(schemas.KindSample, name, 0)
			a.event(schemas.StartAnalysis{})
			task := next(t, b, "static")
			f := schemas.FinishedTask{Task: task.Ref, Version: "1.0.0", Instance: name, Status: schemas.TaskDone}
			tt.change(&f)
			if err := b.Finish(t.Context(), f); err != nil {
				t.Fatal(err)
			}
			if tt.says == "" {
				if missing := a.wait(500 * time.Millisecond); len(missing) != 1 {
					t.Errorf("missing: %+v, log: %v", missing, a.names())
				}
			} else {
				if missing := a.wait(time.Minute); len(missing) != 0 {
					t.Fatalf("missing: %+v", missing)
				}
				r := receiptIn(t, b, a)
				if r.Status != schemas.TaskFailed || !strings.Contains(r.Error, tt.says) {
					t.Errorf("receipt %+v does not say %q", r, tt.says)
				}
			}
			if err := task.Done(); err != nil {
				t.Error(err)
			}
		})
	}
	// Each refusal is a dead letter, and the server's own advisory of it.
	want := 2 * len(tests)
	await(t, b, "DEAD", want)
	if n := messages(t, b, "DEAD"); n != uint64(want) {
		t.Errorf("%d messages in DEAD for %d refusals", n, len(tests))
	}
	account(t, b, all...)
}

func TestLateAnswerAmends(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "slow", schemas.KindSample)
	a := newAnalysis(t, b)
	a.artifact(schemas.KindSample, "the sample", 0)
	a.event(schemas.StartAnalysis{})
	task := next(t, b, "slow")
	a.event(schemas.AnalysisCompleted{})
	finish(t, b, task, schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "late", Title: "late"}}})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := b.Follow(ctx, "default", a.id, 0, nil, func(e bus.Entry) error {
		if e.Event.Name() == schemas.EventAmended {
			return bus.ErrStop
		}
		return nil
	}); err != nil {
		t.Errorf("no amendment: %v, %v", a.names(), err)
	}
}

// TestTwiceHandedIn repeats a finished task, as a crash between handing in and
// acknowledging does.
func TestTwiceHandedIn(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "static", schemas.KindSample)
	a := newAnalysis(t, b)
	a.artifact(schemas.KindSample, "the sample", 0)
	a.event(schemas.StartAnalysis{})
	task := next(t, b, "static")
	for _, instance := range []string{"one", "two", "three"} {
		f := schemas.FinishedTask{Task: task.Ref, Version: "1.0.0", Instance: instance, Status: schemas.TaskDone, Findings: []schemas.Finding{{Kind: "x", Title: "x"}, {Kind: "y", Title: "y"}}}
		if err := b.Finish(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	a.wait(time.Minute)
	// The inbox empties.
	for messages(t, b, "INBOX") > 0 {
		time.Sleep(10 * time.Millisecond)
	}
	count := map[string]int{}
	for _, n := range a.names() {
		count[n]++
	}
	if count["finding committed"] != 2 || count["receipt committed"] != 1 {
		t.Errorf("%v", count)
	}
	account(t, b, a)
}

// TestSameBytesDerived has several analyzers derive the same bytes at once, each
// of them twice, while the sandbox announces them too: every announcement has
// its own number and id.
func TestSameBytesDerived(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	a := newAnalysis(t, b)
	names := []string{"one", "two", "three", "four", "five", "six"}
	for _, n := range names {
		register(t, b, n, schemas.KindSample)
	}
	a.artifact(schemas.KindSample, "an archive", 0)
	a.event(schemas.StartAnalysis{})
	const inner = "what was in it"
	for _, n := range names {
		task := next(t, b, n)
		d, size, err := b.Upload(t.Context(), n, schemas.KindDropped, strings.NewReader(inner))
		if err != nil {
			t.Fatal(err)
		}
		derived := schemas.Derived{Kind: schemas.KindDropped, SHA256: d, Size: size, Name: n}
		finish(t, b, task, schemas.FinishedTask{Derived: []schemas.Derived{derived, derived}})
	}
	a.artifact(schemas.KindDropped, inner, 0)
	if missing := a.wait(time.Minute); len(missing) != 0 {
		t.Errorf("missing: %+v", missing)
	}
	a.artifact(schemas.KindDropped, inner, 1) // as its sandbox counts
	var got []int
	ids := map[string]bool{}
	if err := b.Read(t.Context(), "default", a.id, 0, func(e bus.Entry) error {
		if ids[e.Event.ID] {
			t.Errorf("two events have the id %s", e.Event.ID)
		}
		ids[e.Event.ID] = true
		var art schemas.Artifact
		if e.Event.Family() == "artifact" && e.Event.Decode(&art) == nil && art.Kind == schemas.KindDropped {
			got = append(got, art.Occurrence)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	want := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("occurrences (-want +got):\n%s", diff)
	}
}

func TestUploadsAreApart(t *testing.T) {
	t.Parallel()
	b := start(t)
	register(t, b, "one", schemas.KindSample)
	d, _, err := b.Upload(t.Context(), "one", "upload", bytes.NewReader([]byte("unverified")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Artifacts().Stat(t.Context(), d); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("an upload is an artifact before the clerk has seen it: %v", err)
	}
}
