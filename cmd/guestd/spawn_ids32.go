// SPDX-License-Identifier: Apache-2.0

//go:build linux && (386 || arm)

package main

import "golang.org/x/sys/unix"

// The calls that take user and group ids of 32 bits; the plain ones of these
// CPUs take 16.
const (
	sysSetgroups = unix.SYS_SETGROUPS32
	sysSetgid    = unix.SYS_SETGID32
	sysSetuid    = unix.SYS_SETUID32
)
