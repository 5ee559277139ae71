// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"errors"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
)

// TestServerMoves has a client follow the server of its data directory to
// another port.
func TestServerMoves(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	serve := func() *bus.Server {
		s, err := bus.StartServer(dir, bus.ServerOptions{})
		if err != nil {
			t.Fatal(err)
		}
		setup, err := bus.Connect(t.Context(), s.Address(), "setup")
		if err != nil {
			t.Fatal(err)
		}
		defer setup.Close()
		if err := errors.Join(setup.Reconcile(t.Context(), bus.Limits{Log: 64 << 20, Store: 64 << 20}), s.Announce()); err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := serve()
	was := s.Address().URL
	a, err := bus.ReadAddress(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := bus.Connect(t.Context(), a, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	s.Close()
	u, err := url.Parse(was)
	if err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s = serve()
	defer s.Close()
	if s.Address().URL == was {
		t.Fatalf("both listen on %s", was)
	}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err = b.Analyzers(t.Context()); err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
