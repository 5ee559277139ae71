// SPDX-License-Identifier: Apache-2.0

package app

import (
	"os"
	"path/filepath"
	"testing"
)

// TestSigningKey makes a key once, for its owner only, and does not replace one
// that is damaged.
func TestSigningKey(t *testing.T) {
	dir := t.TempDir()
	c := Config{Data: dir}
	if _, ok, err := c.PublicKey(); ok || err != nil {
		t.Errorf("a key before the first start: %v, %v", ok, err)
	}
	first, err := signingKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, keyFile)
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("its file: %v, %v", fi.Mode(), err)
	}
	second, err := signingKey(dir)
	if err != nil || !first.Equal(second) {
		t.Errorf("the second start has another key (%v)", err)
	}
	if key, ok, err := c.PublicKey(); len(key) != 64 || !ok || err != nil {
		t.Errorf("its name is %q, %v, %v", key, ok, err)
	}
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := signingKey(dir); err == nil {
		t.Error("a damaged key was replaced")
	}
	if l, _ := os.ReadDir(dir); len(l) != 1 {
		t.Errorf("left behind: %v", l)
	}
}
