// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/faults"
	"github.com/petri-sandbox/petri/schemas"
)

// tasksOf lists the tasks that a run has answered in an analysis, as
// "analyzer text", and what it has derived.
func (a *analysis) tasksOf(run string, texts ...string) (tasks map[string]int, derived []schemas.Artifact, counted int) {
	a.t.Helper()
	names := map[schemas.Digest]string{}
	for _, text := range texts {
		names[schemas.Sum([]byte(text))] = text
	}
	tasks = map[string]int{}
	err := a.b.Read(a.t.Context(), "default", a.id, 0, func(e bus.Entry) error {
		var r schemas.Receipt
		var d schemas.Derivation
		switch {
		case e.Event.Decode(&r) == nil && r.Task.Run == run:
			tasks[r.Task.Analyzer+" "+names[*r.Task.SHA256]]++
			counted += r.Derived
		case e.Event.Decode(&d) == nil && d.Task.Run == run:
			derived = append(derived, d.Artifact)
		}
		return nil
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return tasks, derived, counted
}

// TestRunDerives hunts with an analyzer that unpacks and one that does not:
// each is given what is inside, once, also where it is inside itself, and
// nobody else is given anything.
func TestRunDerives(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	drive(t, b)
	a := past(t, b, 1)[0]
	register(t, b, "unpack", schemas.KindSample, schemas.KindExtracted)
	register(t, b, "static", schemas.KindSample, schemas.KindExtracted)
	register(t, b, "other", schemas.KindExtracted)
	live, err := b.JetStream().CreateOrUpdateConsumer(t.Context(), "LOG", jetstream.ConsumerConfig{
		Durable: "a-follower", FilterSubject: "petri.*.*.artifact.>", AckPolicy: jetstream.AckExplicitPolicy, DeliverPolicy: jetstream.DeliverNewPolicy,
	})
	if err != nil {
		t.Fatal(err)
	}
	run := startRun(t, b, schemas.RunState{Analyzers: []string{"unpack", "static"}, Force: true})
	work(t, b, "static", nil)
	first := next(t, b, "unpack")
	derives(t, b, first, schemas.KindExtracted, "outer", "sample 0")
	second := next(t, b, "unpack")
	if x := second.Artifact; second.Ref.Run != run || x.SHA256 != schemas.Sum([]byte("outer")) || x.Depth != 1 || *x.Parent != *first.Ref.SHA256 || x.Run != run {
		t.Fatalf("the second task is %+v with %+v", second.Ref, x)
	}
	derives(t, b, second, schemas.KindExtracted, "inner", "outer")
	third := next(t, b, "unpack")
	if x := third.Artifact; x.SHA256 != schemas.Sum([]byte("inner")) || x.Depth != 2 {
		t.Fatalf("the third task is %+v", x)
	}
	if r, err := b.Run(t.Context(), run); err != nil || r.Ended() {
		t.Errorf("with a task that is open the run stands at %+v (%v)", r, err)
	}
	finish(t, b, third, schemas.FinishedTask{})
	if r := until(t, b, run, overAndDone); r.State != schemas.RunDone || r.Total != 6 || r.Done != 6 || r.Derived != 4 {
		t.Errorf("the run ended as %+v", r)
	}
	tasks, derived, _ := a.tasksOf(run, "sample 0", "outer", "inner")
	want := map[string]int{
		"unpack sample 0": 1, "unpack outer": 1, "unpack inner": 1, "static sample 0": 1, "static outer": 1, "static inner": 1,
	}
	if diff := cmp.Diff(want, tasks); diff != "" {
		t.Errorf("receipts (-want +got):\n%s", diff)
	}
	if len(derived) != 4 {
		t.Errorf("%d artifacts were derived: %+v", len(derived), derived)
	}
	if info, err := live.Info(t.Context()); err != nil || info.NumPending != 0 {
		t.Errorf("whoever follows artifacts sees %+v (%v)", info, err)
	}

	// Who compares runs is given the same of few analyses and of many.
	answers := func(analyses ...string) map[string]bool {
		t.Helper()
		out := map[string]bool{}
		if err := b.Answers(t.Context(), "default", []string{"unpack"}, analyses, func(e schemas.Event) { out[e.Family()+" "+e.ID] = true }); err != nil {
			t.Fatal(err)
		}
		return out
	}
	few, many := answers(a.id), []string{a.id}
	for range 8 {
		many = append(many, schemas.NewID(time.Now()))
	}
	if diff := cmp.Diff(few, answers(many...)); diff != "" {
		t.Errorf("of many analyses (-few +many):\n%s", diff)
	}
	families := map[string]int{}
	for id := range few {
		family, _, _ := strings.Cut(id, " ")
		families[family]++
	}
	if families["artifact"] != 1 || families["derivation"] != 4 || families["receipt"] != 6 {
		t.Errorf("answers are %v", families)
	}

	// Another run has an answer of the first, with all that it gave.
	second2 := startRun(t, b, schemas.RunState{Analyzers: []string{"unpack", "static"}})
	task := next(t, b, "unpack")
	ref := schemas.TaskRef{Tenant: "default", Analysis: a.id, Run: run, Analyzer: "unpack", SHA256: task.Ref.SHA256, Kind: task.Ref.Kind}
	if got := earlier(t, b, schemas.FinishedTask{Task: task.Ref, Version: "1.0.0"}, true); *got != ref && got.Run != run {
		t.Errorf("the earlier answer is %+v", got)
	}
	finish(t, b, task, schemas.FinishedTask{Reuse: &ref})
	task = next(t, b, "unpack")
	if *task.Ref.SHA256 != schemas.Sum([]byte("outer")) || task.Artifact.Run != second2 {
		t.Errorf("the task behind the earlier answer is %+v", task.Ref)
	}
	finish(t, b, task, schemas.FinishedTask{})
	if r := until(t, b, second2, overAndDone); r.Total != 4 || r.Done != 4 || r.Reused != 1 {
		t.Errorf("the second run ended as %+v", r)
	}

	// What a run alone names stays as long as it does.
	only := schemas.Sum([]byte("inner"))
	collected := func() bool {
		t.Helper()
		if _, err := b.Collect(t.Context(), bus.GCOptions{Age: time.Nanosecond, Alone: true}); err != nil {
			t.Fatal(err)
		}
		_, err := b.Artifacts().Stat(t.Context(), only)
		return errors.Is(err, bus.ErrNotFound)
	}
	if collected() {
		t.Error("what a run alone names is collected")
	}
	if err := b.ForgetRun(t.Context(), run); err != nil {
		t.Fatal(err)
	}
	if _, derived, _ := a.tasksOf(run); len(derived) > 0 {
		t.Errorf("of a forgotten run %d derived artifacts are left", len(derived))
	}
	if !collected() {
		t.Error("what a forgotten run has derived is not collected")
	}
}

// TestRunDerivesLimits has one run derive more than it may, and another one begin
// anew.
func TestRunDerivesLimits(t *testing.T) {
	t.Parallel()
	b := start(t)
	ctx, cancel := context.WithCancel(context.Background())
	c := bus.NewClerk(b, slog.New(slog.NewTextHandler(t.Output(), nil)))
	c.LimitDerived(3, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	drive(t, b)
	past(t, b, 1)
	register(t, b, "unpack", schemas.KindSample, schemas.KindExtracted)
	for range 2 {
		run := startRun(t, b, schemas.RunState{Analyzers: []string{"unpack"}, Force: true})
		first := next(t, b, "unpack")
		derives(t, b, first, schemas.KindExtracted, "one", "two")
		second := next(t, b, "unpack")
		derives(t, b, second, schemas.KindExtracted, "three", "four", "five")
		for range 2 {
			finish(t, b, next(t, b, "unpack"), schemas.FinishedTask{})
		}
		if r := until(t, b, run, overAndDone); r.Total != 4 || r.Done != 4 || r.Derived != 3 {
			t.Errorf("the run ended as %+v", r)
		}
		key := func(ref schemas.TaskRef) string { return ref.Analysis + ref.Analyzer + ref.Token() }
		r := readRun(t, b, run)[key(second.Ref)]
		if r.Status != schemas.TaskDone || r.Derived != 1 || r.Cut == nil || r.Cut.Derived != 2 {
			t.Errorf("the receipt of the second task is %+v", r)
		}
	}
}

// TestRunDerivesDeleted deletes an analysis while what was derived in it is in
// work: the run ends, and nothing of it is left.
func TestRunDerivesDeleted(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	drive(t, b)
	list := past(t, b, 2)
	register(t, b, "unpack", schemas.KindSample, schemas.KindExtracted)
	run := startRun(t, b, schemas.RunState{Analyzers: []string{"unpack"}, Force: true, Parallel: 1})
	first := next(t, b, "unpack")
	derives(t, b, first, schemas.KindExtracted, "inner")
	rest := map[string]*bus.Task{}
	for range 2 { // of both analyses, in some order
		task := next(t, b, "unpack")
		if rest[task.Ref.Analysis] = task; len(rest) == 1 && task.Ref.Analysis != first.Ref.Analysis {
			finish(t, b, task, schemas.FinishedTask{})
			continue
		}
		break
	}
	open := rest[first.Ref.Analysis]
	if open == nil || open.Artifact.SHA256 != schemas.Sum([]byte("inner")) {
		t.Fatalf("what is inside is not given out: %+v", rest)
	}
	if _, err := b.Delete(t.Context(), "default", first.Ref.Analysis, bus.DeleteOptions{By: "test"}); err != nil {
		t.Fatal(err)
	}
	finish(t, b, open, schemas.FinishedTask{})
	if len(rest) == 1 {
		finish(t, b, next(t, b, "unpack"), schemas.FinishedTask{})
	}
	if r := until(t, b, run, overAndDone); r.State != schemas.RunDone || r.Total != 3 || r.Done+r.Gone != 3 || r.Gone == 0 {
		t.Errorf("the run ended as %+v", r)
	}
	for _, a := range list {
		if n := inLog(t, b, a.id); a.id == first.Ref.Analysis && n > 0 {
			t.Errorf("%s was deleted, and the log has %d messages of it", a.id, n)
		}
	}
}

// readRun reads the receipts of a run.
func readRun(t *testing.T, b *bus.Bus, run string) map[string]schemas.Receipt {
	t.Helper()
	out := map[string]schemas.Receipt{}
	err := b.RunAnalyses(t.Context(), run, func(id string) error {
		return b.Read(t.Context(), "default", id, 0, func(e bus.Entry) error {
			var r schemas.Receipt
			if e.Event.Decode(&r) == nil && r.Task.Run == run {
				out[r.Task.Analysis+r.Task.Analyzer+r.Task.Token()] = r
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A node of the graph of what is inside of what: few, with cycles, and
// no longer chains than may be derived.
const derivedNodes = 8

func nodeText(i int) string { return fmt.Sprint("node ", i) }

func inside(i int) []schemas.Derived {
	var out []schemas.Derived
	for _, n := range []int{(2*i + 1) % derivedNodes, (3*i + 2) % derivedNodes} {
		kind := schemas.KindDropped
		if n%3 == 0 {
			kind = schemas.KindPcap
		}
		text := nodeText(n)
		out = append(out, schemas.Derived{Kind: kind, SHA256: schemas.Sum([]byte(text)), Size: int64(len(text))})
	}
	return out
}

// owedBy is the rule, written down once more: which tasks a run has that begins
// with those nodes as samples. unpack takes samples and what is dropped, static
// also pcap.
func owedBy(samples []int) map[string]int {
	out := map[string]int{}
	todo := map[int]bool{}
	meet := func(n int, kind schemas.Kind) {
		out["static "+nodeText(n)] = 1
		if key := "unpack " + nodeText(n); kind != schemas.KindPcap && out[key] == 0 {
			out[key] = 1
			todo[n] = true
		}
	}
	for _, n := range samples {
		meet(n, schemas.KindSample)
	}
	for len(todo) > 0 {
		for n := range todo {
			delete(todo, n)
			for _, d := range inside(n) {
				for m := range derivedNodes {
					if schemas.Sum([]byte(nodeText(m))) == d.SHA256 {
						meet(m, d.Kind)
					}
				}
			}
		}
	}
	return out
}

// TestRunDerivesRandomly drives runs that derive while everybody dies: drivers
// between any two steps, the clerk, and analyzers before and behind an answer,
// which some of them give twice. Now and then a run has two drivers. Each task is
// answered once, none is left out, and no run ends early.
func TestRunDerivesRandomly(t *testing.T) {
	t.Parallel()
	const runs = 24
	b := start(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 1))
	chance := func(percent int) bool {
		mu.Lock()
		defer mu.Unlock()
		return rng.IntN(100) < percent
	}
	ctx, cancel := context.WithCancel(context.Background())
	var everybody sync.WaitGroup
	t.Cleanup(func() { cancel(); everybody.Wait() })
	died := errors.New("died")
	var deaths, twice, rivals atomic.Int64
	dies := func(percent int) func(string) error {
		return func(string) error {
			if chance(percent) {
				deaths.Add(1)
				return died
			}
			return nil
		}
	}
	c := bus.NewClerk(b, slog.New(slog.DiscardHandler))
	c.OnStep(dies(4))
	everybody.Go(func() { _ = c.Run(ctx) })
	digests := map[schemas.Digest]int{}
	var texts []string
	for n := range derivedNodes {
		d, _, err := b.Artifacts().Put(t.Context(), schemas.KindDropped, strings.NewReader(nodeText(n)))
		if err != nil {
			t.Fatal(err)
		}
		digests[d] = n
		texts = append(texts, nodeText(n))
	}
	register(t, b, "unpack", schemas.KindSample, schemas.KindDropped)
	register(t, b, "static", schemas.KindSample, schemas.KindDropped, schemas.KindPcap)
	analyzer := func(name string) {
		for ctx.Err() == nil {
			task, err := b.NextTask(ctx, name)
			if err != nil {
				continue
			}
			if task.Ref.Run == schemas.LiveRun || chance(10) {
				_ = task.Retry(0) // it died over it, and it is given out again
				continue
			}
			f := schemas.FinishedTask{Task: task.Ref, Version: "1.0.0", Instance: "one", Status: schemas.TaskDone}
			f.Findings = []schemas.Finding{{Kind: "seen", Title: "seen", Severity: schemas.SeverityHigh}}
			if name == "unpack" {
				f.Derived = inside(digests[*task.Ref.SHA256])
			}
			if b.Finish(ctx, f) != nil {
				continue
			}
			if chance(20) { // it is given to somebody else, who answers too
				twice.Add(1)
				f.Instance = "two"
				_ = b.Finish(ctx, f)
			}
			if chance(10) {
				_ = task.Retry(0)
				continue
			}
			_ = task.Done()
		}
	}
	for range 3 {
		everybody.Go(func() { analyzer("unpack") })
		everybody.Go(func() { analyzer("static") })
	}
	type begun struct {
		*analysis
		run     string
		samples []int
	}
	var list []begun
	for i := range runs {
		x := begun{analysis: newAnalysis(t, b), samples: []int{i % derivedNodes, i * 5 % derivedNodes}}
		x.event(schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: x.id, Tenant: "default"}, Attempt: 1})
		x.artifact(schemas.KindSample, nodeText(x.samples[0]), 0)
		occurrence := 0
		if x.samples[1] == x.samples[0] {
			occurrence = 1
		}
		x.artifact(schemas.KindSample, nodeText(x.samples[1]), occurrence)
		x.event(schemas.StartAnalysis{})
		x.event(schemas.AnalysisCompleted{Missing: []schemas.MissingTask{}})
		x.run = startRun(t, b, schemas.RunState{Analyzers: []string{"unpack", "static"}, Analysis: x.id, Parallel: 1 + i%4})
		list = append(list, x)
	}
	for _, x := range list {
		everybody.Go(func() {
			for ctx.Err() == nil {
				if chance(40) { // another one takes it for dead
					rivals.Add(1)
					everybody.Go(func() {
						short, end := context.WithTimeout(ctx, 200*time.Millisecond)
						defer end()
						_ = b.DriveDying(short, x.run, dies(30))
					})
				}
				err := b.DriveDying(ctx, x.run, dies(30))
				switch {
				case err == nil:
					return
				case errors.Is(err, died) || errors.Is(err, bus.ErrFenced) || ctx.Err() != nil:
				default:
					t.Errorf("drive %s: %v", x.run, err)
				}
			}
		})
	}
	var cost faults.Figures // of answers and what they derived, as the log has them
	for _, x := range list {
		r := until(t, b, x.run, overAndDone)
		tasks, derived, counted := x.tasksOf(x.run, texts...)
		want := owedBy(x.samples)
		if diff := cmp.Diff(want, tasks); diff != "" {
			t.Errorf("%s: receipts (-want +got):\n%s", x.run, diff)
		}
		if r.State != schemas.RunDone || r.Total != len(want) || r.Done != len(want) {
			t.Errorf("%s ended as %+v; it has %d tasks", x.run, r, len(want))
		}
		if len(derived) != counted {
			t.Errorf("%s: %d artifacts were derived, and receipts say %d", x.run, len(derived), counted)
		}
		cost.Acked += len(want) + counted
		cost.Lost += max(0, counted-len(derived))
		cost.Doubled += max(0, len(derived)-counted)
		early := 0
		for key, n := range want {
			early += max(0, n-tasks[key])
			cost.Doubled += max(0, tasks[key]-n)
		}
		cost.Wrong += min(early, 1) // it has ended, and not all is answered
		if f, _ := x.answers(x.run); f != len(want) {
			t.Errorf("%s: %d findings of %d tasks", x.run, f, len(want))
		}
		var pieces int
		if err := b.RunAnalyses(t.Context(), x.run, func(string) error { pieces++; return nil }); err != nil || pieces != 1 {
			t.Errorf("%s is about %d analyses (%v)", x.run, pieces, err)
		}
	}
	cost.Note = fmt.Sprintf("%d runs, %d deaths, %d answers given twice, %d rival drivers", runs, deaths.Load(), twice.Load(), rivals.Load())
	cost.Report(t)
	if min(deaths.Load(), twice.Load(), rivals.Load()) == 0 {
		t.Error("something has never happened")
	}
}
