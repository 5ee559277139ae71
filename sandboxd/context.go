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
	"github.com/petri-sandbox/petri/sandboxd/protocol"
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
	Clock            time.Time // of the guest when it starts; zero: the host's
	Gates            Gates     // nil: there are none
	Findings         Findings  // nil: analyzers ask for nothing
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
	// work is what handlers, and whatever goes on beside the protocol, live on.
	// It ends with life, when the analysis is cancelled, and when its time is
	// over.
	work    context.Context
	endWork context.CancelCauseFunc

	verbs      turn            // of the verb in progress
	pub        turn            // of the event that is being published
	cpus       turn            // of whoever stops or continues the guest's CPUs
	taking     turn            // of what an analyzer was granted
	halted     chan struct{}   // closed when the machine has been ended
	ending     context.Context // done when somebody begins to end the machine, for good
	endMachine context.CancelFunc

	mu        sync.Mutex
	machine   machine.Machine
	state     State
	fell      bool              // the machine went down by itself
	fellTold  bool              // and that has been told
	changed   chan struct{}     // closed and replaced at every change below
	trouble   map[int]time.Time // since when the log has not taken something
	troubles  int               // their numbers
	frozen    time.Duration     // how long the guest stood still because the log was away
	frozenAt  time.Time         // since when it does, or may
	halting   bool              // somebody ends the machine, for good
	haltedAt  time.Time         // when that was
	flushed   bool              // the guest sent all that it had traced, and has not run since
	tailLost  bool              // a guest ended without that
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
	stepEnd   context.CancelCauseFunc // of the running step
	stepErr   error                   // that it must end with
	tasks     map[*task]struct{}      // what goes on beside the protocol
	closed    bool                    // no more of it, and no more events
	announced announcements
	gates     []protocol.Gate
	control   control

	watching      sync.WaitGroup // the watch over the log
	strays        sync.WaitGroup // handlers' own goroutines, also of those past their deadline
	takers        sync.WaitGroup // of facts and live
	facts         *factQueue
	live          *factQueue
	numbering     sync.Mutex        // of live events
	numbered      uint64            // the last one's number
	machineNumber uint64            // and the machine's own for it
	numberBase    uint64            // before the machine's last start
	suppressed    map[string]uint64 // those that were not shown
	sources       map[schemas.Source]*source
	hooks         *hookStats
	drops         *dropSet
}

// A turn is a lock that is held for as long as a machine or the log takes.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take() { t <- struct{}{} }

func (t turn) give() { <-t }

func (t turn) try() bool {
	select {
	case t <- struct{}{}:
		return true
	default:
		return false
	}
}

// NewContext returns the context of an analysis that has no machine yet. It
// lives until [Context.Close]; when ctx is done, its machine and its handlers
// are ended, and it can still publish how.
func NewContext(ctx context.Context, cfg Config) *Context {
	c := &Context{
		cfg: cfg, state: Defined, changed: make(chan struct{}), lastNews: time.Now(),
		events: map[string]int{}, trouble: map[int]time.Time{}, tasks: map[*task]struct{}{},
		verbs: newTurn(), pub: newTurn(), cpus: newTurn(), taking: newTurn(), halted: make(chan struct{}),
		facts: newFactQueue(maxFacts), live: newFactQueue(maxLive), hooks: newHookStats(),
	}
	c.life, c.end = context.WithCancelCause(context.WithoutCancel(ctx))
	c.work, c.endWork = context.WithCancelCause(ctx)
	c.ending, c.endMachine = context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(c.life, func() { c.endWork(context.Cause(c.life)) })
	c.sources = c.newSources()
	c.takers.Add(2)
	go c.takeFacts()
	go c.takeLive()
	c.watching.Add(1)
	go c.watchLog()
	return c
}

// attach gives the context its machine. Whatever ends the handlers ends it at
// once: stopping waits for no step and for no log.
func (c *Context) attach(m machine.Machine) {
	c.mu.Lock()
	c.machine = m
	c.mu.Unlock()
	context.AfterFunc(c.work, c.halt)
}

// obey takes what the protocol says of those outside of the sandbox.
func (c *Context) obey(p *protocol.Protocol) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gates, c.control.budget = p.Gates, p.Control
}

// lost ends everything that the context does: the analysis is not ours any
// more, or cannot go on.
func (c *Context) lost(why error) { c.end(why) }

// strayTime is how long hooks past their deadline have to notice it.
const strayTime = 10 * time.Second

// Close ends the context. Its machine must be gone.
func (c *Context) Close() {
	c.set(func() { c.closed = true })
	c.end(context.Canceled)
	c.endMachine()
	c.facts.close()
	c.live.close()
	c.takers.Wait()
	c.watching.Wait()
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
			c.mu.Lock()
			ok = cond() // both may have come about
			c.mu.Unlock()
			if ok {
				return nil
			}
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

// errOver says that an event came after start_analysis.
var errOver = errors.New("the machine's part of the analysis is over")

// publish writes one context event and returns when the log has it. It waits
// for a log that is away, or in trouble, as long as the context lives.
func (c *Context) publish(at time.Time, origin schemas.Origin, data schemas.Typed) (schemas.Event, error) {
	c.pub.take()
	defer c.pub.give()
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return schemas.Event{}, errOver
	}
	return c.write(at, origin, data)
}

// publishLast is publish for the few events that a closed context still has.
func (c *Context) publishLast(data schemas.Typed) (schemas.Event, error) {
	c.pub.take()
	defer c.pub.give()
	return c.write(time.Time{}, schemas.OriginHost, data)
}

// write is publish with c.pub held.
func (c *Context) write(at time.Time, origin schemas.Origin, data schemas.Typed) (schemas.Event, error) {
	if at.IsZero() {
		at = time.Now()
	}
	e, err := schemas.NewEvent(c.cfg.Tenant, c.cfg.Analysis, c.cfg.Writer.NextID(), at, origin, data)
	if err != nil {
		return schemas.Event{}, err
	}
	over := c.inTrouble() // until it is known to be written, it is not
	err = c.persist(c.life, func(ctx context.Context) error { return c.cfg.Writer.Write(ctx, e) })
	over()
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

// persistPause lies between two tries of [Context.persist].
const persistPause = 250 * time.Millisecond

// persist has the log take something. An error of the log, a full disk say, is
// like its absence: the guest stands still, and it is tried again for as long
// as ctx and the analysis live.
func (c *Context) persist(ctx context.Context, f func(context.Context) error) error {
	over := func() {}
	defer func() { over() }()
	for first := true; ; first = false {
		err := f(ctx)
		if err == nil || errors.Is(err, ErrFenced) || ctx.Err() != nil || c.life.Err() != nil {
			return err
		}
		if first {
			over = c.inTrouble()
			c.cfg.Slog.Warn("the log takes no events", "analysis", c.cfg.Analysis, "error", err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-c.life.Done():
			return err
		case <-time.After(persistPause):
		}
	}
}

// inTrouble notes that the log has something yet to take, until over is called.
func (c *Context) inTrouble() (over func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.troubles
	c.troubles++
	c.trouble[n] = time.Now()
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.trouble, n)
	}
}

// emit publishes an event, runs its handlers, and then asks its gates: the
// synchronous ones in the order of their subscription, before it returns. The
// error is the log's, that of a hook without which the analysis must not go on,
// or a gate's stop.
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
	if err := c.tell(at, origin, schemas.Fault{Text: text}, func() {}); err != nil {
		c.cfg.Slog.Warn("note a fault", "analysis", c.cfg.Analysis, "fault", text, "error", err)
	}
}
