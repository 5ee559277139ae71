// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/catalogue"
	"github.com/petri-sandbox/petri/sandboxd/internal/flock"
)

// TestTake waits for a guest that another process builds, says so, and can be told
// to wait no longer.
func TestTake(t *testing.T) {
	var said []string
	b := &Builder{Cache: t.TempDir(), Log: func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }}
	if b.Building("amd64") {
		t.Error("a guest that nobody has begun is being built")
	}
	unlock, err := b.take(t.Context(), "amd64")
	if err != nil || len(said) > 0 {
		t.Fatalf("the first waits: %v %v", err, said)
	}
	if err := os.WriteFile(b.lockPath("amd64"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*flock.Again)
	defer cancel()
	if _, err := b.Open(ctx, "amd64"); !errors.Is(err, context.DeadlineExceeded) || len(said) != 1 {
		t.Errorf("one that waits was told %v, and ended with %v", said, err)
	}
	if !b.Building("amd64") || b.Building("i386") {
		t.Error("it does not show which guest is being built")
	}
	time.AfterFunc(2*flock.Again, unlock)
	again, err := b.take(t.Context(), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	again()
	if b.Building("amd64") {
		t.Error("a guest that nobody builds any more is being built")
	}
}

// TestKey names the image that Open would give, by its packages and its agent.
func TestKey(t *testing.T) {
	b := &Builder{Cache: t.TempDir(), Guestd: t.TempDir()}
	c, err := catalogue.Lookup("amd64")
	if err != nil {
		t.Fatal(err)
	}
	l := lock{Packages: []Package{{Name: "linux-image"}}}
	for _, p := range packagesOf(c) {
		l.Packages = append(l.Packages, Package{Name: p})
	}
	if err := os.MkdirAll(b.archDir("amd64"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(b.lockPath("amd64")), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(b.lockPath("amd64"), l); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Key("amd64"); !errors.Is(err, ErrNoAgent) {
		t.Errorf("without an agent: %v", err)
	}
	var keys []string
	for _, agent := range []string{"old", "new"} {
		if err := os.WriteFile(filepath.Join(b.Guestd, "guestd-amd64"), []byte(agent), 0o755); err != nil {
			t.Fatal(err)
		}
		key, err := b.Key("amd64")
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	if keys[0] == keys[1] {
		t.Error("another agent gives the same image")
	}
}
