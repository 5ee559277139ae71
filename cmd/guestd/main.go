// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command guestd is the agent inside a guest: PID 1 of its kernel, and the
// only program of ours there.
//
// It owns the machine's set-up, the sample's container, its run, its console
// and what is collected afterwards, and answers sandboxd over one virtio-serial
// port (package wire). It decides nothing about an analysis and keeps nothing:
// whatever it sees leaves the guest at once, because the sample may own the
// kernel a moment later.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guestd is the init of a Petri guest and runs nowhere else")
		os.Exit(2)
	}
	if err := boot(); err != nil {
		fmt.Fprintln(os.Stderr, "guestd:", err)
	}
	// The host reads the console's last lines and the power-off as one fact:
	// the guest did not come up.
	time.Sleep(100 * time.Millisecond)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func boot() error {
	if err := prepareKernel(); err != nil {
		return err
	}
	port, err := openPort(10 * time.Second)
	if err != nil {
		return err
	}
	return serve(context.Background(), port)
}
