// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/child"
	"github.com/petri-sandbox/petri/sandboxd/guest"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/qmp"
	"github.com/petri-sandbox/petri/schemas"
)

// Hello is what a guest's agent says of itself.
type Hello = guest.Hello

// instance is one QEMU process and everything that is connected to it.
type instance struct {
	cfg      *Config
	observer machine.Observer
	proc     *child.Process
	monitor  *qmp.Monitor
	agent    *net.UnixConn // kept over resets; a session uses a duplicate
	client   *guest.Client

	stopping atomic.Bool // we asked for its end
	watching sync.Once

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	sessionCtx  context.Context    // of the link of the current client
	session     context.CancelFunc // ends it
	sessionDone chan struct{}

	dumps     chan dumpResult
	migration chan string // statuses, while a snapshot is made
	shutdown  atomic.Pointer[schemas.MachineOff]
}

// start starts QEMU and connects to it. A template is restored and running
// when start returns; a booting guest has not said anything yet.
func (m *Machine) start(ctx context.Context, ram ramMode) (*instance, error) {
	var ramFile, state *os.File
	if ram == ramPrivate {
		var err error
		ramFile = m.cfg.Template.RAM
		if state, err = m.cfg.Template.State(); err != nil {
			return nil, fmt.Errorf("open the template's state: %w", err)
		}
		defer state.Close()
	}
	in, err := launch(ctx, &m.cfg, m.observer, ram, ramFile, state)
	if err != nil {
		return nil, err
	}
	if ram == ramPrivate {
		err = in.restore(ctx)
	}
	if err == nil {
		err = in.connect(ram != ramPrivate)
	}
	if err != nil {
		err = in.explain(err)
		in.close()
		return nil, err
	}
	return in, nil
}

// launch starts QEMU with its sockets and negotiates QMP.
func launch(ctx context.Context, cfg *Config, o machine.Observer, ram ramMode, ramFile, state *os.File) (*instance, error) {
	var ours [4]*net.UnixConn // agent, monitor, network, serial
	var theirs [4]*os.File
	closeAll := func() {
		for i := range ours {
			if ours[i] != nil {
				ours[i].Close()
			}
			if theirs[i] != nil {
				theirs[i].Close()
			}
		}
	}
	for i := range ours {
		var err error
		if ours[i], theirs[i], err = child.SocketPair(); err != nil {
			closeAll()
			return nil, fmt.Errorf("make a socket for QEMU: %w", err)
		}
	}
	cmd := exec.Command(cfg.Binary, cfg.command(ram)...)
	cmd.ExtraFiles = cfg.files(ram, theirs, ramFile, state)
	proc, err := child.Start(cmd)
	for i := range theirs {
		theirs[i].Close()
		theirs[i] = nil
	}
	if err != nil {
		closeAll()
		return nil, fmt.Errorf("start %s: %w", cfg.Binary, err)
	}
	in := &instance{cfg: cfg, observer: o, proc: proc, agent: ours[0], dumps: make(chan dumpResult, 1), migration: make(chan string, 16)}
	in.ctx, in.cancel = context.WithCancel(context.Background())
	// A QEMU that dies at once closes its sockets; that ends the negotiation.
	in.monitor, err = qmp.New(ctx, ours[1])
	if err != nil {
		err = in.explain(err)
		ours[2].Close()
		ours[3].Close()
		in.close()
		return nil, err
	}
	in.spawn(func() { in.serveNetwork(ours[2]) })
	in.spawn(func() { in.readSerial(ours[3]) })
	in.spawn(in.readEvents)
	return in, nil
}

func (in *instance) spawn(f func()) {
	in.wg.Add(1)
	go func() {
		defer in.wg.Done()
		f()
	}()
}

// restore loads the template's state; the RAM is mapped already, so that
// x-ignore-shared leaves it out. The guest goes on by itself.
func (in *instance) restore(ctx context.Context) error {
	caps := map[string]any{"capabilities": []any{map[string]any{"capability": "x-ignore-shared", "state": true}}}
	if err := in.monitor.Execute(ctx, "migrate-set-capabilities", caps, nil); err != nil {
		return err
	}
	return in.monitor.Execute(ctx, "migrate-incoming", map[string]any{"uri": fmt.Sprintf("fd:%d", fdState)}, nil)
}

// connect starts a session with the agent. A guest that boots is found by its
// preamble.
func (in *instance) connect(booting bool) error {
	f, err := in.agent.File()
	if err != nil {
		return err
	}
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return err
	}
	var rw io.ReadWriteCloser = conn
	if booting {
		rw = &syncedConn{Conn: conn}
	}
	in.client = guest.New(rw, in.observer)
	ctx, cancel := context.WithCancel(in.ctx)
	in.sessionCtx, in.session, in.sessionDone = ctx, cancel, make(chan struct{})
	client, done := in.client, in.sessionDone
	in.spawn(func() {
		defer close(done)
		err := client.Serve(ctx)
		if ctx.Err() == nil && !in.stopping.Load() && !errors.Is(err, io.EOF) {
			in.observer.Event(machine.Event{Time: time.Now(), Fault: fmt.Sprintf("the link to the guest broke: %v", err)})
		}
	})
	return nil
}

// syncedConn skips what a guest had half sent before it was reset.
type syncedConn struct {
	net.Conn
	r *bufio.Reader
}

// maxSkip bounds what may lie before a preamble.
const maxSkip = 16 << 20

func (s *syncedConn) Read(p []byte) (int, error) {
	if s.r == nil {
		r := bufio.NewReaderSize(s.Conn, 64<<10)
		matched := 0
		for skipped := 0; matched < len(guest.Preamble); skipped++ {
			b, err := r.ReadByte()
			if err != nil {
				return 0, err
			}
			if skipped > maxSkip {
				return 0, fmt.Errorf("no beginning in the first %d bytes of the guest's link", maxSkip)
			}
			switch {
			case b == guest.Preamble[matched]:
				matched++
			case b == 0xff && matched == 4: // one 0xff more than the preamble has
			case b == 0xff:
				matched = 1
			default:
				matched = 0
			}
		}
		s.r = r
	}
	return s.r.Read(p)
}

// hello waits for a booted guest's first words.
func (in *instance) hello(ctx context.Context) (Hello, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(in.ctx, cancel)
	defer stop()
	go func() {
		select {
		case <-in.proc.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	return in.client.Hello(ctx)
}

// assign gives the guest its identity and starts its network.
func (in *instance) assign(ctx context.Context, id machine.Identity, hello Hello) (machine.Boot, error) {
	if id.Time.IsZero() {
		id.Time = time.Now()
	}
	if err := in.client.Assign(ctx, id, !in.cfg.Untraced && hello.Tracer.Backend != "none"); err != nil {
		return machine.Boot{}, fmt.Errorf("assign the guest: %w", err)
	}
	client, session := in.client, in.sessionCtx
	in.spawn(func() {
		if _, err := client.Network(session); err != nil && session.Err() == nil && !in.stopping.Load() {
			in.observer.Event(machine.Event{Time: time.Now(), Fault: fmt.Sprintf("the guest got no address: %v", err)})
		}
	})
	return machine.Boot{Ready: schemas.GuestReady{Agent: hello.Version, Kernel: hello.Kernel, Tracer: hello.Tracer, Identity: id.Identity}}, nil
}

// reset restarts the guest inside of the same QEMU and waits for its agent.
// Until then a reset by the guest is allowed: SeaBIOS answers ours by one of
// its own (resume.c, handle_resume).
func (in *instance) reset(ctx context.Context) (Hello, error) {
	if err := in.monitor.Execute(ctx, "set-action", map[string]any{"reboot": "reset"}, nil); err != nil {
		return Hello{}, err
	}
	in.session()
	<-in.sessionDone
	if err := in.monitor.Execute(ctx, "system_reset", nil, nil); err != nil {
		return Hello{}, err
	}
	if err := in.connect(true); err != nil {
		return Hello{}, err
	}
	hello, err := in.hello(ctx)
	if err != nil {
		return Hello{}, err
	}
	return hello, in.monitor.Execute(ctx, "set-action", map[string]any{"reboot": "shutdown"}, nil)
}

// watch reports the machine's end, unless we asked for it.
func (in *instance) watch() {
	in.watching.Do(func() {
		in.spawn(func() {
			select {
			case <-in.proc.Done():
			case <-in.ctx.Done():
				return
			}
			if in.stopping.Load() {
				return
			}
			off := in.shutdown.Load()
			if off == nil {
				off = &schemas.MachineOff{State: "crashed", Reason: "qemu " + in.proc.Cause()}
			}
			in.observer.Event(machine.Event{Time: time.Now(), Off: off})
		})
	})
}

func (in *instance) serveNetwork(conn *net.UnixConn) {
	defer conn.Close()
	stop := context.AfterFunc(in.ctx, func() { conn.Close() })
	defer stop()
	if in.cfg.Network == nil {
		_, _ = io.Copy(io.Discard, conn)
		return
	}
	if err := in.cfg.Network(in.ctx, conn); err != nil && in.ctx.Err() == nil && !in.stopping.Load() {
		in.observer.Event(machine.Event{Time: time.Now(), Fault: fmt.Sprintf("network: %v", err)})
	}
}

// readSerial reads until QEMU, which holds the other end alone, has gone.
func (in *instance) readSerial(conn *net.UnixConn) {
	defer conn.Close()
	c := schemas.SourceCoverage{Source: schemas.SourceSerial, Status: schemas.StatusWhole}
	for {
		b := make([]byte, 4<<10)
		n, err := conn.Read(b)
		if n > 0 {
			c.Bytes += int64(n)
			in.observer.Data(schemas.SourceSerial, b[:n])
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				c.Status, c.Reason = schemas.StatusPartial, err.Error()
			}
			in.observer.End(schemas.SourceSerial, c)
			return
		}
	}
}

// explain adds to an error that QEMU has ended, if it has, and why.
func (in *instance) explain(err error) error {
	if err == nil {
		return nil
	}
	select {
	case <-in.proc.Done():
	case <-time.After(50 * time.Millisecond): // a broken socket is seen before the exit
		return err
	}
	return fmt.Errorf("%w (qemu %s)", err, in.proc.Cause())
}

// close ends the process and everything connected to it.
func (in *instance) close() {
	in.proc.Kill()
	in.cancel()
	in.agent.Close()
	if in.monitor != nil {
		in.monitor.Close()
	}
	in.wg.Wait()
}
