// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/cmd/internal/app"
)

// An opener is one of [global.connect], [global.read] and [global.store]. What it
// returns besides closes the bus.
type opener func(context.Context) (*bus.Bus, func(), error)

// on makes f what a command does: with the bus that open gives it, until
// Ctrl-C.
func (g *global) on(open opener, f func(ctx context.Context, b *bus.Bus, a []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, a []string) error {
		ctx, cancel := interruptible(c.Context())
		defer cancel()
		b, done, err := open(ctx)
		if err != nil {
			return interrupted(ctx, err)
		}
		defer done()
		return interrupted(ctx, f(ctx, b, a))
	}
}

// onAnalysis is [global.on] for a command whose only argument is an analysis.
func (g *global) onAnalysis(open opener, f func(ctx context.Context, b *bus.Bus, id string) error) func(*cobra.Command, []string) error {
	return g.on(open, func(ctx context.Context, b *bus.Bus, a []string) error {
		id, err := resolve(ctx, b, a[0])
		if err != nil {
			return err
		}
		err = f(ctx, b, id)
		if errors.Is(err, bus.ErrNotFound) && queued(ctx, b, id) {
			return fmt.Errorf("analysis %s waits in the queue, and has no log yet (follow it: petri watch %s)", id, id)
		}
		return err
	})
}

// queued reports whether an analysis is known to wait.
func queued(ctx context.Context, b *bus.Bus, id string) bool {
	list, err := b.List(ctx, b.Tenant(), 0)
	return err == nil && slices.ContainsFunc(list, func(s bus.Summary) bool { return s.Analysis == id && s.Status == bus.StatusQueued })
}

// onRun is [global.on] for a command whose only argument is a run.
func (g *global) onRun(open opener, f func(ctx context.Context, b *bus.Bus, run string) error) func(*cobra.Command, []string) error {
	return g.on(open, func(ctx context.Context, b *bus.Bus, a []string) error {
		run, err := resolveRun(ctx, b, a[0])
		if err != nil {
			return err
		}
		return f(ctx, b, run)
	})
}

// connect connects to the Petri that runs.
func (g *global) connect(ctx context.Context) (*bus.Bus, func(), error) {
	return g.open(ctx, orFail)
}

// follow is [global.connect] for a command that tells of the server's silence
// itself.
func (g *global) follow(ctx context.Context) (*bus.Bus, func(), error) {
	return g.reach(ctx, orFail)
}

// orFail is for who needs a Petri that runs.
func orFail(_ app.Config, err error) (*bus.Bus, func(), error) { return nil, nil, err }

// read connects to the Petri that runs, or, since reading needs no more than
// the log, to a server of our own on the same data.
func (g *global) read(ctx context.Context) (*bus.Bus, func(), error) {
	return g.open(ctx, func(c app.Config, _ error) (*bus.Bus, func(), error) { return c.OpenLog(ctx) })
}

// store is [global.read] for a command that also writes.
func (g *global) store(ctx context.Context) (*bus.Bus, func(), error) {
	return g.open(ctx, func(c app.Config, _ error) (*bus.Bus, func(), error) { return c.OpenStore(ctx) })
}

// open is reach, and tells of the server's silence for as long as the bus is open.
func (g *global) open(ctx context.Context, otherwise func(app.Config, error) (*bus.Bus, func(), error)) (*bus.Bus, func(), error) {
	b, done, err := g.reach(ctx, otherwise)
	if err != nil {
		return nil, nil, err
	}
	stop := telling(ctx, b, sayHere)
	return b, func() { stop(); done() }, nil
}

// reach connects to the Petri that runs. If none does, otherwise is what to do.
func (g *global) reach(ctx context.Context, otherwise func(app.Config, error) (*bus.Bus, func(), error)) (*bus.Bus, func(), error) {
	c, err := g.config()
	if err != nil {
		return nil, nil, err
	}
	defer telling(ctx, reaching(time.Now()), sayHere)()
	for deadline := time.Now().Add(startTime); ; {
		b, err := c.Connect(ctx, "petri")
		if err == nil {
			return b, b.Close, nil
		}
		if !errors.Is(err, app.ErrNotRunning) {
			return nil, nil, err
		}
		b, done, err := otherwise(c, err)
		if !errors.Is(err, bus.ErrInUse) {
			return b, done, err
		}
		// Somebody's bus is on its way up.
		if time.Now().After(deadline) {
			return nil, nil, fmt.Errorf("%w by a Petri that does not answer (wait for it, or see %s)", err, filepath.Join(c.Data, "log"))
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// startTime is how long a bus may take to start.
const startTime = time.Minute
