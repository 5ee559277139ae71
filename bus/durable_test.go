// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// TestEndingsComeAgain follows endings by a consumer that an older Petri has
// made, which gave up soon: what fails for long comes until it works and holds
// up nothing behind it, and what can never be read is a dead letter at once.
func TestEndingsComeAgain(t *testing.T) {
	t.Parallel()
	b := start(t)
	_, err := b.JetStream().CreateConsumer(t.Context(), "LOG", jetstream.ConsumerConfig{
		Durable: "reporter", FilterSubject: "petri.*.*.context.analysis_completed", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: 20, MaxAckPending: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	list := past(t, b, 3)
	late, unreadable, behind := list[0].id, list[1].id, list[2].id
	const failures = 30
	b.SetEndingAgain(time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	calls := map[string]int{}
	err = b.Endings(ctx, "reporter", func(_ context.Context, e schemas.Event) error {
		calls[e.Analysis]++
		switch e.Analysis {
		case unreadable:
			return fmt.Errorf("%w: no beginning", bus.ErrUnreadable)
		case late:
			if calls[late] <= failures || calls[behind] == 0 {
				return errors.New("the store is full")
			}
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, after %v", err, calls)
	}
	if calls[late] <= failures || calls[unreadable] != 1 || calls[behind] != 1 {
		t.Errorf("calls: %v", calls)
	}
	await(t, b, "DEAD", 1)
	letters := deadLetters(t, b)
	if len(letters) != 1 || letters[0].Consumer != "reporter" || !strings.Contains(letters[0].Subject, unreadable) || !strings.Contains(letters[0].Reason, "no beginning") {
		t.Errorf("dead letters: %+v", letters)
	}
}
