// SPDX-License-Identifier: Apache-2.0

package main_test

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/cmd/internal/schemagen/generate"
)

const source = "../../../schemas"

// TestCommitted compares what is committed with what the types give now.
func TestCommitted(t *testing.T) {
	want, err := generate.Files(source)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(source, "json")
	have, err := generate.Committed(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), have); diff != "" {
		t.Errorf("files in schemas/json (-generated +committed; run go generate ./schemas):\n%s", diff)
	}
	var differ []string
	for _, path := range have {
		b, err := os.ReadFile(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if w, ok := want[path]; ok && !bytes.Equal(w, b) {
			differ = append(differ, path)
		}
	}
	if len(differ) > 0 {
		// A type that many schemas have makes the same difference in all.
		b, _ := os.ReadFile(filepath.Join(dir, differ[0]))
		t.Errorf("the types have changed: run go generate ./schemas, and commit these: %s\nThe first of them (-generated +committed):\n%s",
			strings.Join(differ, ", "), cmp.Diff(string(want[differ[0]]), string(b)))
	}
}

func TestFilesAreDeterministic(t *testing.T) {
	first, err := generate.Files(source)
	if err != nil {
		t.Fatal(err)
	}
	second, err := generate.Files(source)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("two calls differ:\n%s", diff)
	}
}

func TestFilesOfAnotherDirectory(t *testing.T) {
	if _, err := generate.Files(t.TempDir()); err == nil {
		t.Error("a directory without types was taken")
	}
}

func TestWriteRemovesWhatIsNotGenerated(t *testing.T) {
	dir := t.TempDir()
	first := map[string][]byte{"a.json": []byte("1\n"), "examples/a.json": []byte("2\n"), "b.json": []byte("3\n")}
	if err := generate.Write(dir, first); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "README.md"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := generate.Write(dir, map[string][]byte{"a.json": []byte("4\n")}); err != nil {
		t.Fatal(err)
	}
	have, err := generate.Committed(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a.json"}, have); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "a.json")); err != nil || string(b) != "4\n" {
		t.Errorf("a.json holds %q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "README.md")); err != nil {
		t.Error("a file that is not generated's kind was removed")
	}
}
