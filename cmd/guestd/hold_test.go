// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// TestBounded wants what f answers, however late bounded looks, and a timeout of
// what never answers.
func TestBounded(t *testing.T) {
	want := errors.New("no room")
	for range 20_000 {
		if err := bounded(func(context.Context) error { return want }); !errors.Is(err, want) {
			t.Fatalf("an f that answered at once: %v", err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		never := make(chan struct{})
		defer close(never)
		if err := bounded(func(context.Context) error { <-never; return nil }); err == nil {
			t.Fatal("an f that does not answer was not given up")
		}
	})
}
