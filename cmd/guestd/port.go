// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// port is the virtio-serial port to the host. It is a plain blocking
// descriptor: while no host is connected, reads give 0 bytes and writes block.
type port struct{ fd, timer int }

// openPort waits for the machine's only virtio port. It has no name, so that
// a sample that reads /sys learns nothing from it.
func openPort(limit time.Duration) (*port, error) {
	deadline := time.Now().Add(limit)
	for {
		// The kernel gives no event for this that PID 1 could wait on without
		// a netlink listener, and it happens once, before any snapshot.
		if names, _ := filepath.Glob("/dev/vport*p*"); len(names) > 0 {
			fd, err := unix.Open(names[0], unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("open %s: %w", names[0], err)
			}
			timer, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
			return &port{fd: fd, timer: timer}, os.NewSyscallError("timerfd_create", err)
		}
		if time.Now().After(deadline) {
			return nil, errors.New("no virtio-serial port appeared")
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// Read blocks until the host has sent something.
func (p *port) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(p.fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("read port: %w", err)
		case n == 0: // the host is not connected
			time.Sleep(time.Millisecond)
		default:
			return n, p.startTimer()
		}
	}
}

// startTimer makes the kernel set its hardware timer anew. QEMU 7.2 does not
// restore the timer of an emulated POWER or MIPS CPU: it never fires, and the kernel sets
// it for nothing later than what it waits for already (hrtimer_reprogram in
// kernel/time/hrtimer.c). Nothing is earlier than this. It is done before another
// goroutine is needed: whether one runs while this thread is in its next read is up
// to a thread of Go's that sleeps in between.
func (p *port) startTimer() error {
	return os.NewSyscallError("timerfd_settime", unix.TimerfdSettime(p.timer, unix.TFD_TIMER_ABSTIME, &unix.ItimerSpec{Value: unix.Timespec{Nsec: 1}}, nil))
}

// Write blocks until the host's side has taken all of b.
func (p *port) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := unix.Write(p.fd, b[done:])
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return done, fmt.Errorf("write port: %w", err)
		}
		done += n
	}
	return done, nil
}

func (p *port) Close() error { return os.NewSyscallError("close", unix.Close(p.fd)) }
