// SPDX-License-Identifier: Apache-2.0

// Package compare tells what two runs of analyzers, or two analyses, say that
// the other does not.
//
// It is pure, as the fold is: it sees events and reports, and nothing else. Two
// findings are the same if analyzer, kind, title and data are, and, where both
// sides are about the same analyses, the artifact.
package compare

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	"github.com/petri-sandbox/petri/schemas"
)

// A Difference is what separates two sides.
type Difference struct {
	Before string `json:"before"` // names of the sides
	After  string `json:"after"`

	New     int `json:"new"`     // findings that only the second side has
	Gone    int `json:"gone"`    // that only the first has
	Changed int `json:"changed"` // that both have, with another severity, confidence or techniques
	Same    int `json:"same"`

	// What differs, at most [MaxList] of each.
	NewFindings     []Found        `json:"new_findings"`
	GoneFindings    []Found        `json:"gone_findings"`
	ChangedFindings []Changed      `json:"changed_findings"`
	Results         []ResultChange `json:"results"`  // documents that differ
	Coverage        []string       `json:"coverage"` // for people: what one side covers and the other does not
	Omitted         map[string]int `json:"omitted"`  // entries left out of the lists
}

// MaxList bounds the lists of a [Difference].
const MaxList = 1000

// Found is a finding and where it is from.
type Found struct {
	Analysis string          `json:"analysis"`
	Analyzer string          `json:"analyzer"`
	Version  string          `json:"version"`
	SHA256   *schemas.Digest `json:"sha256,omitempty"`
	schemas.Finding
}

// Changed is a finding that both sides have.
type Changed struct {
	Before Found `json:"before"`
	After  Found `json:"after"`
}

// ResultChange is a result document that differs, or that only one side has.
type ResultChange struct {
	Analysis string             `json:"analysis"`
	Analyzer string             `json:"analyzer"`
	Kind     schemas.Kind       `json:"kind,omitempty"`
	SHA256   *schemas.Digest    `json:"sha256,omitempty"` // of the artifact
	Before   *schemas.ResultRef `json:"before,omitempty"`
	After    *schemas.ResultRef `json:"after,omitempty"`
}

// Whole reports whether nothing differs.
func (d *Difference) Whole() bool {
	return d.New+d.Gone+d.Changed+len(d.Results)+len(d.Coverage) == 0 && len(d.Omitted) == 0
}

func newDifference(before, after string) *Difference {
	return &Difference{
		Before: before, After: after, NewFindings: []Found{}, GoneFindings: []Found{}, ChangedFindings: []Changed{},
		Results: []ResultChange{}, Coverage: []string{}, Omitted: map[string]int{},
	}
}

func add[T any](d *Difference, name string, list []T, v T) []T {
	if len(list) >= MaxList {
		d.Omitted[name]++
		return list
	}
	return append(list, v)
}

// findings compares two lists of findings, each of which may hold the same more
// than once. Both are put in order.
func (d *Difference) findings(before, after []Found, key func(*Found) string) {
	old := map[string][]Found{}
	slices.SortStableFunc(before, compareFound)
	slices.SortStableFunc(after, compareFound)
	for _, f := range before {
		k := key(&f)
		old[k] = append(old[k], f)
	}
	for _, f := range after {
		k := key(&f)
		have := old[k]
		if len(have) == 0 {
			d.New++
			d.NewFindings = add(d, "new_findings", d.NewFindings, f)
			continue
		}
		// One that is alike in all respects, rather than the first.
		i := max(0, slices.IndexFunc(have, func(o Found) bool { return alike(&o, &f) }))
		if alike(&have[i], &f) {
			d.Same++
		} else {
			d.Changed++
			d.ChangedFindings = add(d, "changed_findings", d.ChangedFindings, Changed{have[i], f})
		}
		old[k] = slices.Delete(have, i, i+1)
	}
	for _, f := range before { // in order
		k := key(&f)
		if have := old[k]; len(have) > 0 {
			old[k] = have[1:]
			d.Gone++
			d.GoneFindings = add(d, "gone_findings", d.GoneFindings, have[0])
		}
	}
}

// alike compares what is no part of a finding's key.
func alike(a, b *Found) bool {
	return severity(a) == severity(b) && a.Confidence == b.Confidence && slices.Equal(a.Techniques, b.Techniques)
}

func severity(f *Found) schemas.Severity { return cmp.Or(f.Severity, schemas.SeverityInfo) }

func compareFound(a, b Found) int {
	return cmp.Or(
		strings.Compare(a.Analysis, b.Analysis), strings.Compare(a.Analyzer, b.Analyzer), strings.Compare(digest(a.SHA256), digest(b.SHA256)),
		strings.Compare(a.Kind, b.Kind), strings.Compare(a.Title, b.Title))
}

func digest(d *schemas.Digest) string {
	if d == nil {
		return ""
	}
	return d.String()
}

// what is a finding's key without where it was found.
func what(f *Found) string {
	return strings.Join([]string{f.Analyzer, f.Kind, f.Title, canonical(f.Data)}, "\x00")
}

// where is a finding's key among those about the same analyses.
func where(f *Found) string {
	return strings.Join([]string{f.Analysis, digest(f.SHA256), what(f)}, "\x00")
}

// canonical is JSON with its keys in order and no blanks. What is no JSON stays
// as it is.
func canonical(data json.RawMessage) string {
	if len(data) == 0 {
		return ""
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil {
		return string(data)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return string(data)
	}
	return string(b)
}

func sameResult(a, b *schemas.ResultRef) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.SHA256 == b.SHA256 && a.Schema == b.Schema
}
