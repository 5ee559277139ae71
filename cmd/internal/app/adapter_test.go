// SPDX-License-Identifier: Apache-2.0

package app

import (
	"errors"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/schemas"
)

// TestCancelledMeanwhile opens an attempt whose submission was cancelled after
// the sandbox had looked for its events.
func TestCancelledMeanwhile(t *testing.T) {
	s, err := bus.StartServer(t.TempDir(), bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := s.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Reconcile(t.Context(), bus.Limits{Log: 16 << 20, Store: 16 << 20}); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	sub := schemas.Submission{ID: schemas.NewID(now), Tenant: "default", Profile: "amd64", Submitted: now}
	if err := b.Submit(t.Context(), sub); err != nil {
		t.Fatal(err)
	}
	if err := b.Cancel(t.Context(), "default", sub.ID, "somebody"); err != nil {
		t.Fatal(err)
	}
	if _, err := (logAdapter{b}).OpenContext(t.Context(), "default", sub.ID); !errors.Is(err, sandboxd.ErrFenced) {
		t.Errorf("got %v", err)
	}
}
