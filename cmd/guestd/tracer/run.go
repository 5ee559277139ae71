// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tracer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"github.com/petri-sandbox/petri/cmd/guestd/procfs"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// ErrNotRunning says that a Flush found no Run to hand its records to.
var ErrNotRunning = errors.New("tracer is not running")

const (
	// tick is how old a record may become before it leaves the guest.
	tick = 20 * time.Millisecond
	// drowsy is how many ticks without a record make the reader sleep.
	drowsy = 10
	// nap bounds that sleep: a record that came just when the reader fell asleep
	// waits for the next one, or as long.
	nap = 500 * time.Millisecond
)

// Run hands the trace to emit, in blocks of package trace, until ctx ends; then
// it returns nil after what the ring held until then. An error of emit ends it.
//
// Blocks come at most 20 ms after their first record, or sooner if there is
// much. While nothing happens Run sleeps. While emit blocks nothing is read;
// the ring fills, and what finds no room is counted as lost. A block is emit's
// for the time of the call only. Only one Run may be active.
func (t *Tracer) Run(ctx context.Context, emit func(block []byte) error) error {
	if err := t.begin(emit); err != nil {
		return err
	}
	defer t.end()
	stop := context.AfterFunc(ctx, t.ring.interrupt)
	defer stop()
	for quiet := 0; ; {
		if ctx.Err() != nil {
			return t.owning(context.Background(), func() error { _, err := t.drain(); return err })
		}
		limit := tick
		if quiet >= drowsy {
			limit = nap
			t.ctl.sleep(true)
		}
		if quiet < drowsy || t.ring.empty() {
			if err := t.ring.wait(limit); err != nil {
				return fmt.Errorf("wait for trace: %w", err)
			}
		}
		t.ctl.sleep(false)
		quiet++
		err := t.owning(context.Background(), func() error {
			some, err := t.drain()
			if some {
				quiet = 0
			}
			return err
		})
		if err != nil {
			return err
		}
	}
}

// Flush brings everything out that there is: what the ring holds, calls that
// have begun and not returned, as records that say so, and the counters of each
// CPU. It returns when emit of the active Run has taken it all; emit is never
// called twice at once. ctx bounds only the wait for the last emit to return.
func (t *Tracer) Flush(ctx context.Context) error {
	return t.owning(ctx, func() error {
		if t.enc == nil {
			return ErrNotRunning
		}
		if _, err := t.drain(); err != nil {
			return err
		}
		if err := t.flushCalls(); err != nil {
			return err
		}
		// Calls that ended in between are in the ring again.
		if _, err := t.drain(); err != nil {
			return err
		}
		for _, s := range t.Stats() {
			if err := t.add(t.statsRecord(s)); err != nil {
				return err
			}
		}
		return t.enc.Flush()
	})
}

func (t *Tracer) begin(emit func([]byte) error) error {
	return t.owning(context.Background(), func() error {
		if t.enc != nil {
			return errors.New("run tracer: it runs already")
		}
		t.enc = trace.NewEncoder(t.abi, nativeOrder(), t.who, emit)
		t.enc.Counters = t.totals
		return nil
	})
}

func (t *Tracer) end() {
	_ = t.owning(context.Background(), func() error { t.enc = nil; return nil })
}

// owning calls f while no other goroutine reads or encodes.
func (t *Tracer) owning(ctx context.Context, f func() error) error {
	select {
	case <-t.lock:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { t.lock <- struct{}{} }()
	return f()
}

// drain packs what the BPF programs have recorded, and emits it.
func (t *Tracer) drain() (some bool, err error) {
	if err := t.unstage(); err != nil {
		return false, err
	}
	err = t.ring.read(func(b []byte) error {
		some = true
		return t.take(b)
	})
	return some, errors.Join(err, t.enc.Flush())
}

// unstage has the BPF programs put into the ring what they hold back.
func (t *Tracer) unstage() error {
	if _, err := t.coll.Programs["flush"].Run(&ebpf.RunOptions{}); err != nil {
		return fmt.Errorf("flush BPF programs: %w", err)
	}
	return nil
}

// take packs the records in b, as many as there are. Successive calls of one
// thread, which most are, it packs at once.
func (t *Tracer) take(b []byte) error {
	for len(b) > 0 {
		if len(b) < trace.RecordLen {
			return fmt.Errorf("read BPF ring: record of %d bytes", len(b))
		}
		n, records, tid := int(binary.NativeEndian.Uint16(b)), 1, b[8:12]
		for n > 0 && n+trace.RecordLen <= len(b) && n < maxRun {
			next := b[n:]
			if next[2] != byte(trace.Syscall) || b[2] != byte(trace.Syscall) || string(next[8:12]) != string(tid) {
				break
			}
			n += int(binary.NativeEndian.Uint16(next))
			records++
		}
		if n < trace.RecordLen || n > len(b) {
			return fmt.Errorf("read BPF ring: record of %d bytes in %d", n, len(b))
		}
		if err := t.pack(b[:n], records); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// maxRun bounds records that are packed at once, so that blocks become full.
const maxRun = 2 << 10

func (t *Tracer) pack(b []byte, records int) error {
	tid := binary.NativeEndian.Uint32(b[8:])
	switch trace.Type(b[2]) {
	case trace.Task:
		t.threads.add(tid, b)
		t.enc.Forget(tid)
		return nil
	case trace.Exec:
		if r := t.complete(b); r != nil {
			return t.enc.Add(r)
		}
	case trace.Exit:
		err := t.enc.AddRaw(b, tid, records)
		t.threads.remove(tid)
		t.enc.Forget(tid)
		return err
	}
	return t.enc.AddRaw(b, tid, records)
}

// complete returns the record of an execution with what the BPF programs could
// not read of the new program's memory, or nil if it lacks nothing that is to be
// had. On 32-bit ARM they can read none that the program has not touched itself.
func (t *Tracer) complete(b []byte) *trace.Record {
	var r trace.Record
	if _, err := r.Decode(b, nativeOrder()); err != nil {
		return nil
	}
	recovered := false
	for i := range r.Attachments {
		a := &r.Attachments[i]
		if a.Flags&trace.Unreadable == 0 {
			continue
		}
		name, limit := "cmdline", procfs.MaxArgv
		if a.Kind == trace.Env {
			name, limit = "environ", procfs.MaxEnv
		}
		data := procfs.Read(r.TID, name, int64(limit)+1)
		if len(data) == 0 {
			continue
		}
		// The program may have changed it since.
		a.Data, a.Flags = data[:min(len(data), limit)], trace.AtExit
		if len(data) > limit {
			a.Flags |= trace.Truncated
		}
		t.recovered.Add(1)
		recovered = true
	}
	if !recovered {
		return nil
	}
	return &r
}

func (t *Tracer) add(r *trace.Record) error {
	t.made.Add(1)
	return t.enc.Add(r)
}

func (t *Tracer) statsRecord(s CPUStats) *trace.Record {
	now := bootTime()
	return &trace.Record{
		Type: trace.Stats, ABI: t.abi, Begin: now, End: now,
		N: 5, Args: [6]uint64{uint64(s.CPU), s.Produced, s.Lost, s.Unreadable, s.Untracked},
	}
}

func nativeOrder() trace.Order {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return trace.LittleEndian
	}
	return trace.BigEndian
}
