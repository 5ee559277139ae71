// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"log/slog"
	"sync"
	"testing"

	"github.com/petri-sandbox/petri/bus"
)

// StartBus runs a server, and what answers for analyzers on it.
func StartBus(t *testing.T) *bus.Bus {
	t.Helper()
	s, err := bus.StartServer(t.TempDir(), bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	b, err := s.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if err := b.Reconcile(t.Context(), bus.Limits{Log: 64 << 20, Store: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = bus.NewClerk(b, log).Run(ctx) })
	running.Go(func() { _ = bus.NewRegistrar(b, log).Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	return b
}
