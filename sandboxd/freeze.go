// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"context"
	"fmt"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// Times of the watch over the log.
const (
	awayPause  = time.Second      // after which the guest is frozen
	awayLimit  = 60 * time.Second // after which it is killed
	awayCheck  = 200 * time.Millisecond
	freezeTime = 5 * time.Second        // for the guest's CPUs to be stopped or continued
	lastWords  = 500 * time.Millisecond // for a guest to send its trace before it is frozen
)

// watchLog freezes the guest while the log takes no events: what a guest does
// then could not be told. If it lasts too long the analysis is given up. The
// watch itself waits for neither the log nor a hook.
func (c *Context) watchLog() {
	defer c.watching.Done()
	t := time.NewTicker(awayCheck)
	defer t.Stop()
	w := freezer{c: c}
	for {
		select {
		case <-c.life.Done():
			return
		case <-t.C:
		}
		switch away := c.logAway(); {
		case away > awayLimit:
			c.lost(fmt.Errorf("%w for more than %s", ErrLogAway, awayLimit))
			return
		case away > awayPause:
			w.freeze()
		case away == 0:
			w.thaw()
		}
	}
}

// logAway is how long the log has been out of reach, or has not taken what it
// was given.
func (c *Context) logAway() time.Duration {
	away := c.cfg.Log.Away()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, since := range c.trouble {
		if d := time.Since(since); d > awayPause {
			away = max(away, d)
		}
	}
	return away
}

// A freezer stops and continues a running guest behind the protocol's back.
type freezer struct {
	c     *Context
	still bool // the guest has said that it stands still
	tries int  // to continue it
}

// freeze stops the guest. One of which it is not known whether it stopped is
// told again, and counts as one that did: it must be continued.
func (w *freezer) freeze() {
	c := w.c
	c.mu.Lock()
	m, running, first := c.machine, c.state == Running, c.frozenAt.IsZero()
	c.mu.Unlock()
	if m == nil || !running || w.still || !c.cpus.try() {
		return // the protocol's own pause is under way
	}
	defer c.cpus.give()
	if first {
		c.flush(m, lastWords)
		c.set(func() { c.frozenAt = time.Now() })
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.life), freezeTime)
	defer cancel()
	w.still = m.Pause(ctx) == nil
}

// thawTries is how often a guest is told to go on before that is a fault.
const thawTries = 3

// thaw lets the guest go on, and says how long it stood still. It does not
// touch one that the protocol has paused meanwhile.
func (w *freezer) thaw() {
	c := w.c
	c.mu.Lock()
	m, running, since := c.machine, c.state == Running, c.frozenAt
	c.mu.Unlock()
	if since.IsZero() || !c.cpus.try() {
		return
	}
	defer c.cpus.give()
	var err error
	if running {
		err = w.resume(m)
	}
	if w.tries++; err != nil && w.tries < thawTries {
		return
	}
	w.still, w.tries = false, 0
	d := time.Since(since)
	c.set(func() {
		c.flushed = c.flushed && c.state != Running
		c.frozen, c.frozenAt = c.frozen+d, time.Time{}
		c.lastNews = c.lastNews.Add(d)
	})
	c.spawn(&task{}, func() {
		away := schemas.LogAway{For: schemas.Duration(d.Round(time.Millisecond))}
		if terr := c.tell(time.Time{}, schemas.OriginHost, away, func() {}); terr == nil && err != nil {
			c.fault(time.Time{}, schemas.OriginHost, "the guest stands still: it was stopped while the log was away, and does not go on: "+err.Error())
		}
	})
}

func (w *freezer) resume(m machine.Machine) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.c.life), freezeTime)
	defer cancel()
	return m.Resume(ctx)
}

// stoodStill is how long the guest has been frozen so far. c.mu is held.
func (c *Context) stoodStill() time.Duration {
	if c.frozenAt.IsZero() {
		return c.frozen
	}
	return c.frozen + time.Since(c.frozenAt)
}
