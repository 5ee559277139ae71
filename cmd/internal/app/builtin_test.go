// SPDX-License-Identifier: Apache-2.0

package app

import (
	"testing"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/auth"
)

// TestBuiltinConnects connects as the user who has the rights of all analyzers
// that Petri brings: a server takes no more of them than fit in a line of its
// protocol.
func TestBuiltinConnects(t *testing.T) {
	t.Parallel()
	c := Config{Data: t.TempDir()}
	s, err := bus.StartServer(c.Data, bus.ServerOptions{Analyzers: Builtin()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.Announce(); err != nil {
		t.Fatal(err)
	}
	b, err := c.connectAs(t.Context(), auth.Analyzer, auth.Builtin, "test")
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
}
