// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// Config is what a [Context] is made of.
type Config struct {
	Tenant, Analysis string
	Log              Log
	Writer           ContextLog // of this analysis
	Store            Store
	Slog             *slog.Logger
	Dir              string // for what is on its way to the store
	Limits           Limits
}

// A Context is one analysis' machine and log, as protocol and hooks see it. Its
// verbs are those of SEE's context; each publishes what it is about to do and
// what came of it. All methods may be called from several goroutines: verbs
// take turns, events are published one at a time, and handlers run without any
// lock held, so that a handler may trigger, subscribe and unsubscribe.
type Context struct {
	cfg  Config
	life context.Context // the analysis' own: ends when it is lost or given up
	end  context.CancelCauseFunc

	verbs sync.Mutex // held by the verb in progress
	pub   sync.Mutex // held by the event that is being published

	mu        sync.Mutex
	machine   machine.Machine
	state     State
	fell      bool          // the machine went down by itself
	changed   chan struct{} // closed and replaced at every change below
	pubSince  time.Time     // when the publishing in progress began
	frozen    time.Duration // how long the guest stood still because the log was away
	address   string
	mac       string
	boot      machine.Boot // the last one
	identity  *machine.Identity
	starting  bool // the sample is being started, and that is not yet told
	exited    *schemas.SampleExited
	treeGone  bool
	lastNews  time.Time
	events    map[string]int // how often each event has been published
	subs      []*Subscription
	faults    int
	collected bool // the sample's files are stored
	dropped   *schemas.SourceCoverage
	announced announcements

	handlers sync.WaitGroup // asynchronous handlers and what goes on behind them
	watching sync.WaitGroup // the watch over the log
	strays   sync.WaitGroup // handlers' own goroutines, also of those past their deadline
	facts    chan machine.Event
	factsWG  sync.WaitGroup
	sources  map[schemas.Source]*source
	hooks    *hookStats
	drops    *dropSet
}

// NewContext returns the context of an analysis that has no machine yet. It
// lives until ctx is done or [Context.Close].
func NewContext(ctx context.Context, cfg Config) *Context {
	c := &Context{
		cfg: cfg, state: Defined, changed: make(chan struct{}), lastNews: time.Now(),
		events: map[string]int{}, facts: make(chan machine.Event, 256), hooks: newHookStats(),
	}
	c.life, c.end = context.WithCancelCause(ctx)
	c.sources = c.newSources()
	c.factsWG.Add(1)
	go c.takeFacts()
	c.watching.Add(1)
	go c.watchLog()
	return c
}

// attach gives the context its machine.
func (c *Context) attach(m machine.Machine) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.machine = m
}

// lost ends everything that the context does: the analysis is not ours any
// more, or cannot go on.
func (c *Context) lost(why error) { c.end(why) }

// strayTime is how long hooks past their deadline have to notice it.
const strayTime = 10 * time.Second

// Close ends the context. Its machine must be gone.
func (c *Context) Close() {
	c.end(context.Canceled)
	c.watching.Wait()
	c.handlers.Wait()
	done := make(chan struct{})
	go func() {
		c.strays.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(strayTime):
		c.cfg.Slog.Error("a hook does not end", "analysis", c.cfg.Analysis)
	}
	for _, s := range c.sources {
		s.close()
	}
}

// count is how often an event has been published.
func (c *Context) count(event string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.events[event]
}

// Err is why the context has ended, or nil.
func (c *Context) Err() error {
	if c.life.Err() == nil {
		return nil
	}
	return context.Cause(c.life)
}

// State is what the machine is in.
func (c *Context) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// set changes what waiters look at.
func (c *Context) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

// await returns when cond, which is called with the lock held, is true.
func (c *Context) await(ctx context.Context, cond func() bool) error {
	for {
		c.mu.Lock()
		ok, changed := cond(), c.changed
		c.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-c.life.Done():
			return context.Cause(c.life)
		}
	}
}

// IP4Address is the guest's address, or empty if it has none yet.
func (c *Context) IP4Address() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.address
}

// MACAddress is the guest's Ethernet address, or empty before poweron.
func (c *Context) MACAddress() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mac
}

// IP6Address always fails: guests have no IPv6 yet.
func (c *Context) IP6Address() (string, error) {
	return "", errors.New("the guest has no IPv6 address: IPv6 is switched off in guests")
}

// publish writes one context event and returns when the log has it. It waits
// for a log that is away, as long as the context lives.
func (c *Context) publish(at time.Time, origin schemas.Origin, data schemas.Typed) (schemas.Event, error) {
	c.pub.Lock()
	defer c.pub.Unlock()
	if at.IsZero() {
		at = time.Now()
	}
	e, err := schemas.NewEvent(c.cfg.Tenant, c.cfg.Analysis, c.cfg.Writer.NextID(), at, origin, data)
	if err != nil {
		return schemas.Event{}, err
	}
	c.mu.Lock()
	c.pubSince = time.Now()
	c.mu.Unlock()
	err = c.cfg.Writer.Write(c.life, e)
	c.mu.Lock()
	c.pubSince = time.Time{}
	c.mu.Unlock()
	if errors.Is(err, ErrFenced) {
		c.lost(err)
	}
	if err != nil {
		if cause := c.Err(); cause != nil {
			err = cause
		}
		return schemas.Event{}, fmt.Errorf("publish %s: %w", e.Name(), err)
	}
	c.set(func() {
		c.events[e.Name()]++
		c.lastNews = time.Now()
	})
	return e, nil
}

// emit publishes an event and then runs its handlers: the synchronous ones in
// the order of their subscription, before it returns. The error is the log's,
// or that of a hook without which the analysis must not go on.
func (c *Context) emit(origin schemas.Origin, data schemas.Typed) error {
	return c.emitAt(time.Time{}, origin, data)
}

func (c *Context) emitAt(at time.Time, origin schemas.Origin, data schemas.Typed) error {
	e, err := c.publish(at, origin, data)
	if err != nil {
		return err
	}
	return c.dispatch(e)
}

// Trigger publishes an event of the protocol's own and runs its handlers.
func (c *Context) Trigger(name string, payload map[string]string) error {
	if err := schemas.CheckEventName(name); err != nil {
		return err
	}
	return c.emit(schemas.OriginHost, schemas.Custom{Name: name, Payload: payload})
}

// fault notes trouble that costs coverage. A guest that makes thousands of
// them is told of once.
func (c *Context) fault(at time.Time, origin schemas.Origin, text string) {
	const enough = 50
	c.mu.Lock()
	c.faults++
	n := c.faults
	c.mu.Unlock()
	if n > enough {
		return
	}
	if n == enough {
		text += " (further faults are not listed)"
	}
	if err := c.emitAt(at, origin, schemas.Fault{Text: text}); err != nil {
		c.cfg.Slog.Warn("note a fault", "analysis", c.cfg.Analysis, "fault", text, "error", err)
	}
}

// Times of the watch over the log.
const (
	awayPause = time.Second      // after which the guest is frozen
	awayLimit = 60 * time.Second // after which it is killed
	awayCheck = 200 * time.Millisecond
)

// watchLog freezes the guest while the log takes no events: what a guest does
// then could not be told. If it lasts too long the analysis is given up.
func (c *Context) watchLog() {
	defer c.watching.Done()
	t := time.NewTicker(awayCheck)
	defer t.Stop()
	var since time.Time // when the guest was frozen
	for {
		select {
		case <-c.life.Done():
			return
		case <-t.C:
		}
		away := c.logAway()
		switch {
		case away > awayLimit:
			c.lost(fmt.Errorf("%w for more than %s", ErrLogAway, awayLimit))
			return
		case away > awayPause && since.IsZero():
			if c.freeze(true) {
				since = time.Now()
			}
		case away == 0 && !since.IsZero():
			c.freeze(false)
			d := time.Since(since)
			since = time.Time{}
			c.set(func() { c.frozen += d; c.lastNews = c.lastNews.Add(d) })
			if err := c.emit(schemas.OriginHost, schemas.LogAway{For: schemas.Duration(d.Round(time.Millisecond))}); err != nil {
				return
			}
		}
	}
}

// logAway is how long the log has been out of reach, or has not answered.
func (c *Context) logAway() time.Duration {
	c.mu.Lock()
	since := c.pubSince
	c.mu.Unlock()
	away := c.cfg.Log.Away()
	if !since.IsZero() {
		if d := time.Since(since); d > awayPause {
			away = max(away, d)
		}
	}
	return away
}

// freeze stops or continues a running guest behind the protocol's back.
func (c *Context) freeze(on bool) bool {
	c.mu.Lock()
	m, running := c.machine, c.state == Running
	c.mu.Unlock()
	if m == nil || !running {
		return false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.life), 5*time.Second)
	defer cancel()
	if on {
		return m.Pause(ctx) == nil
	}
	return m.Resume(ctx) == nil
}
