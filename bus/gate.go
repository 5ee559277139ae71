// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/petri-sandbox/petri/schemas"
)

func gateSubject(tenant, gate string) string { return "gate." + tenant + "." + gate }

// AskGate sends an event to a gate, and returns its answer as it came. The error
// wraps [ErrNotFound] if nobody serves the gate. Nothing is stored and nothing
// sent twice.
func (b *Bus) AskGate(ctx context.Context, tenant, gate string, e schemas.Event) ([]byte, error) {
	if err := errors.Join(schemas.CheckTenant(tenant), schemas.CheckGate(gate)); err != nil {
		return nil, err
	}
	body, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	m, err := b.request(ctx, gateSubject(tenant, gate), body)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, fmt.Errorf("gate %s: nobody serves it: %w", gate, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("ask gate %s: %w", gate, err)
	}
	return m.Data, nil
}

// gateQueue is how many events may wait for a gate's service. Each sandbox asks
// about one at a time.
const gateQueue = 64

// ServeGate answers for a gate, one event at a time, until ctx is done. Services
// of the same gate share its questions. No answer is none: the sandbox waits for
// as long as its protocol says. An error of answer ends the service.
func (b *Bus) ServeGate(ctx context.Context, tenant, gate string, answer func(context.Context, schemas.Event) (*schemas.GateAnswer, error)) error {
	if err := errors.Join(schemas.CheckTenant(tenant), schemas.CheckGate(gate)); err != nil {
		return err
	}
	msgs := make(chan *nats.Msg, gateQueue)
	sub, err := b.nc.ChanQueueSubscribe(gateSubject(tenant, gate), "gate", msgs)
	if err != nil {
		return fmt.Errorf("serve gate %s: %w", gate, err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := b.nc.FlushTimeout(flushTime); err != nil {
		return fmt.Errorf("serve gate %s: %w", gate, err)
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-msgs:
			e, err := schemas.ParseEvent(m.Data)
			if err != nil {
				continue // no question of a sandbox's
			}
			a, err := answer(ctx, e)
			if err != nil {
				return err
			}
			if a == nil {
				continue
			}
			body, err := json.Marshal(a)
			if err != nil {
				return err
			}
			if err := m.Respond(body); err != nil {
				return fmt.Errorf("answer for gate %s: %w", gate, err)
			}
		}
	}
}

// FollowFindings calls fn with the findings that the clerk has committed of an
// analysis, those of replays left out, in the log's order, from the first, until
// ctx is done.
func (b *Bus) FollowFindings(ctx context.Context, tenant, analysis string, fn func(schemas.Event)) error {
	if err := checkTokens(tenant, analysis); err != nil {
		return err
	}
	r := &reading{b: b, tenant: tenant, analysis: analysis, family: "finding", follow: true, fn: func(e Entry) error {
		fn(e.Event)
		return nil
	}}
	return r.run(ctx)
}
