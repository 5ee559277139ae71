// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// An Entry is one event of the log where it lies.
type Entry struct {
	Seq     uint64
	Subject string
	Event   schemas.Event
}

// ErrStop ends a reading without an error when a reader's function returns it.
var ErrStop = errors.New("stop reading")

// Read calls fn with every event of an analysis, in the log's order, from a
// sequence on (0 is the beginning), until the end that the log has now.
func (b *Bus) Read(ctx context.Context, tenant, analysis string, from uint64, fn func(Entry) error) error {
	if err := checkTokens(tenant, analysis); err != nil {
		return err
	}
	return b.read(ctx, AnalysisSubject(tenant, analysis), from, fn)
}

// Follow is Read that goes on with what comes, until fn returns [ErrStop] or ctx
// is done. caughtUp, which may be nil, is called once, when everything that
// the log held at the start has been read.
func (b *Bus) Follow(ctx context.Context, tenant, analysis string, from uint64, caughtUp func(), fn func(Entry) error) error {
	if err := checkTokens(tenant, analysis); err != nil {
		return err
	}
	return b.follow(ctx, []string{AnalysisSubject(tenant, analysis)}, from, caughtUp, fn)
}

// read is for one subject with wildcards. The stream's leader says where the
// end is: a consumer may live on a replica that has not everything yet, and
// does not know it.
func (b *Bus) read(ctx context.Context, subject string, from uint64, fn func(Entry) error) error {
	last, err := b.lastMsg(ctx, subject)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	if last.Sequence < from {
		return nil
	}
	return b.follow(ctx, []string{subject}, from, nil, func(e Entry) error {
		if err := fn(e); err != nil {
			return err
		}
		if e.Seq >= last.Sequence {
			return ErrStop
		}
		return nil
	})
}

// follow reads through an ordered consumer, which the client recreates where
// it stood when the server restarts or a message is missed.
func (b *Bus) follow(ctx context.Context, subjects []string, from uint64, caughtUp func(), fn func(Entry) error) error {
	cfg := jetstream.OrderedConsumerConfig{FilterSubjects: subjects, DeliverPolicy: jetstream.DeliverAllPolicy, InactiveThreshold: time.Minute}
	if from > 0 {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, from
	}
	var cons jetstream.Consumer
	err := retry(ctx, func(ctx context.Context) (err error) {
		cons, err = b.js.OrderedConsumer(ctx, streamLog, cfg)
		return err
	})
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	if caughtUp != nil && cons.CachedInfo().NumPending == 0 {
		caughtUp()
		caughtUp = nil
	}
	ctx, cancel := context.WithCancel(ctx)
	msgs := make(chan jetstream.Msg, 512)
	// Consume has one lasting heartbeat monitor; Next would make a new one per
	// call and can miss a lost first request for ever.
	cc, err := cons.Consume(func(m jetstream.Msg) {
		select {
		case msgs <- m:
		case <-ctx.Done():
		}
	}, jetstream.PullMaxMessages(512), jetstream.PullExpiry(30*time.Second), jetstream.PullHeartbeat(pullHeartbeat))
	if err != nil {
		cancel()
		return fmt.Errorf("read the log: %w", err)
	}
	defer func() {
		cancel() // frees the handler
		cc.Stop()
		<-cc.Closed()
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-cc.Closed():
			return fmt.Errorf("read the log: %w", nats.ErrConnectionClosed)
		case m := <-msgs:
			md, err := m.Metadata()
			if err != nil {
				return err
			}
			e, err := schemas.ParseEvent(m.Data())
			if err != nil {
				return fmt.Errorf("read the log at %d: %w", md.Sequence.Stream, err)
			}
			if err := fn(Entry{Seq: md.Sequence.Stream, Subject: m.Subject(), Event: e}); err != nil {
				if errors.Is(err, ErrStop) {
					return nil
				}
				return err
			}
			if caughtUp != nil && md.NumPending == 0 {
				caughtUp()
				caughtUp = nil
			}
		}
	}
}

// Context returns an analysis' context events.
func (b *Bus) Context(ctx context.Context, tenant, analysis string) ([]Entry, error) {
	_, entries, err := b.openContext(ctx, tenant, analysis)
	return entries, err
}
