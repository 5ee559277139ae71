// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
)

// A Client talks to one guest's agent. It is safe for concurrent use, but for
// [Client.Run] and [Client.Collect], of which each runs one at a time.
type Client struct {
	conn     *wire.Conn
	observer machine.Observer
	hello    chan Hello     // holds the first one
	sending  sync.WaitGroup // samples under way

	// Of the events that come, which come one at a time.
	exited, tree bool

	mu     sync.Mutex
	faults int
	held   int
}

// New returns a client over the link rw, which it owns. Nothing moves until
// [Client.Serve] runs.
func New(rw io.ReadWriteCloser, o machine.Observer) *Client {
	c := &Client{observer: o, hello: make(chan Hello, 1)}
	c.conn = wire.NewConn(rw, wire.Handler{Event: c.event, Request: c.request})
	return c
}

// Serve moves the link until it ends or ctx is done.
func (c *Client) Serve(ctx context.Context) error {
	defer c.sending.Wait()
	return c.conn.Run(ctx)
}

// Hello waits for the agent of a booting guest.
func (c *Client) Hello(ctx context.Context) (Hello, error) {
	select {
	case h := <-c.hello:
		if h.Version != wire.Version {
			return Hello{}, fmt.Errorf("guestd speaks protocol %d, this sandboxd %d (rebuild the image: petri guest build --force)", h.Version, wire.Version)
		}
		return h, nil
	case <-ctx.Done():
		return Hello{}, fmt.Errorf("wait for guestd: %w", ctx.Err())
	}
}

func (c *Client) event(name string, data json.RawMessage) {
	switch name {
	case EventHello:
		var h Hello
		if json.Unmarshal(data, &h) == nil {
			select {
			case c.hello <- h.checked():
			default:
			}
		}
	case EventExited:
		var e schemas.SampleExited
		if c.exited { // a guest runs one sample
			c.fault("guest sent a second exit of the sample")
			return
		}
		if c.decode(name, data, &e) {
			checked, err := checkExited(e)
			if err != nil {
				c.fault(fmt.Sprintf("guest sent a bad %s event: %v", name, err))
				return
			}
			c.exited = true
			c.observer.Event(machine.Event{Time: time.Now(), Exited: &checked})
		}
	case EventTree:
		if c.tree {
			return
		}
		c.tree = true
		c.observer.Event(machine.Event{Time: time.Now(), Tree: &machine.TreeExited{}})
	case EventFault:
		var f Fault
		if c.decode(name, data, &f) {
			c.fault("guest: " + clip(f.Text, maxReason))
		}
	default:
		c.fault(fmt.Sprintf("guest sent unknown event %q", clip(name, maxName)))
	}
}

// request takes the guest's only one. That it has come is the answer: what the
// guest had sent before is out of the guest, too.
func (c *Client) request(_ context.Context, name string, params json.RawMessage) (any, error) {
	if name != ReqHeld {
		return nil, fmt.Errorf("%w: request %q", wire.ErrProtocol, clip(name, maxName))
	}
	var p schemas.PossibleTampering
	if !c.decode(name, params, &p) {
		return nil, nil
	}
	c.mu.Lock()
	c.held++
	n := c.held
	c.mu.Unlock()
	switch {
	case n <= maxHeld:
		checked := checkTampering(p)
		c.observer.Event(machine.Event{Time: time.Now(), Tampering: &checked})
	case n == maxHeld+1:
		c.fault(fmt.Sprintf("guest reports more than %d held calls; the others are not told", maxHeld))
	}
	return nil, nil
}

// maxHeld is how many held calls of one guest are told: more than the agent holds.
const maxHeld = 1000

func (c *Client) decode(name string, data json.RawMessage, into any) bool {
	if err := json.Unmarshal(data, into); err != nil {
		c.fault(fmt.Sprintf("guest sent a bad %s event", name))
		return false
	}
	return true
}

// maxFaults is how many faults of one guest are told.
const maxFaults = 1000

func (c *Client) fault(text string) {
	c.mu.Lock()
	c.faults++
	n := c.faults
	c.mu.Unlock()
	switch {
	case n < maxFaults:
	case n == maxFaults:
		text = fmt.Sprintf("guest reports more than %d faults; the others are not told", maxFaults)
	default:
		return
	}
	c.observer.Event(machine.Event{Time: time.Now(), Fault: text})
}

// Ping returns when the agent has answered.
func (c *Client) Ping(ctx context.Context) error { return c.call(ctx, ReqPing, nil, nil) }

// Nudge sends what the agent takes no notice of. Reading it alone makes the guest's
// kernel set its timer anew.
func (c *Client) Nudge() error { return c.conn.Notify(EventNudge, nil) }

// Assign makes the guest what id says. From then on the trace, if asked for,
// goes to the observer.
func (c *Client) Assign(ctx context.Context, id machine.Identity, trace bool) error {
	if trace {
		if err := c.receive(StreamTrace, schemas.SourceTrace); err != nil {
			return err
		}
	}
	return c.call(ctx, ReqAssign, Assign{Identity: id, TraceStream: trace}, nil)
}

// Network makes the guest ask for an address and returns what it got.
func (c *Client) Network(ctx context.Context) (Lease, error) {
	var l Lease
	err := c.call(ctx, ReqNetwork, nil, &l)
	return l, err
}

// Flush returns when the guest has sent what it had traced.
func (c *Client) Flush(ctx context.Context) error { return c.call(ctx, ReqFlush, nil, nil) }

// Poweroff asks the guest to go down; it may be gone before it answers.
func (c *Client) Poweroff(ctx context.Context) error {
	err := c.call(ctx, ReqPoweroff, nil, nil)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// Run sends the sample's bytes and starts the command. An error of type
// *[machine.NotExecuted] is the guest's refusal. sample is read until Run has
// returned nil or the link has ended: a guest that refuses, or says that it has
// started what it never read, keeps nobody waiting.
func (c *Client) Run(ctx context.Context, r machine.Run, sample *os.File) (machine.Started, error) {
	if err := c.receive(StreamStdout, schemas.SourceStdout); err != nil {
		return machine.Started{}, err
	}
	if err := c.receive(StreamStderr, schemas.SourceStderr); err != nil {
		return machine.Started{}, err
	}
	w, err := c.conn.Send(StreamSample)
	if err != nil {
		return machine.Started{}, err
	}
	sent := make(chan error, 1)
	c.sending.Add(1)
	go func() {
		defer c.sending.Done()
		n, err := io.Copy(w, io.NewSectionReader(sample, 0, r.Size))
		s := wire.Status{Size: n}
		if err != nil {
			s.Error = err.Error()
		}
		sent <- errors.Join(err, w.Close(s))
	}()
	var out RunResult
	err = c.call(ctx, ReqRun, r, &out)
	switch {
	case err != nil:
		return machine.Started{}, err
	case out.NotExecuted != nil:
		return machine.Started{}, checkNotExecuted(out.NotExecuted)
	case out.Started == nil:
		return machine.Started{}, fmt.Errorf("%w: an empty answer to run", wire.ErrProtocol)
	}
	// An honest guest has read all of it before it answers; only the word that
	// it is sent may still be under way.
	select {
	case err = <-sent:
	case <-time.After(sentTime):
		err = fmt.Errorf("%w: the guest runs a sample that it has not read", wire.ErrProtocol)
	}
	if err != nil {
		return machine.Started{}, fmt.Errorf("send the sample: %w", err)
	}
	return checkStarted(r, *out.Started)
}

// sentTime is how long a goroutine may take for what it can do at once.
const sentTime = 10 * time.Second

// Exec runs a command beside the sample.
func (c *Client) Exec(ctx context.Context, e machine.Exec) (schemas.Exec, error) {
	var out schemas.Exec
	ctx, cancel := context.WithTimeout(ctx, e.Timeout+callTimeout)
	defer cancel()
	err := c.conn.Call(ctx, ReqExec, e, &out)
	return checkExec(e.Command, out), err
}

// Collect sends the changed files to the observer.
func (c *Client) Collect(ctx context.Context, q machine.Collect) (machine.Collected, error) {
	files := NewFilesSink(c.observer, q)
	if err := c.conn.Receive(StreamFiles, files); err != nil {
		return machine.Collected{}, err
	}
	var out machine.Collected
	if err := c.conn.Call(ctx, ReqCollect, q, &out); err != nil {
		return out, err
	}
	if err := files.Wait(ctx); err != nil {
		return out, err
	}
	return checkCollected(out, files.listed, files.stored)
}

func (c *Client) call(ctx context.Context, name string, params, result any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.conn.Call(ctx, name, params, result)
}

func (c *Client) receive(id uint16, src schemas.Source) error {
	return c.conn.Receive(id, &sourceSink{o: c.observer, src: src})
}

// sourceSink passes a stream to the observer.
type sourceSink struct {
	o   machine.Observer
	src schemas.Source
}

func (s *sourceSink) Write(p []byte) { s.o.Data(s.src, p) }

func (s *sourceSink) End(st wire.Status) {
	c := schemas.SourceCoverage{Source: s.src, Status: schemas.StatusWhole, Bytes: max(0, st.Size), Cut: uint64(max(0, st.Cut))}
	if st.Error != "" {
		c.Status, c.Reason = schemas.StatusPartial, clip(st.Error, maxReason)
	}
	s.o.End(s.src, c)
}
