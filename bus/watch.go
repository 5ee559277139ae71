// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/petri-sandbox/petri/schemas"
)

// Watch calls fn with everything about an analysis: its log from the beginning,
// and its live behaviour from now on. The log is complete and in order; of the
// behaviour only what arrives. It returns after the analysis' ending, or when
// fn returns an error or ctx is done.
func (b *Bus) Watch(ctx context.Context, tenant, analysis string, fn func(schemas.Event) error) error {
	if err := checkTokens(tenant, analysis); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The behaviour comes on a core subject, in the client's own order; a
	// reader that is slow loses some of it, as everybody does.
	live := make(chan *nats.Msg, 4096)
	sub, err := b.nc.ChanSubscribe(strings.TrimSuffix(LiveSubject(tenant, analysis), ">")+"behavior.>", live)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }()
	logged := make(chan schemas.Event)
	end := make(chan error, 1)
	go func() {
		end <- b.Follow(ctx, tenant, analysis, 0, nil, func(e Entry) error {
			select {
			case logged <- e.Event:
			case <-ctx.Done():
				return ctx.Err()
			}
			if e.Event.Family() == "context" && schemas.Ending(e.Event.Name()) {
				return ErrStop
			}
			return nil
		})
	}()
	for {
		select {
		case e := <-logged:
			if err := fn(e); err != nil {
				return err
			}
		case m := <-live:
			e, err := schemas.ParseEvent(m.Data)
			if err != nil {
				continue
			}
			if err := fn(e); err != nil {
				return err
			}
		case err := <-end:
			if errors.Is(err, ErrStop) {
				err = nil
			}
			return err
		}
	}
}
