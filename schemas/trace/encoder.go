// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"

	"github.com/petri-sandbox/petri/schemas/sysno"
)

// An Encoder packs records into blocks. It is for one goroutine.
type Encoder struct {
	machine sysno.ABI
	order   Order
	who     func(tid uint32) Identity
	emit    func(block []byte) error
	buf     []byte
	h       Header            // of the block that is being packed
	block   uint64            // its number, from 1
	seen    map[uint32]uint64 // the newest block that says who a thread is
	last    uint32            // thread of the block's last record

	// Counters, if set, is asked for the totals in the header of every block.
	Counters func() (produced, lost, unreadable uint64)
}

// NewEncoder returns an Encoder of a guest's trace. It asks who a thread is when
// the thread's first record of a block comes (a record of tid 0 is no
// thread's), and hands every full block to emit, for the time of the call only:
// emit must copy what it keeps.
func NewEncoder(machine sysno.ABI, order Order, who func(tid uint32) Identity, emit func(block []byte) error) *Encoder {
	return &Encoder{
		machine: machine, order: order, who: who, emit: emit,
		buf: make([]byte, HeaderLen, MaxBlock), h: Header{Order: order, Machine: machine},
		block: 1, seen: map[uint32]uint64{},
	}
}

// Records is the number of records so far.
func (e *Encoder) Records() uint64 { return e.h.First + uint64(e.h.Count) }

const (
	taskLen = RecordLen + 4*8
	// maxOne leaves room in a block for the identity of a record's thread.
	maxOne = MaxRecord - taskLen
	// maxSeen bounds what is remembered of threads; beyond it their identity
	// is written again.
	maxSeen = 1 << 14
)

// Add packs a record. Records of type [Task] are the Encoder's own business, see
// [NewEncoder]. If a block was full and emit failed, Add returns its error.
func (e *Encoder) Add(r *Record) error {
	n := r.size()
	if n > maxOne || len(r.Attachments) > MaxAttach {
		return fmt.Errorf("encode record: %d bytes and %d attachments are too much", n, len(r.Attachments))
	}
	err := e.begin(r.TID, n)
	e.buf = r.Append(e.buf, e.order)
	return err
}

// AddRaw packs as many records as b holds, all of one thread, which are already
// encoded, such as the tracer's BPF programs do it. None of them is looked at.
func (e *Encoder) AddRaw(b []byte, tid uint32, records int) error {
	if len(b) < RecordLen || len(b) > maxOne || len(b)%recordUnit != 0 {
		return fmt.Errorf("encode record: %d bytes are none", len(b))
	}
	err := e.begin(tid, len(b))
	e.h.Count += uint32(records) - 1
	e.buf = append(e.buf, b...)
	return err
}

// begin makes room for a record of n bytes, and says who its thread is if the
// block does not yet.
func (e *Encoder) begin(tid uint32, n int) (err error) {
	if len(e.buf)+n+taskLen > MaxBlock {
		err = e.Flush()
	}
	if tid != e.last && tid != 0 {
		if e.seen[tid] != e.block {
			if len(e.seen) >= maxSeen {
				clear(e.seen)
			}
			e.seen[tid] = e.block
			e.buf = TaskRecord(e.machine, tid, e.who(tid)).Append(e.buf, e.order)
		}
		e.last = tid
	}
	e.h.Count++
	return err
}

// Forget says that a thread has ended: its number may come again for another.
func (e *Encoder) Forget(tid uint32) {
	delete(e.seen, tid)
	e.last = 0
}

// Flush emits what is packed, if anything.
func (e *Encoder) Flush() error {
	if e.h.Count == 0 {
		return nil
	}
	e.h.Length = uint32(len(e.buf) - HeaderLen)
	if e.Counters != nil {
		e.h.Produced, e.h.Lost, e.h.Unreadable = e.Counters()
	}
	e.h.Append(e.buf[:0])
	err := e.emit(e.buf)
	e.h.First += uint64(e.h.Count)
	e.h.Count = 0
	e.buf = e.buf[:HeaderLen]
	e.block++
	e.last = 0
	return err
}
