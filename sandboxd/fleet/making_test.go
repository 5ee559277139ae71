// SPDX-License-Identifier: Apache-2.0

package fleet_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/petri-sandbox/petri/sandboxd/fleet"
)

func TestMaking(t *testing.T) {
	cache := t.TempDir()
	want := func(making bool, when string) {
		t.Helper()
		if fleet.Making(cache) != making {
			t.Errorf("%s: %v", when, !making)
		}
	}
	want(false, "nothing there")
	if err := os.MkdirAll(filepath.Join(cache, "warm", ".new-1"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(cache, "warm", "0123.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want(false, "left by one that died")
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	want(true, "in the making")
	if err := os.Remove(filepath.Join(cache, "warm", ".new-1")); err != nil {
		t.Fatal(err)
	}
	want(false, "only loaded")
}
