// SPDX-License-Identifier: Apache-2.0

// Package qmp speaks the QEMU Machine Protocol over one Unix socket.
//
// It implements go-qemu's [qmp.Monitor], so that go-qemu's raw commands work on
// it, and replaces go-qemu's own SocketMonitor, which corrupts answers under
// load, refuses lines above 64 KiB and hangs for ever when nobody drains its
// events. Commands here are matched by id, bounded by a context, and never wait
// for a reader of events.
//
// Protocol: QEMU docs/interop/qmp-spec.rst.
package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
)

// maxEvents is how many events wait for a reader before the oldest goes.
const maxEvents = 1024

// maxReply bounds one message of QEMU in bytes; query-qmp-schema has 0.2 MB.
const maxReply = 16 << 20

// ErrClosed says that the connection to QEMU has ended.
var ErrClosed = errors.New("qmp connection closed")

// A CommandError is QEMU's refusal of a command.
type CommandError struct {
	Command string
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

func (e *CommandError) Error() string { return fmt.Sprintf("qmp %s: %s", e.Command, e.Desc) }

// A Monitor is one QMP connection. It is safe for concurrent use.
type Monitor struct {
	conn    *net.UnixConn
	version qmp.Version

	writeMu sync.Mutex

	mu      sync.Mutex
	nextID  uint64
	waiting map[uint64]chan reply
	events  chan qmp.Event // closed when the connection ends
	dropped uint64
	err     error
	done    chan struct{}
}

var _ qmp.Monitor = (*Monitor)(nil)

type reply struct {
	Return json.RawMessage `json:"return"`
	Error  *CommandError   `json:"error"`
}

// New negotiates over conn, which the Monitor owns from then on, until ctx is
// done.
func New(ctx context.Context, conn *net.UnixConn) (*Monitor, error) {
	m := &Monitor{conn: conn, waiting: map[uint64]chan reply{}, events: make(chan qmp.Event, maxEvents), done: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	dec := json.NewDecoder(&limitReader{r: conn})
	var greeting struct {
		QMP *struct {
			Version qmp.Version `json:"version"`
		} `json:"QMP"`
	}
	err := dec.Decode(&greeting)
	if !stop() {
		err = ctx.Err()
	}
	if err == nil && greeting.QMP == nil {
		err = errors.New("no greeting")
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to qmp: %w", err)
	}
	m.version = greeting.QMP.Version
	go m.readLoop(dec)
	if err := m.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// Version is QEMU's own.
func (m *Monitor) Version() qmp.Version { return m.version }

// limitReader resets its allowance with every read that the decoder makes for
// one message; the decoder keeps at most one message and a bit in memory.
type limitReader struct {
	r io.Reader
	n int64
}

func (l *limitReader) Read(p []byte) (int, error) {
	if l.n > maxReply {
		return 0, fmt.Errorf("qmp message is larger than %d bytes", maxReply)
	}
	n, err := l.r.Read(p)
	l.n += int64(n)
	return n, err
}

func (m *Monitor) readLoop(dec *json.Decoder) {
	lim := &limitReader{r: m.conn}
	dec = json.NewDecoder(io.MultiReader(dec.Buffered(), lim))
	for {
		var msg struct {
			qmp.Event
			ID *uint64 `json:"id"`
			reply
		}
		lim.n = 0
		if err := dec.Decode(&msg); err != nil {
			m.end(err)
			return
		}
		switch {
		case msg.Event.Event != "":
			m.deliver(msg.Event)
		case msg.ID != nil:
			m.mu.Lock()
			answer, ok := m.waiting[*msg.ID]
			delete(m.waiting, *msg.ID)
			m.mu.Unlock()
			if ok {
				answer <- msg.reply
			}
		}
	}
}

// deliver never waits: of a full queue the oldest event goes, and is counted.
func (m *Monitor) deliver(e qmp.Event) {
	for {
		select {
		case m.events <- e:
			return
		default:
		}
		select {
		case <-m.events:
			m.mu.Lock()
			m.dropped++
			m.mu.Unlock()
		default:
		}
	}
}

func (m *Monitor) end(err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) {
		err = ErrClosed
	}
	m.mu.Lock()
	m.err = err
	m.mu.Unlock()
	m.conn.Close()
	close(m.events)
	close(m.done)
}

// Dropped is how many events nobody read in time.
func (m *Monitor) Dropped() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dropped
}

// Done is closed when the connection has ended.
func (m *Monitor) Done() <-chan struct{} { return m.done }

// Execute runs one command. args and result may be nil.
func (m *Monitor) Execute(ctx context.Context, command string, args, result any) error {
	return m.execute(ctx, command, args, result, nil)
}

// SendFile hands a descriptor to QEMU under a name (the command getfd).
func (m *Monitor) SendFile(ctx context.Context, name string, fd int) error {
	return m.execute(ctx, "getfd", map[string]any{"fdname": name}, nil, syscall.UnixRights(fd))
}

// fileSet is the only set of descriptors that QEMU is given files in.
const fileSet = 1

// WithFile has QEMU write to a descriptor, which must be open for writing only,
// where a command takes a path: run is called with that path.
// QEMU docs/interop/qmp-ref: add-fd.
func (m *Monitor) WithFile(ctx context.Context, fd int, run func(path string) error) error {
	set := map[string]any{"fdset-id": fileSet}
	if err := m.execute(ctx, "add-fd", set, nil, syscall.UnixRights(fd)); err != nil {
		return err
	}
	err := run(fmt.Sprintf("/dev/fdset/%d", fileSet))
	return errors.Join(err, m.execute(ctx, "remove-fd", set, nil, nil))
}

func (m *Monitor) execute(ctx context.Context, command string, args, result any, oob []byte) error {
	answer := make(chan reply, 1)
	m.mu.Lock()
	m.nextID++
	id := m.nextID
	m.waiting[id] = answer
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.waiting, id)
		m.mu.Unlock()
	}()
	line, err := json.Marshal(struct {
		Execute string `json:"execute"`
		Args    any    `json:"arguments,omitempty"`
		ID      uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	m.writeMu.Lock()
	if d, ok := ctx.Deadline(); ok {
		m.conn.SetWriteDeadline(d)
	} else {
		m.conn.SetWriteDeadline(time.Time{})
	}
	_, _, err = m.conn.WriteMsgUnix(append(line, '\n'), oob, nil)
	m.writeMu.Unlock()
	if err != nil {
		if m.failure() != nil {
			err = m.failure()
		}
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	var r reply
	select {
	case r = <-answer:
	case <-ctx.Done():
		err = ctx.Err()
	case <-m.done:
		err = m.failure()
	}
	if err != nil {
		select { // it may have come just before the end
		case r = <-answer:
		default:
			return fmt.Errorf("qmp %s: %w", command, err)
		}
	}
	if r.Error != nil {
		r.Error.Command = command
		return r.Error
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(r.Return, result); err != nil {
		return fmt.Errorf("qmp %s: read answer: %w", command, err)
	}
	return nil
}

func (m *Monitor) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Notifications is the queue of QEMU's events, for one reader. It is closed
// when the connection ends. What is not read in time is dropped and counted.
func (m *Monitor) Notifications() <-chan qmp.Event { return m.events }

// Close ends the connection.
func (m *Monitor) Close() error {
	err := m.conn.Close()
	<-m.done
	return err
}

// Connect implements [qmp.Monitor]; a Monitor is connected from [New] on.
func (m *Monitor) Connect() error { return m.failure() }

// Disconnect implements [qmp.Monitor].
func (m *Monitor) Disconnect() error { return m.Close() }

// Run implements [qmp.Monitor] for callers without a context; it waits a
// minute at most.
func (m *Monitor) Run(command []byte) ([]byte, error) {
	var c struct {
		Execute string          `json:"execute"`
		Args    json.RawMessage `json:"arguments,omitempty"`
	}
	if err := json.Unmarshal(command, &c); err != nil {
		return nil, fmt.Errorf("qmp command: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var args any
	if c.Args != nil {
		args = c.Args
	}
	var ret json.RawMessage
	if err := m.execute(ctx, c.Execute, args, &ret, nil); err != nil {
		return nil, err
	}
	return json.Marshal(map[string]json.RawMessage{"return": ret})
}

// Events implements [qmp.Monitor]: it is [Monitor.Notifications], which has
// one reader.
func (m *Monitor) Events(context.Context) (<-chan qmp.Event, error) { return m.events, nil }
