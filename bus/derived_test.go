// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// derives hands in a task that derives one artifact of each text.
func derives(t *testing.T, b *bus.Bus, task *bus.Task, kind schemas.Kind, texts ...string) {
	t.Helper()
	var f schemas.FinishedTask
	for _, text := range texts {
		d, size, err := b.Upload(t.Context(), task.Ref.Analyzer, "upload", strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		f.Derived = append(f.Derived, schemas.Derived{Kind: kind, SHA256: d, Size: size})
	}
	finish(t, b, task, f)
}

// TestDerivedCycle has an analyzer derive b from a and a from b: each is one
// task, and the analysis ends.
func TestDerivedCycle(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "unpack", schemas.KindDropped)
	a := newAnalysis(t, b)
	d := a.artifact(schemas.KindDropped, "a", 0)
	first := next(t, b, "unpack")
	if *first.Ref.SHA256 != d {
		t.Fatalf("the first task is %s", first.Ref.SHA256)
	}
	derives(t, b, first, schemas.KindDropped, "b")
	second := next(t, b, "unpack")
	if *second.Ref.SHA256 != schemas.Sum([]byte("b")) || second.Artifact.Depth != 1 || *second.Artifact.Parent != d {
		t.Fatalf("the second task is %+v", second.Artifact)
	}
	derives(t, b, second, schemas.KindDropped, "a")
	drained(t, b)
	c := readCommitted(t, b)
	if len(c.receipts) != 2 || len(c.twice) > 0 {
		t.Errorf("receipts %v, twice: %v", c.receipts, c.twice)
	}
	announced := 0
	for _, n := range a.names() {
		if n == "artifact announced" {
			announced++
		}
	}
	if announced != 3 {
		t.Errorf("%d announcements: a, b and a again are 3", announced)
	}
}

// TestDerivedDepth derives one from the other without end.
func TestDerivedDepth(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "unpack", schemas.KindDropped)
	a := newAnalysis(t, b)
	a.artifact(schemas.KindDropped, "level 0", 0)
	for level := range 9 {
		derives(t, b, next(t, b, "unpack"), schemas.KindDropped, fmt.Sprint("level ", level+1))
	}
	drained(t, b)
	c := readCommitted(t, b)
	if len(c.receipts) != 9 {
		t.Errorf("%d receipts, not 9", len(c.receipts))
	}
	last := schemas.TaskRef{Analysis: a.id, Analyzer: "unpack"}
	d := schemas.Sum([]byte("level 8"))
	last.SHA256 = &d
	r := c.receipts[last.Analysis+last.Analyzer+last.Token()]
	if r.Status != schemas.TaskDone || r.Derived != 0 || r.Cut == nil || r.Cut.Derived != 1 {
		t.Errorf("the receipt of the last level is %+v", r)
	}
}

// TestDerivedLimits derives more than an analysis may have, with a clerk that
// has seen all of it and one that has not.
func TestDerivedLimits(t *testing.T) {
	t.Parallel()
	b := start(t)
	register(t, b, "unpack", schemas.KindDropped)
	limited := func() (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		c := bus.NewClerk(b, slog.New(slog.NewTextHandler(t.Output(), nil)))
		c.LimitDerived(4, 100)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = c.Run(ctx)
		}()
		stop = func() {
			cancel()
			<-done
		}
		t.Cleanup(stop)
		return stop
	}
	key := func(ref schemas.TaskRef) string { return ref.Analysis + ref.Analyzer + ref.Token() }
	check := func(ref schemas.TaskRef, derived, cut int) {
		t.Helper()
		r := readCommitted(t, b).receipts[key(ref)]
		got := 0
		if r.Cut != nil {
			got = r.Cut.Derived
		}
		if r.Status != schemas.TaskDone || r.Derived != derived || got != cut {
			t.Errorf("receipt %+v with %d cut; want %d derived and %d cut", r, got, derived, cut)
		}
	}
	stop := limited()
	a := newAnalysis(t, b)
	a.artifact(schemas.KindDropped, "one", 0)
	one := next(t, b, "unpack")
	derives(t, b, one, schemas.KindPcap, "1", strings.Repeat("too large", 20), "2", "3")
	drained(t, b)
	check(one.Ref, 3, 1)
	stop()
	limited()
	a.artifact(schemas.KindDropped, "two", 0)
	two := next(t, b, "unpack")
	derives(t, b, two, schemas.KindPcap, "4", "5", "6")
	drained(t, b)
	check(two.Ref, 1, 2)
	other := newAnalysis(t, b)
	other.artifact(schemas.KindDropped, "one", 0)
	three := next(t, b, "unpack")
	derives(t, b, three, schemas.KindPcap, "1", "2", "3", "4")
	drained(t, b)
	check(three.Ref, 4, 0)
}
