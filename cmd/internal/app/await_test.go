// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"log/slog"
	"net"
	"testing"

	"github.com/petri-sandbox/petri/bus"
)

// TestBusBeforeItsServer starts petri bus run before there is a server: it says
// what it waits for, and begins when there is one. One that is told to end ends.
func TestBusBeforeItsServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	dir, o := t.TempDir(), bus.ServerOptions{Listen: l.Addr().String()}
	s, err := bus.StartServer(dir, o) // which makes the credentials
	if err != nil {
		t.Fatal(err)
	}
	at := s.Address()
	s.Close()

	run := func() (said *sayings, ready chan struct{}, stop func() error) {
		said, ready = &sayings{out: t.Output()}, make(chan struct{})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		c := Config{NATS: at.URL, Creds: at.Creds, CA: at.CA, Data: t.TempDir()}
		go func() {
			done <- RunBus(ctx, c, slog.New(slog.NewTextHandler(said, nil)), func() { close(ready) })
		}()
		return said, ready, func() error { cancel(); return <-done }
	}
	waits := func(said *sayings) bool { return said.count("waiting for a server") == 1 && said.count(o.Listen) > 0 }

	said, _, stop := run()
	eventually(t, "it says what it waits for", func() bool { return waits(said) })
	if err := stop(); err != nil {
		t.Errorf("told to end, it ends with %v", err)
	}
	said, ready, stop := run()
	eventually(t, "it says what it waits for", func() bool { return waits(said) })
	if s, err = bus.StartServer(dir, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	eventually(t, "it has begun", func() bool {
		select {
		case <-ready:
			return true
		default:
			return false
		}
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
}
