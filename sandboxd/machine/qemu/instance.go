// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
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
	agent    *net.UnixConn
	client   *guest.Client

	stopping atomic.Bool // we asked for its end
	watching sync.Once

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	heard  chan struct{} // closed when there is no more of QEMU's events
	served chan struct{} // closed when the link to the agent has ended; nil before connect

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
	if err != nil {
		err = in.explain(err)
		in.close()
		return nil, err
	}
	in.connect()
	in.nudge()
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
	in := &instance{cfg: cfg, observer: o, proc: proc, agent: ours[0], dumps: make(chan dumpResult, 1), migration: make(chan string, 16), heard: make(chan struct{})}
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
	in.spawn(func() {
		defer close(in.heard)
		in.readEvents()
	})
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
	// Else QEMU says five times on its network that it has moved. It would end with the
	// guest's reset, had the guest been able to do that for it (virtio_net_reset in
	// hw/net/virtio-net.c stops the timer that this takes away): see guest_announce.
	if err := in.monitor.Execute(ctx, "migrate-set-parameters", map[string]any{"announce-rounds": 0}, nil); err != nil {
		return err
	}
	return in.monitor.Execute(ctx, "migrate-incoming", map[string]any{"uri": fmt.Sprintf("fd:%d", fdState)}, nil)
}

// connect starts to speak with the agent.
func (in *instance) connect() {
	in.client = guest.New(in.agent, in.observer)
	in.served = make(chan struct{})
	in.spawn(func() {
		defer close(in.served)
		err := in.client.Serve(in.ctx)
		if in.ctx.Err() == nil && !in.stopping.Load() && !errors.Is(err, io.EOF) {
			in.observer.Event(machine.Event{Time: time.Now(), Fault: fmt.Sprintf("the link to the guest broke: %v", err)})
		}
	})
}

// nudge keeps a guest awake whose timer QEMU loses at times. Nobody may nudge while a
// snapshot is taken: half of a message would be in it.
func (in *instance) nudge() {
	if in.cfg.CPU.Nudge == 0 {
		return
	}
	in.spawn(func() {
		t := time.NewTicker(in.cfg.CPU.Nudge)
		defer t.Stop()
		for {
			select {
			case <-t.C:
			case <-in.ctx.Done():
				return
			}
			if in.client.Nudge() != nil { // the link has ended, which others say
				return
			}
		}
	})
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
	in.spawn(func() {
		if _, err := in.client.Network(in.ctx); err != nil && in.ctx.Err() == nil && !in.stopping.Load() {
			in.observer.Event(machine.Event{Time: time.Now(), Fault: fmt.Sprintf("the guest got no address: %v", err)})
		}
	})
	return machine.Boot{Ready: schemas.GuestReady{Agent: hello.Version, Kernel: hello.Kernel, Tracer: hello.Tracer, Identity: id.Identity}}, nil
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
			in.settle()
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
	wait := 50 * time.Millisecond
	for _, broken := range []error{io.EOF, io.ErrUnexpectedEOF, qmp.ErrClosed, machine.ErrGone, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(err, broken) { // a broken socket is seen before the exit
			wait = settleTime
		}
	}
	select {
	case <-in.proc.Done():
	case <-time.After(wait):
		return err
	}
	return fmt.Errorf("%w (qemu %s)", err, in.proc.Cause())
}

// settleTime is how long what follows from QEMU's end may take.
const settleTime = 5 * time.Second

// settle returns when all has been read that QEMU, which has ended, and its guest
// had said.
func (in *instance) settle() {
	late := time.NewTimer(settleTime)
	defer late.Stop()
	for _, end := range []chan struct{}{in.heard, in.served} {
		if end == nil {
			continue
		}
		select {
		case <-end:
		case <-in.ctx.Done():
		case <-late.C:
			return
		}
	}
}

// end is a close that nobody is told of.
func (in *instance) end() {
	in.stopping.Store(true)
	in.close()
}

// close ends the process and everything connected to it.
func (in *instance) close() {
	in.proc.Kill()
	if in.monitor != nil {
		in.settle()
	}
	in.cancel()
	in.agent.Close()
	if in.monitor != nil {
		in.monitor.Close()
	}
	in.wg.Wait()
}
