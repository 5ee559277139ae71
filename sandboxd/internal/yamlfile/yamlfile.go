// SPDX-License-Identifier: Apache-2.0

// Package yamlfile reads the YAML files that people write, and says of a
// mistake in one where it is and how to mend it. It knows nothing of what the
// files mean.
package yamlfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// MaxText bounds a file in bytes.
const MaxText = 64 << 10

// maxNodes bounds what the aliases of a file may stand for.
const maxNodes = 10_000

// An Error is a mistake in a file.
type Error struct {
	Line, Column int    // from 1 on; columns are counted in characters. 0: the file as a whole
	Text         string // what is wrong, and how to mend it
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return e.Text
	}
	return fmt.Sprintf("line %d, column %d: %s", e.Line, e.Column, e.Text)
}

// At is a mistake at a node.
func At(n *yaml.Node, format string, args ...any) error {
	return &Error{Line: n.Line, Column: n.Column, Text: fmt.Sprintf(format, args...)}
}

// Read returns the mapping that a file consists of. what names the file in
// errors, and shape says what it should look like. The error is an *[Error] or
// several of them, joined.
func Read(text, what, shape string) (*yaml.Node, error) {
	if len(text) > MaxText {
		return nil, &Error{Text: fmt.Sprintf("%s has %d bytes; %d are allowed (shorten it)", what, len(text), MaxText)}
	}
	doc, err := parse([]byte(text))
	if err != nil {
		return nil, locate(text, err)
	}
	if len(doc.Content) == 0 {
		return nil, &Error{Line: 1, Column: 1, Text: fmt.Sprintf("%s is empty; it is %s", what, shape)}
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, At(root, "%s is %s", what, shape)
	}
	nodes := 0
	if err := check(root, &nodes); err != nil {
		return nil, err
	}
	return root, nil
}

// errMore is the mistake of a second document.
var errMore = errors.New("a second document begins here: a file has one (take the line --- away)")

func parse(text []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	doc := new(yaml.Node)
	if err := dec.Decode(doc); err != nil {
		if errors.Is(err, io.EOF) {
			return doc, nil
		}
		return nil, err
	}
	switch err := dec.Decode(new(yaml.Node)); {
	case err == nil:
		return nil, errMore
	case !errors.Is(err, io.EOF):
		return nil, err
	}
	return doc, nil
}

// number is what the YAML package says of a place. It is sometimes the line of
// what is around, sometimes one less, and never has a column.
var number = regexp.MustCompile(`^(yaml: )?(line \d+: )?`)

// locate finds where the reader of YAML noticed a mistake: at the end of the
// shortest beginning of the text that has the same mistake.
func locate(text string, err error) error {
	whole := err.Error()
	low, high := 0, len(text)
	for low < high {
		mid := low + (high-low)/2
		if _, err := parse([]byte(text[:mid])); err != nil && err.Error() == whole {
			high = mid
		} else {
			low = mid + 1
		}
	}
	before := text[:max(low-1, 0)]
	line := strings.LastIndexByte(before, '\n') + 1
	problem := number.ReplaceAllString(whole, "")
	return &Error{Line: strings.Count(before, "\n") + 1, Column: utf8.RuneCountInString(before[line:]) + 1, Text: problem + fix(problem)}
}

// fixes are what helps, by words of the YAML package's errors.
var fixes = []struct{ words, fix string }{
	{"second document", ""},
	{"cannot start any token", "indent with spaces, never with tabs, and put quotes around a text that begins with @, ` or %"},
	{"mapping values are not allowed", "one key a line, indented like its neighbours; quotes around a text that has a colon and a space in it"},
	{"expected ',' or", "close the bracket or brace, and put commas between what is in it"},
	{"expected node content", "close the bracket or brace"},
	{"'-' indicator", "indent the lines of a list alike, each with a dash and a space"},
	{"expected key", "indent the keys that belong together alike"},
	{"could not find expected ':'", "a colon and a space after the key"},
	{"end of stream", "close the quotes"},
	{"unexpected document indicator", "close the quotes"},
	{"escape", "in double quotes a backslash is written twice; or use single quotes"},
	{"unknown anchor", "quotes around a text that begins with *"},
	{"anchor", "quotes around a text that begins with & or *"},
	{"tag", "quotes around a text that begins with !"},
	{"block entries are not allowed", "begin the list on a line of its own"},
	{"UTF-8", "save the file as UTF-8"},
	{"control characters", "take the control character away"},
	{"tab", "indent with spaces, never with tabs"},
	{"indent", "indent with spaces, the lines that belong together alike"},
}

func fix(problem string) string {
	for _, f := range fixes {
		if strings.Contains(problem, f.words) {
			if f.fix == "" {
				return ""
			}
			return " (" + f.fix + ")"
		}
	}
	return " (it must be YAML: keys, a colon and a space, values; lines of a list begin with a dash and a space)"
}

// check refuses what YAML allows and nobody means: a key twice, and aliases
// without end.
func check(n *yaml.Node, nodes *int) error {
	if *nodes++; *nodes > maxNodes {
		return At(n, "the file has more than %d values (shorten it)", maxNodes)
	}
	if n.Kind == yaml.AliasNode {
		return At(n, "*%s: aliases are not taken (write out what it stands for, or put quotes around a text that begins with *)", n.Value)
	}
	var errs []error
	if n.Kind == yaml.MappingNode {
		seen := map[string]int{}
		for key := range Pairs(n) {
			if key.Kind != yaml.ScalarNode {
				errs = append(errs, At(key, "a key is one word"))
				continue
			}
			if line, ok := seen[key.Value]; ok {
				errs = append(errs, At(key, "%q is here for the second time, after line %d (keep one of them)", key.Value, line))
				continue
			}
			seen[key.Value] = key.Line
		}
	}
	for _, c := range n.Content {
		if err := check(c, nodes); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Pairs walks a mapping.
func Pairs(n *yaml.Node) func(func(k, v *yaml.Node) bool) {
	return func(yield func(k, v *yaml.Node) bool) {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if !yield(n.Content[i], n.Content[i+1]) {
				return
			}
		}
	}
}

// Nearest names the words that a misspelt one may stand for: "did you mean
// a?", and else all of them.
func Nearest(word string, words []string) string {
	best, found := len(word)/4+1, ""
	for _, w := range words {
		if d := distance(word, w); d <= best && (found == "" || d < best) {
			best, found = d, w
		}
	}
	if found != "" {
		return fmt.Sprintf("did you mean %s?", found)
	}
	return "there are: " + strings.Join(slices.Sorted(slices.Values(words)), ", ")
}

// distance counts the letters to change, add or take away.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
