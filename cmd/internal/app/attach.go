// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/sandboxd/fleet"
	"github.com/petri-sandbox/petri/schemas"
)

// Attached is a node that this program uses: its own, or one that ran already.
type Attached struct {
	node *Node // nil: somebody else's
	b    *bus.Bus
}

// Attach connects to the node of the data directory, and starts one if there
// is none. Of two programs that start at once one wins, and serves both.
func (c *Config) Attach(ctx context.Context, progress func(what string)) (*Attached, *bus.Bus, error) {
	deadline := time.Now().Add(readyTime)
	inUse := false
	for {
		if c.NATS == "" || inUse {
			if b, err := c.Connect(ctx, "petri"); err == nil {
				return &Attached{b: b}, b, nil
			}
		}
		progress("bus")
		n, err := StartNode(ctx, *c, nil, func(role string) { progress(role + " is ready") })
		if err == nil {
			b, err := c.Connect(ctx, "petri")
			if err != nil {
				n.Close()
				return nil, nil, err
			}
			return &Attached{node: n, b: b}, b, nil
		}
		inUse = errors.Is(err, bus.ErrInUse)
		if !inUse || time.Now().After(deadline) {
			return nil, nil, err
		}
		// The other one is on its way up.
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// Leave waits, if the node is ours, until nobody else's submission needs it,
// or ctx is done.
func (a *Attached) Leave(ctx context.Context, say func(text string)) {
	if a.node == nil {
		return
	}
	told := false
	for ctx.Err() == nil {
		busy := false
		err := a.b.Queued(ctx, func(bus.QueuedJob) error {
			busy = true
			return bus.ErrStop
		})
		if err == nil && !busy {
			var open int
			open, err = a.b.Unfinished(ctx, schemas.DefaultTenant)
			busy = open > 0
		}
		if err != nil || !busy {
			return
		}
		if !told {
			say("other submissions use this Petri; it stops when they are done (interrupt to stop now)")
			told = true
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// Own reports whether the node is ours, and stops with us.
func (a *Attached) Own() bool { return a.node != nil }

// Close stops the node, if it is ours.
func (a *Attached) Close() {
	if a.node != nil {
		a.node.Close()
	}
}

// CheckGuest reports what a machine of that architecture would lack, and how to
// get it. log tells what it waits for.
func (c *Config) CheckGuest(ctx context.Context, arch string, log func(format string, args ...any)) error {
	if _, err := fleet.FindQEMU(ctx, arch); err != nil {
		return err
	}
	_, err := c.Images(log).Open(ctx, arch)
	return err
}

// Retryable reports whether another attempt follows a failure if the submission
// allows it.
func Retryable(f schemas.AnalysisFailed) bool { return sandboxd.Retryable(f.Reason) }
