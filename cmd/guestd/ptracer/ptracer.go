// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package ptracer records the system calls of the sample's processes by
// ptrace(2), where the kernel takes no BPF programs. Its records are those of
// package tracer, in the format of package trace.
//
// It is the worse way: each call stops the process twice, and the sample can
// see it (TracerPid). Who traces is a process of its own, so that what waits for
// the sample's processes and what waits for their stops do not take one another's
// news.
package ptracer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
)

// childName is what the tracing process calls itself.
const childName = "guestd-ptracer"

// Main ends the program after tracing if it is the process of a [Start].
func Main() {
	if os.Args[0] != childName {
		return
	}
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "ptracer:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Messages to the tracing process are a byte and a number of 32 bits; those
// from it a byte, a length and as many bytes.
const (
	cmdAttach = 'a'
	cmdFlush  = 'f'

	msgBlock    = 'b'
	msgAttached = 'a' // the text is an error's
	msgFlushed  = 'f'

	// maxMessage bounds what is believed of the tracing process, which has read
	// the sample's memory.
	maxMessage = 1 << 20
)

// A Tracer has its process. Its methods may be called by several goroutines at
// once.
type Tracer struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	done chan struct{} // closed when the process says nothing more
	err  error         // why; read it after done

	mu      sync.Mutex // one command at a time
	owed    int        // answers to commands that nobody waits for any more
	answers chan string
	blocks  chan []byte
}

// Start starts the tracing process, for which main must call [Main] first. The
// caller closes the Tracer.
func Start() (*Tracer, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = childName
	cmd.Env = []string{}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the tracing process: %w", err)
	}
	t := &Tracer{cmd: cmd, in: in, done: make(chan struct{}), answers: make(chan string, 1), blocks: make(chan []byte)}
	go func() {
		defer close(t.done)
		t.err = t.receive(out)
	}()
	return t, nil
}

// receive hands on what the process says, until it ends. While nobody runs the
// process waits, and the sample with it: nothing is lost.
func (t *Tracer) receive(r io.Reader) error {
	for {
		var h [5]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return fmt.Errorf("the tracing process has ended: %w", err)
		}
		n := binary.NativeEndian.Uint32(h[1:])
		if n > maxMessage {
			return fmt.Errorf("the tracing process says %d bytes", n)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return fmt.Errorf("the tracing process has ended: %w", err)
		}
		switch h[0] {
		case msgBlock:
			t.blocks <- b
		case msgFlushed:
			t.blocks <- nil // taken when all before it has been emitted
			t.answers <- ""
		default:
			t.answers <- string(b)
		}
	}
}

// command has the process do something and waits for its answer.
func (t *Tracer) command(ctx context.Context, op byte, n uint32) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.in.Write(binary.NativeEndian.AppendUint32([]byte{op}, n)); err != nil {
		return "", fmt.Errorf("tell the tracing process: %w", err)
	}
	for {
		select {
		case s := <-t.answers:
			if t.owed == 0 {
				return s, nil
			}
			t.owed--
		case <-t.done:
			select { // it may have answered before it ended
			case s := <-t.answers:
				if t.owed == 0 {
					return s, nil
				}
			default:
			}
			return "", t.err
		case <-ctx.Done():
			t.owed++
			return "", ctx.Err()
		}
	}
}

// Attach begins to trace a process, which must not have executed a program yet:
// it is recorded from then on, with all that descends from it.
func (t *Tracer) Attach(ctx context.Context, pid int) error {
	text, err := t.command(ctx, cmdAttach, uint32(pid))
	if err == nil && text != "" {
		err = errors.New(text)
	}
	return err
}

// Run hands the trace to emit, in blocks of package trace, until ctx ends; then
// it returns nil. An error of emit ends it. Only one Run may be active.
func (t *Tracer) Run(ctx context.Context, emit func(block []byte) error) error {
	for {
		select {
		case b := <-t.blocks:
			if b == nil {
				continue
			}
			if err := emit(b); err != nil {
				return err
			}
		case <-t.done:
			return t.err
		case <-ctx.Done():
			return nil
		}
	}
}

// Flush brings out what there is, calls that have not returned too, and the
// counters. Some Run must be active to take it.
func (t *Tracer) Flush(ctx context.Context) error {
	_, err := t.command(ctx, cmdFlush, 0)
	return err
}

// Close ends the tracing process; the kernel ends whatever it still traces. Run
// must be active or nothing left to take.
func (t *Tracer) Close() error {
	t.in.Close()
	for {
		select {
		case <-t.blocks:
		case <-t.answers: // that nobody waits for
		case <-t.done:
			return t.cmd.Wait()
		}
	}
}
