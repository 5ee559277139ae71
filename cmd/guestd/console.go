// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/sandboxd/guest"
	"github.com/petri-sandbox/petri/sandboxd/wire"
)

// console carries the sample's output to the host, up to a limit. What is
// beyond is read all the same, so that the sample goes on, and counted.
type console struct {
	write   [2]*os.File
	outlets [2]*outlet
	wg      sync.WaitGroup
}

func (a *agent) newConsole(limit int64) (*console, error) {
	c := new(console)
	for i, id := range []uint16{guest.StreamStdout, guest.StreamStderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		o := &outlet{limit: limit, turn: make(chan struct{}, 1), buf: make([]byte, 32<<10)}
		o.turn <- struct{}{}
		c.write[i], c.outlets[i] = w, o
		if o.w, err = a.conn.Send(id); err != nil {
			return nil, err
		}
		if o.raw, err = r.SyscallConn(); err != nil {
			return nil, err
		}
		c.wg.Add(1)
		go func() {
			defer c.wg.Done()
			defer r.Close()
			o.run()
		}()
	}
	return c, nil
}

// started closes our copies of the writing ends.
func (c *console) started() {
	for _, w := range c.write {
		w.Close()
	}
}

// wait returns when both ends are read out.
func (c *console) wait() { c.wg.Wait() }

// flush returns when what the sample has printed so far is sent. ctx bounds only
// the wait for what is just being sent.
func (c *console) flush(ctx context.Context) error {
	for _, o := range c.outlets {
		if err := o.flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

// outlet copies one of the sample's outputs from its pipe to the host.
type outlet struct {
	raw   syscall.RawConn // the pipe's reading end
	w     *wire.StreamWriter
	limit int64
	buf   []byte
	turn  chan struct{} // holds one token: whoever has it reads and sends
	sum   wire.Status
	end   bool // the last writer has gone, or the link has
}

func (o *outlet) run() {
	_ = o.raw.Read(func(fd uintptr) bool {
		for {
			<-o.turn
			more, end := o.copy(int(fd)) > 0, o.end
			o.turn <- struct{}{}
			if !more {
				return end
			}
		}
	})
	_ = o.w.Close(o.sum)
}

// copy sends a piece of what the pipe holds, and returns its length: 0 if there
// is nothing.
func (o *outlet) copy(fd int) int {
	if o.end {
		return 0
	}
	n, err := unix.Read(fd, o.buf)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(fd, o.buf)
	}
	if errors.Is(err, unix.EAGAIN) {
		return 0
	}
	if err != nil || n == 0 {
		o.end = true
		return 0
	}
	keep := o.buf[:min(int64(n), max(0, o.limit-o.sum.Size))]
	if len(keep) > 0 {
		if _, err := o.w.Write(keep); err != nil {
			o.end = true
			return 0
		}
	}
	o.sum.Size += int64(len(keep))
	o.sum.Cut += int64(n - len(keep))
	return n
}

// flush sends what the pipe holds now; more may come meanwhile.
func (o *outlet) flush(ctx context.Context) error {
	select {
	case <-o.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { o.turn <- struct{}{} }()
	// A pipe that has been read out is closed: there is nothing more to send.
	_ = o.raw.Control(func(fd uintptr) {
		held, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		for n := 1; err == nil && held > 0 && n > 0; held -= n {
			n = o.copy(int(fd))
		}
	})
	return nil
}
