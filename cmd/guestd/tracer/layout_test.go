// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tracer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// TestLayout compares what both sides believe of their common structures: the
// object knows bpf/record.h.
func TestLayout(t *testing.T) {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(tracerObject))
	if err != nil {
		t.Fatal(err)
	}
	members := func(name string) (map[string]int, int) {
		var s *btf.Struct
		if err := spec.Types.TypeByName(name, &s); err != nil {
			t.Fatalf("struct %s: %v", name, err)
		}
		at := map[string]int{}
		for _, m := range s.Members {
			at[m.Name] = int(m.Offset.Bytes())
		}
		return at, int(s.Size)
	}
	task, _ := members("task")
	for name, want := range map[string]int{
		"length": taskLength, "in_call": taskInCall, "retry": taskRetry, "flags": taskFlags, "tgid": taskWho,
		"ns_tid": taskWho + 4, "ns_tgid": taskWho + 8, "start": taskWho + 12, "rec": taskRecord, "data": taskRecord + trace.RecordLen,
	} {
		if got, ok := task[name]; !ok || got != want {
			t.Errorf("task.%s is at %d, not %d", name, got, want)
		}
	}
	record, _ := members("record")
	for name, want := range map[string]int{
		"type": 2, "abi": 3, "flags": 4, "mux": 5, "args": 6, "attachments": 7, "tid": 8, "call": 12,
		"begin": 16, "end": 24, "result": 32, "ip": 40,
	} {
		if record[name] != want {
			t.Errorf("record.%s is at %d, not %d", name, record[name], want)
		}
	}
	for name, want := range map[string]uintptr{
		"record": trace.RecordLen, "control": unsafe.Sizeof(controlData{}), "cpu_stats": unsafe.Sizeof(cpuData{}),
		"config": unsafe.Sizeof(config{}), "spec": unsafe.Sizeof(callSpec{}), "table": unsafe.Sizeof(callTable{}),
	} {
		if _, size := members(name); size != int(want) {
			t.Errorf("struct %s has %d bytes, not %d", name, size, want)
		}
	}
}

// TestSpecs: every call of both ABIs has its place, and the tables agree with
// package sysno.
func TestSpecs(t *testing.T) {
	tables := makeSpecs(sysno.AMD64, sysno.I386)
	if end := int(tables.muxBase) + sysno.Socketcalls; end >= maxSpecs {
		t.Fatalf("%d specs, there is room for %d", end, maxSpecs)
	}
	at := func(table callTable, abi sysno.ABI, name string) callSpec {
		n, ok := abi.Number(name)
		if !ok || n < uint64(table.First) || n >= uint64(table.First+table.Count) {
			t.Fatalf("%s of %s: %d is not in %+v", name, abi, n, table)
		}
		return tables.specs[table.Base+uint32(n)-table.First]
	}
	for name, want := range map[string]callSpec{
		"getppid": {},
		"openat":  {Args: 4, In: 1 << 1, Kind: [6]uint8{1: uint8(sysno.CaptureString)}},
		"read":    {Args: 3, Out: 1 << 1, Kind: [6]uint8{1: uint8(sysno.CaptureOut)}, Param: [6]uint8{1: 2}},
		"execve": {
			Flags: specEntry | specExec, Args: 3, In: 3,
			Kind: [6]uint8{uint8(sysno.CaptureString), uint8(sysno.CaptureArgv)},
		},
	} {
		if got := at(tables.native, sysno.AMD64, name); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	if s := at(tables.compat, sysno.I386, "socketcall"); s.Flags&specMux == 0 {
		t.Errorf("socketcall: %+v", s)
	}
	const connect = 3
	if s := tables.specs[tables.muxBase+connect]; s.In != 1<<1 || s.Kind[1] != uint8(sysno.CaptureSockaddr) || s.Flags&specEntry == 0 {
		t.Errorf("connect by socketcall: %+v", s)
	}
}

func TestOffsetsAreRefused(t *testing.T) {
	for name, in := range map[string]string{
		"no_json":       "offsets",
		"other_schema":  `{"schema":"petri.offsets.v2"}`,
		"other_machine": `{"schema":"petri.offsets.v1","machine":"vax"}`,
		"no_fields":     `{"schema":"petri.offsets.v1","machine":"amd64"}`,
		"huge_field":    `{"schema":"petri.offsets.v1","machine":"amd64","fields":{"task_struct.pid":4294967295}}`,
	} {
		if _, err := Load(Config{Offsets: []byte(in)}); !errors.Is(err, ErrOffsets) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzOpenCall: a task's state is copied while it changes, so that it may be
// anything.
func FuzzOpenCall(f *testing.F) {
	r := trace.Record{Type: trace.Syscall, ABI: sysno.AMD64, TID: 5, Call: 257, N: 4, Attachments: []trace.Attachment{{Arg: 1, Kind: trace.String, Data: []byte("/tmp/x")}}}
	task := make([]byte, taskRecord, 512)
	task = r.Append(task, nativeOrder())
	binary.NativeEndian.PutUint32(task[taskLength:], uint32(len(task)-taskRecord-trace.RecordLen))
	binary.NativeEndian.PutUint32(task[taskInCall:], inCall)
	f.Add(task)
	f.Fuzz(func(t *testing.T, task []byte) {
		r, ok := openCall(task)
		if !ok {
			return
		}
		if r.Finished() || r.End != 0 || r.Result != 0 {
			t.Errorf("a call under way that has ended: %+v", r)
		}
		var again trace.Record
		if _, err := again.Decode(r.Append(nil, nativeOrder()), nativeOrder()); err != nil {
			t.Errorf("%+v cannot be read: %v", r, err)
		}
	})
}

// TestRegisters: what is needed of struct pt_regs has room on every CPU.
func TestRegisters(t *testing.T) {
	const room = 304 // REGS of bpf/record.h
	for name, cpu := range cpus {
		if n := cpu.regs.size(); n > room || n < 24 {
			t.Errorf("%s: %d bytes of struct pt_regs, there is room for %d", name, n, room)
		}
		if !cpu.native.Valid() {
			t.Errorf("%s has no ABI", name)
		}
	}
}
