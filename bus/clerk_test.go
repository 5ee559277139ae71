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
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/faults"
	"github.com/petri-sandbox/petri/schemas"
)

// refs announces n samples in an analysis and returns what an analyzer owes for
// them.
func (a *analysis) refs(analyzer string, n int) []schemas.TaskRef {
	a.t.Helper()
	var out []schemas.TaskRef
	for i := range n {
		d := a.artifact(schemas.KindSample, fmt.Sprintf("%s %d", a.id, i), 0)
		out = append(out, schemas.TaskRef{Tenant: "default", Analysis: a.id, Run: schemas.LiveRun, Analyzer: analyzer, SHA256: &d, Kind: schemas.KindSample})
	}
	return out
}

func handIn(t *testing.T, b *bus.Bus, ref schemas.TaskRef, instance string, f schemas.FinishedTask) {
	t.Helper()
	f.Task, f.Version, f.Instance = ref, "1.0.0", instance
	if f.Status == "" {
		f.Status = schemas.TaskDone
	}
	if err := b.Finish(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

// drained waits until the inbox is empty.
func drained(t *testing.T, b *bus.Bus) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); messages(t, b, "INBOX") > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d finished tasks are still in the inbox", messages(t, b, "INBOX"))
		}
	}
}

// committed is what the log has of tasks.
type committed struct {
	receipts map[string]schemas.Receipt
	findings map[string]int // by task and number
	twice    []string       // receipts and findings that the log has more than once
	batches  map[string]int // tasks per batch
}

func readCommitted(t *testing.T, b *bus.Bus) committed {
	t.Helper()
	c := committed{receipts: map[string]schemas.Receipt{}, findings: map[string]int{}, batches: map[string]int{}}
	st, err := b.JetStream().Stream(t.Context(), "LOG")
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); ; seq++ {
		m, err := st.GetMsg(t.Context(), seq, jetstream.WithGetMsgSubject("petri.>"))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return c
		}
		if err != nil {
			t.Fatal(err)
		}
		seq = m.Sequence
		e, err := schemas.ParseEvent(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		switch e.Family() {
		case "receipt":
			var r schemas.Receipt
			if err := e.Decode(&r); err != nil {
				t.Fatal(err)
			}
			key := r.Task.Analysis + r.Task.Analyzer + r.Task.Token()
			if _, ok := c.receipts[key]; ok {
				c.twice = append(c.twice, m.Subject)
			}
			c.receipts[key] = r
			c.batches[m.Header.Get("Nats-Batch-Id")]++
		case "finding":
			var f schemas.FindingCommitted
			if err := e.Decode(&f); err != nil {
				t.Fatal(err)
			}
			key := fmt.Sprint(f.Task.Analysis, f.Task.Analyzer, f.Task.Token(), "/", f.N)
			if c.findings[key]++; c.findings[key] > 1 {
				c.twice = append(c.twice, m.Subject)
			}
		}
	}
}

// TestGroup has a clerk find at once what a flood of tasks gave, among it tasks
// that are done already, that are wrong, and that derived the same bytes: all
// others are committed with few batches.
func TestGroup(t *testing.T) {
	t.Parallel()
	b := start(t)
	register(t, b, "static", schemas.KindSample)
	a := newAnalysis(t, b)
	const n = 40
	refs := a.refs("static", n)
	first := clerkWith(t, b, nil)
	handIn(t, b, refs[7], "early", schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "early", Title: "early"}}})
	drained(t, b)
	first()
	same, size, err := b.Upload(t.Context(), "static", "upload", strings.NewReader("the same bytes"))
	if err != nil {
		t.Fatal(err)
	}
	for i, ref := range refs {
		f := schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "x", Title: "x"}, {Kind: "y", Title: "y", Severity: schemas.SeverityHigh}}}
		switch {
		case i == 13:
			f.Findings[1].Title = ""
		case i >= 20 && i < 23:
			f.Derived = []schemas.Derived{{Kind: schemas.KindDropped, SHA256: same, Size: size, Name: "inner"}}
		}
		handIn(t, b, ref, "flood", f)
		if i == 9 {
			handIn(t, b, ref, "again", f)
		}
	}
	clerkWith(t, b, nil)
	drained(t, b)
	c := readCommitted(t, b)
	if len(c.receipts) != n || len(c.twice) > 0 {
		t.Errorf("%d receipts of %d tasks, twice: %v", len(c.receipts), n, c.twice)
	}
	if want := 2*(n-2) + 1; len(c.findings) != want {
		t.Errorf("%d findings, not %d", len(c.findings), want)
	}
	failed := 0
	for _, r := range c.receipts {
		if r.Status == schemas.TaskFailed {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("%d receipts say failed", failed)
	}
	if len(c.batches) > n/2 {
		t.Errorf("%d batches for %d tasks", len(c.batches), n)
	}
	derived := 0
	for _, name := range a.names() {
		if name == "artifact announced" {
			derived++
		}
	}
	if derived != n+3 {
		t.Errorf("%d announcements, not %d", derived, n+3)
	}
}

// clerkWith runs a clerk that calls step; nil: none. stop ends it as a crash
// does: what it has in hand it forgets.
func clerkWith(t *testing.T, b *bus.Bus, step func(string) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := bus.NewClerk(b, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if step != nil {
		c.OnStep(step)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(stop)
	return stop
}

// TestClerkDies has clerks die between each two steps; the next one goes on.
func TestClerkDies(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		bad  bool
		dead int
	}{"amend": {}, "acknowledge": {}, "bury": {bad: true, dead: 1}}
	for step, tt := range tests {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			b := start(t)
			register(t, b, "static", schemas.KindSample)
			a := newAnalysis(t, b)
			ref := a.refs("static", 1)[0]
			a.event(schemas.StartAnalysis{})
			a.event(schemas.AnalysisCompleted{})
			died := make(chan struct{}, 10)
			stop := clerkWith(t, b, func(s string) error {
				if s == step {
					died <- struct{}{}
					return errors.New("crash")
				}
				return nil
			})
			f := schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "x", Title: "x"}}}
			if tt.bad {
				f.Findings[0].Title = ""
			}
			handIn(t, b, ref, "one", f)
			<-died
			stop()
			clerkWith(t, b, nil)
			drained(t, b)
			c := readCommitted(t, b)
			if len(c.receipts) != 1 || len(c.twice) > 0 {
				t.Errorf("receipts %v, twice: %v", c.receipts, c.twice)
			}
			amended := 0
			for _, n := range a.names() {
				if n == "context analysis_amended" {
					amended++
				}
			}
			if amended != 1 {
				t.Errorf("amended %d times: %v", amended, a.names())
			}
			if tt.dead > 0 {
				await(t, b, "DEAD", tt.dead)
			}
		})
	}
}

// TestAnswersExactlyOnce is the property that all of this is for: whatever is
// handed in how often, by whom, to how many clerks, and whenever these die, the
// log has one receipt per task and each finding once.
func TestAnswersExactlyOnce(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	b := start(t)
	names := []string{"one", "two"}
	for _, n := range names {
		register(t, b, n, schemas.KindSample)
	}
	want := map[string]int{}
	var mu sync.Mutex
	crash := func(string) error {
		mu.Lock()
		defer mu.Unlock()
		if rnd.IntN(8) == 0 {
			return errors.New("crash")
		}
		return nil
	}
	chance := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return rnd.IntN(n)
	}
	stop := []func(){clerkWith(t, b, crash), clerkWith(t, b, crash)}
	var all []*analysis
	for round := range 4 {
		a := newAnalysis(t, b)
		all = append(all, a)
		for _, name := range names {
			for i, ref := range a.refs(name, 20) {
				f := schemas.FinishedTask{}
				for k := range chance(4) {
					f.Findings = append(f.Findings, schemas.Finding{Kind: "x", Title: fmt.Sprint(i, " ", k)})
				}
				want[ref.Analysis+ref.Analyzer+ref.Token()] = len(f.Findings)
				for try := range 1 + chance(3) {
					handIn(t, b, ref, fmt.Sprint("instance ", try), f)
				}
			}
		}
		if round == 2 {
			stop[0]()
			stop[0] = clerkWith(t, b, crash)
		}
	}
	for _, s := range stop {
		s()
	}
	clerkWith(t, b, nil)
	clerkWith(t, b, nil)
	drained(t, b)
	c := readCommitted(t, b)
	if len(c.twice) > 0 {
		t.Errorf("more than once: %v", c.twice)
	}
	sum := 0
	figures := faults.Figures{Note: "answers"}
	for key, n := range want {
		sum += n
		figures.Acked += n
		r, ok := c.receipts[key]
		if !ok || r.Findings != n {
			t.Errorf("task %s with %d findings: receipt %v %+v", key, n, ok, r)
			figures.Lost += n
		}
	}
	figures.Report(t)
	account(t, b, all...)
	if len(c.receipts) != len(want) || len(c.findings) != sum {
		t.Errorf("%d receipts and %d findings, not %d and %d", len(c.receipts), len(c.findings), len(want), sum)
	}
}
