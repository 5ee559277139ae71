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

	power sync.Mutex // held while it starts or ends

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

// poweron starts an instance. m.power is held.
func (m *Machine) poweron(ctx context.Context, id machine.Identity) (machine.Boot, error) {
	if in := m.take(); in != nil {
		in.close()
	}
	begin := time.Now()
	fallback := m.cfg.Fallback
	if m.cfg.Template != nil {
		in, err := m.start(ctx, ramPrivate)
		if err == nil {
			var boot machine.Boot
			if boot, err = in.assign(ctx, id, m.cfg.Template.Hello); err == nil {
				return m.started(in, boot, "warm", "", begin), nil
			}
			err = in.explain(err)
			in.close()
		}
		if ctx.Err() != nil {
			return machine.Boot{}, err
		}
		fallback = "warm start: " + err.Error()
	}
	in, err := m.start(ctx, ramAnonymous)
	if err != nil {
		return machine.Boot{}, err
	}
	hello, err := in.hello(ctx)
	var boot machine.Boot
	if err == nil {
		boot, err = in.assign(ctx, id, hello)
	}
	if err != nil {
		err = in.explain(err)
		in.close()
		return machine.Boot{}, err
	}
	return m.started(in, boot, "cold", fallback, begin), nil
}

func (m *Machine) started(in *instance, boot machine.Boot, start, fallback string, begin time.Time) machine.Boot {
	m.mu.Lock()
	m.run = in
	m.mu.Unlock()
	in.watch()
	boot.Machine = schemas.MachineSpec{
		Arch: m.cfg.CPU.Name, Backend: "qemu", Start: start, Accel: m.cfg.Accel, CPUs: 1, Memory: m.cfg.Memory,
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

// restart resets the running instance. m.power is held.
func (m *Machine) restart(ctx context.Context, id machine.Identity) (machine.Boot, error) {
	in, err := m.instance()
	if err != nil {
		return machine.Boot{}, err
	}
	begin := time.Now()
	hello, err := in.reset(ctx)
	if err != nil {
		return machine.Boot{}, in.explain(err)
	}
	boot, err := in.assign(ctx, id, hello)
	if err != nil {
		return machine.Boot{}, in.explain(err)
	}
	return m.started(in, boot, "cold", "", begin), nil
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
	if in := m.take(); in != nil {
		in.stopping.Store(true)
		in.close()
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
