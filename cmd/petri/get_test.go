// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	says := func(text string) func(io.Writer) error {
		return func(w io.Writer) error { _, err := io.WriteString(w, text); return err }
	}
	has := func(want string) {
		t.Helper()
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("%q, %v; want %q", b, err, want)
		}
		if l, _ := os.ReadDir(dir); len(l) > 2 {
			t.Errorf("left behind: %v", l)
		}
	}
	if err := writeFile(path, says("one")); err != nil {
		t.Fatal(err)
	}
	has("one")
	// What fails leaves the file as it was.
	broken := errors.New("broken")
	err := writeFile(path, func(w io.Writer) error { return errors.Join(says("tw")(w), broken) })
	if !errors.Is(err, broken) {
		t.Error(err)
	}
	has("one")
	if err := os.Symlink("file", link); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(link, says("three")); err != nil {
		t.Fatal(err)
	}
	has("three")
	if fi, err := os.Lstat(link); err != nil || fi.Mode()&os.ModeSymlink == 0 {
		t.Error("the link was replaced")
	}
	if err := writeFile("/dev/full", says("four")); err == nil {
		t.Error("a full device took it")
	}
	if fi, err := os.Stat("/dev/full"); err != nil || fi.Mode().IsRegular() {
		t.Fatal("the device was replaced")
	}
	var exit exitError
	if err := writeFile(filepath.Join(dir, "none", "file"), says("")); !errors.As(err, &exit) || exit.code != codeUsage {
		t.Error(err)
	}
}

func TestResolveDigest(t *testing.T) {
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
	if err := b.Reconcile(t.Context(), bus.Limits{Log: 64 << 20, Store: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	id := schemas.NewID(testTime)
	announce := func(hex string) schemas.Digest {
		t.Helper()
		d, err := schemas.ParseDigest(hex)
		if err != nil {
			t.Fatal(err)
		}
		a := schemas.Artifact{Kind: schemas.KindDropped, SHA256: d}
		e, err := schemas.NewEvent(schemas.DefaultTenant, id, a.ID(id), testTime, schemas.OriginHost, a)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.PublishArtifact(t.Context(), e, &a); err != nil {
			t.Fatal(err)
		}
		return d
	}
	one := announce("0123456789" + strings.Repeat("a", 54))
	two := announce("0123456789" + strings.Repeat("b", 54))
	for in, want := range map[string]schemas.Digest{"0123456789a": one, "0123456789BB": two, one.String(): one} {
		if got, err := resolveDigest(t.Context(), b, in); err != nil || got.SHA256 != want {
			t.Errorf("%s: %v, %v", in, got, err)
		}
	}
	_, err = resolveDigest(t.Context(), b, "01234567")
	if err == nil || !strings.Contains(err.Error(), one.String()) || !strings.Contains(err.Error(), two.String()) {
		t.Errorf("two of them: %v", err)
	}
	if _, err := resolveDigest(t.Context(), b, "ffffffff"); err == nil || !strings.Contains(err.Error(), "no artifact's digest begins with ffffffff") {
		t.Errorf("none: %v", err)
	}
	for _, bad := range []string{"", "0123456", "0123456g", "../../etc", strings.Repeat("a", 65)} {
		if checkDigest(bad) == nil {
			t.Errorf("%q is a digest", bad)
		}
	}
}
