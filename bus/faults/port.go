// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"math/rand/v2"
	"net"
	"strconv"
)

// FreePort is a port of this machine that nobody listens on, nor is given by the
// kernel for a connection: a server's stays its own while it is dead.
func FreePort(t Test) string {
	t.Helper()
	for range 1000 {
		port := strconv.Itoa(10_000 + rand.IntN(20_000))
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			l.Close()
			return port
		}
	}
	t.Errorf("no port is free")
	return ""
}
