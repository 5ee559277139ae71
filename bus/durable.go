// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// handlerAckWait is how long a message may be without a sign of life from the
// one that handles it. It is short because it is also the time that a consumer
// stands still when a server dies with an acknowledgement.
const handlerAckWait = 5 * time.Second

// keep shows that a message is in work, until stop is called.
func keep(m jetstream.Msg) (stop func()) {
	var mu sync.Mutex
	var t *time.Timer // nil: stopped. Most messages are done before it fires
	mu.Lock()
	defer mu.Unlock()
	t = time.AfterFunc(handlerAckWait/3, func() {
		mu.Lock()
		defer mu.Unlock()
		if t != nil {
			_ = m.InProgress() // a lost one is made good by the next
			t.Reset(handlerAckWait / 3)
		}
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		t.Stop()
		t = nil
	}
}

// pullHeartbeat is how often a server that has nothing to give says so. A
// request that got lost, as the first one on a cluster may, is noticed after
// two; by default that would be half a minute.
const pullHeartbeat = 2 * time.Second

// consume gives a consumer's messages to handle, one after the other, until ctx
// is done, and returns why it ended. Nothing is handled any more then.
func consume(ctx context.Context, cons jetstream.Consumer, handle jetstream.MessageHandler, opts ...jetstream.PullConsumeOpt) error {
	cc, err := cons.Consume(handle, append(opts, jetstream.PullHeartbeat(pullHeartbeat))...)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		cc.Stop()
		<-cc.Closed()
		return ctx.Err()
	case <-cc.Closed():
		return nats.ErrConnectionClosed
	}
}

// endingsAhead is how many events of [Bus.Endings] may wait for another try
// before those behind them wait too.
const endingsAhead = 100

// endingAgain is how long after its first failure an event of [Bus.Endings]
// comes again. Each further failure doubles that, up to so many times as much.
const (
	endingAgain    = 2 * time.Second
	endingAgainMax = 30
)

// OpenEndings makes the place of a name in the endings, for who may make no
// consumers.
func (b *Bus) OpenEndings(ctx context.Context, name string) error {
	if err := schemas.CheckAnalyzer(name); err != nil {
		return err
	}
	return retry(ctx, func(ctx context.Context) error {
		_, err := b.endings(ctx, name)
		return err
	})
}

func (b *Bus) endings(ctx context.Context, name string) (jetstream.Consumer, error) {
	var subjects []string
	for _, ev := range []string{schemas.EventCompleted, schemas.EventFailed, schemas.EventCancelled, schemas.EventAmended, schemas.EventRunAdopted} {
		subjects = append(subjects, contextSubject("*", "*", ev))
	}
	return b.js.CreateOrUpdateConsumer(ctx, streamLog, jetstream.ConsumerConfig{
		Durable: name, FilterSubjects: subjects, AckPolicy: jetstream.AckExplicitPolicy, AckWait: handlerAckWait, MaxDeliver: -1, MaxAckPending: endingsAhead,
	})
}

// Endings calls fn with the ending of every analysis, and with every amendment
// and adopted run after it, each at least once, until ctx is done: in the log's
// order, but for those that come again. name keeps the place over restarts. An
// event for which fn fails comes again, later each time, for as long as it fails:
// what is down will be up, and nobody else does it. Only one for which the error
// wraps [ErrUnreadable] becomes a dead letter.
func (b *Bus) Endings(ctx context.Context, name string, fn func(ctx context.Context, e schemas.Event) error) error {
	if err := schemas.CheckAnalyzer(name); err != nil {
		return err
	}
	var cons jetstream.Consumer
	var err error
	if b.stepwise {
		cons, err = b.consumer(ctx, streamLog, name)
	} else {
		cons, err = b.endings(ctx, name)
	}
	if err != nil {
		return fmt.Errorf("follow the endings: %w", err)
	}
	err = consume(ctx, cons, func(m jetstream.Msg) {
		defer keep(m)()
		e, err := own(m.Subject(), m.Data())
		if err != nil {
			pass(m, err)
			return
		}
		err = fn(ctx, e)
		switch {
		case err == nil:
			_ = m.Ack()
		case ctx.Err() != nil:
			_ = m.Nak()
		case errors.Is(err, ErrUnreadable):
			pass(m, err)
		default:
			_ = m.NakWithDelay(b.endingAgain * time.Duration(min(1<<min(deliveries(m)-1, 10), endingAgainMax)))
		}
	}, jetstream.PullMaxMessages(1))
	return fmt.Errorf("follow the endings: %w", err)
}
