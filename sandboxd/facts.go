// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"strconv"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// The context observes its machine.
var _ machine.Observer = (*Context)(nil)

// Event implements [machine.Observer]. Facts wait in a queue for the log; a
// machine that makes more of them than the log takes has to wait.
func (c *Context) Event(e machine.Event) {
	select {
	case c.facts <- e:
	case <-c.life.Done():
	}
}

// takeFacts publishes what the machine reports, in its order.
func (c *Context) takeFacts() {
	defer c.factsWG.Done()
	for e := range c.facts {
		if e.Behavior != nil {
			c.showBehavior(e)
			continue
		}
		if err := c.takeFact(e); err != nil && c.Err() == nil {
			c.cfg.Slog.Error("publish what the machine reports", "analysis", c.cfg.Analysis, "error", err)
		}
	}
}

func (c *Context) takeFact(e machine.Event) error {
	if e.Exited != nil || e.Tree != nil || e.Off != nil {
		// A short sample ends while the answer to its start is still on its
		// way: the beginning is told first.
		if err := c.await(c.life, func() bool { return !c.starting }); err != nil {
			return err
		}
	}
	switch {
	case e.Lease != nil:
		if err := c.emitAt(e.Time, schemas.OriginHost, *e.Lease); err != nil {
			return err
		}
		c.set(func() { c.address = e.Lease.Address })
	case e.Exited != nil:
		if err := c.emitAt(e.Time, schemas.OriginGuest, *e.Exited); err != nil {
			return err
		}
		c.set(func() { c.exited = e.Exited })
	case e.Tree != nil:
		c.set(func() { c.treeGone = true })
	case e.Off != nil:
		return c.takeOff(e)
	case e.Fault != "":
		c.fault(e.Time, schemas.OriginGuest, e.Fault)
	}
	return nil
}

// takeOff notes that the machine went down by itself.
func (c *Context) takeOff(e machine.Event) error {
	c.mu.Lock()
	alive := c.state.Alive()
	c.mu.Unlock()
	if !alive {
		return nil
	}
	state := Off
	if e.Off.State == string(Crashed) {
		state = Crashed
	}
	e.Off.State = string(state)
	c.set(func() { c.state, c.fell = state, true })
	return c.emitAt(e.Time, schemas.OriginHost, *e.Off)
}

// showBehavior passes a live event on, if it is one.
func (c *Context) showBehavior(e machine.Event) {
	b := e.Behavior
	if schemas.CheckEventName(b.Category) != nil || schemas.CheckEventName(b.Action) != nil {
		return
	}
	id := c.cfg.Analysis + "/behavior/" + strconv.FormatUint(b.Record, 10) + "/" + b.Category + "." + b.Action
	ev, err := schemas.NewEvent(c.cfg.Tenant, c.cfg.Analysis, id, e.Time, schemas.OriginGuest, *b)
	if err == nil {
		_ = c.cfg.Log.PublishBehavior(c.cfg.Tenant, c.cfg.Analysis, b, ev) // at most once
	}
}

// news notes that the sample did something.
func (c *Context) news() {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.lastNews) < 50*time.Millisecond {
		return // waiters look at seconds
	}
	c.lastNews = now
}
