// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"log/slog"

	"github.com/nats-io/nats.go"
)

// DieListing drives a run whose list takes for ever, and dies once order has
// returned.
func (b *Bus) DieListing(ctx context.Context, run string, order func() error) error {
	d := &runDriver{b: b, log: slog.New(slog.DiscardHandler), orders: make(chan *nats.Msg, 16)}
	var err error
	if d.kv, err = b.js.KeyValue(ctx, kvRuns); err != nil {
		return err
	}
	if d.state, d.rev, err = b.runState(ctx, run); err != nil {
		return err
	}
	sub, err := b.nc.ChanSubscribe(runControlSubject(run), d.orders)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := d.save(ctx); err != nil {
		return err
	}
	died, ordered := errors.New("died"), make(chan error, 1)
	done := make(chan listResult, 1)
	go func() {
		ordered <- order()
		done <- listResult{err: died}
	}()
	if err := d.whileListing(ctx, done, func() {}); !errors.Is(err, died) {
		return err
	}
	return <-ordered
}
