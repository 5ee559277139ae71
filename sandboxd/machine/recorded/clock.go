// SPDX-License-Identifier: Apache-2.0

package recorded

import (
	"context"
	"sync"
	"time"
)

// clock is the time of a recording: it goes speed times as fast as ours, and can
// stand still.
type clock struct {
	mu      sync.Mutex
	speed   float64 // 0: whoever waits for a time waits no longer
	gone    time.Duration
	since   time.Time     // of gone; zero: the clock stands still
	changed chan struct{} // closed and replaced at every change
}

func newClock(speed float64) *clock {
	return &clock{speed: speed, since: time.Now(), changed: make(chan struct{})}
}

// read is the time by the clock. c.mu is held.
func (c *clock) read() time.Duration {
	if c.since.IsZero() {
		return c.gone
	}
	return c.gone + time.Duration(float64(time.Since(c.since))*c.speed)
}

func (c *clock) now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.read()
}

// set changes the clock from now on.
func (c *clock) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.read()
	f()
	c.gone = now
	if !c.since.IsZero() {
		c.since = time.Now()
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *clock) stop() { c.set(func() { c.since = time.Time{} }) }

func (c *clock) goOn() { c.set(func() { c.since = time.Now() }) }

// rush lets nobody wait any more.
func (c *clock) rush() { c.set(func() { c.speed, c.since = 0, time.Now() }) }

// wait returns when it is so late, or ctx is done.
func (c *clock) wait(ctx context.Context, until time.Duration) error {
	for {
		c.mu.Lock()
		left, stands, speed, changed := until-c.read(), c.since.IsZero(), c.speed, c.changed
		c.mu.Unlock()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !stands && (speed == 0 || left <= 0) {
			return nil
		}
		var due <-chan time.Time
		if !stands {
			t := time.NewTimer(time.Duration(float64(left)/speed) + time.Microsecond)
			defer t.Stop()
			due = t.C
		}
		select {
		case <-due:
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
