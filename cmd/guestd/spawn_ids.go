// SPDX-License-Identifier: Apache-2.0

//go:build linux && !386 && !arm

package main

import "golang.org/x/sys/unix"

// The calls that take user and group ids of 32 bits.
const (
	sysSetgroups = unix.SYS_SETGROUPS
	sysSetgid    = unix.SYS_SETGID
	sysSetuid    = unix.SYS_SETUID
)
