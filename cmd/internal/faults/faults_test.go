// SPDX-License-Identifier: Apache-2.0

package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/bus/faults"
)

const top = "../../.."

// declared are the tests of a package.
func declared(t *testing.T, pkg string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(top, pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, path := range files {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") && fn.Name.Name != "TestMain" {
				names = append(names, fn.Name.Name)
			}
		}
	}
	return names
}

// TestDocs holds docs/faults.md to the tests that there are: every row names
// tests that exist, and every test that breaks a bus is in a row.
func TestDocs(t *testing.T) {
	rows, err := readRows(filepath.Join(top, "docs/faults.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := map[test]bool{}
	exist := map[string][]string{"bus/faults": declared(t, "bus/faults")}
	for _, r := range rows {
		for _, of := range r.tests {
			named[of] = true
			if exist[of.pkg] == nil {
				exist[of.pkg] = declared(t, of.pkg)
			}
			if !slices.Contains(exist[of.pkg], of.name) {
				t.Errorf("row %d, %s: there is no %s in %s", r.n, r.fault, of.name, of.pkg)
			}
		}
	}
	for _, name := range exist["bus/faults"] {
		if !named[test{"bus/faults", name}] && name != "TestFigures" && name != "TestAudit" {
			t.Errorf("no row names %s of bus/faults", name)
		}
	}
}

func TestReadRows(t *testing.T) {
	for text, want := range map[string][]row{
		"| fault | test |\n|---|---|\n| a | `bus` TestA, TestB; and `cmd/internal/app` TestC |\n": {
			{n: 1, fault: "a", tests: []test{{"bus", "TestA"}, {"bus", "TestB"}, {"cmd/internal/app", "TestC"}}}},
		"| a | TestA |\n":       nil,
		"| a | `bus` nothing\n": nil,
		"":                      nil,
	} {
		path := filepath.Join(t.TempDir(), "faults.md")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readRows(path)
		if (err != nil) != (want == nil) {
			t.Errorf("%q: %v", text, err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(row{}, test{})); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
}

func TestRowIs(t *testing.T) {
	for asked, want := range map[string]bool{"": true, "3": true, "13": false, "0": false, "disk": true, "the 4": true, "bus": false} {
		if got := (row{n: 3, fault: "the 4th disk is full"}).is(asked); got != want {
			t.Errorf("row 3 is %q: %v", asked, got)
		}
	}
}

// TestTable has rows of which one is well: the others failed, were skipped, were
// not run, or have no figures.
func TestTable(t *testing.T) {
	json := strings.Join([]string{
		`{"Action":"output","Test":"TestGood","Output":"    x_test.go:1: ` + faults.Figures{Acked: 7, Note: "two kills"}.String() + `\n"}`,
		`{"Action":"output","Test":"TestGood/sub","Output":"    x_test.go:1: ` + faults.Figures{Acked: 3}.String() + `\n"}`,
		`{"Action":"pass","Test":"TestGood/sub"}`, `{"Action":"pass","Test":"TestGood"}`,
		`{"Action":"pass","Test":"TestMute"}`, `{"Action":"skip","Test":"TestSkipped"}`,
		`{"Action":"fail","Test":"TestBad/sub"}`, `{"Action":"fail","Test":"TestBad"}`, `{"Action":"run","Test":"TestHung"}`,
	}, "\n")
	results := map[test]*result{}
	var said strings.Builder
	if err := follow(strings.NewReader(json), "bus", results, &said); err != nil {
		t.Fatal(err)
	}
	for tests, want := range map[string]string{
		"TestGood": "", "TestGood TestMute": "", "TestMute": "no test has figures", "TestGood TestSkipped": "TestSkipped: skip",
		"TestGood TestBad": "TestBad: fail", "TestHung": "TestHung: not run", "TestGood TestNone": "TestNone: not run",
	} {
		r := row{n: 1, fault: "a fault"}
		for _, name := range strings.Fields(tests) {
			r.tests = append(r.tests, test{"bus", name})
		}
		var out strings.Builder
		if ok := table([]row{r}, results, &out); ok != (want == "") || want != "" && !strings.Contains(out.String(), "FAILED: "+want) {
			t.Errorf("%s: %v\n%s", tests, ok, out.String())
		}
		if tests == "TestGood" && !strings.Contains(out.String(), "10     0        0      0  two kills") {
			t.Error(out.String())
		}
	}
}
