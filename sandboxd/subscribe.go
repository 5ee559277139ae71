// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// A Handler observes events of a context. ctx ends at the handler's deadline.
type Handler func(ctx context.Context, c *Context, e schemas.Event) error

// SubscribeOptions say how a handler is run. The zero value is synchronous,
// with a deadline of a minute.
type SubscribeOptions struct {
	Name     string        // for events and coverage; empty: the pattern
	Async    bool          // run beside the protocol, joined before start_analysis
	Timeout  time.Duration // default one minute
	Required bool          // its failure fails the step that published the event
}

// A Subscription ties a handler to the events that match a pattern.
type Subscription struct {
	pattern string
	handler Handler
	opts    SubscribeOptions
}

// Subscribe runs handler for every event that pattern matches: a name, or one
// with * and ? as in file names. The context waits for it.
func (c *Context) Subscribe(pattern string, h Handler) (*Subscription, error) {
	return c.subscribe(pattern, h, SubscribeOptions{})
}

// SubscribeAsync is Subscribe without the waiting.
func (c *Context) SubscribeAsync(pattern string, h Handler) (*Subscription, error) {
	return c.subscribe(pattern, h, SubscribeOptions{Async: true})
}

func (c *Context) subscribe(pattern string, h Handler, o SubscribeOptions) (*Subscription, error) {
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, fmt.Errorf("pattern %.80q: %w", pattern, err)
	}
	if o.Name == "" {
		o.Name = pattern
	}
	if o.Timeout <= 0 {
		o.Timeout = time.Minute
	}
	s := &Subscription{pattern: pattern, handler: h, opts: o}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subs = append(c.subs, s)
	return s, nil
}

// Unsubscribe ends a subscription. A handler that runs goes on.
func (c *Context) Unsubscribe(s *Subscription) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subs = slices.DeleteFunc(c.subs, func(x *Subscription) bool { return x == s })
}

// dispatch runs the handlers of an event that the log has, and then asks its
// gates. The list is taken once: who subscribes or unsubscribes meanwhile changes
// later events only.
func (c *Context) dispatch(e schemas.Event) error {
	c.mu.Lock()
	subs := slices.Clone(c.subs)
	c.mu.Unlock()
	var errs []error
	for _, s := range subs {
		if ok, _ := path.Match(s.pattern, e.Name()); !ok {
			continue
		}
		// Nothing goes on beside a protocol that is over.
		if s.opts.Async && c.spawn(&task{}, func() { _ = c.call(s, e) }) { // a required hook is synchronous
			continue
		}
		if err := c.call(s, e); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	return c.askGates(e)
}

// Times of handlers.
const (
	noticeTime   = time.Second     // to notice that their context has ended
	teardownTime = 5 * time.Second // in all, for those of a cancelled analysis' last events
)

// hookContext is what a handler runs on. A cancellation ends it. The events
// that come after one, when the machine is gone, have a short time of their
// own.
func (c *Context) hookContext(timeout time.Duration) (context.Context, context.CancelFunc) {
	if c.work.Err() == nil {
		return context.WithTimeout(c.work, timeout)
	}
	return context.WithTimeout(c.life, min(timeout, teardownTime))
}

// whyEnded says in people's words why a handler's context ended.
func whyEnded(ctx context.Context, begin time.Time) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, context.DeadlineExceeded) {
		return fmt.Errorf("not done after %s", time.Since(begin).Round(time.Millisecond))
	}
	return cause
}

// call runs one handler until its deadline. A handler that goes on after that
// is not waited for; its failure is known by then.
func (c *Context) call(s *Subscription, e schemas.Event) error {
	begin := time.Now()
	ctx, cancel := c.hookContext(s.opts.Timeout)
	defer cancel()
	done := make(chan error, 1)
	c.strays.Add(1)
	go func() {
		defer c.strays.Done()
		defer func() {
			if r := recover(); r != nil {
				done <- fmt.Errorf("panic: %v", r)
			}
		}()
		done <- s.handler(ctx, c, e)
	}()
	var err error
	select {
	case err = <-done:
		if ended := ctx.Err(); ended != nil && errors.Is(err, ended) { // it was the first to notice
			err = fmt.Errorf("%w: %w", whyEnded(ctx, begin), err)
		}
	case <-ctx.Done():
		why := whyEnded(ctx, begin)
		select {
		case err = <-done:
			if err != nil {
				err = fmt.Errorf("%w: %w", why, err)
			}
		case <-time.After(noticeTime):
			err = why
		}
	}
	c.hooks.count(s.opts, err)
	if err == nil {
		return nil
	}
	c.cfg.Slog.Warn("hook failed", "analysis", c.cfg.Analysis, "hook", s.opts.Name, "event", e.Name(), "error", err)
	if perr := c.hookFailed(s, e, err); perr != nil && !errors.Is(perr, errOver) {
		return perr
	}
	if s.opts.Required {
		return fmt.Errorf("required hook %s: %w", s.opts.Name, err)
	}
	return nil
}

// hookFailed publishes the failure. A handler of hook_failed that fails is
// only logged: it must not call itself for ever.
func (c *Context) hookFailed(s *Subscription, e schemas.Event, err error) error {
	if e.Name() == schemas.EventHookFailed {
		return nil
	}
	return c.emit(schemas.OriginHost, schemas.HookFailed{Hook: s.opts.Name, Event: e.Name(), Error: err.Error(), Required: s.opts.Required})
}

// hookStats counts what became of the hooks.
type hookStats struct {
	mu sync.Mutex
	by map[string]*schemas.HookCoverage
}

func newHookStats() *hookStats { return &hookStats{by: map[string]*schemas.HookCoverage{}} }

func (h *hookStats) count(o SubscribeOptions, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.entry(o.Name)
	s.Required = s.Required || o.Required
	s.Runs++
	if err != nil {
		s.Failed++
		s.Error = err.Error()
	}
}

// fail counts what went wrong after a hook had returned.
func (h *hookStats) fail(name string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.entry(name)
	s.Failed++
	s.Error = err.Error()
}

// expect lists a hook that has not run yet.
func (h *hookStats) expect(o SubscribeOptions) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.entry(o.Name).Required = o.Required
}

func (h *hookStats) entry(name string) *schemas.HookCoverage {
	s, ok := h.by[name]
	if !ok {
		s = &schemas.HookCoverage{Name: name}
		h.by[name] = s
	}
	return s
}

// list is sorted by name.
func (h *hookStats) list() []schemas.HookCoverage {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := []schemas.HookCoverage{}
	for _, s := range h.by {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b schemas.HookCoverage) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Background lets a handler go on beside the protocol: the context waits for f
// before start_analysis, for as long as that step's timeout says, and ends its
// ctx then. Its failure counts as the hook's. When the machine's part is over f
// is not called, and the error says so.
func (c *Context) Background(hook string, e schemas.Event, f func(ctx context.Context) error) error {
	run := func() {
		begin := time.Now()
		ctx, cancel := c.hookContext(maxBackground)
		defer cancel()
		err := f(ctx)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", whyEnded(ctx, begin), err)
		}
		c.hooks.fail(hook, err)
		if perr := c.hookFailed(&Subscription{opts: SubscribeOptions{Name: hook}}, e, err); perr != nil {
			c.cfg.Slog.Warn("hook failed", "analysis", c.cfg.Analysis, "hook", hook, "error", err)
		}
	}
	if !c.spawn(&task{hook: hook, event: e.Name()}, run) {
		return fmt.Errorf("%s: %w", hook, errOver)
	}
	return nil
}

// maxBackground bounds what goes on beside the longest protocol.
const maxBackground = time.Hour

// A task goes on beside the protocol.
type task struct {
	hook, event string // whose work it is, if a hook's
}

// spawn runs f beside the protocol, unless the machine's part is over.
func (c *Context) spawn(t *task, f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.tasks[t] = struct{}{}
	c.strays.Add(1)
	go func() {
		defer c.strays.Done()
		defer c.set(func() { delete(c.tasks, t) })
		f()
	}()
	return true
}

// errOverdue ends what has not been done when start_analysis has waited long
// enough.
var errOverdue = errors.New("not done when start_analysis had waited")

// settle waits for the facts that are on their way, and for what goes on beside
// the protocol, at most for so long; then nothing more begins and no more events
// are published. The machine must be gone. It reports whether something was not
// done in time: that is a failure of its hook.
func (c *Context) settle(timeout time.Duration) (overdue bool) {
	c.facts.close()
	c.live.close()
	timer := time.AfterFunc(timeout, func() { c.endWork(fmt.Errorf("%w for %s", errOverdue, timeout)) })
	defer timer.Stop()
	c.takers.Wait()
	ctx, cancel := context.WithCancel(c.life)
	defer cancel()
	stop := context.AfterFunc(c.work, func() { time.AfterFunc(2*noticeTime, cancel) })
	defer stop()
	_ = c.await(ctx, func() bool { return len(c.tasks) == 0 })
	var left []*task
	c.set(func() {
		c.closed = true
		for t := range c.tasks {
			left = append(left, t)
		}
	})
	if c.Err() != nil {
		return false
	}
	slices.SortFunc(left, func(a, b *task) int { return strings.Compare(a.hook+" "+a.event, b.hook+" "+b.event) })
	why := context.Cause(c.work)
	for _, t := range left {
		if t.hook == "" {
			continue
		}
		c.hooks.fail(t.hook, why)
		if _, err := c.publishLast(schemas.HookFailed{Hook: t.hook, Event: t.event, Error: why.Error()}); err != nil {
			break
		}
	}
	return errors.Is(why, errOverdue)
}

// SubscribeHook subscribes a configured hook to several patterns. The coverage
// lists it even if its event never comes.
func (c *Context) SubscribeHook(patterns []string, h Handler, o SubscribeOptions) error {
	c.hooks.expect(o)
	for _, p := range patterns {
		if _, err := c.subscribe(p, h, o); err != nil {
			return fmt.Errorf("hook %s: %w", o.Name, err)
		}
	}
	return nil
}

// Dir is the analysis' own directory, for what is on its way to the store. It
// is removed at the end.
func (c *Context) Dir() string { return c.cfg.Dir }

// Console returns what has arrived of a small source: stdout, stderr or
// serial.
func (c *Context) Console(src schemas.Source) ([]byte, error) {
	s := c.sources[src]
	if s == nil || s.store {
		return nil, fmt.Errorf("no console %q", src)
	}
	return s.read()
}
