// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
)

// A Handler answers the other end.
type Handler struct {
	// Request answers one request; the result is sent as JSON. Each runs in
	// its own goroutine, at most maxRequests at a time.
	Request func(ctx context.Context, name string, params json.RawMessage) (any, error)
	// Event takes one event. Events come one at a time and in order; while
	// Event runs, the link reads at most a small backlog further.
	Event func(name string, data json.RawMessage)
}

const (
	maxRequests = 16  // of the other end, in work at once
	maxEvents   = 256 // of the other end, waiting for Handler.Event
	maxStreams  = 64  // open at once, each way
)

// A Conn is one end of the link. It is safe for concurrent use. Nothing moves
// until [Conn.Run] is called.
type Conn struct {
	rw      io.ReadWriteCloser
	handler Handler

	urgent chan frame // messages and credits; written before data
	bulk   chan frame
	done   chan struct{} // closed by fail

	draining sync.WaitGroup // the goroutines that feed sinks

	mu      sync.Mutex
	err     error
	nextID  uint32
	waiting map[uint32]chan message
	readers map[uint16]*reader
	writers map[uint16]*StreamWriter
}

var errClosed = errors.New("link closed")

// NewConn returns the end of a link over rw, which it owns from now on.
func NewConn(rw io.ReadWriteCloser, h Handler) *Conn {
	return &Conn{
		rw: rw, handler: h,
		urgent: make(chan frame, 64), bulk: make(chan frame), done: make(chan struct{}),
		waiting: map[uint32]chan message{}, readers: map[uint16]*reader{}, writers: map[uint16]*StreamWriter{},
	}
}

// Run moves frames until ctx is done, the link ends or the other end breaks
// the protocol, and then closes the link. It returns why; a link that the
// other end closed between two frames gives [io.EOF]. All goroutines that the
// Conn started have ended when Run returns: handlers and sinks must return soon
// after the link has ended.
func (c *Conn) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	start := func(f func() error) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := f(); err != nil {
				c.fail(err)
			}
			cancel()
		}()
	}
	events := make(chan message, maxEvents) // closed by readLoop
	start(c.writeLoop)
	start(func() error { return c.readLoop(ctx, &wg, events) })
	wg.Add(1)
	go func() {
		defer wg.Done()
		for m := range events {
			if c.handler.Event != nil {
				c.handler.Event(m.Name, m.Data)
			}
		}
	}()
	<-ctx.Done()
	c.fail(ctx.Err())
	wg.Wait()
	c.draining.Wait()
	return c.failure()
}

// Close ends the link from this end.
func (c *Conn) Close() { c.fail(errClosed) }

// fail ends the link with the first of its errors.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	close(c.done)
	readers := c.readers
	c.readers = map[uint16]*reader{}
	c.mu.Unlock()
	c.rw.Close()
	for _, r := range readers { // one without a sink has no goroutine to end
		r.end(Status{Error: "the link ended: " + err.Error()})
	}
}

func (c *Conn) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Call sends a request and waits for its response. params and result may be
// nil. An error of type *[Error] is the other end's answer.
func (c *Conn) Call(ctx context.Context, name string, params, result any) error {
	data, err := marshal(params)
	if err != nil {
		return err
	}
	answer := make(chan message, 1)
	c.mu.Lock()
	c.nextID++
	id := c.nextID
	c.waiting[id] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}()
	if err := c.sendMessage(ctx, message{Kind: kindRequest, ID: id, Name: name, Data: data}); err != nil {
		return fmt.Errorf("call %s: %w", name, err)
	}
	var m message
	select {
	case m = <-answer:
	case <-ctx.Done():
		err = ctx.Err()
	case <-c.done:
		err = c.failure()
	}
	if err != nil {
		select { // it may have come just before the end
		case m = <-answer:
		default:
			return fmt.Errorf("call %s: %w", name, err)
		}
	}
	if m.Error != nil {
		return m.Error
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Data, result); err != nil {
		return fmt.Errorf("%w: response to %s: %v", ErrProtocol, name, err)
	}
	return nil
}

// Notify sends an event.
func (c *Conn) Notify(name string, data any) error {
	b, err := marshal(data)
	if err != nil {
		return err
	}
	return c.sendMessage(context.Background(), message{Kind: kindEvent, Name: name, Data: b})
}

func marshal(v any) (json.RawMessage, error) {
	if v == nil {
		return nil, nil
	}
	return json.Marshal(v)
}

func (c *Conn) sendMessage(ctx context.Context, m message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > MaxPayload {
		return fmt.Errorf("%s %s has %d bytes, more than %d", m.Kind, m.Name, len(b), MaxPayload)
	}
	return c.send(ctx, c.urgent, frame{typ: frameMessage, payload: b})
}

func (c *Conn) send(ctx context.Context, to chan<- frame, f frame) error {
	select {
	case to <- f:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.done:
		return c.failure()
	}
}

func (c *Conn) writeLoop() error {
	buf := make([]byte, 0, headerLen+MaxPayload)
	deaf := false // the other end reads no more
	for {
		var f frame
		select {
		case f = <-c.urgent:
		default:
			select {
			case f = <-c.urgent:
			case f = <-c.bulk:
			case <-c.done:
				return nil
			}
		}
		switch {
		case deaf:
			continue
		case f.barrier != nil:
			close(f.barrier)
			continue
		}
		buf = appendFrame(buf[:0], f)
		switch _, err := c.rw.Write(buf); {
		case errors.Is(err, syscall.EPIPE):
			deaf = true // what it said before it went is still to be read, and its end behind that
		case err != nil:
			return err
		}
	}
}

// Drain returns when everything that was sent before has been written to the
// link.
func (c *Conn) Drain(ctx context.Context) error {
	for _, queue := range []chan frame{c.bulk, c.urgent} {
		b := make(chan struct{})
		if err := c.send(ctx, queue, frame{barrier: b}); err != nil {
			return err
		}
		select {
		case <-b:
		case <-ctx.Done():
			return ctx.Err()
		case <-c.done:
			return c.failure()
		}
	}
	return nil
}

func (c *Conn) readLoop(ctx context.Context, wg *sync.WaitGroup, events chan<- message) error {
	defer close(events)
	r := bufio.NewReaderSize(c.rw, headerLen+MaxPayload)
	slots := make(chan struct{}, maxRequests)
	for {
		f, err := readFrame(r)
		if err != nil {
			return err
		}
		switch f.typ {
		case frameMessage:
			err = c.onMessage(ctx, wg, slots, events, f.payload)
		case frameData:
			err = c.onData(f)
		case frameCredit:
			err = c.onCredit(f.stream, binary.LittleEndian.Uint32(f.payload))
		case frameClose:
			err = c.onClose(f)
		}
		if err != nil {
			return err
		}
	}
}

func (c *Conn) onMessage(ctx context.Context, wg *sync.WaitGroup, slots chan struct{}, events chan<- message, payload []byte) error {
	var m message
	if err := json.Unmarshal(payload, &m); err != nil {
		return fmt.Errorf("%w: message: %v", ErrProtocol, err)
	}
	switch m.Kind {
	case kindResponse:
		c.mu.Lock()
		answer, ok := c.waiting[m.ID]
		delete(c.waiting, m.ID)
		c.mu.Unlock()
		if ok { // else the caller has given up
			answer <- m
		}
	case kindEvent:
		select {
		case events <- m:
		case <-c.done:
		}
	case kindRequest:
		if c.handler.Request == nil {
			return fmt.Errorf("%w: request %q to an end that takes none", ErrProtocol, m.Name)
		}
		select {
		case slots <- struct{}{}:
		default:
			return fmt.Errorf("%w: more than %d requests at once", ErrProtocol, maxRequests)
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() { <-slots }()
			c.respond(ctx, m)
		}()
	default:
		return fmt.Errorf("%w: message of unknown kind %q", ErrProtocol, m.Kind)
	}
	return nil
}

func (c *Conn) respond(ctx context.Context, m message) {
	out := message{Kind: kindResponse, ID: m.ID}
	result, err := c.handler.Request(ctx, m.Name, m.Data)
	if err == nil {
		out.Data, err = marshal(result)
	}
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			e = &Error{Text: err.Error()}
		}
		out.Error, out.Data = e, nil
	}
	if err := c.sendMessage(ctx, out); err != nil && ctx.Err() == nil {
		out.Error, out.Data = &Error{Text: err.Error()}, nil
		_ = c.sendMessage(ctx, out)
	}
}
