// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
)

func TestPrintLine(t *testing.T) {
	var b bytes.Buffer
	if err := printLine(&b, map[string]string{"a": "\x1b[m \u009b2J \x7f \u202e \u2066 é \U000e0001 \ufffd <\u00a0>"}); err != nil {
		t.Fatal(err)
	}
	want := `{"a":"\u001b[m \u009b2J \u007f \u202e \u2066 é \udb40\udc01 ` + "\ufffd" + ` \u003c\u00a0\u003e"}` + "\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	b.Reset()
	if err := printJSON(&b, []string{"\u0085"}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("[\n  \"\\u0085\"\n]\n", b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// FuzzEscapeJSON's property: the same document, and nothing in it that does
// not print.
func FuzzEscapeJSON(f *testing.F) {
	f.Add("\u009b \xff \u202e")
	f.Fuzz(func(t *testing.T, s string) {
		in, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		out := escapeJSON(in)
		for _, r := range string(out) {
			if !unicode.IsPrint(r) && r != '\n' {
				t.Fatalf("%q has %U", out, r)
			}
		}
		var a, b string
		if json.Unmarshal(in, &a) != nil || json.Unmarshal(out, &b) != nil || a != b {
			t.Errorf("%q became %q", in, out)
		}
	})
}
