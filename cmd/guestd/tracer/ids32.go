// SPDX-License-Identifier: Apache-2.0

//go:build linux && (386 || arm)

package tracer

import "golang.org/x/sys/unix"

// sysSetresuid takes user ids of 32 bits.
const sysSetresuid = unix.SYS_SETRESUID32
