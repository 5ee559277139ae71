// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/petri-sandbox/petri/bus"
)

// TestSilent asks a server that dies: the question waits, the silence shows, and
// when the server is back there is an answer.
func TestSilent(t *testing.T) {
	dir := t.TempDir()
	s, err := bus.StartServer(dir, bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a := s.Address()
	b, err := bus.Connect(t.Context(), a, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Reconcile(t.Context(), bus.Limits{Log: 64 << 20, Store: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	if quiet := b.Silent(); quiet != 0 {
		t.Errorf("a server that answers is silent for %s", quiet)
	}
	s.Close()
	listed := make(chan error, 1)
	go func() {
		_, err := b.List(t.Context(), "default", 0)
		listed <- err
	}()
	for end := time.Now().Add(2 * time.Minute); b.Silent() < 100*time.Millisecond; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a server that is gone is not silent")
		}
	}
	select {
	case err := <-listed:
		t.Fatalf("the list of a server that is gone: %v", err)
	default:
	}
	s, err = bus.StartServer(dir, bus.ServerOptions{Listen: strings.TrimPrefix(a.URL, "nats://")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := <-listed; err != nil {
		t.Errorf("the list, after the server came back: %v", err)
	}
	if quiet := b.Silent(); quiet != 0 {
		t.Errorf("a server that answers again is silent for %s", quiet)
	}
}

// TestConnectElsewhere connects to servers that are not what is needed: each time
// it is said what to do.
func TestConnectElsewhere(t *testing.T) {
	plain, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, MaxPayload: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	plain.Start()
	defer plain.Shutdown()
	s, err := bus.StartServer(t.TempDir(), bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := bus.Connect(t.Context(), s.Address(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	_, empty := b.List(t.Context(), "default", 0)
	_, streams := bus.Connect(t.Context(), bus.Address{URL: plain.ClientURL()}, "test")
	_, nobody := bus.Connect(t.Context(), bus.Address{URL: "nats://127.0.0.1:1"}, "test")
	for _, tt := range []struct {
		what string
		err  error
		want string
	}{
		{"a server that keeps no streams", streams, "jetstream {}"},
		{"a server on which Petri never ran", empty, "petri bus run makes"},
		{"nobody", nobody, "is one up there"},
	} {
		if tt.err == nil || !strings.Contains(tt.err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", tt.what, tt.err, tt.want)
		}
	}
}
