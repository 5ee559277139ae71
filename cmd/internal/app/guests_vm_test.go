// SPDX-License-Identifier: Apache-2.0

//go:build vm

package app_test

import (
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/sandboxd/catalogue"
	"github.com/petri-sandbox/petri/sandboxd/machine/machinetest"
	"github.com/petri-sandbox/petri/schemas"
)

// TestEveryGuestRun runs one program, compiled for each CPU and linked with its
// shared libraries, as a user would. Each must get the guest of its own, and what
// that cannot see must be said.
func TestEveryGuestRun(t *testing.T) {
	bin := build(t)
	data := filepath.Join(t.TempDir(), "data")
	for _, arch := range machinetest.Arches() {
		t.Run(arch, func(t *testing.T) {
			cpu, err := catalogue.Lookup(arch)
			if err != nil {
				t.Fatal(err)
			}
			run(t, "go", "run", root+"/cmd/internal/agents", bin, arch)
			run(t, bin+"/petri", "--cache", cache(), "guest", "build", arch)
			for _, gnu := range []string{cpu.GNU, cpu.Also.GNU} {
				if gnu == "" {
					continue
				}
				t.Run(gnu, func(t *testing.T) {
					sample := filepath.Join(t.TempDir(), "sample")
					run(t, gnu+"-gcc", "-O1", "-o", sample, filepath.Join(root, "sandboxd/testdata/progs/demo.c"))
					r, _, code := detonate(t, bin, data, sample)
					wholeRun(t, cpu, r, code)
				})
			}
		})
	}
}

// wholeRun checks that a report says of demo.c on the guest what there is to be
// said, and that nothing is missing.
func wholeRun(t *testing.T, cpu catalogue.CPU, r *schemas.Report, code int) {
	start := "warm"
	if cpu.Cold != "" {
		start = "cold"
	}
	if m := r.Machine; m.Spec.Arch != cpu.Name || m.Spec.Start != start || m.Fallback != cpu.Cold {
		t.Errorf("it ran on %+v, fallback %q", m.Spec, m.Fallback)
	}
	if c := r.Console; c.ExitCode == nil || *c.ExitCode != 0 || !strings.Contains(c.Stdout, "payload ran as root\n") || !strings.HasSuffix(c.Stdout, "done\n") {
		t.Errorf("console: %+v", c)
	}
	if !slices.ContainsFunc(r.Artifacts, func(a schemas.Artifact) bool {
		return a.Kind == schemas.KindDropped && a.Name == "/tmp/.payload"
	}) {
		t.Errorf("/tmp/.payload was not collected: %+v", r.Artifacts)
	}
	if r.Machine.Tracer.Backend == "none" {
		missing := func(text string) bool { return strings.Contains(text, "trace is missing") }
		if r.Outcome.Value != schemas.OutcomeIncomplete || !slices.ContainsFunc(r.Coverage.Gaps, missing) || r.Verdict.Value != schemas.VerdictUndetermined {
			t.Errorf("nothing was traced, and the report says %+v, %+v, %q", r.Outcome, r.Verdict, r.Coverage.Gaps)
		}
		return
	}
	if len(r.Processes) != 5 {
		t.Errorf("%d processes, there are 5: %+v", len(r.Processes), r.Processes)
	}
	if !slices.ContainsFunc(r.Files, func(f schemas.FileActivity) bool { return path.Base(f.Path) == "libc.so.6" && f.Opens > f.Failed }) {
		t.Error("libc was not opened")
	}
	if f := file(r, "/tmp/gone"); f == nil || !slices.Contains(f.Actions, "delete") {
		t.Errorf("/tmp/gone: %+v", f)
	}
	if !slices.ContainsFunc(r.Network.Connections, func(c schemas.NetworkActivity) bool { return c.Address == "198.51.100.7" && c.Port == 23 }) {
		t.Errorf("connections: %+v", r.Network.Connections)
	}
	whole := func(c schemas.SourceCoverage) bool {
		return c.Source == schemas.SourceTrace && c.Status == schemas.StatusWhole && c.Produced > 0
	}
	unread := func(text string) bool { return strings.Contains(text, "could not be read") }
	if !slices.ContainsFunc(r.Coverage.Sources, whole) || slices.ContainsFunc(r.Coverage.Gaps, unread) {
		t.Errorf("the trace is not complete: %+v, %q", r.Coverage.Sources, r.Coverage.Gaps)
	}
	// MIPS has no memory image.
	if code != 0 && !strings.HasPrefix(cpu.Name, "mips") {
		t.Errorf("exit code %d, outcome %+v", code, r.Outcome)
	}
}
