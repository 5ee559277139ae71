// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"log/slog"

	"github.com/nats-io/nats.go"
)

// DriveDying drives a run until it has ended, ctx is done, or step returns an
// error between two steps: the driver is dead then.
func (b *Bus) DriveDying(ctx context.Context, run string, step func(string) error) error {
	r, _, err := b.runState(ctx, run)
	if err != nil {
		return err
	}
	d := newRunDriver(b, slog.New(slog.DiscardHandler))
	d.step = step
	return d.run(ctx, r)
}

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
