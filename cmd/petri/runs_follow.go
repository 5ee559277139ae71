// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// runSource is where the states of a run come from.
type runSource interface {
	WatchRun(ctx context.Context, run string, fn func(schemas.RunState) error) error
	Away() time.Duration
}

var _ runSource = (*bus.Bus)(nil)

// followRun shows how far a run is until it has ended. A server that is away is
// waited for, but not for ever. It returns the last state that it has seen also
// with an error.
func followRun(ctx context.Context, b runSource, run string, pr *progress) (schemas.RunState, error) {
	last := schemas.RunState{Run: run}
	pace := pace{}
	watch, give := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer give(nil)
	wg.Go(func() { tellAway(watch, b, run, pr, give) })
	var failing time.Time // since when there is no state to be had
	for {
		err := b.WatchRun(watch, run, func(r schemas.RunState) error {
			failing = time.Time{}
			if r.State != last.State || r.Waiting != last.Waiting {
				detail := runText(&r, pace.rate())
				if r.Waiting != "" {
					detail += ": " + r.Waiting
				}
				pr.line(r.State, detail)
			}
			last = r
			pace.add(time.Now(), r.Answered())
			pr.set(r.State + ": " + runText(&r, pace.rate()))
			return nil
		})
		switch {
		case err == nil && last.Ended() || ctx.Err() != nil || errors.Is(err, bus.ErrNotFound):
			return last, err
		case errors.Is(err, bus.ErrDenied):
			return last, fmt.Errorf("follow run %s: %w", run, err)
		case watch.Err() != nil:
			return last, context.Cause(watch)
		}
		if failing.IsZero() {
			failing = time.Now()
			pr.line("trouble", fmt.Sprintf("no state of the run is to be had, trying for %s: %v", busAway, err))
		}
		if time.Since(failing) > busAway {
			return last, stopFollowing(run, err)
		}
		select {
		case <-watch.Done(): // the next turn says why
		case <-time.After(time.Second):
		}
	}
}

// tellAway says that the server is away and for how long, and gives up when it
// does not come back.
func tellAway(ctx context.Context, b runSource, run string, pr *progress, give func(error)) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	told := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		away := b.Away()
		switch {
		case away > busAway:
			give(stopFollowing(run, fmt.Errorf("the server has been away for %s", busAway)))
			return
		case away > 0:
			if !told {
				pr.line("server", fmt.Sprintf("away; it is waited for, at most %s", busAway))
				told = true
			}
			pr.set(fmt.Sprintf("the server has been away for %s", away.Truncate(time.Second)))
		case told:
			pr.line("server", "back")
			pr.set("waiting for the run's next state")
			told = false
		}
	}
}

// stopFollowing is for whoever follows a run no longer, which ends nothing.
func stopFollowing(run string, why error) error {
	return fmt.Errorf("follow run %s: %w (the run itself goes on when Petri does; look: petri runs show %s  follow it again: petri runs watch %s)", run, why, run, run)
}

// pace measures how fast a run is, over the last half minute.
type pace struct {
	at   []time.Time
	done []int
}

func (p *pace) add(now time.Time, done int) {
	p.at, p.done = append(p.at, now), append(p.done, done)
	for len(p.at) > 2 && now.Sub(p.at[0]) > 30*time.Second {
		p.at, p.done = p.at[1:], p.done[1:]
	}
}

// rate is in tasks a second; 0: not known.
func (p *pace) rate() float64 {
	n := len(p.at)
	if n < 2 {
		return 0
	}
	d := p.at[n-1].Sub(p.at[0]).Seconds()
	if d <= 0 {
		return 0
	}
	return float64(p.done[n-1]-p.done[0]) / d
}
