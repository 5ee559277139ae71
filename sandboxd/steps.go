// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/protocol"
	"github.com/petri-sandbox/petri/schemas"
)

// errNotExecuted ends the machine's part of a protocol: there is no sample to
// wait for. It is an outcome, and no failure of a step.
var errNotExecuted = errors.New("the sample was not executed")

// errMachineGone ends it too: the machine went down by itself.
var errMachineGone = errors.New("the machine went down by itself")

// runSteps carries out a protocol's steps up to start_analysis. The error is
// why the machine's part ended early: errNotExecuted, errMachineGone, what a
// step failed with, or ctx's.
func (a *analysis) runSteps(ctx context.Context) error {
	defer a.c.left(nil)
	for i, s := range a.protocol.Steps {
		if s.Kind == protocol.StartAnalysis {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if a.moot(ctx, s) {
			return errMachineGone
		}
		a.c.left(a.protocol.Steps[i:])
		err, required := a.c.inStep(ctx, func(ctx context.Context) error { return a.step(ctx, s) })
		switch {
		case err == nil:
			continue
		case a.c.Err() != nil:
			return a.c.Err()
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case required:
		case errors.Is(err, errNotExecuted):
			return err
		case a.moot(ctx, s):
			return errMachineGone
		}
		e, perr := a.c.publish(time.Time{}, schemas.OriginHost, stepFailed(i, s, err))
		if perr != nil {
			return failure{reasonLog, fmt.Errorf("tell that step %d, %s, failed (%w): %w", i+1, s.Kind, err, perr)}
		}
		if herr := a.c.dispatch(e); herr != nil {
			return failure{reasonHook, herr}
		}
		var stopped *errGate
		switch {
		case errors.As(err, &stopped):
			return err
		case s.OnFailure == protocol.Continue:
		case s.OnFailure == protocol.Poweroff:
			if a.c.State().Alive() {
				if perr := a.c.Poweroff(ctx, 10*time.Second); perr != nil {
					return perr
				}
			}
		default:
			return fmt.Errorf("step %d, %s: %w", i+1, s.Kind, err)
		}
	}
	return nil
}

// left notes which steps there are still, for those who ask.
func (c *Context) left(steps []protocol.Step) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.control.waits, c.control.over = 0, len(steps) == 0
	for _, s := range steps {
		if s.Kind == protocol.Wait {
			c.control.waits++
		}
	}
}

func stepFailed(i int, s protocol.Step, err error) schemas.StepFailed {
	return schemas.StepFailed{Step: i + 1, Name: string(s.Kind), Error: err.Error(), OnFailure: string(s.OnFailure)}
}

// inStep runs a step. It fails, and is ended, when a handler without which the
// analysis must not go on fails at a fact: that is told by required. One that
// failed between two steps fails the next.
func (c *Context) inStep(ctx context.Context, step func(context.Context) error) (err error, required bool) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.mu.Lock()
	failed := c.stepErr
	if failed == nil {
		c.stepEnd = cancel
	}
	c.mu.Unlock()
	if failed == nil {
		err = step(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	failed, c.stepErr, c.stepEnd = c.stepErr, nil, nil
	if failed != nil {
		return failed, true
	}
	return err, false
}

// failStep fails the running step.
func (c *Context) failStep(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stepErr == nil {
		c.stepErr = err
	}
	if c.stepEnd != nil {
		c.stepEnd(err)
	}
}

// moot reports whether a step has lost its machine: the guest went down by
// itself, which the log says, and no step of the rest brings it back. If a
// required handler failed at that, the step has its failure to tell.
func (a *analysis) moot(ctx context.Context, s protocol.Step) bool {
	if s.Kind == protocol.Poweron || s.Kind == protocol.Wait {
		return false
	}
	_ = a.c.await(ctx, func() bool { return !a.c.fell || a.c.fellTold })
	a.c.mu.Lock()
	defer a.c.mu.Unlock()
	return a.c.fell && a.c.stepErr == nil
}

func (a *analysis) step(ctx context.Context, s protocol.Step) error {
	switch s.Kind {
	case protocol.Poweron:
		return a.c.Poweron(ctx, s.Timeout, a.machineSpec(s.Cold))
	case protocol.WaitIP:
		return a.waitIP(ctx, s.Timeout)
	case protocol.RunSample:
		return a.runSample(ctx, s.Timeout)
	case protocol.Wait:
		return a.wait(ctx, s)
	case protocol.Pause:
		return a.c.Pause(ctx, s.Timeout)
	case protocol.Resume:
		return a.c.Resume(ctx, s.Timeout)
	case protocol.Restart:
		return a.c.Restart(ctx, s.Timeout)
	case protocol.Shutdown:
		return a.c.Shutdown(ctx, s.Timeout)
	case protocol.PoweroffStep:
		return a.c.Poweroff(ctx, s.Timeout)
	case protocol.Trigger:
		return a.trigger(ctx, s)
	case protocol.Exec:
		_, err := a.c.Exec(ctx, s.Timeout, a.expand(s.Command))
		return err
	case protocol.DumpMemory:
		return a.c.dump(ctx, s.Timeout)
	}
	return fmt.Errorf("no step %q", s.Kind)
}

// trigger bounds an event's synchronous handlers as a whole.
func (a *analysis) trigger(ctx context.Context, s protocol.Step) error {
	done := make(chan error, 1)
	if !a.c.spawn(&task{}, func() { done <- a.c.Trigger(s.Event, s.Payload) }) {
		return errOver
	}
	t := time.NewTimer(s.Timeout)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		return fmt.Errorf("the handlers of %s were not done after %s", s.Event, s.Timeout)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *analysis) waitIP(ctx context.Context, timeout time.Duration) error {
	wctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := a.c.await(wctx, func() bool { return a.c.address != "" || !a.c.state.Alive() }); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("the guest took no address within %s", timeout)
	}
	if a.c.IP4Address() == "" {
		return errMachineGone
	}
	return nil
}

// decisionTime is how often a wait whose time is over looks whether it is made
// longer.
const decisionTime = time.Second

// wait waits for a time, or until one of its conditions holds. That the time
// is over is no failure. Analyzers may make it longer, or end it, as far as the
// protocol lets them.
func (a *analysis) wait(ctx context.Context, s protocol.Step) error {
	defer a.c.set(func() { a.c.control.extra = 0 })
	limit := s.Timeout
	if s.Runtime {
		limit = a.sub.Options.Runtime.D()
	}
	begin := time.Now()
	a.c.mu.Lock()
	frozen := a.c.stoodStill()
	before := map[string]int{}
	for _, u := range s.Until {
		before[u] = a.c.events[u]
	}
	a.c.mu.Unlock()
	for {
		a.c.mu.Lock()
		still := a.c.stoodStill()
		left := limit + a.c.control.extra - time.Since(begin) + still - frozen
		if a.c.control.deciding > 0 {
			left = max(left, decisionTime)
		}
		quiet := time.Since(a.c.lastNews) - (still - a.c.frozen)
		over := a.c.control.stopped || slices.ContainsFunc(s.Until, func(u string) bool { return a.holds(u, before[u], quiet >= s.Quiet) })
		gone := !a.c.state.Alive() && a.c.state != Defined && len(s.Until) > 0
		changed := a.c.changed
		a.c.mu.Unlock()
		if over || gone || left <= 0 {
			return nil
		}
		next := left
		if slices.Contains(s.Until, protocol.UntilQuiet) {
			next = min(left, max(s.Quiet-quiet, 10*time.Millisecond))
		}
		t := time.NewTimer(next)
		select {
		case <-t.C:
		case <-changed:
		case <-ctx.Done():
		case <-a.c.life.Done():
		}
		t.Stop()
		if a.c.Err() != nil {
			return a.c.Err()
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// holds reports whether a condition of a wait is true. The context's lock is
// held.
func (a *analysis) holds(until string, before int, quiet bool) bool {
	switch until {
	case protocol.UntilTreeExited:
		return a.c.treeGone
	case protocol.UntilSampleExited:
		return a.c.exited != nil
	case protocol.UntilQuiet:
		return quiet
	}
	return a.c.events[until] > before
}

// runSample announces the command, has the guest run it, and publishes that
// its kernel has, or why it has not.
func (a *analysis) runSample(ctx context.Context, timeout time.Duration) error {
	m, err := a.c.living()
	if err != nil {
		return err
	}
	run, err := a.run()
	if err != nil {
		return err
	}
	if err := a.c.emit(schemas.OriginHost, run.RunSample); err != nil {
		return err
	}
	if namesTooMuch(run) {
		run.Needed, run.Versions, run.RunPath = nil, nil, nil
		a.c.fault(time.Time{}, schemas.OriginHost, fmt.Sprintf("the sample names libraries and their directories in more than %d KiB: whether the guest has them was not looked for, and its loader may have refused to run it", maxLibraryText>>10))
	}
	if end := a.cutOff(); end > 0 {
		a.c.fault(time.Time{}, schemas.OriginHost, fmt.Sprintf("the sample is cut off: it has %d bytes, and is loaded as if it had %d. What came behind could not run", a.sub.Sample.Size, end))
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	a.c.set(func() { a.c.starting = true })
	defer a.c.set(func() { a.c.starting = false })
	started, err := m.Run(ctx, run, a.sample)
	var ne *machine.NotExecuted
	if errors.As(err, &ne) {
		if a.advice != "" {
			ne.Reason += " (" + a.advice + ")"
		}
		exit := schemas.SampleExited{Reason: "not_executed", Error: ne.Reason, Errno: ne.Errno, Missing: ne.Missing}
		if err := a.c.emit(schemas.OriginGuest, exit); err != nil {
			return err
		}
		return errNotExecuted
	}
	if err != nil {
		return fmt.Errorf("run the sample: %w", err)
	}
	if started.SHA256 != a.sub.Sample.SHA256 {
		a.c.fault(time.Time{}, schemas.OriginHost, "the sample in the guest has another digest than the one submitted: "+started.SHA256.String())
	}
	a.c.news()
	return a.c.emit(schemas.OriginGuest, started)
}

// dump is the step that stores the guest's memory, whatever the hooks do.
func (c *Context) dump(ctx context.Context, timeout time.Duration) error {
	if _, err := c.living(); err != nil {
		return err
	}
	c.mu.Lock()
	size := c.boot.Machine.Memory
	c.mu.Unlock()
	e, err := c.publish(time.Time{}, schemas.OriginHost, schemas.PreDumpMemory{Bytes: size})
	if err != nil {
		return err
	}
	if err := c.dispatch(e); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return c.StoreMemory(ctx, e)
}
