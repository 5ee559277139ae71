// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"fmt"
	"testing"

	"github.com/petri-sandbox/petri/bus/faults"
)

// complaints is a test that notes that it failed.
type complaints struct{ failed bool }

func (c *complaints) Helper()               {}
func (c *complaints) Logf(string, ...any)   {}
func (c *complaints) Errorf(string, ...any) { c.failed = true }

func TestFigures(t *testing.T) {
	for _, f := range []faults.Figures{{}, {Acked: 1}, {Acked: 5, Lost: 1}, {Acked: 5, Doubled: 2, Note: "3 kills (of 4)"}, {Acked: 5, Wrong: 4, Note: "x"}} {
		got, ok := faults.ParseFigures(fmt.Sprintf("    a_test.go:7: %s\n", f))
		if !ok || got != f {
			t.Errorf("%+v is read as %+v, %v", f, got, ok)
		}
		var c complaints
		f.Report(&c)
		if want := f.Acked == 0 || f.Lost+f.Doubled+f.Wrong > 0; c.failed != want {
			t.Errorf("%+v fails its test: %v", f, c.failed)
		}
	}
	if f, ok := faults.ParseFigures("--- PASS: TestX"); ok {
		t.Errorf("%+v", f)
	}
	a, b := faults.Figures{Acked: 1, Lost: 2, Doubled: 3, Wrong: 4, Note: "a"}, faults.Figures{Acked: 10, Lost: 20, Doubled: 30, Wrong: 40, Note: "b"}
	if got, want := a.Add(b), (faults.Figures{Acked: 11, Lost: 22, Doubled: 33, Wrong: 44, Note: "a; b"}); got != want {
		t.Errorf("%+v", got)
	}
}
