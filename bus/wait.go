// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// absentEvery is how often a wait asks who is alive. That somebody has fallen
// silent is no event of the log.
const absentEvery = heartbeatTTL / 3

// count reads what the log says about an analysis' tasks, and what comes, until
// enough says so or the time is up. left is asked when everything has been read
// that there is, and again when the log says how long analyzers have. unread
// bounds how long the reading may take until then; 0 is no bound.
func (b *Bus) count(ctx context.Context, c *credit, unread time.Duration, left func() time.Duration, enough func(gone map[string]bool) bool) error {
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	if unread == 0 {
		unread = 365 * 24 * time.Hour // the timer is set anew when everything is read
	}
	timer := time.AfterFunc(unread, cancel)
	defer timer.Stop()
	caughtUp, timeout := false, c.timeout
	absent, looked := newAbsence(b.absentGrace), time.Time{}
	var gone map[string]bool
	err := b.batches(wait, c.subjects(), 0, func(batch []Entry, pending uint64) error {
		for _, e := range batch {
			if !e.foreign {
				c.apply(e)
			}
		}
		if !caughtUp && pending != 0 {
			return nil
		}
		if !caughtUp || timeout != c.timeout {
			caughtUp, timeout = true, c.timeout
			timer.Reset(left())
		}
		if now := time.Now(); now.Sub(looked) >= absentEvery {
			// Where nobody says who is alive, nobody is gone.
			if alive, err := b.Alive(wait); err == nil {
				gone = absent.look(c.owing(), alive, now)
			}
			looked = now
		}
		if enough(gone) {
			return ErrStop
		}
		return nil
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, ErrStop):
		return nil
	case caughtUp && wait.Err() != nil: // the time is up
		return nil
	}
	return err
}

// Wait waits until every task of an analysis has its receipt, or until the
// deadline, and returns what is missing. It does not wait for analyzers that
// have withdrawn, nor for those of which nothing has been heard for a minute.
// Past the deadline it still reads what the log has. It keeps nothing: any
// number may wait for the same analysis, and one that died can be replaced.
func (b *Bus) Wait(ctx context.Context, tenant, analysis string, deadline time.Time, expected []string) ([]schemas.MissingTask, error) {
	if err := checkTokens(tenant, analysis); err != nil {
		return nil, err
	}
	c := newCredit(tenant, analysis, expected)
	// A log that cannot be read tells of no open tasks, which is not that
	// there are none.
	unread := max(0, time.Until(deadline)) + patience
	err := b.count(ctx, c, unread, func() time.Duration { return c.left(deadline) }, c.complete)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("wait for the analyzers: %w", err)
	}
	alive, err := b.Alive(ctx)
	if err != nil {
		alive = nil // then nobody counts as alive, which is only a word
	}
	return c.missing(alive), nil
}

// End writes an analysis' ending unless it has one. Anybody may: of several
// only one is stored. It returns the ending that the log has now.
func (b *Bus) End(ctx context.Context, tenant, analysis string, ending schemas.Typed) (schemas.Event, error) {
	for {
		w, entries, err := b.openContext(ctx, tenant, analysis)
		if err != nil {
			return schemas.Event{}, err
		}
		for _, e := range entries {
			if schemas.Ending(e.Event.Name()) {
				return e.Event, nil
			}
		}
		e, err := schemas.NewEvent(tenant, analysis, w.NextID(), time.Now(), schemas.OriginHost, ending)
		if err != nil {
			return schemas.Event{}, err
		}
		err = w.Write(ctx, e)
		if err == nil {
			return e, nil
		}
		if !errors.Is(err, ErrFenced) {
			return schemas.Event{}, err
		}
	}
}
