// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tracer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/schemas/trace"
)

// Where struct task of bpf/record.h holds what.
const (
	taskLength = 0
	taskInCall = 4
	taskRetry  = 8
	taskFlags  = 20
	taskWho    = 28
	taskRecord = 48
	taskTID    = taskRecord + 8

	inCall = 1      // begun, and no record has said so
	wild   = 1 << 8 // in taskRetry, shifted by the argument: nothing was mapped there
)

// slots is where the BPF programs keep the state of most tasks.
type slots struct {
	mem  []byte
	size int
	ctl  *control
}

func newSlots(m *ebpf.Map, ctl *control) (*slots, error) {
	if m == nil {
		return nil, errors.New("map BPF slots: the object has none")
	}
	size := (int(m.ValueSize()) + 7) &^ 7
	n := (size*int(m.MaxEntries()) + pageSize - 1) &^ (pageSize - 1)
	mem, err := unix.Mmap(m.FD(), 0, n, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map BPF slots: %w", err)
	}
	return &slots{mem: mem, size: size, ctl: ctl}, nil
}

func (s *slots) close() error { return unix.Munmap(s.mem) }

// at returns the memory of slot i, which changes while it is looked at.
func (s *slots) at(i int) []byte { return s.mem[i*s.size : (i+1)*s.size] }

// used is how many slots were ever in use.
func (s *slots) used() int { return min(s.ctl.slots(), len(s.mem)/s.size) }

// flushCalls adds a record for every call that has begun and not returned,
// unless there is one of its beginning.
func (t *Tracer) flushCalls() error {
	buf := make([]byte, t.slots.size)
	for i := range t.slots.used() {
		live := t.slots.at(i)
		copy(buf, live)
		if err := t.flushCall(buf, func() []byte { return live }); err != nil {
			return err
		}
	}
	var tid uint32
	hashed := t.coll.Maps["tasks"]
	it := hashed.Iterate()
	for it.Next(&tid, &buf) {
		err := t.flushCall(buf, func() (now []byte) { _ = hashed.Lookup(&tid, &now); return now })
		if err != nil {
			return err
		}
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("look for unfinished calls: %w", err)
	}
	return nil
}

// flushCall adds a record of a task's call, of which task is a copy. It may have
// been taken while the call began or returned, so now is looked at too.
func (t *Tracer) flushCall(task []byte, now func() []byte) error {
	r, ok := openCall(task)
	if !ok {
		return nil
	}
	const from, to = taskRecord + 16, taskRecord + 24 // when it began
	if b := now(); len(b) < to || binary.NativeEndian.Uint32(b[taskInCall:]) != inCall || !bytes.Equal(b[from:to], task[from:to]) {
		return nil
	}
	return t.add(&r)
}

// openCall makes the record of a call that is under way in a task.
func openCall(task []byte) (trace.Record, bool) {
	u32 := func(off int) uint32 { return binary.NativeEndian.Uint32(task[off:]) }
	var r trace.Record
	if len(task) < taskRecord+trace.RecordLen || u32(taskInCall) != inCall {
		return r, false
	}
	n := trace.RecordLen + int(u32(taskLength))
	if n > len(task)-taskRecord {
		return r, false
	}
	b := task[taskRecord : taskRecord+n]
	binary.NativeEndian.PutUint16(b, uint16(n))
	if _, err := r.Decode(b, nativeOrder()); err != nil || len(r.Attachments) > trace.MaxAttach-len(r.Args) {
		return r, false
	}
	r.Flags = trace.Flags(u32(taskFlags)) | trace.Unfinished
	r.End, r.Result = 0, 0
	for i := range r.Args {
		if retry := u32(taskRetry) >> i; retry&1 != 0 && retry&wild == 0 {
			r.Attachments = append(r.Attachments, trace.Attachment{Arg: uint8(i), Kind: trace.String, Flags: trace.Unreadable})
		}
	}
	return r, true
}

// threads remembers who the recorded threads are.
type threads map[uint32]trace.Identity

// maxThreads bounds threads whose end was lost.
const maxThreads = 1 << 16

func (m threads) add(tid uint32, b []byte) {
	var r trace.Record
	if _, err := r.Decode(b, nativeOrder()); err != nil {
		return
	}
	if len(m) >= maxThreads {
		clear(m)
	}
	m[tid] = r.Identity()
}

func (m threads) remove(tid uint32) { delete(m, tid) }

// who tells the identity of a thread: as the BPF programs have said, or, if the
// ring had no room for that, as they remember it.
func (t *Tracer) who(tid uint32) trace.Identity {
	if id, ok := t.threads[tid]; ok {
		return id
	}
	task := t.stateOf(tid)
	if task == nil {
		return trace.Identity{}
	}
	u32 := func(off int) uint32 { return binary.NativeEndian.Uint32(task[off:]) }
	id := trace.Identity{
		TGID: u32(taskWho), NSTID: u32(taskWho + 4), NSPID: u32(taskWho + 8),
		Start: binary.NativeEndian.Uint64(task[taskWho+12:]),
	}
	t.threads[tid] = id
	return id
}

// stateOf returns the state that the BPF programs have of a thread, or nil.
func (t *Tracer) stateOf(tid uint32) []byte {
	for i := range t.slots.used() {
		if b := t.slots.at(i); binary.NativeEndian.Uint32(b[taskTID:]) == tid {
			return b
		}
	}
	var b []byte
	if err := t.coll.Maps["tasks"].Lookup(&tid, &b); err != nil || len(b) < taskRecord {
		return nil
	}
	return b
}

// bootTime is the clock that records carry.
func bootTime() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return uint64(ts.Nano())
}
