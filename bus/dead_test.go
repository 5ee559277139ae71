// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

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
	t.Parallel()
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
	t.Parallel()
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

// TestTerminated has whoever took a message end it: the server's word of that is
// a dead letter, unless the message was moved to them.
func TestTerminated(t *testing.T) {
	t.Parallel()
	b := start(t)
	register(t, b, "static", schemas.KindSample)
	a := newAnalysis(t, b)
	a.artifact(schemas.KindSample, "ended", 0)
	other, err := b.JetStream().CreateConsumer(t.Context(), "LOG", jetstream.ConsumerConfig{Durable: "siem", AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: "petri.*.*.artifact.>"})
	if err != nil {
		t.Fatal(err)
	}
	live, err := b.JetStream().Consumer(t.Context(), "LOG", "az-static-live")
	if err != nil {
		t.Fatal(err)
	}
	for c, end := range map[jetstream.Consumer]func(jetstream.Msg) error{
		other: func(m jetstream.Msg) error { return m.Term() },
		live:  func(m jetstream.Msg) error { return m.TermWithReason("I cannot\nread it") },
	} {
		m, err := c.Next(jetstream.FetchMaxWait(10 * time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if err := end(m); err != nil {
			t.Fatal(err)
		}
	}
	// One that is moved: nobody can read it.
	if _, err := b.JetStream().Publish(t.Context(), "job.default.amd64.normal", []byte("no submission")); err != nil {
		t.Fatal(err)
	}
	q, err := b.Queue(t.Context(), []string{"amd64"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	claimed := make(chan error, 1)
	go func() {
		_, err := q.Claim(ctx)
		claimed <- err
	}()
	await(t, b, "DEAD", 4) // the letter, and three words of the server's
	cancel()
	<-claimed
	by := map[string]bus.DeadLetter{}
	for _, d := range deadLetters(t, b) {
		by[d.Consumer] = d
	}
	if len(by) != 3 {
		t.Fatalf("dead letters: %+v", by)
	}
	if d := by["jobs"]; d.Stream != "JOBS" || string(d.Body) != "no submission" {
		t.Errorf("%+v", d)
	}
	for consumer, want := range map[string][2]string{
		"siem":           {"ended, unanswered, by whoever took it", `consumer "siem" is no analyzer's`},
		"az-static-live": {"ended, unanswered, by whoever took it: I cannot read it", "petri replay " + a.id + " --analyzer static"},
	} {
		d := by[consumer]
		if d.Stream != "LOG" || d.Reason != want[0] || !strings.Contains(d.Subject, a.id) || d.Size == 0 {
			t.Errorf("%+v", d)
		}
		if err := b.RetryDead(t.Context(), d.ID); err == nil || !strings.Contains(err.Error(), want[1]) {
			t.Errorf("retry: %v", err)
		}
	}
}
