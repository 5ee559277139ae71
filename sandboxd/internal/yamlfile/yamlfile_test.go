// SPDX-License-Identifier: Apache-2.0

package yamlfile_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/sandboxd/internal/yamlfile"
)

func read(text string) error {
	_, err := yamlfile.Read(text, "a list", "a mapping with the key steps")
	return err
}

func TestMistakes(t *testing.T) {
	tests := []struct{ text, want string }{
		{"", "line 1, column 1: a list is empty; it is a mapping with the key steps"},
		{"# nothing\n", "line 1, column 1: a list is empty"},
		{"- a\n", "line 1, column 1: a list is a mapping with the key steps"},
		{"steps:\n\t- a\n", "line 2, column 1: found character that cannot start any token (indent with spaces"},
		{"steps:\n  - a: b: c\n", "line 2, column 9: mapping values are not allowed in this context (one key a line"},
		{"steps:\n  - a\n  - @b\n  - c\n", "line 3, column 5: found character that cannot start any token"},
		{"name: [\n", "line 1, column 7: did not find expected node content (close the bracket"},
		{"steps:\n  - 'a\n", "line 2, column 5: found unexpected end of stream (close the quotes)"},
		{"steps:\n  - \"é\" \"b\"\n", "line 2, column 11: did not find expected '-' indicator"},
		{"a: 1\nb: {x: 1, x: 2}\na: 3\n", `line 3, column 1: "a" is here for the second time, after line 1 (keep one of them)`},
		{"a: 1\nb: {x: 1, x: 2}\na: 3\n", `line 2, column 11: "x" is here`},
		{"a: 1\n---\nb: 2\n", "a second document begins here"},
		{"a: &x 1\nb: *x\n", "line 2, column 4: *x: aliases are not taken"},
		{"a: *x\n", "line 1, column"},
		{"? [a]\n: b\n", "a key is one word"},
		{"a: \xff\n", "(save the file as UTF-8)"},
		{strings.Repeat("#", yamlfile.MaxText+1), "65536 are allowed"},
		{"a: [" + strings.Repeat("x,", 20_000) + "]", "more than 10000 values"},
	}
	for _, tt := range tests {
		err := read(tt.text)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.40q:\n got %v\nwant %s", tt.text, err, tt.want)
		}
	}
	if err := read("a: {b: [c, d]}\n"); err != nil {
		t.Error(err)
	}
}

func TestNearest(t *testing.T) {
	words := []string{"tree_exited", "sample_exited", "quiet"}
	for word, want := range map[string]string{
		"tree_exitd":    "did you mean tree_exited?",
		"sample_exited": "did you mean sample_exited?",
		"quit":          "did you mean quiet?",
		"nonsense":      "there are: quiet, sample_exited, tree_exited",
	} {
		if got := yamlfile.Nearest(word, words); got != want {
			t.Errorf("%s: %s, not %s", word, got, want)
		}
	}
}

// FuzzRead's property: a mistake has a place within the text.
func FuzzRead(f *testing.F) {
	f.Add("a: [b")
	f.Add("a:\n\t- b")
	f.Fuzz(func(t *testing.T, text string) {
		err := read(text)
		if err == nil {
			return
		}
		var e *yamlfile.Error
		if !errors.As(err, &e) {
			t.Fatalf("%T: %v", err, err)
		}
		if len(text) <= yamlfile.MaxText && (e.Line < 1 || e.Column < 1 || e.Line > strings.Count(text, "\n")+2) {
			t.Errorf("%q: line %d, column %d", text, e.Line, e.Column)
		}
	})
}
