// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// TestTogether hands in one message of many finished tasks, of which one is done
// already and one is wrong, and has the clerk forget one of them: it comes again
// with the others, which are found done.
func TestTogether(t *testing.T) {
	t.Parallel()
	b := start(t)
	register(t, b, "static", schemas.KindSample)
	register(t, b, "other", schemas.KindSample)
	a := newAnalysis(t, b)
	const n = 10
	refs := a.refs("static", n)
	var forgot atomic.Bool
	stop := clerkWith(t, b, func(step string) error {
		if step == "acknowledge" && forgot.CompareAndSwap(true, false) {
			return errors.New("died")
		}
		return nil
	})
	handIn(t, b, refs[0], "early", schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "early", Title: "early"}}})
	drained(t, b)
	forgot.Store(true)
	var tasks []schemas.FinishedTask
	for i, ref := range refs {
		f := schemas.FinishedTask{Task: ref, Version: "1.0.0", Instance: "one", Status: schemas.TaskDone, Findings: []schemas.Finding{{Kind: "x", Title: "x"}}}
		if i == 3 {
			f.Findings[0].Title = ""
		}
		tasks = append(tasks, f)
	}
	elsewhere := tasks[5]
	elsewhere.Task.Analyzer = "other"
	before := last(t, b, "INBOX")
	if err := b.FinishTogether(t.Context(), append(tasks, elsewhere)...); err != nil {
		t.Fatal(err)
	}
	if sent := last(t, b, "INBOX") - before; sent != 2 {
		t.Errorf("%d messages for two analyzers", sent)
	}
	drained(t, b)
	stop()
	if forgot.Load() {
		t.Error("the clerk has forgotten nothing")
	}
	c := readCommitted(t, b)
	if len(c.receipts) != n+1 || len(c.twice) > 0 {
		t.Errorf("%d receipts of %d tasks, twice: %v", len(c.receipts), n+1, c.twice)
	}
	if len(c.findings) != n {
		t.Errorf("%d findings, not %d", len(c.findings), n)
	}
	for _, r := range c.receipts {
		if wrong := *r.Task.SHA256 == *refs[3].SHA256 && r.Task.Analyzer == "static"; wrong != (r.Status == schemas.TaskFailed) {
			t.Errorf("%+v", r)
		}
	}
	if n := letters(t, b); n != 1 {
		t.Errorf("%d dead letters", n)
	}
}

// What claims to be more than the clerk takes in one message is refused as one.
func TestTooManyTogether(t *testing.T) {
	t.Parallel()
	b := start(t)
	register(t, b, "static", schemas.KindSample)
	clerk(t, b)
	for i, list := range []string{"[]", "[" + strings.Repeat("1,", bus.MaxTogether) + "1]", "[1"} {
		if _, err := b.JetStream().Publish(t.Context(), fmt.Sprint("in.static.", i), []byte(list)); err != nil {
			t.Fatal(err)
		}
	}
	drained(t, b)
	eventually(t, func() bool { return letters(t, b) == 3 })
}

// letters counts the dead letters.
func letters(t *testing.T, b *bus.Bus) (n int) {
	t.Helper()
	if err := b.DeadLetters(t.Context(), func(bus.DeadLetter) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// last is the sequence of a stream's last message.
func last(t *testing.T, b *bus.Bus, stream string) uint64 {
	t.Helper()
	st, err := b.JetStream().Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	return st.CachedInfo().State.LastSeq
}
