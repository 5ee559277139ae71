// SPDX-License-Identifier: Apache-2.0

//go:build vm

package image_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/sandboxd/image"
)

// cache is a cache of its own with links to the packages of the product's, and
// an agent that is none: an image is only bytes here.
func cache(t *testing.T) (*image.Builder, *[]string) {
	t.Helper()
	from, dir := image.DefaultCache(), t.TempDir()
	files := map[string][]byte{"agents/guestd-amd64": []byte("an agent")}
	for _, guest := range []string{"amd64", "amd64+python3"} {
		name := filepath.Join("guests", guest, "packages.json")
		lock, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatalf("%v: the packages have not been fetched (make guest)", err)
		}
		files[name] = lock
	}
	debs, err := filepath.Glob(filepath.Join(from, "apt", "amd64", "debs", "*.deb"))
	if err != nil || len(debs) == 0 {
		t.Fatalf("no packages in %s: %v (make guest)", from, err)
	}
	for _, d := range []string{"guests/amd64", "guests/amd64+python3", "apt/amd64/debs", "agents"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, deb := range debs {
		if err := os.Symlink(deb, filepath.Join(dir, "apt/amd64/debs", filepath.Base(deb))); err != nil {
			t.Fatal(err)
		}
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var said []string
	return &image.Builder{Cache: dir, Guestd: filepath.Join(dir, "agents"), Log: func(format string, args ...any) {
		said = append(said, fmt.Sprintf(format, args...))
	}}, &said
}

// TestReproducible builds one image in two places.
func TestReproducible(t *testing.T) {
	for _, guest := range []string{"amd64", "amd64+python3"} {
		t.Run(guest, func(t *testing.T) { reproducible(t, guest) })
	}
}

func reproducible(t *testing.T, guest string) {
	var got []image.Manifest
	for range 2 {
		b, said := cache(t)
		img, err := b.Open(t.Context(), guest)
		if err != nil {
			t.Fatal(err)
		}
		if err := img.Verify(); err != nil {
			t.Error(err)
		}
		if len(*said) == 0 || !strings.Contains((*said)[0], "assembling") {
			t.Errorf("seconds of work were announced by %q", *said)
		}
		// The second time it is there.
		*said = nil
		if again, err := b.Open(t.Context(), guest); err != nil || again.Dir != img.Dir || len(*said) > 0 {
			t.Errorf("opened again: %v, %v, %q", again, err, *said)
		}
		got = append(got, img.Manifest)
		if len(got) < 2 {
			continue
		}
		if diff := cmp.Diff(got[0], got[1]); diff != "" {
			t.Errorf("two images of one manifest (-first +second):\n%s", diff)
		}
		damage(t, b, img)
	}
}

// damage breaks an image and its packages in turn.
func damage(t *testing.T, b *image.Builder, img *image.Image) {
	t.Helper()
	guest := img.Guest()
	if err := os.WriteFile(img.InitramfsPath(), []byte("broken"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := img.Verify(); err == nil || !strings.Contains(err.Error(), "petri guest build "+guest+" --force") {
		t.Errorf("a broken initramfs: %v", err)
	}
	if err := os.Remove(img.KernelPath()); err != nil {
		t.Fatal(err)
	}
	if err := img.Verify(); err == nil || !strings.Contains(err.Error(), "petri guest build "+guest+" --force") {
		t.Errorf("a missing kernel: %v", err)
	}
	if err := b.Remove(t.Context(), guest); err != nil {
		t.Fatal(err)
	}
	deb := filepath.Join(b.Cache, "apt/amd64/debs", img.Packages[1].SHA256+".deb")
	if err := os.Remove(deb); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Open(t.Context(), guest); err == nil || !strings.Contains(err.Error(), "petri guest build "+guest+" --update") {
		t.Errorf("a missing package: %v", err)
	}
	if err := os.WriteFile(deb, []byte("broken"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Open(t.Context(), guest); err == nil || !strings.Contains(err.Error(), img.Packages[1].Name) || !strings.Contains(err.Error(), "petri guest build "+guest+" --update") {
		t.Errorf("a broken package: %v", err)
	}
}

func TestNoImage(t *testing.T) {
	b := &image.Builder{Cache: t.TempDir()}
	if _, err := b.Open(t.Context(), "amd64"); !errors.Is(err, image.ErrNoImage) || !strings.Contains(err.Error(), "petri guest build amd64") {
		t.Errorf("nothing was fetched: %v", err)
	}
	if _, err := b.Open(t.Context(), "vax"); err == nil || !strings.Contains(err.Error(), "there are: amd64") {
		t.Errorf("unknown architecture: %v", err)
	}
	b2, _ := cache(t)
	if err := os.Remove(filepath.Join(b2.Cache, "guests/amd64+python3/packages.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := b2.Open(t.Context(), "amd64+python3"); !errors.Is(err, image.ErrNoImage) || !strings.Contains(err.Error(), "petri guest build amd64+python3") {
		t.Errorf("what it has besides was not fetched: %v", err)
	}
	if b2.Has("amd64+python3") || !b2.Has("amd64") {
		t.Errorf("it has amd64+python3: %t, amd64: %t", b2.Has("amd64+python3"), b2.Has("amd64"))
	}
	b2.Guestd = t.TempDir()
	if _, err := b2.Open(t.Context(), "amd64"); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("no agent: %v", err)
	}
	if err := os.WriteFile(filepath.Join(b2.Cache, "guests/amd64/packages.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := b2.Open(t.Context(), "amd64"); err == nil || !strings.Contains(err.Error(), "packages.json") {
		t.Errorf("broken list of packages: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if err := b.Fetch(t.Context(), "amd64"); err == nil || !strings.Contains(err.Error(), "is not installed") {
		t.Errorf("no apt: %v", err)
	}
}
