// SPDX-License-Identifier: Apache-2.0

package all_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/all"
	"github.com/petri-sandbox/petri/analyzers/analyzertest"
	"github.com/petri-sandbox/petri/schemas"
)

func TestMain(m *testing.M) {
	analyzers.Child(all.Children())
	os.Exit(m.Run())
}

// TestConfined runs the analyzers' golden inputs in real children: what an
// analyzer cannot do there shows here.
func TestConfined(t *testing.T) {
	for _, a := range all.List() {
		info := a.Info()
		if info.Scope == schemas.ScopeAnalysis {
			continue
		}
		in, _ := filepath.Glob(filepath.Join("..", strings.ReplaceAll(info.Name, "-", ""), "testdata", "*.in"))
		if len(in) == 0 {
			t.Errorf("analyzer %s has no golden inputs", info.Name)
		}
		for _, path := range in {
			name := strings.TrimSuffix(filepath.Base(path), ".in")
			t.Run(info.Name+"/"+name, func(t *testing.T) {
				data, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				job := analyzertest.Job(a, name, data)
				want, err := analyzers.Collect(t.Context(), a, job)
				if err != nil {
					t.Fatal(err)
				}
				got, uploads := analyzertest.Once(t, all.List(), job)
				if got.Status != want.Status || got.Error != want.Error {
					t.Fatalf("%s: %s, want %s: %s", got.Status, got.Error, want.Status, want.Error)
				}
				if diff := cmp.Diff(want.Findings, got.Findings); diff != "" {
					t.Error(diff)
				}
				if diff := cmp.Diff(want.Derived, got.Derived); diff != "" {
					t.Error(diff)
				}
				var result []byte
				if got.Result != nil {
					result = uploads[got.Result.SHA256]
				}
				if diff := cmp.Diff(string(want.Result), string(result)); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

func TestList(t *testing.T) {
	list := all.List()
	if err := analyzers.Check(list); err != nil {
		t.Error(err)
	}
	var names []string
	for _, a := range list {
		info := a.Info()
		names = append(names, info.Name)
		// The name says where to look.
		dir := filepath.Join("..", strings.ReplaceAll(info.Name, "-", ""))
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			t.Errorf("analyzer %s is not in %s", info.Name, dir)
		}
		if golden, _ := filepath.Glob(filepath.Join(dir, "testdata", "*.golden")); len(golden) == 0 {
			t.Errorf("analyzer %s has no golden test", info.Name)
		}
	}
	if !slices.IsSorted(names) {
		t.Errorf("%v are not in order", names)
	}
}

// TestNoInit keeps the control flow visible: what runs before main also runs
// in every child, before it is confined.
func TestNoInit(t *testing.T) {
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s has an init function", path)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
