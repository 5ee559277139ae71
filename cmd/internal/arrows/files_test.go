// SPDX-License-Identifier: Apache-2.0

package arrows_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const top = "../../.."

// silent are the endings of files that cannot hold a comment, or are what a
// program wrote or reads byte by byte.
var silent = []string{".json", ".o", ".sum", ".in", ".golden", ".trace", ".log"}

// TestLicense wants an SPDX line at the beginning of every file that can hold
// a comment.
func TestLicense(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "git", "-C", top, "ls-files", "-z").Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	n := 0
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		if name == "LICENSE" || slices.Contains(silent, path.Ext(name)) || strings.Contains(name, "testdata/fuzz/") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(top, name))
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, and not yet committed so
		}
		if err != nil {
			t.Fatal(err)
		}
		n++
		if !bytes.Contains(b[:min(len(b), 300)], []byte("SPDX-License-Identifier: Apache-2.0")) && !bytes.Contains(b[:min(len(b), 300)], []byte("SPDX-License-Identifier: (")) {
			t.Errorf("%s: no SPDX line (add: SPDX-License-Identifier: Apache-2.0)", name)
		}
	}
	if n < 100 {
		t.Errorf("only %d files were checked", n)
	}
}

// TestRequirements holds go.mod to what go mod tidy would mark: a module that
// our packages import is required directly, any other one // indirect. It needs
// no network, as go mod tidy does for the tests of other modules.
func TestRequirements(t *testing.T) {
	run := func(args ...string) *json.Decoder {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = top
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go %s: %v", strings.Join(args, " "), err)
		}
		return json.NewDecoder(bytes.NewReader(out))
	}
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
	}
	if err := run("mod", "edit", "-json").Decode(&mod); err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, tags := range []string{"", "vm"} {
		d := run("list", "-e", "-tags", tags, "-json=Imports,TestImports,XTestImports,IgnoredGoFiles", "./...")
		for {
			var p struct{ Imports, TestImports, XTestImports []string }
			if err := d.Decode(&p); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
				best := "" // the longest path: modules nest
				for _, r := range mod.Require {
					if (imp == r.Path || strings.HasPrefix(imp, r.Path+"/")) && len(r.Path) > len(best) {
						best = r.Path
					}
				}
				used[best] = true
			}
		}
	}
	for _, r := range mod.Require {
		if used[r.Path] == r.Indirect {
			t.Errorf("go.mod: %s is imported: %v, and marked // indirect: %v (go mod tidy)", r.Path, used[r.Path], r.Indirect)
		}
	}
}
