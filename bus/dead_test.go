// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

func deadLetters(t *testing.T, b *bus.Bus) []bus.DeadLetter {
	t.Helper()
	var list []bus.DeadLetter
	err := b.DeadLetters(t.Context(), func(d bus.DeadLetter) error {
		list = append(list, d)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestDeadLetters has an answer refused, because its analyzer is not registered
// yet, and tried again when it is.
func TestDeadLetters(t *testing.T) {
	b := start(t)
	clerk(t, b)
	a := newAnalysis(t, b)
	ref := a.refs("late", 1)[0]
	for _, instance := range []string{"one", "two"} {
		handIn(t, b, ref, instance, schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "x", Title: instance}}})
	}
	drained(t, b)
	list := deadLetters(t, b)
	if len(list) != 2 {
		t.Fatalf("dead letters: %+v", list)
	}
	for _, d := range list {
		if d.Stream != "INBOX" || d.Consumer != "clerk" || !strings.HasPrefix(d.Subject, "in.late.") || !strings.Contains(d.Reason, "not registered") || d.Size == 0 {
			t.Errorf("%+v", d)
		}
	}
	register(t, b, "late", schemas.KindSample)
	if err := b.RetryDead(t.Context(), list[1].ID); err != nil {
		t.Fatal(err)
	}
	drained(t, b)
	// What an analyzer was not asked for stays refused, now in its own name.
	if got := deadLetters(t, b); slices.ContainsFunc(got, func(d bus.DeadLetter) bool { return d.ID == list[1].ID }) {
		t.Errorf("the letter that was tried again is still there: %+v", got)
	}
	if err := b.DropDead(t.Context(), list[0].ID); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"drop":  b.DropDead(t.Context(), list[0].ID),
		"retry": b.RetryDead(t.Context(), list[0].ID),
	} {
		if !errors.Is(err, bus.ErrNotFound) {
			t.Errorf("%s what is gone: %v", what, err)
		}
	}
}

// TestRetryAnswered keeps a letter whose task has been answered meanwhile.
func TestRetryAnswered(t *testing.T) {
	b := start(t)
	register(t, b, "static", schemas.KindSample)
	clerk(t, b)
	a := newAnalysis(t, b)
	ref := a.refs("static", 1)[0]
	handIn(t, b, ref, "one", schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "x"}}}) // no title
	drained(t, b)
	list := deadLetters(t, b)
	if len(list) != 1 || !strings.Contains(list[0].Reason, "title") {
		t.Fatalf("dead letters: %+v", list)
	}
	if err := b.RetryDead(t.Context(), list[0].ID); err == nil || !strings.Contains(err.Error(), "petri replay") {
		t.Errorf("retry: %v", err)
	}
	if got := deadLetters(t, b); len(got) != 1 {
		t.Errorf("the letter is gone: %+v", got)
	}
}
