// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bufio"
	"bytes"
	"io"
)

// Totals is what a [Reader] has seen so far.
type Totals struct {
	Blocks     uint64
	Records    uint64 // decoded
	Bad        uint64 // records that could not be decoded
	Skipped    uint64 // bytes that belong to no block
	Missing    uint64 // records that lie between blocks by their numbers
	Produced   uint64 // by the newest header
	Lost       uint64 // by the newest header
	Unreadable uint64 // by the newest header
}

// A Reader decodes a trace from a stream, in constant memory. It is for one
// goroutine.
type Reader struct {
	r      *bufio.Reader
	block  [MaxBlock]byte
	rest   []byte              // of the block's records
	left   uint32              // records of the block that have not been decoded
	who    map[uint32]Identity // of the block's threads
	h      Header
	next   uint64 // number of the next record
	rec    Record
	totals Totals
}

// NewReader returns a Reader of r, which it reads ahead.
func NewReader(r io.Reader) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, 2*MaxBlock), who: map[uint32]Identity{}}
}

// Next decodes the next record. It is the Reader's own until the next call,
// with its attachments. At the end the error is [io.EOF]; other errors are the
// stream's own. Bytes that are no trace are no error: see [Reader.Totals].
func (r *Reader) Next() (*Record, error) {
	for {
		for len(r.rest) == 0 {
			r.endBlock()
			if err := r.nextBlock(); err != nil {
				return nil, err
			}
		}
		n, err := r.rec.Decode(r.rest, r.h.Order)
		if err != nil {
			if r.left == 0 {
				r.totals.Bad++
			}
			r.rest = nil
			continue
		}
		r.rest = r.rest[n:]
		if r.rec.Type == Task {
			r.who[r.rec.TID] = r.rec.Identity()
			continue
		}
		if r.left == 0 { // more records than the header says
			r.totals.Bad++
			r.rest = nil
			continue
		}
		r.rec.Number = r.next
		r.rec.Who = r.who[r.rec.TID]
		r.next++
		r.left--
		r.totals.Records++
		return &r.rec, nil
	}
}

// endBlock counts the records that the block's header promised and that were
// not there.
func (r *Reader) endBlock() {
	r.totals.Bad += uint64(r.left)
	r.next += uint64(r.left)
	r.left = 0
}

// Header is that of the last record's block.
func (r *Reader) Header() Header { return r.h }

// Totals counts what was read so far.
func (r *Reader) Totals() Totals { return r.totals }

func (r *Reader) nextBlock() error {
	for {
		b, err := r.r.Peek(HeaderLen)
		if err != nil {
			if err == io.EOF {
				r.totals.Skipped += uint64(len(b))
				r.discard(len(b))
			}
			return err
		}
		h, err := ParseHeader(b)
		if err == nil {
			return r.take(h)
		}
		if err := r.resync(); err != nil {
			return err
		}
	}
}

// resync drops bytes up to what may be the next header.
func (r *Reader) resync() error {
	b, err := r.r.Peek(r.r.Size())
	if len(b) == 0 {
		return err
	}
	n := len(b) // keep what may be the beginning of the magic
	if i := bytes.Index(b[1:], []byte(magic)); i >= 0 {
		n = i + 1
	} else if err == nil {
		n -= len(magic) - 1
	}
	r.totals.Skipped += uint64(n)
	r.discard(n)
	return nil
}

// take reads a block's records. Of a block that the stream cuts, what is there
// counts.
func (r *Reader) take(h Header) error {
	r.discard(HeaderLen)
	n, err := io.ReadFull(r.r, r.block[:h.Length])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return err
	}
	if r.totals.Blocks > 0 && h.First > r.next {
		r.totals.Missing += h.First - r.next
	}
	r.h, r.rest, r.left, r.next = h, r.block[:n], h.Count, h.First
	clear(r.who)
	r.totals.Blocks++
	r.totals.Produced, r.totals.Lost, r.totals.Unreadable = h.Produced, h.Lost, h.Unreadable
	return nil
}

func (r *Reader) discard(n int) { _, _ = r.r.Discard(n) } // of bytes that were peeked at
