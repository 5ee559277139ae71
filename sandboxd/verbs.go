// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"os"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// errNoMachine says that a verb came before the context had a machine.
var errNoMachine = errors.New("the analysis has no machine")

// do is what all verbs have in common: the check, before anything is
// published; pre_X and its handlers; the deed, with its own deadline; post_X,
// or failed_X in its place.
func (c *Context) do(ctx context.Context, v Verb, timeout time.Duration, pre, post func(schemas.Transition) schemas.Typed, deed func(context.Context, machine.Machine) error) error {
	c.verbs.take()
	defer c.verbs.give()
	c.mu.Lock()
	m, from := c.machine, c.state
	c.mu.Unlock()
	to, err := Next(from, v)
	if err != nil {
		return err
	}
	if m == nil {
		return errNoMachine
	}
	begin := time.Now()
	t := schemas.Transition{Verb: "pre_" + string(v), From: string(from), To: string(to)}
	err = c.emit(schemas.OriginHost, pre(t))
	if err == nil {
		err = c.act(ctx, v, to, timeout, m, deed)
	}
	if err != nil {
		failed := schemas.FailedTransition{Verb: "failed_" + string(v), State: string(c.State()), Error: err.Error()}
		return errors.Join(fmt.Errorf("%s: %w", v, err), c.emit(schemas.OriginHost, failed))
	}
	t.Verb, t.Took = "post_"+string(v), schemas.Duration(time.Since(begin).Round(time.Millisecond))
	return c.emit(schemas.OriginHost, post(t))
}

// act does the deed of a verb.
func (c *Context) act(ctx context.Context, v Verb, to State, timeout time.Duration, m machine.Machine, deed func(context.Context, machine.Machine) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	switch v {
	case VerbPause, VerbResume: // what the watch over the log does too
		c.cpus.take()
		defer c.cpus.give()
	}
	switch v {
	case VerbPause, VerbPoweroff, VerbRestart:
		// The guest may never again be able to send what it has traced.
		c.mu.Lock()
		speaks := c.state == Running && c.frozenAt.IsZero()
		c.mu.Unlock()
		if speaks {
			c.flush(m, flushTime)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	stop := context.AfterFunc(c.life, cancel)
	defer stop()
	if v == VerbPoweroff || v == VerbRestart {
		c.noteTail()
	}
	if err := deed(ctx, m); err != nil {
		return err
	}
	c.set(func() {
		c.state, c.fell = to, false
		c.flushed = c.flushed && to != Running
	})
	return nil
}

// flushTime is how long a guest may take to send what it has traced.
const flushTime = 2 * time.Second

// flush has a running guest send what it has traced. One that does not may lose
// it: the trace's coverage says so.
func (c *Context) flush(m machine.Machine, limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.life), limit)
	defer cancel()
	err := m.Flush(ctx)
	c.mu.Lock()
	c.flushed = err == nil
	c.mu.Unlock()
	if err != nil {
		c.cfg.Slog.Debug("have the guest send its trace", "analysis", c.cfg.Analysis, "error", err)
	}
}

// noteTail notes whether the guest, which ends now, takes something with it
// that it has traced.
func (c *Context) noteTail() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tailLost = c.tailLost || c.state.Alive() && !c.flushed
}

func same(t schemas.Transition) schemas.Typed { return t }

// Poweron starts the machine and returns when its guest is ready.
func (c *Context) Poweron(ctx context.Context, timeout time.Duration, spec schemas.MachineSpec) error {
	id, err := c.takeIdentity()
	if err != nil {
		return err
	}
	var boot machine.Boot
	err = c.do(ctx, VerbPoweron, timeout,
		func(t schemas.Transition) schemas.Typed { return schemas.PrePoweron{From: t.From, Machine: spec} },
		func(schemas.Transition) schemas.Typed { return boot.PostPoweron },
		func(ctx context.Context, m machine.Machine) (err error) {
			boot, err = m.Poweron(ctx, id)
			return err
		})
	if err != nil {
		return err
	}
	return c.ready(boot)
}

// Restart boots the machine anew. Nothing in its RAM survives, and everything that
// the guest wrote is in its RAM.
func (c *Context) Restart(ctx context.Context, timeout time.Duration) error {
	id, err := c.takeIdentity()
	if err != nil {
		return err
	}
	var boot machine.Boot
	lost := func(t schemas.Transition) schemas.Typed {
		t.Memory = &schemas.MemoryState{Note: "nothing in RAM survives, the sample's files and processes among it"}
		return t
	}
	err = c.do(ctx, VerbRestart, timeout, lost, lost, func(ctx context.Context, m machine.Machine) (err error) {
		boot, err = m.Restart(ctx, id)
		return err
	})
	if err != nil {
		return err
	}
	return c.ready(boot)
}

func (c *Context) ready(boot machine.Boot) error {
	c.set(func() {
		c.boot = boot
		c.mac = boot.Ready.Identity.MAC
		c.exited, c.treeGone, c.collected = nil, false, false
	})
	return c.emit(schemas.OriginGuest, boot.Ready)
}

// Pause stops the guest's CPUs.
func (c *Context) Pause(ctx context.Context, timeout time.Duration) error {
	return c.do(ctx, VerbPause, timeout, same, same, func(ctx context.Context, m machine.Machine) error { return m.Pause(ctx) })
}

// Resume continues a paused guest.
func (c *Context) Resume(ctx context.Context, timeout time.Duration) error {
	return c.do(ctx, VerbResume, timeout, same, same, func(ctx context.Context, m machine.Machine) error { return m.Resume(ctx) })
}

// Shutdown asks the guest to power off and waits until it has.
func (c *Context) Shutdown(ctx context.Context, timeout time.Duration) error {
	return c.do(ctx, VerbShutdown, timeout, same, same, func(ctx context.Context, m machine.Machine) error { return m.Shutdown(ctx) })
}

// Poweroff takes the machine's power.
func (c *Context) Poweroff(ctx context.Context, timeout time.Duration) error {
	return c.do(ctx, VerbPoweroff, timeout, same, same, func(ctx context.Context, m machine.Machine) error { return m.Poweroff(ctx) })
}

// halt ends the machine, once, whatever it is doing, and tells nobody. It
// returns when nothing of the machine is left.
func (c *Context) halt() {
	c.mu.Lock()
	m, speaks, busy := c.machine, c.state == Running && c.frozenAt.IsZero(), c.halting
	c.halting = true
	c.mu.Unlock()
	if busy {
		<-c.halted
		return
	}
	defer close(c.halted)
	c.endMachine()
	if speaks {
		c.flush(m, flushTime)
	}
	c.noteTail()
	c.set(func() { c.haltedAt = time.Now() })
	if err := m.Close(); err != nil {
		c.cfg.Slog.Error("end the machine", "analysis", c.cfg.Analysis, "error", err)
	}
}

// stop ends the machine and only then says so: stopping never waits for the
// log.
func (c *Context) stop(reason string) {
	c.mu.Lock()
	m := c.machine
	c.mu.Unlock()
	if m == nil {
		return
	}
	c.halt()
	c.mu.Lock()
	from, at := c.state, c.haltedAt
	c.mu.Unlock()
	if !from.Alive() {
		return
	}
	c.set(func() { c.state = Off })
	t := schemas.Transition{Verb: "pre_poweroff", From: string(from), To: string(Off), Reason: reason}
	if c.Err() != nil {
		return // the log will hear of it from whoever ends the analysis
	}
	if _, err := c.publish(at, schemas.OriginHost, t); err != nil {
		return
	}
	t.Verb, t.Late = "post_poweroff", schemas.Duration(time.Since(at).Round(time.Millisecond))
	if e, err := c.publish(time.Time{}, schemas.OriginHost, t); err == nil {
		_ = c.dispatch(e) // its failures are in the log
	}
}

// DumpMemory writes an ELF core of the guest's RAM to f.
func (c *Context) DumpMemory(ctx context.Context, f *os.File) error {
	m, err := c.living()
	if err != nil {
		return err
	}
	return m.DumpMemory(ctx, f)
}

// Exec runs a command in the guest, beside the sample. It publishes pre_exec
// before that, and then what came of it.
func (c *Context) Exec(ctx context.Context, timeout time.Duration, command []string) (schemas.Exec, error) {
	m, err := c.living()
	if err != nil {
		return schemas.Exec{}, err
	}
	if err := c.emit(schemas.OriginHost, schemas.PreExec{Command: command, Timeout: schemas.Duration(timeout)}); err != nil {
		return schemas.Exec{}, err
	}
	// The guest keeps the command's time, if it does as it is told.
	ctx, cancel := context.WithTimeout(ctx, timeout+execMargin)
	defer cancel()
	begin := time.Now()
	out, err := m.Exec(ctx, machine.Exec{Command: command, Timeout: timeout})
	if err != nil {
		return out, fmt.Errorf("exec: %w", err)
	}
	late := out.Signal == "SIGKILL" && time.Since(begin) >= timeout
	if err := c.emit(schemas.OriginGuest, out); err != nil {
		return out, err
	}
	if late {
		return out, fmt.Errorf("exec: the command was not done after %s, and was killed", timeout)
	}
	return out, nil
}

// execMargin is how much longer than its timeout a command may be under way.
const execMargin = 2 * time.Second

// living returns the machine if it has a guest.
func (c *Context) living() (machine.Machine, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.machine == nil {
		return nil, errNoMachine
	}
	if !c.state.Alive() {
		return nil, fmt.Errorf("%w: the machine is %s", ErrIllegal, c.state)
	}
	return c.machine, nil
}

// takeIdentity returns the analysis' identity, the same for every start of its
// machine but for the entropy.
func (c *Context) takeIdentity() (machine.Identity, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.identity == nil {
		id, err := newIdentity()
		if err != nil {
			return machine.Identity{}, err
		}
		c.identity = &id
	}
	id := *c.identity
	id.Time = c.cfg.Clock
	id.Entropy = make([]byte, 64)
	_, err := rand.Read(id.Entropy)
	return id, err
}

// hostnames look like machines that somebody owns.
var hostnames = []string{"gateway", "server", "nas", "router", "srv", "web", "camera", "node", "media", "backup", "office", "dev"}

func newIdentity() (machine.Identity, error) {
	number := func(n int64) int64 {
		v, err := rand.Int(rand.Reader, big.NewInt(n))
		if err != nil {
			panic(err) // crypto/rand does not fail
		}
		return v.Int64()
	}
	var b [16 + 3]byte // nothing in the one number may tell of the other
	if _, err := rand.Read(b[:]); err != nil {
		return machine.Identity{}, err
	}
	// systemd's machine ids are random UUIDs: version 4, variant 1.
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	// The first three bytes are a vendor's, QEMU's own 52:54:00 among the ones
	// that nobody should see: this one is Realtek's range for network cards.
	mac := fmt.Sprintf("00:e0:4c:%02x:%02x:%02x", b[16], b[17], b[18])
	id := machine.Identity{}
	id.Hostname = fmt.Sprintf("%s-%02d", hostnames[number(int64(len(hostnames)))], number(100))
	id.MachineID = hex.EncodeToString(b[:16])
	id.MAC = mac
	id.Uptime = schemas.Duration(time.Duration(20*60+number(30*24*3600)) * time.Second)
	id.FirstPID = int(400 + number(3000))
	return id, nil
}
