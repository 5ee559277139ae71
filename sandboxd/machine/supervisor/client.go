// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/sandboxd/child"
	"github.com/petri-sandbox/petri/sandboxd/guest"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
)

// Files are what a machine is made of, open for reading; the supervisor
// inherits them. RAM and State are those of a template, or nil.
type Files struct {
	Kernel, Initramfs, RAM, State *os.File
}

// Machine is a machine in a supervisor of its own. It implements
// [machine.Machine].
type Machine struct {
	proc     *child.Process
	conn     *wire.Conn
	files    *net.UnixConn
	observer machine.Observer

	isolation schemas.Isolation

	call sync.Mutex // held by requests that send a descriptor first

	streams sync.WaitGroup // sources whose end has not come
	served  chan error     // the link's end
	ending  atomic.Bool    // by us
	closing sync.Once
	closed  error
}

var (
	_ machine.Machine       = (*Machine)(nil)
	_ machine.Screenshotter = (*Machine)(nil)
)

// Start starts a supervisor for a machine. What the machine reports goes to o
// until [Machine.Close] has returned.
func Start(ctx context.Context, spec Spec, files Files, o machine.Observer, p Privileges) (*Machine, error) {
	m, err := launch(files, o, p, spec.Mark)
	if err != nil {
		return nil, err
	}
	if _, err := call[Spec, none](ctx, m, reqStart, spec); err != nil {
		m.kill()
		return nil, fmt.Errorf("start the supervisor: %w", err)
	}
	return m, nil
}

// Snapshot has a supervisor boot a guest and write a template into files.RAM
// and files.State, which must be open for writing. It returns what the guest
// said of itself.
func Snapshot(ctx context.Context, spec Spec, files Files, o machine.Observer, p Privileges) (guest.Hello, error) {
	m, err := launch(files, o, p, spec.Mark)
	if err != nil {
		return guest.Hello{}, err
	}
	defer m.kill()
	return call[Spec, guest.Hello](ctx, m, reqSnapshot, spec)
}

func launch(files Files, o machine.Observer, p Privileges, mark string) (*Machine, error) {
	link, theirLink, err := child.SocketPair()
	if err != nil {
		return nil, fmt.Errorf("make a supervisor's sockets: %w", err)
	}
	passing, theirPassing, err := child.SocketPair()
	if err != nil {
		link.Close()
		theirLink.Close()
		return nil, fmt.Errorf("make a supervisor's sockets: %w", err)
	}
	inherit := []*os.File{theirLink, theirPassing, files.Kernel, files.Initramfs}
	if files.RAM != nil {
		inherit = append(inherit, files.RAM, files.State)
	}
	proc, isolation, err := startProcess(p, mark, inherit)
	theirLink.Close()
	theirPassing.Close()
	if err != nil {
		link.Close()
		passing.Close()
		return nil, err
	}
	m := &Machine{proc: proc, files: passing, observer: o, isolation: isolation, served: make(chan error, 1)}
	if err := m.attach(link); err != nil {
		proc.Kill()
		link.Close()
		passing.Close()
		return nil, err
	}
	go func() {
		err := m.conn.Run(context.Background())
		m.lost()
		m.served <- err
	}()
	return m, nil
}

// attach takes what comes over the link, once it runs.
func (m *Machine) attach(link io.ReadWriteCloser) error {
	m.conn = wire.NewConn(link, wire.Handler{Event: m.event})
	for src, id := range streamOf {
		if err := m.conn.Receive(id, &sink{m: m, src: src}); err != nil {
			return err
		}
		m.streams.Add(1)
	}
	return nil
}

// lost reports that the machine went with its supervisor, unless we ended it.
func (m *Machine) lost() {
	if m.ending.Load() {
		return
	}
	select {
	case <-m.proc.Done():
	case <-time.After(exitTime): // it lives, but does not speak any more
		m.proc.Kill()
	}
	m.observer.Event(machine.Event{Time: time.Now(), Off: &schemas.MachineOff{State: "crashed", Reason: "the machine's supervisor " + m.proc.Cause()}})
}

func (m *Machine) event(name string, data json.RawMessage) {
	if name != eventFact {
		return
	}
	var e machine.Event
	if err := json.Unmarshal(data, &e); err == nil {
		m.observer.Event(e)
	}
}

// sink takes one source's bytes.
type sink struct {
	m    *Machine
	src  schemas.Source
	came bool // bytes
}

func (s *sink) Write(p []byte) {
	s.came = true
	s.m.observer.Data(s.src, p)
}

func (s *sink) End(st wire.Status) {
	defer s.m.streams.Done()
	var told ends
	switch {
	case st.Error != "":
		told = ends{noEnd("the machine's supervisor did not tell its end: " + st.Error)}
	case len(st.Detail) > 0 && json.Unmarshal(st.Detail, &told) != nil:
		told = ends{noEnd("the machine's supervisor told its end in a way that cannot be read")}
	case len(told) == 0 && s.came:
		told = ends{noEnd("the machine's supervisor did not tell its end")}
	}
	for _, c := range told {
		c.Source = s.src
		s.m.observer.End(s.src, c)
	}
}

// call makes a request. The supervisor keeps the time that ctx has left too.
func call[P, R any](ctx context.Context, m *Machine, name string, value P) (R, error) {
	p := params[P]{Value: value}
	if d, ok := ctx.Deadline(); ok {
		p.Timeout = time.Until(d)
	}
	var out result[R]
	// The answer may take a moment longer than the deed.
	wait, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			time.AfterFunc(answerTime, cancel)
			return
		}
		cancel() // the supervisor does not know, and does not answer sooner
	})
	defer stop()
	err := m.conn.Call(wait, name, p, &out)
	var refusal *wire.Error
	if err != nil && ctx.Err() == nil && !errors.As(err, &refusal) {
		// The link has ended; the process that held it is about to.
		select {
		case <-m.proc.Done():
		case <-time.After(exitTime):
		}
	}
	if err == nil && out.Error != "" {
		err = &remoteError{text: out.Error, gone: out.Gone}
		if out.NotExecuted != nil {
			err = out.NotExecuted
		}
	}
	if err != nil && ctx.Err() != nil {
		err = errors.Join(ctx.Err(), err)
	}
	if err != nil && m.proc.Ended() {
		err = fmt.Errorf("%w: its supervisor %s", machine.ErrGone, m.proc.Cause())
	}
	return out.Value, err
}

// answerTime is how much longer than its deadline a request may be under way.
const answerTime = 2 * time.Second

// exitTime is how long a supervisor whose link has ended may take to be gone.
const exitTime = 10 * time.Second

// remoteError is an error of the supervisor's machine.
type remoteError struct {
	text string
	gone bool
}

func (e *remoteError) Error() string { return e.text }

func (e *remoteError) Is(target error) bool { return e.gone && target == machine.ErrGone }

// Standby starts the machine as far as it goes without an identity, and holds
// it there until [Machine.Poweron]. It comes before the first of those.
func (m *Machine) Standby(ctx context.Context) error { return m.simple(ctx, reqStandby) }

// Poweron implements [machine.Machine].
func (m *Machine) Poweron(ctx context.Context, id machine.Identity) (machine.Boot, error) {
	boot, err := call[machine.Identity, machine.Boot](ctx, m, reqPoweron, id)
	if err == nil {
		boot.Isolation = &m.isolation // a supervisor is not asked about itself
	}
	return boot, err
}

// Isolation says what keeps the machine from the host.
func (m *Machine) Isolation() schemas.Isolation { return m.isolation }

// Pause implements [machine.Machine].
func (m *Machine) Pause(ctx context.Context) error { return m.simple(ctx, reqPause) }

// Resume implements [machine.Machine].
func (m *Machine) Resume(ctx context.Context) error { return m.simple(ctx, reqResume) }

// Restart implements [machine.Machine].
func (m *Machine) Restart(ctx context.Context, id machine.Identity) (machine.Boot, error) {
	return call[machine.Identity, machine.Boot](ctx, m, reqRestart, id)
}

// Shutdown implements [machine.Machine].
func (m *Machine) Shutdown(ctx context.Context) error { return m.simple(ctx, reqShutdown) }

// Poweroff implements [machine.Machine].
func (m *Machine) Poweroff(ctx context.Context) error { return m.simple(ctx, reqPoweroff) }

// Flush implements [machine.Machine].
func (m *Machine) Flush(ctx context.Context) error { return m.simple(ctx, reqFlush) }

func (m *Machine) simple(ctx context.Context, name string) error {
	_, err := call[none, none](ctx, m, name, none{})
	return err
}

// Run implements [machine.Machine].
func (m *Machine) Run(ctx context.Context, r machine.Run, sample *os.File) (machine.Started, error) {
	m.call.Lock()
	defer m.call.Unlock()
	if err := m.sendFile(sample); err != nil {
		return machine.Started{}, err
	}
	return call[machine.Run, machine.Started](ctx, m, reqRun, r)
}

// Exec implements [machine.Machine].
func (m *Machine) Exec(ctx context.Context, e machine.Exec) (schemas.Exec, error) {
	return call[machine.Exec, schemas.Exec](ctx, m, reqExec, e)
}

// Collect implements [machine.Machine].
func (m *Machine) Collect(ctx context.Context, q machine.Collect) (machine.Collected, error) {
	files := guest.NewFilesSink(m.observer, q)
	if err := m.conn.Receive(streamFiles, files); err != nil {
		return machine.Collected{}, err
	}
	sum, err := call[machine.Collect, machine.Collected](ctx, m, reqCollect, q)
	if werr := files.Wait(ctx); err == nil {
		err = werr
	}
	return sum, err
}

// DumpMemory implements [machine.Machine].
func (m *Machine) DumpMemory(ctx context.Context, f *os.File) error {
	m.call.Lock()
	defer m.call.Unlock()
	if err := m.sendFile(f); err != nil {
		return err
	}
	return m.simple(ctx, reqDump)
}

// Screenshot implements [machine.Screenshotter].
func (m *Machine) Screenshot(ctx context.Context, f *os.File) error {
	m.call.Lock()
	defer m.call.Unlock()
	if err := m.sendFile(f); err != nil {
		return err
	}
	return m.simple(ctx, reqScreen)
}

func (m *Machine) sendFile(f *os.File) error {
	_ = m.files.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if _, _, err := m.files.WriteMsgUnix([]byte{0}, unix.UnixRights(int(f.Fd())), nil); err != nil {
		return fmt.Errorf("pass a descriptor to the supervisor: %w", err)
	}
	return nil
}

// closeTime is how long a supervisor may take to end its machine and to send
// what is left.
const closeTime = 10 * time.Second

// Close implements [machine.Machine].
func (m *Machine) Close() error {
	m.closing.Do(func() {
		m.ending.Store(true)
		ctx, cancel := context.WithTimeout(context.Background(), closeTime)
		defer cancel()
		err := m.simple(ctx, reqClose)
		if errors.Is(err, machine.ErrGone) {
			err = nil
		}
		if err == nil {
			m.awaitStreams(ctx)
		}
		m.kill()
		m.closed = err
	})
	return m.closed
}

// awaitStreams returns when every source has ended, or ctx is done.
func (m *Machine) awaitStreams(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		m.streams.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// kill ends the process and waits until nothing of it is left.
func (m *Machine) kill() {
	m.ending.Store(true)
	m.proc.Kill()
	m.conn.Close()
	m.files.Close()
	<-m.served
}
