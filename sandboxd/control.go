// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/protocol"
	"github.com/petri-sandbox/petri/schemas"
)

// Findings tells what analyzers say of an analysis while it runs.
type Findings interface {
	// FollowFindings calls fn with each finding that the log has of an analysis,
	// in its order, from the first, until ctx is done.
	FollowFindings(ctx context.Context, tenant, analysis string, fn func(schemas.Event)) error
}

// maxRequests is how many requests of analyzers one analysis looks at.
const maxRequests = 32

// control is what analyzers have been granted. Its fields are under the
// context's lock.
type control struct {
	budget   protocol.Control
	asked    int           // requests that came
	extended time.Duration // granted in all
	extra    time.Duration // what of that is for the running wait, or the next
	deciding int           // extensions that the log does not have yet: no wait ends meanwhile
	stopped  bool          // waits are over
	dumps    int           // granted
	pictures int
	waits    int  // waits that the protocol still has, the running one among them
	over     bool // no step is left
}

// listen decides what analyzers ask for, until ctx is done.
func (c *Context) listen(ctx context.Context) {
	if c.cfg.Findings == nil {
		return
	}
	err := c.cfg.Findings.FollowFindings(ctx, c.cfg.Tenant, c.cfg.Analysis, func(e schemas.Event) {
		var f schemas.FindingCommitted
		if e.Decode(&f) != nil || f.Finding.Kind != schemas.ControlKind || f.Task.Run != schemas.LiveRun {
			return
		}
		if err := c.request(e, &f); err != nil && !errors.Is(err, errOver) && c.Err() == nil {
			c.cfg.Slog.Warn("decide on an analyzer's request", "analysis", c.cfg.Analysis, "analyzer", f.Task.Analyzer, "error", err)
		}
	})
	if err != nil && ctx.Err() == nil {
		c.fault(time.Time{}, schemas.OriginHost, "requests of analyzers are not heard: "+err.Error())
	}
}

// request decides on one request, publishes that, and acts on it.
func (c *Context) request(e schemas.Event, f *schemas.FindingCommitted) error {
	c.mu.Lock()
	c.control.asked++
	many := c.control.asked > maxRequests
	c.mu.Unlock()
	if many {
		return nil // start_analysis tells how many
	}
	var r schemas.ControlRequest
	d := schemas.ControlDecided{Finding: e.ID, Analyzer: f.Task.Analyzer}
	if err := json.Unmarshal(f.Finding.Data, &r); err != nil {
		d.Reason = "the finding's data is no request"
		return c.emit(schemas.OriginHost, d)
	}
	switch d.Action = r.Action; r.Action {
	case schemas.ControlExtend:
		return c.extend(d, r.Duration.D())
	case schemas.ControlStop:
		return c.endWaits(d)
	case schemas.ControlDumpMemory, schemas.ControlScreenshot:
		// It may have to wait for the sample, and nothing else shall.
		if !c.spawn(&task{}, func() { c.take(d) }) {
			return errOver
		}
		return nil
	}
	d.Action = fmt.Sprintf("%.40s", r.Action)
	d.Reason = "there is no such action"
	return c.emit(schemas.OriginHost, d)
}

// Why requests are denied.
const (
	notAllowed = "not allowed by the protocol"
	usedUp     = "the budget is used up"
	tooLate    = "too late: the machine is off"
	noWait     = "too late: the protocol has no wait left"
	noDisplay  = "the machine has no display"
)

// gone reports whether there is no machine any more to do something with. c.mu
// is held.
func (c *Context) gone() bool {
	return c.halting || c.control.over || c.fell || c.state == Off || c.state == Shutdown || c.state == Crashed
}

// extend makes the running wait longer, or the next.
func (c *Context) extend(d schemas.ControlDecided, by time.Duration) error {
	c.mu.Lock()
	k := &c.control
	left := k.budget.Extend - k.extended
	switch {
	case k.budget.Extend == 0:
		d.Reason = notAllowed
	case by <= 0:
		d.Reason = "it does not say by how much"
	case c.gone():
		d.Reason = tooLate
	case k.waits == 0 || k.stopped:
		d.Reason = noWait
	case left <= 0:
		d.Reason = usedUp
	default:
		d.Granted = true
		if by > left {
			d.Reason = fmt.Sprintf("cut from %s to what the budget has left", by)
			by = left
		}
		d.Effect = fmt.Sprintf("the wait may take %s longer", by)
		k.extended += by
		k.deciding++
	}
	c.mu.Unlock()
	err := c.emit(schemas.OriginHost, d)
	if d.Granted {
		c.set(func() {
			k.deciding--
			if err == nil {
				k.extra += by
			}
		})
	}
	return err
}

// endWaits ends the running wait and all that follow.
func (c *Context) endWaits(d schemas.ControlDecided) error {
	c.mu.Lock()
	switch k := &c.control; {
	case !k.budget.Stop:
		d.Reason = notAllowed
	case c.gone():
		d.Reason = tooLate
	case k.stopped:
		d.Reason = "it is stopped already"
	case k.waits == 0:
		d.Reason = noWait
	default:
		d.Granted, d.Effect = true, "the protocol goes on without waiting"
	}
	c.mu.Unlock()
	if err := c.emit(schemas.OriginHost, d); err != nil {
		return err
	}
	if d.Granted {
		c.set(func() { c.control.stopped = true })
	}
	return nil
}

// take stores the guest's memory or a picture of its display. A request that
// comes before the sample has started waits for that: there is nothing yet to
// be seen.
func (c *Context) take(d schemas.ControlDecided) {
	if err := c.decideTake(&d); err != nil {
		return // the log has lost this analysis, or it is over
	}
	if !d.Granted {
		return
	}
	c.taking.take()
	defer c.taking.give()
	var err error
	if d.Action == schemas.ControlDumpMemory {
		err = c.dump(c.work, takeTime)
	} else {
		err = c.screenshot(c.work, d.Finding)
	}
	if err != nil {
		c.fault(time.Time{}, schemas.OriginHost, fmt.Sprintf("%s that %s was granted: %v", d.Action, d.Analyzer, err))
	}
}

// takeTime is how long a memory image may take.
const takeTime = time.Minute

func (c *Context) decideTake(d *schemas.ControlDecided) error {
	k := &c.control
	c.mu.Lock()
	allowed, taken := k.budget.DumpMemory, &k.dumps
	if d.Action == schemas.ControlScreenshot {
		allowed, taken = k.budget.Screenshot, &k.pictures
	}
	c.mu.Unlock()
	if allowed > 0 {
		_ = c.await(c.work, func() bool { return c.events[schemas.EventSampleStarted] > 0 || c.gone() })
	}
	c.mu.Lock()
	_, display := c.machine.(machine.Screenshotter)
	switch {
	case allowed == 0:
		d.Reason = notAllowed
	case c.gone() || c.work.Err() != nil:
		d.Reason = tooLate
	case d.Action == schemas.ControlScreenshot && !display:
		d.Reason = noDisplay
	case *taken >= allowed:
		d.Reason = usedUp
	default:
		*taken++
		d.Granted, d.Effect = true, "the guest's memory is stored"
		if d.Action == schemas.ControlScreenshot {
			d.Effect = "a picture of the guest's display is stored"
		}
	}
	c.mu.Unlock()
	return c.emit(schemas.OriginHost, *d)
}

// screenshot stores a picture of the guest's display for an event.
func (c *Context) screenshot(ctx context.Context, event string) error {
	m, err := c.living()
	if err != nil {
		return err
	}
	s, ok := m.(machine.Screenshotter)
	if !ok {
		return errors.New(noDisplay)
	}
	f, err := os.CreateTemp(c.cfg.Dir, "screen-")
	if err != nil {
		return fmt.Errorf("make room for the picture: %w", err)
	}
	defer f.Close()
	w, err := os.OpenFile(f.Name(), os.O_WRONLY, 0)
	if err := errors.Join(err, os.Remove(f.Name())); err != nil {
		return err
	}
	defer w.Close()
	sctx, cancel := context.WithTimeout(ctx, screenTime)
	defer cancel()
	if err := s.Screenshot(sctx, w); err != nil {
		return err
	}
	return c.Store(ctx, schemas.Artifact{Kind: schemas.KindScreenshot, MediaType: "image/png", Name: "screen.png", Event: event}, f)
}

// screenTime is how long a picture may take.
const screenTime = 10 * time.Second

// unheard is how many requests came and were not looked at.
func (c *Context) unheard() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(0, c.control.asked-maxRequests)
}
