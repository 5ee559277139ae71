// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync"
)

// A Sink takes a stream's bytes. Write may block: only its own stream waits.
// p is the Sink's own. End is called once, last.
type Sink interface {
	Write(p []byte)
	End(Status)
}

// reader receives one stream. Frames wait in a queue that the credits bound.
type reader struct {
	sink   Sink // nil until somebody receives the stream; guarded by Conn.mu
	mu     sync.Mutex
	cond   *sync.Cond
	queue  [][]byte
	queued int // bytes in queue and in the sink's hands
	status *Status
}

func newReader() *reader {
	r := new(reader)
	r.cond = sync.NewCond(&r.mu)
	return r
}

// Receive takes stream id's bytes from now on, until the other end closes it
// or the link ends. What has come before waits for it, as far as the window
// goes. Receive returns at once; the sink is called from one goroutine.
func (c *Conn) Receive(id uint16, sink Sink) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	r, err := c.reader(id)
	if err != nil {
		return err
	}
	if r.sink != nil {
		return fmt.Errorf("stream %d is already being received", id)
	}
	r.sink = sink
	c.draining.Add(1)
	go c.drain(id, r)
	return nil
}

// reader returns stream id's, making it if need be. c.mu is held.
func (c *Conn) reader(id uint16) (*reader, error) {
	r, ok := c.readers[id]
	if !ok {
		if len(c.readers) >= maxStreams {
			return nil, fmt.Errorf("%w: more than %d streams at once", ErrProtocol, maxStreams)
		}
		r = newReader()
		c.readers[id] = r
	}
	return r, nil
}

func (c *Conn) drain(id uint16, r *reader) {
	defer c.draining.Done()
	for {
		r.mu.Lock()
		for len(r.queue) == 0 && r.status == nil {
			r.cond.Wait()
		}
		if len(r.queue) == 0 {
			r.mu.Unlock()
			c.forget(id, r)
			r.sink.End(*r.status)
			return
		}
		p := r.queue[0]
		r.queue = r.queue[1:]
		r.mu.Unlock()
		n := len(p)
		r.sink.Write(p)
		r.mu.Lock()
		r.queued -= n
		r.mu.Unlock()
		credit := binary.LittleEndian.AppendUint32(nil, uint32(n))
		_ = c.send(context.Background(), c.urgent, frame{typ: frameCredit, stream: id, payload: credit})
	}
}

func (r *reader) end(s Status) {
	r.mu.Lock()
	if r.status == nil {
		r.status = &s
	}
	r.mu.Unlock()
	r.cond.Signal()
}

// forget makes room for another stream of the same number.
func (c *Conn) forget(id uint16, r *reader) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.readers[id] == r {
		delete(c.readers, id)
	}
}

func (c *Conn) onData(f frame) error {
	c.mu.Lock()
	r, err := c.reader(f.stream)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.queued += len(f.payload)
	bad := r.queued > Window || r.status != nil
	if !bad && len(f.payload) > 0 {
		r.queue = append(r.queue, f.payload)
	}
	r.mu.Unlock()
	if bad {
		return fmt.Errorf("%w: stream %d sends more than its window, or after its end", ErrProtocol, f.stream)
	}
	r.cond.Signal()
	return nil
}

func (c *Conn) onClose(f frame) error {
	var s Status
	if err := json.Unmarshal(f.payload, &s); err != nil {
		return fmt.Errorf("%w: end of stream %d: %v", ErrProtocol, f.stream, err)
	}
	c.mu.Lock()
	r, err := c.reader(f.stream)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	r.end(s)
	return nil
}

// A StreamWriter sends one stream. It is for one goroutine.
type StreamWriter struct {
	c  *Conn
	id uint16

	mu     sync.Mutex
	credit int
	more   chan struct{} // has room for one token: credit came
}

// Send opens stream id for writing. The other end must receive it sooner or
// later.
func (c *Conn) Send(id uint16) (*StreamWriter, error) {
	w := &StreamWriter{c: c, id: id, credit: Window, more: make(chan struct{}, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	if _, ok := c.writers[id]; ok {
		return nil, fmt.Errorf("stream %d is already being sent", id)
	}
	c.writers[id] = w
	return w, nil
}

// Write sends p and returns when the link has taken it, which may wait for
// the other end to read. After Write returns p may be reused.
func (w *StreamWriter) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		n, err := w.reserve(min(len(p)-sent, MaxPayload/2))
		if err != nil {
			return sent, err
		}
		b := append([]byte(nil), p[sent:sent+n]...)
		if err := w.c.send(context.Background(), w.c.bulk, frame{typ: frameData, stream: w.id, payload: b}); err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// reserve waits until at least one byte may be sent and takes up to n.
func (w *StreamWriter) reserve(n int) (int, error) {
	for {
		w.mu.Lock()
		got := min(n, w.credit)
		w.credit -= got
		w.mu.Unlock()
		if got > 0 {
			return got, nil
		}
		select {
		case <-w.more:
		case <-w.c.done:
			return 0, w.c.failure()
		}
	}
}

// Close ends the stream. A status that is too large is sent as an error.
func (w *StreamWriter) Close(s Status) error {
	w.c.mu.Lock()
	delete(w.c.writers, w.id)
	w.c.mu.Unlock()
	b, err := json.Marshal(s)
	if err == nil && len(b) > MaxPayload {
		b, err = json.Marshal(Status{Size: s.Size, Cut: s.Cut, Error: fmt.Sprintf("its status has %d bytes, more than %d", len(b), MaxPayload)})
	}
	if err != nil {
		return err
	}
	return w.c.send(context.Background(), w.c.bulk, frame{typ: frameClose, stream: w.id, payload: b})
}

func (c *Conn) onCredit(id uint16, n uint32) error {
	c.mu.Lock()
	w := c.writers[id]
	c.mu.Unlock()
	if w == nil {
		return nil // credit for a stream that has just been closed
	}
	w.mu.Lock()
	w.credit += int(n)
	over := n > Window || w.credit > Window
	w.mu.Unlock()
	if over {
		return fmt.Errorf("%w: credit beyond the window of stream %d", ErrProtocol, id)
	}
	select {
	case w.more <- struct{}{}:
	default:
	}
	return nil
}
