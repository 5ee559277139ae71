// SPDX-License-Identifier: Apache-2.0

package flock_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/petri-sandbox/petri/sandboxd/internal/flock"
)

// TestLock waits for a file that another one has, in vain and then not.
func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	if flock.Locked(path) {
		t.Error("a file that is not there is locked")
	}
	one, two := open(), open()
	if err := flock.Lock(t.Context(), one, func() { t.Error("the first one waits") }); err != nil || !flock.Locked(path) {
		t.Fatalf("the first one: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := flock.Lock(ctx, two, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("who is told to end: %v", err)
	}
	waited := 0
	if err := flock.Lock(t.Context(), two, func() { waited++; one.Close() }); err != nil || waited != 1 {
		t.Errorf("the second one, told %d times that it waits: %v", waited, err)
	}
	two.Close()
	if flock.Locked(path) {
		t.Error("nobody has it")
	}
	if err := flock.Lock(t.Context(), two, func() {}); !errors.Is(err, syscall.EBADF) {
		t.Errorf("a closed file: %v", err)
	}
}
