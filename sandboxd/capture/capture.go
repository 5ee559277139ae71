// SPDX-License-Identifier: Apache-2.0

// Package capture writes the frames of a guest's network as a pcapng stream.
//
// It owns the format and the limit on its size; where the bytes go is its
// caller's affair. The stream leaves in chunks that end between two blocks, so
// that a crash loses at most the last chunk, and all of them one after the
// other are one pcapng file.
//
// It is its own writer, not gopacket's, so that neither it nor package internet
// link a package that can open a socket, and to count what a limit left out.
package capture

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// Direction is a frame's, as the guest sees it.
type Direction uint8

const (
	Inbound  Direction = 1 // to the guest
	Outbound Direction = 2 // from the guest
)

// Options of a [Writer]. The zero value is the production default.
type Options struct {
	// MaxBytes is the most that the file may take, its last block included.
	// The default is 256 MiB.
	MaxBytes int64
	// SnapLen is the most that is kept of one frame. The default is 256 KiB,
	// the most that Wireshark reads.
	SnapLen int
	// ChunkBytes is the size at which a chunk is passed on. A chunk is larger
	// only if its one frame is. The default is 64 KiB.
	ChunkBytes int

	// Texts of the file's header, each of at most 64 KiB - 1; the empty ones
	// are left out. Interface is the guest's name of its network interface.
	Hardware, OS, Application, Comment string
	Interface                          string
}

// Stats count frames and their bytes on the network. A frame is Received, and
// then exactly one of the others.
type Stats struct {
	Received, ReceivedBytes uint64
	Stored, StoredBytes     uint64 // in the file or in the chunk that is being filled
	Cut, CutBytes           uint64 // over MaxBytes: the frame that did not fit, and all after it
	Lost, LostBytes         uint64 // the chunk could not be passed on, or the writer was closed
	FileBytes               int64  // of the file, with what is not yet passed on
}

// ErrClosed says that the writer has been closed.
var ErrClosed = errors.New("capture is closed")

// A Writer makes one pcapng file. It is safe for concurrent use; it starts no
// goroutine. Its memory is one chunk and one frame.
type Writer struct {
	out      func(chunk []byte, packets int) error
	max      int64
	snap     int
	chunkLen int

	mu      sync.Mutex
	buf     []byte // blocks not yet passed on
	pending Stats  // the frames in buf: Stored and StoredBytes
	stats   Stats
	first   time.Time
	last    time.Time
	err     error // the first of out, or ErrClosed
}

// NewWriter returns a writer that passes its chunks to out, with the number of
// packets in each. out may keep the chunk. It is called by one goroutine at a
// time, while the writer waits; it must not call the writer. After out's first
// error it is not called again.
func NewWriter(o Options, out func(chunk []byte, packets int) error) (*Writer, error) {
	w := &Writer{out: out, max: o.MaxBytes, snap: o.SnapLen, chunkLen: o.ChunkBytes}
	if w.max == 0 {
		w.max = 256 << 20
	}
	if w.snap == 0 {
		w.snap = 256 << 10
	}
	if w.chunkLen == 0 {
		w.chunkLen = 64 << 10
	}
	for _, text := range []string{o.Hardware, o.OS, o.Application, o.Comment, o.Interface} {
		if len(text) > maxOption {
			return nil, fmt.Errorf("start capture: header text of %d bytes, more than %d", len(text), maxOption)
		}
	}
	w.buf = appendInterface(appendSection(nil, o), o, w.snap)
	w.stats.FileBytes = int64(len(w.buf))
	if w.snap < 0 || w.chunkLen < 0 || w.max < w.stats.FileBytes+statisticsLen {
		return nil, fmt.Errorf("start capture: limits of %d bytes, %d of a frame and %d of a chunk leave no room", w.max, w.snap, w.chunkLen)
	}
	return w, nil
}

// Packet adds a frame that was length bytes long on the network, of which
// frame is the beginning or all. It keeps no reference to frame. It may block
// as long as out does. What becomes of the frame is in [Writer.Stats], and an
// error of out comes from Flush and Close.
func (w *Writer) Packet(dir Direction, t time.Time, frame []byte, length int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := uint64(length)
	w.stats.Received++
	w.stats.ReceivedBytes += n
	if w.first.IsZero() {
		w.first = t
	}
	w.last = t
	frame = frame[:min(len(frame), w.snap)]
	size := packetLen(len(frame))
	switch {
	case w.err != nil:
		w.lose(1, n)
		return
	case w.stats.Cut > 0 || w.stats.FileBytes+int64(size)+statisticsLen > w.max:
		w.stats.Cut++
		w.stats.CutBytes += n
		return
	}
	if len(w.buf)+size > w.chunkLen && w.flush() != nil {
		w.lose(1, n)
		return
	}
	if w.buf == nil {
		w.buf = make([]byte, 0, min(w.chunkLen, 64<<10))
	}
	w.buf = appendPacket(w.buf, dir, t, frame, length)
	w.stats.FileBytes += int64(size)
	w.stats.Stored++
	w.stats.StoredBytes += n
	w.pending.Stored++
	w.pending.StoredBytes += n
	if len(w.buf) >= w.chunkLen {
		w.flush()
	}
}

// Flush passes on what has been gathered. It returns the first error of out.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.flush()
}

// Close ends the file with the interface's statistics and passes on the rest.
// It returns the first error of out. Frames that come later are lost, and a
// second Close returns [ErrClosed].
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		before := len(w.buf)
		w.buf = appendStatistics(w.buf, w.first, w.last, w.stats)
		w.stats.FileBytes += int64(len(w.buf) - before)
	}
	err := w.flush()
	if w.err == nil {
		w.err = ErrClosed
	}
	return err
}

// Stats returns the counts so far.
func (w *Writer) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

// flush is called with mu held.
func (w *Writer) flush() error {
	if w.err != nil || len(w.buf) == 0 {
		return w.err
	}
	chunk, p := w.buf, w.pending
	w.buf, w.pending = nil, Stats{}
	if err := w.out(chunk, int(p.Stored)); err != nil {
		w.err = fmt.Errorf("pass on captured frames: %w", err)
		w.stats.Stored -= p.Stored
		w.stats.StoredBytes -= p.StoredBytes
		w.stats.FileBytes -= int64(len(chunk))
		w.lose(p.Stored, p.StoredBytes)
	}
	return w.err
}

func (w *Writer) lose(packets, bytes uint64) {
	w.stats.Lost += packets
	w.stats.LostBytes += bytes
}
