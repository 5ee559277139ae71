// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/petri-sandbox/petri/bus"
)

func TestSubmitToAFullQueue(t *testing.T) {
	dir := t.TempDir()
	s, err := bus.StartServer(dir, bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := s.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Reconcile(t.Context(), bus.Limits{Log: 64 << 20, Store: 256 << 20, Jobs: 1}); err != nil {
		t.Fatal(err)
	}
	if err := s.Announce(); err != nil {
		t.Fatal(err)
	}
	sample := filepath.Join(dir, "sample")
	if err := os.WriteFile(sample, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	submit := func() error {
		c := command()
		c.SetArgs([]string{"--data", dir, "--json", "submit", sample})
		return c.ExecuteContext(t.Context())
	}
	if err := submit(); err != nil {
		t.Fatal(err)
	}
	err = submit()
	var exit exitError
	var full *bus.BusyError
	if !errors.As(err, &exit) || exit.code != codeBusy || !errors.As(err, &full) || full.Waiting != 1 {
		t.Errorf("a full queue gives %v", err)
	}
}
