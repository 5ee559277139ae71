// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// The context observes its machine.
var _ machine.Observer = (*Context)(nil)

// How much of what a machine reports may wait.
const (
	maxFacts = 4096
	maxLive  = 1024 // behaviour events, which are for eyes
)

// Event implements [machine.Observer]. It does not block: facts wait for the
// log in a queue, and live behaviour that nobody takes is dropped and counted.
func (c *Context) Event(e machine.Event) {
	switch {
	case e.Behavior != nil:
		if !c.showLater(e) {
			c.unshown(e.Behavior)
		}
	default:
		if e.Off != nil {
			c.set(func() { c.tailLost = true })
		}
		c.facts.put(e, e.Exited != nil || e.Tree != nil || e.Off != nil)
	}
}

// showLater queues a live event under its number, by which whoever watches sees
// what was not shown. The machine counts from 1 at each of its starts.
func (c *Context) showLater(e machine.Event) bool {
	c.numbering.Lock() // the order of the numbers is that of the queue
	defer c.numbering.Unlock()
	n := e.Behavior.Number
	if n <= c.machineNumber {
		c.numberBase = c.numbered
	}
	c.machineNumber = n
	c.numbered = max(c.numbered+1, c.numberBase+n)
	e.Behavior.Number = c.numbered
	return c.live.put(e, false)
}

// takeFacts publishes what the machine reports, in its order.
func (c *Context) takeFacts() {
	defer c.takers.Done()
	for more := true; more; {
		var events []machine.Event
		var left int
		events, left, more = c.facts.take()
		for _, e := range events {
			if err := c.takeFact(e); err != nil && c.Err() == nil {
				c.cfg.Slog.Error("publish what the machine reports", "analysis", c.cfg.Analysis, "error", err)
			}
		}
		if left > 0 {
			c.fault(time.Time{}, schemas.OriginHost, fmt.Sprintf("%d facts that the machine reported are left out: it made more than the log took", left))
		}
	}
}

// takeLive shows behaviour to whoever watches.
func (c *Context) takeLive() {
	defer c.takers.Done()
	for more := true; more; {
		var events []machine.Event
		events, _, more = c.live.take()
		for _, e := range events {
			c.showBehavior(e)
		}
	}
}

func (c *Context) takeFact(e machine.Event) error {
	if e.Exited != nil || e.Tree != nil || e.Off != nil || e.Tampering != nil {
		// A short sample ends while the answer to its start is still on its
		// way: the beginning is told first.
		if err := c.await(c.life, func() bool { return !c.starting }); err != nil {
			return err
		}
	}
	switch {
	case e.Lease != nil:
		return c.tell(e.Time, schemas.OriginHost, *e.Lease, func() { c.address = e.Lease.Address })
	case e.Exited != nil:
		return c.tell(e.Time, schemas.OriginGuest, *e.Exited, func() { c.exited = e.Exited })
	case e.Tree != nil:
		return c.tell(e.Time, schemas.OriginGuest, schemas.TreeExited{}, func() { c.treeGone = true })
	case e.Off != nil:
		return c.takeOff(e)
	case e.Tampering != nil:
		return c.tell(e.Time, schemas.OriginGuest, *e.Tampering, func() {})
	case e.Fault != "":
		c.fault(e.Time, schemas.OriginGuest, e.Fault)
	}
	return nil
}

// tell publishes a fact, runs its handlers, and lets take put it into the
// context's state. The failure of a required handler is the running step's: the
// fact is in the log, and so it holds.
func (c *Context) tell(at time.Time, origin schemas.Origin, data schemas.Typed, take func()) error {
	e, err := c.publish(at, origin, data)
	if err != nil {
		return err
	}
	if err := c.dispatch(e); err != nil {
		c.failStep(err)
	}
	c.set(take)
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
	c.set(func() { c.state, c.fell, c.fellTold = state, true, false })
	return c.tell(e.Time, schemas.OriginHost, *e.Off, func() { c.fellTold = true })
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
		err = c.cfg.Log.PublishBehavior(c.cfg.Tenant, c.cfg.Analysis, b, ev) // at most once
	}
	if err != nil {
		c.unshown(b)
	}
}

// unshown counts a live event that was not shown. Only names that the schemas
// know are counted apart: the guest must not fill a map.
func (c *Context) unshown(b *schemas.Behavior) {
	name := b.Category + "." + b.Action
	if !slices.Contains(schemas.BehaviorActions, name) {
		name = "records"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.suppressed == nil {
		c.suppressed = map[string]uint64{}
	}
	c.suppressed[name]++
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
