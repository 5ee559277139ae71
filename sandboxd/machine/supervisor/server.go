// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/sandboxd/capture"
	"github.com/petri-sandbox/petri/sandboxd/catalogue"
	"github.com/petri-sandbox/petri/sandboxd/child"
	"github.com/petri-sandbox/petri/sandboxd/guest"
	"github.com/petri-sandbox/petri/sandboxd/internet"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/qemu"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
)

// Main is the life of a supervisor process: it returns when its parent closes
// the link or dies. The caller's program must do nothing else.
func Main() error {
	debug.SetMemoryLimit(goMemory)
	if err := noNewPrivileges(); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	link, err := inherited(fdLink)
	if err != nil {
		return err
	}
	files, err := inherited(fdFiles)
	if err != nil {
		return err
	}
	s := &server{files: files}
	s.conn = wire.NewConn(link, wire.Handler{Request: s.request})
	err = s.conn.Run(context.Background())
	s.close()
	return err
}

// noNewPrivileges takes new privileges from all threads: QEMU is forked of any.
// A program with cgo may set no thread but the one it runs on, and starts itself
// again from there: what a program is started with, all its threads have.
func noNewPrivileges() error {
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0)
	if errno == 0 {
		return nil
	}
	if errno != unix.ENOTSUP {
		return errno
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	have, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil || have == 1 {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

// Memory of a supervisor, in bytes.
const (
	goMemory   = 192 << 20
	dataMargin = 512 << 20 // of supervisor and QEMU each, beside the guest's RAM
)

func inherited(fd int) (*net.UnixConn, error) {
	c, err := child.Conn(fd)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is no socket: %w (this command is for sandboxd only)", fd, err)
	}
	return c, nil
}

// server is the supervisor's side of the link.
type server struct {
	conn  *wire.Conn
	files *net.UnixConn

	mu      sync.Mutex
	spec    Spec
	cpu     catalogue.CPU
	machine *qemu.Machine // nil until start
	out     *observer

	closing sync.Once
}

// current is the machine, and what it reports to.
func (s *server) current() (*qemu.Machine, *observer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.machine, s.out
}

// request carries out one request. A machine's own errors are results, so that
// the client can tell them from a broken link.
func (s *server) request(ctx context.Context, name string, raw json.RawMessage) (any, error) {
	switch name {
	case reqStart:
		return handle(ctx, raw, s.start)
	case reqSnapshot:
		return handle(ctx, raw, s.snapshot)
	case reqClose:
		return handle(ctx, raw, nothing(func(context.Context) error {
			s.close()
			return nil
		}))
	}
	m, out := s.current()
	if m == nil {
		return nil, fmt.Errorf("request %q before %q", name, reqStart)
	}
	switch name {
	case reqStandby:
		return handle(ctx, raw, nothing(m.Standby))
	case reqPoweron:
		return handle(ctx, raw, m.Poweron)
	case reqPause:
		return handle(ctx, raw, nothing(m.Pause))
	case reqResume:
		return handle(ctx, raw, nothing(m.Resume))
	case reqRestart:
		return handle(ctx, raw, m.Restart)
	case reqShutdown:
		return handle(ctx, raw, nothing(m.Shutdown))
	case reqPoweroff:
		return handle(ctx, raw, nothing(m.Poweroff))
	case reqFlush:
		return handle(ctx, raw, nothing(m.Flush))
	case reqExec:
		return handle(ctx, raw, m.Exec)
	case reqCollect:
		return handle(ctx, raw, func(ctx context.Context, q machine.Collect) (machine.Collected, error) {
			if err := out.beginFiles(); err != nil {
				return machine.Collected{}, err
			}
			sum, err := m.Collect(ctx, q)
			out.endFiles(err)
			return sum, err
		})
	case reqRun:
		return handle(ctx, raw, func(ctx context.Context, r machine.Run) (machine.Started, error) {
			f, err := s.receiveFile()
			if err != nil {
				return machine.Started{}, err
			}
			defer f.Close()
			return m.Run(ctx, r, f)
		})
	case reqDump:
		return handle(ctx, raw, nothing(func(ctx context.Context) error {
			f, err := s.receiveFile()
			if err != nil {
				return err
			}
			defer f.Close()
			return m.DumpMemory(ctx, f)
		}))
	case reqScreen:
		return handle(ctx, raw, nothing(func(ctx context.Context) error {
			f, err := s.receiveFile()
			if err != nil {
				return err
			}
			defer f.Close()
			return m.Screenshot(ctx, f)
		}))
	}
	return nil, fmt.Errorf("supervisor knows no request %q", name)
}

// none is the value of requests without one.
type none struct{}

func nothing(f func(context.Context) error) func(context.Context, none) (none, error) {
	return func(ctx context.Context, _ none) (none, error) { return none{}, f(ctx) }
}

func handle[P, R any](ctx context.Context, raw json.RawMessage, f func(context.Context, P) (R, error)) (any, error) {
	var p params[P]
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, fmt.Errorf("read parameters: %w", err)
	}
	if p.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.Timeout)
		defer cancel()
	}
	var out result[R]
	var err error
	if out.Value, err = f(ctx, p.Value); err != nil {
		out.Error, out.Gone = err.Error(), errors.Is(err, machine.ErrGone)
		errors.As(err, &out.NotExecuted)
	}
	return out, nil
}

// start takes the limits on, and makes the machine.
func (s *server) start(_ context.Context, spec Spec) (none, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.machine != nil {
		return none{}, errors.New("started twice")
	}
	if err := limit(spec.Memory); err != nil {
		return none{}, err
	}
	cpu, err := catalogue.Lookup(spec.Guest)
	if err != nil {
		return none{}, err
	}
	s.spec, s.cpu = spec, cpu
	out, err := newObserver(s.conn, spec)
	if err != nil {
		return none{}, err
	}
	s.out = out
	s.machine = qemu.New(s.config(), out)
	return none{}, nil
}

func (s *server) config() qemu.Config {
	cfg := qemu.Config{
		CPU: s.cpu, Binary: s.spec.Binary, Version: s.spec.Version, Accel: s.spec.Accel, Memory: s.spec.Memory,
		Image: s.spec.Image, Mark: s.spec.Mark, Fallback: s.spec.Fallback, Untraced: s.spec.Untraced,
		Kernel: os.NewFile(fdKernel, "kernel"), Initramfs: os.NewFile(fdInitramfs, "initramfs"),
		Network: s.out.serveNetwork,
	}
	if s.spec.Warm {
		cfg.Template = &qemu.Template{
			Digest: s.spec.Template, RAM: os.NewFile(fdRAM, "ram"), Hello: s.spec.Hello,
			State: func() (*os.File, error) { return os.Open(fmt.Sprintf("/proc/self/fd/%d", fdState)) },
		}
	}
	return cfg
}

// snapshot makes a template out of the inherited files.
func (s *server) snapshot(ctx context.Context, spec Spec) (guest.Hello, error) {
	if _, err := s.start(ctx, spec); err != nil {
		return guest.Hello{}, err
	}
	return qemu.Snapshot(ctx, s.config(), s.out, os.NewFile(fdRAM, "ram"), os.NewFile(fdState, "state"))
}

// close ends the machine, also one that is still starting, and then the
// streams, so that the parent has all that there was when it has their ends.
func (s *server) close() {
	m, out := s.current()
	if m == nil {
		return
	}
	s.closing.Do(func() {
		_ = m.Close()
		out.close()
	})
}

// limit bounds what this process and the QEMU that it starts may take.
func limit(memory int64) error {
	data := uint64(memory) + dataMargin
	for what, max := range map[int]uint64{
		unix.RLIMIT_CORE:   0,
		unix.RLIMIT_NOFILE: 256,
		unix.RLIMIT_FSIZE:  uint64(memory) + 64<<20, // a dump of the RAM, and no more
		unix.RLIMIT_DATA:   data,
	} {
		var have unix.Rlimit
		if err := unix.Getrlimit(what, &have); err != nil {
			return fmt.Errorf("limit the supervisor: %w", err)
		}
		max = min(max, have.Max)
		if err := unix.Setrlimit(what, &unix.Rlimit{Cur: max, Max: max}); err != nil {
			return fmt.Errorf("limit the supervisor: %w", err)
		}
	}
	return nil
}

// receiveFile takes the descriptor that was sent before the request.
func (s *server) receiveFile() (*os.File, error) {
	_ = s.files.SetReadDeadline(time.Now().Add(5 * time.Second))
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := s.files.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, fmt.Errorf("receive a descriptor: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("receive a descriptor: %d messages, %w", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("receive a descriptor: %d of them, %w", len(fds), err)
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "received"), nil
}

// observer sends what the machine reports to the parent.
type observer struct {
	conn    *wire.Conn
	spec    Spec
	streams map[schemas.Source]*stream
	pcap    *capture.Writer

	traced sync.Mutex
	live   *live // of the trace that is under way

	mu    sync.Mutex
	files *wire.StreamWriter
	fw    *guest.FilesWriter
}

var _ machine.Observer = (*observer)(nil)

// stream serializes a source's writers: a machine that is started again has
// new ones.
type stream struct {
	mu   sync.Mutex
	w    *wire.StreamWriter
	ends ends
	open bool // bytes have come since the last end
}

// minPcap has room for the frame of a capture. sandboxd keeps what it was asked
// to, and no more.
const minPcap = 512

func newObserver(conn *wire.Conn, spec Spec) (*observer, error) {
	o := &observer{conn: conn, spec: spec, streams: map[schemas.Source]*stream{}}
	for src, id := range streamOf {
		w, err := conn.Send(id)
		if err != nil {
			return nil, err
		}
		o.streams[src] = &stream{w: w}
	}
	var err error
	o.pcap, err = capture.NewWriter(capture.Options{
		MaxBytes: max(spec.Pcap, minPcap), Interface: "eth0", Application: "petri", OS: "Linux", Hardware: spec.Guest,
	}, func(chunk []byte, _ int) error {
		o.Data(schemas.SourcePcap, chunk)
		return nil
	})
	return o, err
}

// Event implements [machine.Observer].
func (o *observer) Event(e machine.Event) { _ = o.conn.Notify(eventFact, e) }

// Data implements [machine.Observer].
func (o *observer) Data(src schemas.Source, p []byte) {
	s := o.streams[src]
	if s == nil {
		return
	}
	if src == schemas.SourceTrace {
		o.traced.Lock()
		if o.live == nil {
			o.live = newLive(o)
		}
		o.live.add(p)
		o.traced.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = true
	_, _ = s.w.Write(p) // a broken link ends the process
}

// End implements [machine.Observer].
func (o *observer) End(src schemas.Source, c schemas.SourceCoverage) {
	c.Source = src
	if src == schemas.SourceTrace {
		o.traced.Lock()
		if o.live == nil { // not a byte came, not even the tracer's counts
			o.live = newLive(o)
		}
		c = o.live.end(c)
		o.live = nil
		o.traced.Unlock()
	}
	if s := o.streams[src]; s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ends, s.open = append(s.ends, c), false
	}
}

// serveNetwork is the guest's Ethernet.
func (o *observer) serveNetwork(ctx context.Context, conn net.Conn) error {
	n, err := internet.New(internet.Options{
		Frame: o.pcap.Packet,
		Lease: func(l internet.Lease) {
			o.Event(machine.Event{Time: l.Time, Lease: &schemas.IPAddress{Address: l.Address.Addr().String(), MAC: l.MAC.String(), Lease: "dhcp"}})
		},
	})
	if err != nil {
		return err
	}
	flush := time.NewTicker(time.Second)
	defer flush.Stop()
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx, conn) }()
	for {
		select {
		case err := <-done:
			_ = o.pcap.Flush()
			return err
		case <-flush.C:
			_ = o.pcap.Flush()
		}
	}
}

// File implements [machine.Observer].
func (o *observer) File(f schemas.DroppedFile) machine.FileWriter {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fw != nil {
		_ = o.fw.File(f)
	}
	return &fileRelay{o.fw}
}

func (o *observer) beginFiles() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	w, err := o.conn.Send(streamFiles)
	if err != nil {
		return err
	}
	o.files, o.fw = w, guest.NewFilesWriter(w)
	return nil
}

func (o *observer) endFiles(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if ferr := o.fw.Flush(); err == nil {
		err = ferr
	}
	var st wire.Status
	if err != nil {
		st.Error = err.Error()
	}
	_ = o.files.Close(st)
	o.files, o.fw = nil, nil
}

// fileRelay passes one file's bytes on.
type fileRelay struct{ fw *guest.FilesWriter }

func (r *fileRelay) Write(p []byte) (int, error) {
	if r.fw == nil {
		return len(p), nil
	}
	return r.fw.Write(p)
}

func (r *fileRelay) Close(cut int64, err error) {
	if r.fw == nil {
		return
	}
	st := wire.Status{Cut: cut}
	if err != nil {
		st.Error = err.Error()
	}
	_ = r.fw.End(st)
}

// close ends the capture and all streams.
func (o *observer) close() {
	_ = o.pcap.Close()
	st := o.pcap.Stats()
	c := schemas.SourceCoverage{Status: schemas.StatusWhole, Produced: st.Received, Lost: st.Cut + st.Lost, Cut: st.CutBytes + st.LostBytes}
	if c.Lost > 0 {
		c.Status, c.Reason = schemas.StatusPartial, fmt.Sprintf("more than %d bytes of capture", o.spec.Pcap)
	}
	o.End(schemas.SourcePcap, c)
	for _, s := range o.streams {
		s.close()
	}
}

// close sends what became of the source behind its last bytes.
func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open {
		s.ends = append(s.ends, noEnd("it ended without a word"))
	}
	var st wire.Status
	var err error
	if st.Detail, err = json.Marshal(s.ends); err != nil {
		st.Error = err.Error()
	}
	_ = s.w.Close(st)
}
