// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command guestd is the agent inside a guest: PID 1 of its kernel, and the
// only program of ours there.
//
// It owns the machine's set-up, the sample's container, its run, its console
// and what is collected afterwards, and answers sandboxd over one virtio-serial
// port (packages wire and guest). It decides nothing about an analysis and
// keeps nothing: whatever it sees leaves the guest at once, because the sample
// may own the kernel a moment later.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/cmd/guestd/ptracer"
	"github.com/petri-sandbox/petri/cmd/guestd/tracer"
)

func main() {
	tracer.Calibrating()
	ptracer.Main()
	switch {
	case os.Args[0] == stageName:
		// Only returns if it could not become the container's init.
		fmt.Fprintln(os.Stderr, "guestd:", stage())
		os.Exit(1)
	case os.Getpid() != 1:
		fmt.Fprintln(os.Stderr, "guestd is the init of a Petri guest and runs nowhere else")
		os.Exit(2)
	}
	if err := boot(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "guestd:", err)
	}
	// The host takes the console's last lines and the power-off together: the
	// guest did not come up. The pause lets the lines out.
	time.Sleep(100 * time.Millisecond)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// memoryLimit keeps the agent's heap small beside the sample's; the guest has
// little memory and the sample's cgroup gets what is left.
const memoryLimit = 48 << 20

func boot(ctx context.Context) error {
	debug.SetMemoryLimit(memoryLimit)
	// The root directory is another one soon.
	offsets, err := os.ReadFile(tracerOffsets)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := prepareKernel(); err != nil {
		return err
	}
	port, err := openPort(10 * time.Second)
	if err != nil {
		return err
	}
	box, err := newContainer()
	if err != nil {
		return fmt.Errorf("make the sample's container: %w", err)
	}
	a := &agent{box: box}
	a.devices, a.noDevices = forbidDevices(port)
	a.tracer, a.noTracer = openTracer(offsets)
	return a.serve(ctx, port)
}
