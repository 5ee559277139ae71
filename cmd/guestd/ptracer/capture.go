// SPDX-License-Identifier: Apache-2.0

//go:build linux

package ptracer

import (
	"bytes"
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// natives are the ABIs of kernels, by Go's names of CPUs.
var natives = map[string]sysno.ABI{
	"386": sysno.I386, "amd64": sysno.AMD64, "arm": sysno.ARM, "arm64": sysno.ARM64, "mips": sysno.MIPSO32, "mipsle": sysno.MIPSO32,
	"mips64le": sysno.MIPSN64, "ppc64": sysno.PPC64, "ppc64le": sysno.PPC64, "riscv64": sysno.RISCV64, "s390x": sysno.S390X,
}

// audited are the ABIs by the kernel's numbers of CPUs (linux/audit.h).
var audited = map[uint32]sysno.ABI{
	0xc000003e: sysno.AMD64, 0x40000003: sysno.I386, 0xc00000b7: sysno.ARM64, 0x40000028: sysno.ARM,
	0x8: sysno.MIPSO32, 0x40000008: sysno.MIPSO32, 0xc0000008: sysno.MIPSN64,
	0x14: sysno.PPC, 0x80000015: sysno.PPC64, 0xc0000015: sysno.PPC64, 0x80000016: sysno.S390X, 0xc00000f3: sysno.RISCV64,
}

func abiOf(arch uint32, call uint64) sysno.ABI {
	a := audited[arch]
	if a == sysno.AMD64 && call&sysno.X32Bit != 0 {
		return sysno.X32
	}
	return a
}

// Limits are those of package tracer's BPF programs.
const (
	maxString   = 4095
	maxBuffer   = 256
	maxSockaddr = 128
	maxVectors  = 4
	maxStrings  = 24
	maxPiece    = 1023
	maxPieces   = 3072
)

var pageSize = uint64(os.Getpagesize())

// read reads memory of the task's, as far as it goes.
func (t *task) read(addr uint64, n int) []byte {
	if n <= 0 || uint64(uintptr(addr)) != addr {
		return nil
	}
	b := make([]byte, n)
	local := unix.Iovec{Base: &b[0]}
	local.SetLen(n)
	got, err := unix.ProcessVMReadv(int(t.tid), []unix.Iovec{local}, []unix.RemoteIovec{{Base: uintptr(addr), Len: n}}, 0)
	if err != nil || got < 0 {
		return nil
	}
	return b[:got]
}

// text reads a string of at most n bytes. ok is false if its end could not be
// read.
func (t *task) text(addr uint64, n int) (s []byte, whole, ok bool) {
	for len(s) < n {
		part := int(min(pageSize-addr%pageSize, uint64(n-len(s)), 256))
		b := t.read(addr, part)
		if i := bytes.IndexByte(b, 0); i >= 0 {
			return append(s, b[:i]...), true, true
		}
		s = append(s, b...)
		if len(b) < part {
			return nil, false, false
		}
		addr += uint64(part)
	}
	return s, false, true
}

// pointer reads a pointer or long.
func (t *task) pointer(addr uint64) (uint64, bool) {
	n := t.rec.ABI.Word()
	b := t.read(addr, n)
	switch {
	case len(b) < n || n == 0:
		return 0, false
	case n == 4:
		return uint64(binary.NativeEndian.Uint32(b)), true
	}
	return binary.NativeEndian.Uint64(b), true
}

// demux replaces the arguments of a multiplexed call by those of the sub-call.
func (t *task) demux() {
	if name, _ := t.rec.ABI.Name(uint64(t.rec.Call)); name != "socketcall" || t.rec.Args[0] == 0 || t.rec.Args[0] > sysno.Socketcalls {
		return
	}
	word := uint64(t.rec.ABI.Word())
	var args [6]uint64
	for i := range args {
		v, ok := t.pointer(t.rec.Args[1] + uint64(i)*word)
		if !ok && i < 2 {
			return
		}
		args[i] = v
	}
	t.rec.Mux, t.rec.Args = uint8(t.rec.Args[0]), args
}

func (t *task) attach(arg int, kind trace.Kind, b []byte, flags trace.AttachFlags) {
	t.rec.Attachments = append(t.rec.Attachments, trace.Attachment{Arg: uint8(arg), Kind: kind, Flags: flags, Data: b})
}

func (t *task) capture() sysno.CaptureSpec {
	return sysno.CaptureOf(t.rec.ABI, uint64(t.rec.Call), t.rec.Mux)
}

func (t *task) arg(i uint8) uint64 {
	if int(i) >= len(t.rec.Args) {
		return 0
	}
	return t.rec.Args[i]
}

// captureIn reads what the kernel will read; what fails is tried again when the
// call returns.
func (t *task) captureIn() {
	s := t.capture()
	for i, kind := range s.Kind {
		if in(kind) && !t.captureOne(i, kind, s.Param[i], 0) {
			t.retry[i] = true
		}
	}
}

// in reports whether the kernel reads what is captured so.
func in(kind sysno.Capture) bool {
	switch kind {
	case sysno.CaptureNone, sysno.CaptureOut, sysno.CaptureOutStruct, sysno.CaptureOutSockaddr, sysno.CaptureOutIov, sysno.CaptureOutMsg, sysno.CaptureOutMmsg:
		return false
	}
	return true
}

// captureOne reads what argument i points to, and reports whether it could.
func (t *task) captureOne(i int, kind sysno.Capture, param uint8, flags trace.AttachFlags) bool {
	ptr := t.rec.Args[i]
	if ptr == 0 && kind != sysno.CaptureString && kind != sysno.CaptureSockaddr && kind != sysno.CaptureIn {
		return true
	}
	switch kind {
	case sysno.CapturePrctl:
		if uint32(t.rec.Args[0]) != unix.PR_SET_NAME {
			return true
		}
		fallthrough
	case sysno.CaptureString:
		s, whole, ok := t.text(ptr, maxString)
		if !ok {
			return false
		}
		if !whole {
			flags |= trace.Truncated
		}
		t.attach(i, trace.String, s, flags)
		return true
	case sysno.CaptureIn:
		return t.some(i, trace.Bytes, ptr, t.arg(param), maxBuffer, flags)
	case sysno.CaptureStruct:
		return t.some(i, trace.Struct, ptr, uint64(param), maxBuffer, flags)
	case sysno.CaptureSockaddr:
		return t.some(i, trace.Sockaddr, ptr, uint64(uint32(t.arg(param))), maxSockaddr, flags)
	case sysno.CaptureIov:
		return t.vectors(i, ptr, uint64(uint32(t.arg(param))), ^uint64(0), flags)
	case sysno.CaptureMmsg:
		if uint32(t.arg(uint8(i+1))) > 1 {
			flags |= trace.Truncated
		}
		return t.message(i, ptr, ^uint64(0), flags)
	case sysno.CaptureMsg:
		return t.message(i, ptr, ^uint64(0), flags)
	case sysno.CaptureArgv:
		return t.strings(i, ptr, flags)
	}
	return true
}

// some attaches n bytes, or limit if there are more.
func (t *task) some(i int, kind trace.Kind, ptr, n uint64, limit int, flags trace.AttachFlags) bool {
	if n > uint64(limit) {
		n = uint64(limit)
		flags |= trace.Truncated
	}
	if n == 0 {
		return true
	}
	b := t.read(ptr, int(n))
	if len(b) < int(n) {
		return false
	}
	t.attach(i, kind, b, flags)
	return true
}

// vectors attaches the first bytes of so many buffers, of total bytes in all.
func (t *task) vectors(i int, ptr, count, total uint64, flags trace.AttachFlags) bool {
	word := uint64(t.rec.ABI.Word())
	var out []byte
	seen := uint64(0)
	taken := uint64(0)
	for ; taken < min(count, maxVectors) && len(out) < maxBuffer && seen < total; taken++ {
		base, ok1 := t.pointer(ptr + 2*word*taken)
		length, ok2 := t.pointer(ptr + 2*word*taken + word)
		if !ok1 || !ok2 {
			return false
		}
		length = min(length, total-seen)
		n := int(min(length, uint64(maxBuffer-len(out))))
		b := t.read(base, n)
		if len(b) < n {
			return false
		}
		out = append(out, b...)
		seen += length
	}
	if seen > uint64(len(out)) || seen < total && taken < count {
		flags |= trace.Truncated
	}
	t.attach(i, trace.Bytes, out, flags)
	return true
}

// message attaches the address and the buffers of a struct msghdr.
func (t *task) message(i int, ptr, total uint64, flags trace.AttachFlags) bool {
	word := uint64(t.rec.ABI.Word())
	name, ok1 := t.pointer(ptr)
	length := t.read(ptr+word, 4)
	vectors, ok2 := t.pointer(ptr + 2*word)
	count, ok3 := t.pointer(ptr + 3*word)
	if !ok1 || !ok2 || !ok3 || len(length) < 4 {
		return false
	}
	if name != 0 && !t.some(i, trace.Sockaddr, name, uint64(binary.NativeEndian.Uint32(length)), maxSockaddr, flags) {
		return false
	}
	return t.vectors(i, vectors, count, total, flags)
}

// strings attaches the strings of a NULL-terminated array.
func (t *task) strings(i int, ptr uint64, flags trace.AttachFlags) bool {
	var out []byte
	word := uint64(t.rec.ABI.Word())
	for n := 0; ; n++ {
		p, ok := t.pointer(ptr + uint64(n)*word)
		if !ok {
			return false
		}
		if p == 0 {
			break
		}
		if n == maxStrings || len(out) > maxPieces {
			flags |= trace.Truncated
			break
		}
		s, whole, ok := t.text(p, maxPiece)
		if !ok {
			return false
		}
		if !whole {
			flags |= trace.Truncated
		}
		out = append(append(out, s...), 0)
	}
	t.attach(i, trace.Argv, out, flags)
	return true
}

// captureOut reads what the kernel has written, and again what it has read and
// we could not; it returns how much was unreadable.
func (t *task) captureOut() (unreadable uint64) {
	s := t.capture()
	ok := t.rec.Result >= 0
	executed := false
	switch t.rec.Describe().Name {
	case "execve", "execveat":
		executed = ok // the memory is another program's; the exec record has it all
	}
	for i, kind := range s.Kind {
		// What the kernel has failed to read lacks nothing.
		missing := t.retry[i] && ok && !executed && !t.captureOne(i, kind, s.Param[i], trace.AtExit)
		if ok && !executed && kind != sysno.CaptureNone && !in(kind) && !t.captureResult(i, kind, s.Param[i]) {
			missing = true
		}
		if missing {
			t.attach(i, kindOf(kind), nil, trace.Unreadable)
			unreadable++
		}
	}
	return unreadable
}

func (t *task) captureResult(i int, kind sysno.Capture, param uint8) bool {
	ptr, n := t.rec.Args[i], uint64(t.rec.Result)
	if ptr == 0 {
		return true
	}
	switch kind {
	case sysno.CaptureOut:
		return t.some(i, trace.Bytes, ptr, min(n, t.arg(param)), maxBuffer, 0)
	case sysno.CaptureOutStruct:
		if param == 4 && n == 0 {
			return true // wait: nobody
		}
		return t.some(i, trace.Struct, ptr, uint64(param), maxBuffer, 0)
	case sysno.CaptureOutSockaddr:
		b := t.read(t.arg(param), 4)
		return len(b) == 4 && t.some(i, trace.Sockaddr, ptr, uint64(binary.NativeEndian.Uint32(b)), maxSockaddr, 0)
	case sysno.CaptureOutIov:
		return t.vectors(i, ptr, uint64(uint32(t.arg(param))), n, 0)
	case sysno.CaptureOutMsg:
		return t.message(i, ptr, n, 0)
	case sysno.CaptureOutMmsg:
		return n == 0 || t.message(i, ptr, maxBuffer, 0)
	}
	return true
}

// pending says of a record that leaves before its call has returned what it
// lacks.
func (t *task) pending() (out []trace.Attachment) {
	for i, kind := range t.capture().Kind {
		if t.retry[i] {
			out = append(out, trace.Attachment{Arg: uint8(i), Kind: kindOf(kind), Flags: trace.Unreadable})
		}
	}
	return out
}

// kindOf is the kind of attachment that a capture makes.
func kindOf(c sysno.Capture) trace.Kind {
	switch c {
	case sysno.CaptureString, sysno.CapturePrctl:
		return trace.String
	case sysno.CaptureStruct, sysno.CaptureOutStruct:
		return trace.Struct
	case sysno.CaptureSockaddr, sysno.CaptureOutSockaddr:
		return trace.Sockaddr
	case sysno.CaptureArgv:
		return trace.Argv
	}
	return trace.Bytes
}
