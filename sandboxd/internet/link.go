// SPDX-License-Identifier: Apache-2.0

package internet

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"

	"github.com/petri-sandbox/petri/sandboxd/capture"
)

// prefixLen is the length of what QEMU puts before each frame: the frame's
// length, big-endian (QEMU, net/stream.c).
const prefixLen = 4

// Run moves frames over conn until ctx is done or the guest's end closes it.
// It owns conn: it has closed it, and joined its goroutines, when it returns.
// Closing conn must end a Read and a Write that wait: true of a net.Conn, and
// of an os.File whose descriptor is non-blocking. It does not interrupt the
// functions in [Options]. Run returns nil if the other end closed the link. It
// is called once.
func (n *Network) Run(ctx context.Context, conn io.ReadWriteCloser) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		<-ctx.Done()
		conn.Close()
	})
	wg.Go(func() { cancel(n.write(ctx, conn)) })
	cancel(n.read(conn))
	wg.Wait()
	switch err := context.Cause(ctx); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return nil
	default:
		return err
	}
}

// read takes frames one after the other. There is no queue: while the switch
// is busy, the guest waits.
func (n *Network) read(conn io.Reader) error {
	r := bufio.NewReaderSize(conn, MaxFrame)
	buf := make([]byte, MaxFrame)
	for {
		prefix, err := r.Peek(prefixLen)
		if err != nil {
			return fmt.Errorf("read a frame's length: %w", err)
		}
		length := int64(binary.BigEndian.Uint32(prefix))
		r.Discard(prefixLen)
		got, err := io.ReadFull(r, buf[:min(length, MaxFrame)])
		skipped := int64(0)
		if err == nil && length > MaxFrame {
			skipped, err = io.CopyN(io.Discard, r, length-int64(got))
		}
		n.receive(buf[:got], length, int64(got)+skipped)
		if err != nil {
			return fmt.Errorf("read a frame: %w", err)
		}
	}
}

// receive acts on the beginning of a frame of length bytes, of which read
// bytes have come.
func (n *Network) receive(frame []byte, length, read int64) {
	n.tapMu.Lock()
	n.tap(capture.Outbound, frame, int(length))
	n.tapMu.Unlock()
	var o outcome
	switch {
	case read < length:
		o = malformed
	case length > MaxFrame:
		o = oversized
	default:
		o = n.handle(frame)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stats.In++
	n.stats.InBytes += uint64(read)
	switch o {
	case answered:
		n.stats.Answered++
	case handled:
		n.stats.Handled++
	case malformed:
		n.stats.Malformed++
	case oversized:
		n.stats.Oversized++
	case foreign:
		n.stats.Foreign++
	case unanswered:
		n.stats.Unanswered++
	}
}

// Send puts an Ethernet frame of at most [MaxFrame] bytes on its way to the
// guest and reports whether there was room for it; it waits for Options.Frame
// only. It keeps no reference to frame. Frames that are on their way when Run ends may not
// arrive.
func (n *Network) Send(frame []byte) bool {
	if len(frame) < headerLen || len(frame) > MaxFrame {
		n.count(func(s *Stats) { s.Refused++ })
		return false
	}
	size := max(len(frame), minFrame)
	b := make([]byte, prefixLen+size)
	binary.BigEndian.PutUint32(b, uint32(size))
	copy(b[prefixLen:], frame)

	n.tapMu.Lock()
	defer n.tapMu.Unlock()
	if len(n.out) == cap(n.out) {
		n.count(func(s *Stats) { s.QueueFull++ })
		return false
	}
	n.tap(capture.Inbound, b[prefixLen:], size)
	n.out <- b
	n.count(func(s *Stats) {
		s.Out++
		s.OutBytes += uint64(size)
	})
	return true
}

// write moves frames from the queue to the guest.
func (n *Network) write(ctx context.Context, conn io.Writer) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case b := <-n.out:
			if _, err := conn.Write(b); err != nil {
				return fmt.Errorf("write a frame: %w", err)
			}
		}
	}
}
