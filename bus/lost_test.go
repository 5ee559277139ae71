// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// TestLostTask has an analyzer take a task as often as it is given out, and die
// of it each time, and nobody asks for the next. The analysis ends all the same,
// long before its deadline, and the receipt says why.
func TestLostTask(t *testing.T) {
	t.Parallel() // the last one's time must be up
	b := start(t)
	clerk(t, b)
	answerLost(t, b)
	register(t, b, "doomed", schemas.KindSample)
	register(t, b, "busy")
	a := newAnalysis(t, b)
	sample := a.artifact(schemas.KindSample, "poison", 0)
	a.event(schemas.StartAnalysis{})
	finish(t, b, next(t, b, "busy"), schemas.FinishedTask{})

	for n := 1; n <= bus.TaskMaxDeliver; n++ {
		task := next(t, b, "doomed")
		if task.Attempt != n || *task.Ref.SHA256 != sample {
			t.Fatalf("attempt %d is %d, of %v", n, task.Attempt, task.Ref)
		}
		if err := task.Begin(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n == bus.TaskMaxDeliver {
			break // it dies, and nobody says so
		}
		if err := task.Retry(time.Millisecond); err != nil { // as if its time were up
			t.Fatal(err)
		}
	}
	if missing := a.wait(2 * time.Minute); len(missing) != 0 {
		t.Errorf("missing: %+v", missing)
	}
	var receipts []schemas.Receipt
	err := b.Read(t.Context(), "default", a.id, 0, func(e bus.Entry) error {
		var r schemas.Receipt
		if e.Event.Family() != "receipt" {
			return nil
		}
		if err := e.Event.Decode(&r); err != nil {
			return err
		}
		if r.Task.Analyzer == "doomed" {
			receipts = append(receipts, r)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(receipts) != 1 || receipts[0].Status != schemas.TaskFailed || !strings.HasPrefix(receipts[0].Error, "poison: ") || receipts[0].Version != "1.0.0" {
		t.Errorf("receipts %+v", receipts)
	}
	account(t, b, a)
}

// TestLostRunTask has whoever takes a task of a run die of it, until nobody is
// left to ask for more: the task is answered as failed, and the run ends.
func TestLostRunTask(t *testing.T) {
	t.Parallel() // the last one's time must be up
	b := start(t)
	clerk(t, b)
	answerLost(t, b)
	a := past(t, b, 1)[0]
	// As an older Petri has made it.
	_, err := b.JetStream().CreateConsumer(t.Context(), "RUNS", jetstream.ConsumerConfig{
		Durable: "az-doomed-run", FilterSubject: "run.doomed.*.*", AckPolicy: jetstream.AckExplicitPolicy, AckWait: bus.TaskAckWait, MaxDeliver: -1, MaxAckPending: 1000,
	})
	if err != nil {
		t.Fatal(err)
	}
	register(t, b, "doomed", schemas.KindSample)
	drive(t, b)
	run := startRun(t, b, schemas.RunState{Analyzers: []string{"doomed"}})
	for n := 1; n <= bus.TaskMaxDeliver; n++ {
		task := next(t, b, "doomed")
		if task.Attempt != n || task.Ref.Run != run {
			t.Fatalf("attempt %d is %d, of %v", n, task.Attempt, task.Ref)
		}
		if err := task.Begin(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n == bus.TaskMaxDeliver {
			break // it dies, and nobody says so
		}
		if err := task.Retry(time.Millisecond); err != nil { // as if its time were up
			t.Fatal(err)
		}
	}
	r := until(t, b, run, overAndDone)
	if r.State != schemas.RunDone || r.Total != 1 || r.Failed != 1 {
		t.Errorf("the run ended as %+v", r)
	}
	var receipts []schemas.Receipt
	err = b.Read(t.Context(), "default", a.id, 0, func(e bus.Entry) error {
		var r schemas.Receipt
		if e.Event.Family() != "receipt" {
			return nil
		}
		if err := e.Event.Decode(&r); err != nil {
			return err
		}
		receipts = append(receipts, r)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(receipts) != 1 || receipts[0].Task.Run != run || receipts[0].Status != schemas.TaskFailed || !strings.HasPrefix(receipts[0].Error, "poison: ") || receipts[0].Version != "1.0.0" {
		t.Errorf("receipts %+v", receipts)
	}
	letters := deadLetters(t, b)
	if len(letters) != 1 || letters[0].Stream != "RUNS" || letters[0].Consumer != "az-doomed-run" || !strings.Contains(letters[0].Reason, "never answered") {
		t.Fatalf("dead letters: %+v", letters)
	}
	if err := b.RetryDead(t.Context(), letters[0].ID); err == nil || !strings.Contains(err.Error(), "petri hunt") {
		t.Errorf("retry: %v", err)
	}
	account(t, b, a)
}

// answerLost answers lost tasks during the test.
func answerLost(t *testing.T, b *bus.Bus) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.AnswerLost(ctx, slog.New(slog.NewTextHandler(t.Output(), nil)))
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}
