// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package tracer records the system calls of the sample's processes by BPF
// programs in the guest's kernel (bpf/), and hands them over in the format of
// package trace.
//
// Nothing is attached to the sample itself, so that it cannot see the tracer by
// looking at its own state: TracerPid stays 0. Who is recorded is decided in the
// kernel: [Tracer.Arm] marks a thread of guestd, its children are armed, and an
// armed process is recorded from its first exec on, with all of its
// descendants. What guestd's own fork does before that exec is not.
//
// The tracer neither interprets nor filters: package sysno says what to capture
// of a call, the host what it means.
package tracer

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

//go:generate clang-14 -O2 -g -mcpu=v3 -target bpfel -fdebug-compilation-dir=. -Wall -Werror -Wno-unused-function -c bpf/tracer.bpf.c -o tracer_bpfel64.o
//go:generate llvm-strip-14 -g tracer_bpfel64.o
//go:generate clang-14 -O2 -g -mcpu=v3 -target bpfel -DFLAT -fdebug-compilation-dir=. -Wall -Werror -Wno-unused-function -c bpf/tracer.bpf.c -o flat_bpfel64.o
//go:generate llvm-strip-14 -g flat_bpfel64.o
//go:generate clang-14 -O2 -g -mcpu=v3 -target bpfel -fdebug-compilation-dir=. -Wall -Werror -Wno-unused-function -c bpf/calibrate.bpf.c -o calibrate_bpfel64.o
//go:generate llvm-strip-14 -g calibrate_bpfel64.o
//go:generate clang-14 -O2 -g -mcpu=v3 -target bpfel -DLONG32 -fdebug-compilation-dir=. -Wall -Werror -Wno-unused-function -c bpf/tracer.bpf.c -o tracer_bpfel32.o
//go:generate llvm-strip-14 -g tracer_bpfel32.o
//go:generate clang-14 -O2 -g -mcpu=v3 -target bpfel -DLONG32 -DFLAT -fdebug-compilation-dir=. -Wall -Werror -Wno-unused-function -c bpf/tracer.bpf.c -o flat_bpfel32.o
//go:generate llvm-strip-14 -g flat_bpfel32.o
//go:generate clang-14 -O2 -g -mcpu=v3 -target bpfel -DLONG32 -fdebug-compilation-dir=. -Wall -Werror -Wno-unused-function -c bpf/calibrate.bpf.c -o calibrate_bpfel32.o
//go:generate llvm-strip-14 -g calibrate_bpfel32.o
//go:generate clang-14 -O2 -g -mcpu=v3 -target bpfeb -fdebug-compilation-dir=. -Wall -Werror -Wno-unused-function -c bpf/tracer.bpf.c -o tracer_bpfeb64.o
//go:generate llvm-strip-14 -g tracer_bpfeb64.o
//go:generate clang-14 -O2 -g -mcpu=v3 -target bpfeb -DFLAT -fdebug-compilation-dir=. -Wall -Werror -Wno-unused-function -c bpf/tracer.bpf.c -o flat_bpfeb64.o
//go:generate llvm-strip-14 -g flat_bpfeb64.o
//go:generate clang-14 -O2 -g -mcpu=v3 -target bpfeb -fdebug-compilation-dir=. -Wall -Werror -Wno-unused-function -c bpf/calibrate.bpf.c -o calibrate_bpfeb64.o
//go:generate llvm-strip-14 -g calibrate_bpfeb64.o
//go:generate clang-14 -O2 -g -mcpu=v3 -target bpfeb -DLONG32 -fdebug-compilation-dir=. -Wall -Werror -Wno-unused-function -c bpf/tracer.bpf.c -o tracer_bpfeb32.o
//go:generate llvm-strip-14 -g tracer_bpfeb32.o
//go:generate clang-14 -O2 -g -mcpu=v3 -target bpfeb -DLONG32 -DFLAT -fdebug-compilation-dir=. -Wall -Werror -Wno-unused-function -c bpf/tracer.bpf.c -o flat_bpfeb32.o
//go:generate llvm-strip-14 -g flat_bpfeb32.o
//go:generate clang-14 -O2 -g -mcpu=v3 -target bpfeb -DLONG32 -fdebug-compilation-dir=. -Wall -Werror -Wno-unused-function -c bpf/calibrate.bpf.c -o calibrate_bpfeb32.o
//go:generate llvm-strip-14 -g calibrate_bpfeb32.o

// ErrOffsets says that the configuration does not fit: it is none, or that of
// another kernel.
var ErrOffsets = errors.New("unusable kernel offsets")

// DefaultRing is the size of the ring between kernel and guestd.
const DefaultRing = 8 << 20

// Config says how to trace.
type Config struct {
	// Offsets is what sandboxd/image.KernelOffsets made of the kernel that runs.
	// Without them Load finds out what it can where things are, for which it
	// starts this program again: main must call [Calibrating] first.
	Offsets []byte
	// Ring is the ring's size in bytes, a power of two; 0 is [DefaultRing].
	Ring int
	// NoHelpers leaves out programs that the kernel itself starts, such as that
	// of core_pattern. Otherwise they are recorded once anything is.
	NoHelpers bool
}

// A Tracer is loaded and attached. Its methods may be called by several
// goroutines at once.
type Tracer struct {
	coll  *ebpf.Collection
	links []link.Link
	ring  *ring
	ctl   *control
	slots *slots
	abi   sysno.ABI
	// interpreted is why the kernel does not compile the programs though it could.
	interpreted error

	// lock holds one token: whoever has it owns the ring's reader and encoder.
	lock    chan struct{}
	enc     *trace.Encoder // nil while nobody runs
	threads threads
	made    atomic.Uint64 // records that guestd itself has added
	// recovered is how much guestd has read that the BPF programs could not.
	recovered atomic.Uint64
}

// Load loads the BPF programs and attaches them. From then on every system call
// of the guest pays for looking whether it is to be recorded; nothing is until
// [Tracer.Arm]. The caller closes the Tracer.
func Load(cfg Config) (*Tracer, error) {
	o, err := offsetsFor(cfg)
	if err != nil {
		return nil, err
	}
	t := &Tracer{lock: make(chan struct{}, 1), threads: threads{}}
	t.lock <- struct{}{}
	if flatObject != nil {
		t.interpreted = compiling(jitEnable, func() error {
			if err := t.load(flatObject, o, cfg); err != nil {
				return err
			}
			return compiled(t.coll.Programs["sys_enter"])
		})
	}
	if t.coll == nil {
		if err := t.load(tracerObject, o, cfg); err != nil {
			return nil, err
		}
	}
	err = t.attach()
	if err == nil {
		// Before the first run of one the library tries with a program of its own
		// whether the kernel can do that: a warm guest has it behind it.
		err = t.unstage()
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// load loads the programs of an object.
func (t *Tracer) load(object []byte, o *offsets, cfg Config) error {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return fmt.Errorf("parse BPF object: %w", err)
	}
	abi, err := configure(spec, o, cfg)
	if err != nil {
		return err
	}
	dropTypes(spec)
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return fmt.Errorf("load BPF programs: %w", err)
	}
	t.coll, t.abi = coll, abi
	return nil
}

// jitEnable is the switch of the kernel's compiler of BPF programs.
const jitEnable = "/proc/sys/net/core/bpf_jit_enable"

// compiling calls f while the kernel compiles what is loaded. Afterwards its switch
// is as it was: the sample might look. A kernel that has none compiles always or
// never.
func compiling(jitEnable string, f func() error) error {
	was, err := os.ReadFile(jitEnable)
	if err != nil {
		return f()
	}
	if err := os.WriteFile(jitEnable, []byte("1"), 0); err != nil {
		return err
	}
	return errors.Join(f(), os.WriteFile(jitEnable, was, 0))
}

// compiled says that a program is interpreted, if it is: a kernel whose compiler
// refuses one does not say so.
func compiled(p *ebpf.Program) error {
	info, err := p.Info()
	if err != nil {
		return fmt.Errorf("ask for BPF program: %w", err)
	}
	if _, err := info.JitedSize(); err != nil {
		return fmt.Errorf("the kernel interprets the BPF programs: %w", err)
	}
	return nil
}

// Interpreted is why the kernel interprets the programs, which is many times
// slower, although it might compile them; or nil.
func (t *Tracer) Interpreted() error { return t.interpreted }

// dropTypes removes what only people would read: the types of maps and the
// programs' lines. The kernel checks all of it, at a third of the whole time.
func dropTypes(spec *ebpf.CollectionSpec) {
	for _, m := range spec.Maps {
		m.Key, m.Value = nil, nil
	}
	for _, p := range spec.Programs {
		for i := range p.Instructions {
			p.Instructions[i] = p.Instructions[i].WithSource(nil)
		}
	}
}

func (t *Tracer) attach() (err error) {
	if t.ring, err = newRing(t.coll.Maps["ring"]); err != nil {
		return err
	}
	if t.ctl, err = newControl(t.coll.Maps[".data.ctl"]); err != nil {
		return err
	}
	if t.slots, err = newSlots(t.coll.Maps["slots"], t.ctl); err != nil {
		return err
	}
	// The life of processes first: nobody is tracked before it is followed.
	for _, p := range []struct{ tracepoint, program string }{
		{"sched_process_fork", "process_fork"},
		{"task_newtask", "new_task"},
		{"sched_process_exec", "process_exec"},
		{"sched_process_exit", "process_exit"},
		{"sys_exit", "sys_exit"},
		{"sys_enter", "sys_enter"},
	} {
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: p.tracepoint, Program: t.coll.Programs[p.program]})
		if err != nil {
			return fmt.Errorf("attach to tracepoint %s: %w", p.tracepoint, err)
		}
		t.links = append(t.links, l)
	}
	return nil
}

// Arm says that processes forked by that thread of guestd, which must stay
// locked to its goroutine, are to be recorded from their first exec on. Up to
// eight threads can be armed.
func (t *Tracer) Arm(tid int) error { return t.ctl.arm(uint32(tid)) }

// ArmProcess says that a process, which has one thread, is to be recorded from its
// next exec on, and so are those that it forks.
func (t *Tracer) ArmProcess(pid int) error {
	if err := t.coll.Maps["armed"].Put(uint32(pid), uint32(1)); err != nil {
		return fmt.Errorf("arm process %d: %w", pid, err)
	}
	return t.Arm(pid)
}

// Disarm takes Arm back for processes that are forked from then on.
func (t *Tracer) Disarm(tid int) { t.ctl.disarm(uint32(tid)) }

// Close detaches and unloads everything. Run must have returned.
func (t *Tracer) Close() error {
	var errs []error
	for _, l := range t.links {
		errs = append(errs, l.Close())
	}
	if t.ring != nil {
		errs = append(errs, t.ring.close())
	}
	if t.slots != nil {
		errs = append(errs, t.slots.close())
	}
	if t.ctl != nil {
		errs = append(errs, t.ctl.close())
	}
	t.coll.Close()
	return errors.Join(errs...)
}

// CPUStats are the counters of one CPU since the Tracer was loaded.
type CPUStats struct {
	CPU        int
	Produced   uint64 // records, with those lost
	Lost       uint64 // records that found no room in the ring
	Unreadable uint64 // attachments that the kernel may have read, and we not
	Untracked  uint64 // tasks that could not be recorded for lack of memory
}

// Stats returns the counters of every CPU that has made a record, and of the
// first one in any case. Records that guestd itself adds count as the first
// CPU's.
func (t *Tracer) Stats() []CPUStats {
	all := t.ctl.stats()
	all[0].Produced += t.made.Load()
	left := t.recovered.Load()
	for i := range all {
		n := min(left, all[i].Unreadable)
		all[i].Unreadable -= n
		left -= n
	}
	out := all[:1]
	for _, s := range all[1:] {
		if s.Produced+s.Untracked > 0 {
			out = append(out, s)
		}
	}
	return out
}

func (t *Tracer) totals() (produced, lost, unreadable uint64) {
	for _, s := range t.ctl.stats() {
		produced += s.Produced
		lost += s.Lost
		unreadable += s.Unreadable
	}
	return produced + t.made.Load(), lost, unreadable - min(unreadable, t.recovered.Load())
}

// pageSize is the kernel's.
var pageSize = os.Getpagesize()
