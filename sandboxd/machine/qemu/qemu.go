// SPDX-License-Identifier: Apache-2.0

// Package qemu drives one virtual machine in QEMU.
//
// A [Machine] is made to live in a process of its own (package supervisor),
// unprivileged and cut off: QEMU inherits every file and socket that it uses,
// and none of its devices leads anywhere but to this package.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/catalogue"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// Config is what a machine is made of. The files stay the caller's; each
// start of the machine uses its own descriptor of State.
type Config struct {
	CPU     catalogue.CPU
	Binary  string // QEMU's program
	Version string // of QEMU, for the record
	Accel   string // tcg or kvm
	Memory  int64  // bytes, a multiple of 1 MiB
	Image   string // key of the guest's image, for the record
	Mark    string // a word that tells our QEMU from all others in a list of processes

	Kernel    *os.File
	Initramfs *os.File

	// Template restores a snapshot; nil boots.
	Template *Template
	// Fallback is why there is no Template although one was wanted.
	Fallback string

	// Network serves the guest's Ethernet until ctx is done: frames with a
	// 4-byte big-endian length, as QEMU's stream netdev sends them. nil reads
	// and forgets them.
	Network func(ctx context.Context, conn net.Conn) error

	// Untraced leaves the trace stream closed.
	Untraced bool

	// Append is put behind the kernel's command line.
	Append string
}

// A Template is a snapshot on disk: what QEMU needs to restore it.
type Template struct {
	Digest schemas.Digest // of its artifact
	RAM    *os.File       // mapped privately by every machine
	// State returns a new descriptor of the device state: restoring moves its
	// offset.
	State func() (*os.File, error)
	Hello Hello // what the guest had said when the snapshot was taken
}

// Machine implements [machine.Machine].
type Machine struct {
	cfg      Config
	observer machine.Observer

	power   sync.Mutex // held while it starts or ends
	standby *ready     // waits for an identity, or nil; guarded by power

	mu     sync.Mutex
	run    *instance // the running one, or nil
	abort  func()    // ends the start under way, or nil
	closed bool
}

var (
	_ machine.Machine       = (*Machine)(nil)
	_ machine.Screenshotter = (*Machine)(nil)
)

// New returns a machine that has not been started.
func New(cfg Config, o machine.Observer) *Machine {
	return &Machine{cfg: cfg, observer: o}
}

// Poweron implements [machine.Machine].
func (m *Machine) Poweron(ctx context.Context, id machine.Identity) (machine.Boot, error) {
	return m.starting(ctx, func(ctx context.Context) (machine.Boot, error) { return m.poweron(ctx, id) })
}

// errAborted is the end of a start that was not waited for.
var errAborted = fmt.Errorf("%w: it was powered off while it started", machine.ErrGone)

// starting runs f, which [Machine.Poweroff] and [Machine.Close] cancel.
func (m *Machine) starting(ctx context.Context, f func(context.Context) (machine.Boot, error)) (machine.Boot, error) {
	m.power.Lock()
	defer m.power.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return machine.Boot{}, machine.ErrGone
	}
	m.abort = func() { cancel(errAborted) }
	m.mu.Unlock()
	boot, err := f(ctx)
	m.mu.Lock()
	m.abort = nil
	m.mu.Unlock()
	if err != nil && errors.Is(context.Cause(ctx), errAborted) {
		return machine.Boot{}, errAborted
	}
	return boot, err
}

// take takes the running instance away, if there is one.
func (m *Machine) take() *instance {
	m.mu.Lock()
	defer m.mu.Unlock()
	in := m.run
	m.run = nil
	return in
}

// ready is an instance whose agent waits for an identity.
type ready struct {
	in              *instance
	hello           Hello
	start, fallback string
}

// warm restores the template.
func (m *Machine) warm(ctx context.Context) (*ready, error) {
	in, err := m.start(ctx, ramPrivate)
	if err != nil {
		return nil, err
	}
	return &ready{in: in, hello: m.cfg.Template.Hello, start: "warm"}, nil
}

// cold boots.
func (m *Machine) cold(ctx context.Context, fallback string) (*ready, error) {
	in, err := m.start(ctx, ramAnonymous)
	if err != nil {
		return nil, err
	}
	hello, err := in.hello(ctx)
	if err != nil {
		err = in.explain(err)
		in.close()
		return nil, err
	}
	return &ready{in: in, hello: hello, start: "cold", fallback: fallback}, nil
}

// Standby starts the machine as far as it goes without an identity, and holds
// it there: the guest stands still until [Machine.Poweron], which is then the
// sooner done. That the machine ends meanwhile is reported as an event. A
// machine can be held once, before its first start.
func (m *Machine) Standby(ctx context.Context) error {
	_, err := m.starting(ctx, func(ctx context.Context) (machine.Boot, error) {
		r, err := m.hold(ctx)
		if err == nil {
			m.standby = r
			r.in.watch()
		}
		return machine.Boot{}, err
	})
	return err
}

// hold starts an instance, sees that its agent answers, and stops it.
func (m *Machine) hold(ctx context.Context) (*ready, error) {
	var r *ready
	var err error
	if m.cfg.Template != nil {
		r, err = m.warm(ctx)
	} else {
		r, err = m.cold(ctx, m.cfg.Fallback)
	}
	if err != nil {
		return nil, err
	}
	if err = r.in.client.Ping(ctx); err == nil {
		err = r.in.monitor.Execute(ctx, "stop", nil, nil)
	}
	if err != nil {
		err = r.in.explain(err)
		r.in.close()
		return nil, err
	}
	return r, nil
}

// poweron starts an instance. m.power is held.
func (m *Machine) poweron(ctx context.Context, id machine.Identity) (machine.Boot, error) {
	if in := m.take(); in != nil {
		in.close()
	}
	begin := time.Now()
	if r := m.standby; r != nil {
		m.standby = nil
		err := r.in.monitor.Execute(ctx, "cont", nil, nil)
		if err == nil {
			var boot machine.Boot
			if boot, err = m.assign(ctx, r, id, begin); err == nil {
				boot.Pooled = true
				return boot, nil
			}
		} else {
			r.in.end()
		}
		if ctx.Err() != nil {
			return machine.Boot{}, err
		}
		// What has waited is no good any more; another is.
	}
	fallback := m.cfg.Fallback
	if m.cfg.Template != nil {
		r, err := m.warm(ctx)
		if err == nil {
			var boot machine.Boot
			if boot, err = m.assign(ctx, r, id, begin); err == nil {
				return boot, nil
			}
		}
		if ctx.Err() != nil {
			return machine.Boot{}, err
		}
		fallback = "warm start: " + err.Error()
	}
	r, err := m.cold(ctx, fallback)
	if err != nil {
		return machine.Boot{}, err
	}
	return m.assign(ctx, r, id, begin)
}

// assign gives an instance its identity, or ends it.
func (m *Machine) assign(ctx context.Context, r *ready, id machine.Identity, begin time.Time) (machine.Boot, error) {
	boot, err := r.in.assign(ctx, id, r.hello)
	if err != nil {
		err = r.in.explain(err)
		r.in.end()
		return machine.Boot{}, err
	}
	return m.started(r.in, boot, r.start, r.fallback, begin), nil
}

func (m *Machine) started(in *instance, boot machine.Boot, start, fallback string, begin time.Time) machine.Boot {
	m.mu.Lock()
	m.run = in
	m.mu.Unlock()
	in.watch()
	boot.Machine = schemas.MachineSpec{
		Arch: m.cfg.CPU.Name, With: m.cfg.CPU.With.Name, Backend: "qemu", Start: start, Accel: m.cfg.Accel, CPUs: 1, Memory: m.cfg.Memory,
	}
	boot.Version, boot.Kernel, boot.Image, boot.Fallback = m.cfg.Version, boot.Ready.Kernel, m.cfg.Image, fallback
	if start == "warm" {
		d := m.cfg.Template.Digest
		boot.Template = &d
	}
	boot.Took = schemas.Duration(time.Since(begin).Round(time.Millisecond))
	return boot
}

// instance returns the running one.
func (m *Machine) instance() (*instance, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.run == nil {
		return nil, machine.ErrGone
	}
	select {
	case <-m.run.proc.Done():
		return nil, fmt.Errorf("%w: %s", machine.ErrGone, m.run.proc.Cause())
	default:
		return m.run, nil
	}
}

// Pause implements [machine.Machine].
func (m *Machine) Pause(ctx context.Context) error { return m.command(ctx, "stop") }

// Resume implements [machine.Machine].
func (m *Machine) Resume(ctx context.Context) error { return m.command(ctx, "cont") }

func (m *Machine) command(ctx context.Context, name string) error {
	in, err := m.instance()
	if err != nil {
		return err
	}
	return in.explain(in.monitor.Execute(ctx, name, nil, nil))
}

// Restart implements [machine.Machine]. Everything in the guest's RAM, the
// sample's files among it, is gone afterwards.
func (m *Machine) Restart(ctx context.Context, id machine.Identity) (machine.Boot, error) {
	return m.starting(ctx, func(ctx context.Context) (machine.Boot, error) { return m.restart(ctx, id) })
}

// restart boots an instance in place of the running one, whose QEMU may have been
// given no kernel. m.power is held.
func (m *Machine) restart(ctx context.Context, id machine.Identity) (machine.Boot, error) {
	if _, err := m.instance(); err != nil {
		return machine.Boot{}, err
	}
	begin := time.Now()
	m.take().end()
	r, err := m.cold(ctx, "")
	if err != nil {
		return machine.Boot{}, err
	}
	return m.assign(ctx, r, id, begin)
}

// Shutdown implements [machine.Machine].
func (m *Machine) Shutdown(ctx context.Context) error {
	in, err := m.instance()
	if errors.Is(err, machine.ErrGone) {
		return nil
	}
	in.stopping.Store(true)
	if err := in.client.Poweroff(ctx); err != nil && ctx.Err() != nil {
		in.stopping.Store(false)
		return fmt.Errorf("ask the guest to power off: %w", err)
	}
	select {
	case <-in.proc.Done():
		if in.proc.Failed() { // the guest is off all the same
			in.observer.Event(machine.Event{Time: time.Now(), Fault: "while the guest powered off qemu " + in.proc.Cause()})
		}
		in.close()
		return nil
	case <-ctx.Done():
		in.stopping.Store(false)
		return fmt.Errorf("wait for the guest to power off: %w", ctx.Err())
	}
}

// Poweroff implements [machine.Machine]. A start that is under way fails.
func (m *Machine) Poweroff(context.Context) error {
	m.end(false)
	return nil
}

// end ends the machine, for good if it is closed.
func (m *Machine) end(closed bool) {
	m.mu.Lock()
	m.closed = m.closed || closed
	if m.abort != nil {
		m.abort()
	}
	m.mu.Unlock()
	m.power.Lock() // what was starting has given up
	defer m.power.Unlock()
	if r := m.standby; r != nil {
		m.standby = nil
		r.in.end()
	}
	if in := m.take(); in != nil {
		in.end()
	}
}

// Run implements [machine.Machine].
func (m *Machine) Run(ctx context.Context, r machine.Run, sample *os.File) (machine.Started, error) {
	in, err := m.instance()
	if err != nil {
		return machine.Started{}, err
	}
	s, err := in.client.Run(ctx, r, sample)
	return s, in.explain(err)
}

// Exec implements [machine.Machine].
func (m *Machine) Exec(ctx context.Context, e machine.Exec) (schemas.Exec, error) {
	in, err := m.instance()
	if err != nil {
		return schemas.Exec{}, err
	}
	out, err := in.client.Exec(ctx, e)
	return out, in.explain(err)
}

// Collect implements [machine.Machine].
func (m *Machine) Collect(ctx context.Context, c machine.Collect) (machine.Collected, error) {
	in, err := m.instance()
	if err != nil {
		return machine.Collected{}, err
	}
	out, err := in.client.Collect(ctx, c)
	return out, in.explain(err)
}

// Flush implements [machine.Machine].
func (m *Machine) Flush(ctx context.Context) error {
	in, err := m.instance()
	if err != nil {
		return err
	}
	return in.explain(in.client.Flush(ctx))
}

// Close implements [machine.Machine].
func (m *Machine) Close() error {
	m.end(true)
	return nil
}
