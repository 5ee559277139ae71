// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// errReordered says that messages lie in the stream in another order than they
// were sent in: one had to be sent again.
var errReordered = errors.New("chunks arrived out of order")

// flight publishes messages one after the other without waiting for each
// acknowledgement, but for no more than a window of them. Nothing counts as
// published until wait has returned nil. It is for one goroutine.
type flight struct {
	b     *Bus
	slots chan struct{}

	mu   sync.Mutex
	err  error
	seqs []uint64 // where each message lies
}

func newFlight(b *Bus, window int) *flight {
	return &flight{b: b, slots: make(chan struct{}, window)}
}

// publish sends one message. Its error may be that of an earlier one.
func (f *flight) publish(ctx context.Context, subject string, body []byte, id string) error {
	select {
	case f.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	f.mu.Lock()
	err := f.err
	n := len(f.seqs)
	f.seqs = append(f.seqs, 0)
	f.mu.Unlock()
	if err != nil {
		<-f.slots
		return err
	}
	watched, done := f.b.denied.watch(ctx, subject)
	ack, err := f.b.js.PublishMsgAsync(&nats.Msg{Subject: subject, Data: body}, jetstream.WithMsgID(id), jetstream.WithRetryAttempts(0))
	go func() {
		defer func() { <-f.slots }()
		defer done()
		var seq uint64
		if err == nil {
			select {
			case a := <-ack.Ok():
				seq = a.Sequence
			case err = <-ack.Err():
			case <-watched.Done():
				err = deniedOr(watched, watched.Err())
			}
		}
		if err != nil && ctx.Err() == nil && (transient(err) || errors.Is(err, jetstream.ErrTooManyStalledMsgs)) {
			seq, err = f.again(ctx, subject, body, id)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.seqs[n] = seq
		if f.err == nil {
			f.err = err
		}
	}()
	return nil
}

// again sends a message whose fate is unknown until it is acknowledged. If it
// had been stored the server says where.
func (f *flight) again(ctx context.Context, subject string, body []byte, id string) (seq uint64, err error) {
	err = retry(ctx, func(ctx context.Context) error {
		ack, err := f.b.js.PublishMsg(ctx, &nats.Msg{Subject: subject, Data: body}, jetstream.WithMsgID(id), jetstream.WithRetryAttempts(0))
		if err == nil {
			seq = ack.Sequence
		}
		return err
	})
	return seq, err
}

// wait returns when everything has been acknowledged, or the first error.
func (f *flight) wait(ctx context.Context) error {
	for range cap(f.slots) {
		select {
		case f.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return fmt.Errorf("publish chunks: %w", f.err)
	}
	if !slices.IsSorted(f.seqs) {
		return errReordered
	}
	return nil
}
