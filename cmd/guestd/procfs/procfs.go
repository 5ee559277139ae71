// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package procfs reads what /proc says of a process (proc(5)), for tracers.
package procfs

import (
	"fmt"
	"io"
	"os"
)

// Bytes of a program's arguments and environment that a trace holds, as in
// cmd/guestd/tracer/bpf/process.h.
const (
	MaxArgv = 4096
	MaxEnv  = 1024
)

// Read returns the first bytes of a file of a process or thread, at most limit.
// There are none if it has ended.
func Read(pid uint32, name string, limit int64) []byte {
	f, err := os.Open(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		return nil
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, limit))
	return b
}
