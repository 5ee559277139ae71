// SPDX-License-Identifier: Apache-2.0

// Package analyzertest tests analyzers by examples.
//
// A golden test is a function of one line:
//
//	func TestGolden(t *testing.T) { analyzertest.Golden(t, packer.New()) }
//
// It runs every testdata/*.in and compares with testdata/*.golden, which
// go test ./analyzers/packer -update rewrites. Pass -update to one package:
// those that do not import this one reject it.
package analyzertest

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/schemas"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// Outcome is what a golden file holds.
type Outcome struct {
	Status   string            `json:"status"`
	Error    string            `json:"error,omitempty"`
	Findings []schemas.Finding `json:"findings"`
	Schema   string            `json:"schema,omitempty"` // of the result document
	Result   json.RawMessage   `json:"result,omitempty"`
	Derived  []schemas.Derived `json:"derived,omitempty"`
	Cut      *schemas.TaskCut  `json:"cut,omitempty"`
}

// Golden runs an analyzer on every testdata/*.in, twice each, compares the two
// runs with each other and with the golden file, and checks what every result
// must be. An input of scope artifact is the artifact's bytes; its kind is the
// last word of the file's name before .in if the analyzer takes that kind
// (pack.dropped.in), else the analyzer's first. An input of scope analysis is
// the log, as JSON lines.
func Golden(t *testing.T, a analyzers.Analyzer) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.in")
	if err != nil || len(files) == 0 {
		t.Fatalf("there is no testdata/*.in (%v)", err)
	}
	for _, in := range files {
		name := strings.TrimSuffix(filepath.Base(in), ".in")
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			job := Job(a, name, data)
			got := Run(t, a, job)
			if diff := cmp.Diff(string(got), string(Run(t, a, job))); diff != "" {
				t.Fatalf("two runs differ (-first +second):\n%s", diff)
			}
			golden := strings.TrimSuffix(in, ".in") + ".golden"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatalf("%v; go test -update makes it", err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("it differs from %s (-want +got); is that meant? go test -update:\n%s", golden, diff)
			}
		})
	}
}

// Job returns a job for an analyzer over data, as [Golden] makes it.
func Job(a analyzers.Analyzer, name string, data []byte) analyzers.Job {
	info := a.Info()
	in := analyzers.NewInput(bytes.NewReader(data), int64(len(data)))
	job := analyzers.Job{Task: schemas.TaskRef{
		Tenant: schemas.DefaultTenant, Analysis: "01JD0000000000000000000000", Run: schemas.LiveRun, Analyzer: info.Name,
	}}
	if info.Scope == schemas.ScopeAnalysis {
		job.Events = analyzers.ReadEvents(in)
		return job
	}
	sum := schemas.Sum(data)
	kind := info.Kinds[0]
	for _, k := range info.Kinds {
		if name == string(k) || strings.HasSuffix(name, "."+string(k)) {
			kind = k
		}
	}
	job.Task.SHA256, job.Task.Kind = &sum, kind
	job.Artifact = schemas.Artifact{Kind: kind, SHA256: sum, Size: int64(len(data)), Name: name}
	job.Input = in
	return job
}

// Run runs an analyzer once, in this process, and returns the [Outcome] as the
// text of a golden file. It fails the test if the analyzer does, or if what it
// gives is not what a runner takes.
func Run(t testing.TB, a analyzers.Analyzer, job analyzers.Job) []byte {
	t.Helper()
	c, err := analyzers.Collect(t.Context(), a, job)
	if err != nil {
		t.Fatalf("Analyze: %v", err)
	}
	o := Outcome{Status: c.Status, Error: c.Error, Findings: c.Findings, Schema: c.Schema, Result: c.Result, Derived: c.Derived}
	if c.Cut != (schemas.TaskCut{}) {
		o.Cut = &c.Cut
	}
	if o.Findings == nil {
		o.Findings = []schemas.Finding{}
	}
	if o.Result != nil {
		dec := json.NewDecoder(bytes.NewReader(o.Result))
		var v any
		if err := dec.Decode(&v); err != nil {
			t.Fatalf("the result document is not JSON: %v", err)
		}
		if _, err := dec.Token(); err != io.EOF {
			t.Fatalf("something follows the result document: %v", err)
		}
		if m, _ := v.(map[string]any); m["schema"] != o.Schema {
			t.Errorf("the result document's field schema is %v, not %s", m["schema"], o.Schema)
		}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(o); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
