// SPDX-License-Identifier: Apache-2.0

//go:build linux

package ptracer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// arena is memory of this process, which the decoder reads like a tracee's. What
// follows it cannot be read.
func arena(t testing.TB) (mem []byte, addr uint64) {
	t.Helper()
	const size = 64 << 10
	all, err := unix.Mmap(-1, 0, size+int(pageSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(all) })
	if err := unix.Mprotect(all[size:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	if self := (&task{tid: uint32(os.Getpid())}); len(self.read(uint64(uintptr(unsafe.Pointer(&all[0]))), 1)) != 1 {
		const what = "NOT TESTED: process_vm_readv does not read this process's own memory"
		if os.Getenv("CI") == "true" {
			t.Fatal(what)
		}
		t.Skip(what)
	}
	return all[:size], uint64(uintptr(unsafe.Pointer(&all[0])))
}

// FuzzCapture gives the decoder of registers and memory calls of any ABI with any
// arguments: registers that a sample chose, pointing to what it wrote. Whatever they
// are, the record fits its format, is read as what it was, and holds no more than
// its bounds.
func FuzzCapture(f *testing.F) {
	mem, addr := arena(f)
	words := func(v ...uint64) (b []byte) {
		for _, w := range v {
			b = binary.NativeEndian.AppendUint64(b, w)
		}
		return b
	}
	end := uint64(len(mem))
	// Offsets into the arena are numbers below its size; others are what they are.
	f.Add(uint8(sysno.AMD64), uint16(257), words(1<<63, 8, 0, 0), []byte("12345678/etc/passwd\x00"), int64(3))          // openat
	f.Add(uint8(sysno.AMD64), uint16(87), words(end-3), []byte("/x"), int64(-14))                                       // unlink, at the end
	f.Add(uint8(sysno.AMD64), uint16(59), words(0, 0, 0), []byte{}, int64(-2))                                          // execve, NULLs
	f.Add(uint8(sysno.AMD64), uint16(46), words(3, 0, 0), append(words(addr, 16, addr, 1<<40), 2, 0), int64(1<<40))     // sendmsg
	f.Add(uint8(sysno.AMD64), uint16(20), words(1, 0, 1<<31), words(addr, 1<<62, addr, ^uint64(0)), int64(1<<62))       // writev
	f.Add(uint8(sysno.AMD64), uint16(299), words(3, 0, 9), words(addr, 28, addr+64, 2), int64(2))                       // recvmmsg
	f.Add(uint8(sysno.I386), uint16(102), words(3, 0), []byte{3, 0, 0, 0, 16, 0, 0, 0, 16, 0, 0, 0}, int64(0))          // socketcall
	f.Add(uint8(sysno.ARM), uint16(283), words(3, 4, 1<<32-1), []byte("\x00\x00\x00\x00\x02\x00\x1a\x0b"), int64(-111)) // connect
	f.Add(uint8(0), uint16(0xffff), words(1, 2, 3, 4, 5, 6), []byte("x"), int64(-1))
	f.Fuzz(func(t *testing.T, abi uint8, call uint16, regs, data []byte, result int64) {
		clear(mem)
		copy(mem, data)
		r := trace.Record{Type: trace.Syscall, ABI: sysno.ABI(abi), TID: 1, Call: uint32(call), Begin: 1, Result: result}
		for i := range r.Args {
			if len(regs) >= 8*(i+1) {
				if r.Args[i] = binary.NativeEndian.Uint64(regs[8*i:]); r.Args[i] > 16 && r.Args[i] <= uint64(len(mem)) {
					r.Args[i] += addr
				}
			}
		}
		x := &task{tid: uint32(os.Getpid()), rec: r}
		x.demux()
		x.rec.N = uint8(len(x.rec.Describe().Args))
		clear(x.rec.Args[x.rec.N:])
		x.captureIn()
		begun := x.rec
		begun.Attachments = append(slices.Clone(begun.Attachments), x.pending()...)
		hold(t, &begun)
		unreadable := x.captureOut()
		missing := uint64(0)
		for _, a := range x.rec.Attachments {
			if a.Flags&trace.Unreadable != 0 {
				missing++
			}
		}
		if missing != unreadable {
			t.Errorf("%d attachments say that they could not be read, %d were counted", missing, unreadable)
		}
		hold(t, &x.rec)
	})
}

// hold checks a record against the format and the bounds.
func hold(t *testing.T, r *trace.Record) {
	t.Helper()
	var block []byte
	enc := trace.NewEncoder(sysno.AMD64, order(), func(uint32) trace.Identity { return trace.Identity{} }, func(b []byte) error {
		block = bytes.Clone(b)
		return nil
	})
	if err := enc.Add(r); err != nil {
		t.Fatal(err)
	}
	if err := enc.Flush(); err != nil {
		t.Fatal(err)
	}
	got, err := trace.NewReader(bytes.NewReader(block)).Next()
	if err != nil {
		t.Fatal(err)
	}
	if got.Args != r.Args || len(got.Attachments) != len(r.Attachments) {
		t.Errorf("%+v was read as %+v", r, got)
	}
	limits := map[trace.Kind]int{
		trace.String: maxString, trace.Bytes: maxBuffer, trace.Struct: maxBuffer, trace.Sockaddr: maxSockaddr,
		trace.Argv: maxPieces + maxPiece + 1,
	}
	for _, a := range r.Attachments {
		if limit, ok := limits[a.Kind]; !ok || len(a.Data) > limit || a.Arg >= r.N {
			t.Errorf("%d bytes of kind %d at argument %d of %d", len(a.Data), a.Kind, a.Arg, r.N)
		}
	}
}

// FuzzReceive: the process that has read the sample's memory may say anything. It
// takes no more memory than a message may have, and what is no message ends it.
func FuzzReceive(f *testing.F) {
	message := func(kind byte, b string) []byte {
		return append(binary.NativeEndian.AppendUint32([]byte{kind}, uint32(len(b))), b...)
	}
	f.Add(message(msgBlock, "block"))
	f.Add(append(message(msgAttached, "no such process"), message(msgFlushed, "")...))
	f.Add([]byte{msgBlock, 0xff, 0xff, 0xff, 0x7f})
	f.Add([]byte{msgBlock, 5, 0, 0, 0, 'x'})
	f.Fuzz(func(t *testing.T, b []byte) {
		x := &Tracer{answers: make(chan string), blocks: make(chan []byte)}
		ended := make(chan error, 1)
		go func() { ended <- x.receive(bytes.NewReader(b)) }()
		late := time.NewTimer(2 * time.Minute)
		defer late.Stop()
		var said []byte
		for {
			select {
			case p := <-x.blocks:
				if p != nil {
					said = append(said, message(msgBlock, string(p))...)
				} else {
					said = append(said, message(msgFlushed, "")...)
					<-x.answers
				}
			case s := <-x.answers:
				said = append(said, message(msgAttached, s)...)
			case err := <-ended:
				if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("it has ended with %v", err)
				}
				if len(said) > len(b) || cap(said) > 2*maxMessage+len(b) {
					t.Errorf("%d bytes said %d", len(b), len(said))
				}
				return
			case <-late.C:
				t.Fatal("it waits for ever")
			}
		}
	})
}

// quiet takes commands and says nothing.
type quiet struct{ io.Writer }

func (quiet) Close() error { return nil }

// TestOwnAnswer checks that the answer to a command that was given up is not
// taken for the next one's, and that an answer counts although the process has
// ended since.
func TestOwnAnswer(t *testing.T) {
	x := &Tracer{in: quiet{io.Discard}, done: make(chan struct{}), answers: make(chan string, 1)}
	given, giveUp := context.WithCancel(t.Context())
	giveUp()
	if s, err := x.command(given, cmdFlush, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("a command that was given up: %q, %v", s, err)
	}
	x.answers <- "late"
	go func() { x.answers <- "mine" }()
	if s, err := x.command(t.Context(), cmdFlush, 0); s != "mine" || err != nil {
		t.Errorf("the next one: %q, %v", s, err)
	}
	close(x.done)
	for range 50 {
		x.answers <- "mine"
		if s, err := x.command(t.Context(), cmdFlush, 0); s != "mine" || err != nil {
			t.Fatalf("the last one: %q, %v", s, err)
		}
	}
}
