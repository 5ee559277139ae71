// SPDX-License-Identifier: Apache-2.0

//go:build vm

package qemu_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/machinetest"
	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// TestHold: calls that are held, whatever traces. Each is told once, when all that
// was recorded before is out of the guest, and goes on then.
func TestHold(t *testing.T) {
	for _, backend := range []string{"ebpf", "ptrace"} {
		t.Run(backend, func(t *testing.T) {
			cfg := machinetest.Config(t)
			if backend != "ebpf" {
				cfg.Append = " petri.tracer=" + backend
			}
			g, boot := poweron(t, cfg, machinetest.Identity(1))
			if got := boot.Ready.Tracer.Backend; got != backend {
				t.Fatalf("the tracer is %s", got)
			}
			r := machinetest.Command(t, machinetest.Program(t, "held"))
			r.Trace = true
			g.run("held", r)
			if e := g.rec.AwaitExit(t, patience); e.ExitCode == nil || *e.ExitCode != 0 {
				t.Errorf("it ended %+v", e)
			}
			g.rec.AwaitTree(t, patience)
			g.shutdown()
			g.rec.AwaitEnd(t, patience, schemas.SourceTrace)

			made := strings.Fields(g.rec.Text(schemas.SourceStdout))
			if len(made) < 8 {
				t.Errorf("it made %q", made)
			}
			var held []schemas.PossibleTampering
			for _, e := range g.rec.Events() {
				if e.Tampering != nil {
					held = append(held, *e.Tampering)
				}
			}
			at := recordsOf(t, g.rec.Text(schemas.SourceTrace), append(made, "/tmp/before", "/tmp/after"))
			for i, name := range made {
				if i >= len(held) {
					t.Errorf("%s was not held", name)
					continue
				}
				if h := held[i]; h.Call != name || h.Comm != "sample" || h.Behind != "" {
					t.Errorf("held: %+v, want %s", h, name)
				}
				// Of the call itself there may be a record already, as of one that goes on.
				if n, ok := at[name]; !ok || held[i].Records <= at["/tmp/before"] || held[i].Records > n+1 {
					t.Errorf("%s was held behind %d records and is number %d, /tmp/before is %d", name, held[i].Records, n, at["/tmp/before"])
				}
			}
			if len(held) != len(made) || at["/tmp/after"] <= at["/tmp/before"] {
				t.Errorf("%d calls were held, %d made; /tmp/before is %d, /tmp/after %d", len(held), len(made), at["/tmp/before"], at["/tmp/after"])
			}
			if faults := g.rec.Faults(); slices.ContainsFunc(faults, func(s string) bool { return !strings.Contains(s, "no address") }) {
				t.Errorf("faults: %q", faults)
			}
		})
	}
}

// TestReplaced: commands beside a sample that it has replaced are recorded as the
// sample is, whatever traces; what came before it is not.
func TestReplaced(t *testing.T) {
	const script = "#!/bin/sh\n" +
		"printf '#!/bin/sh\\necho done > /tmp/payload\\n' > /tmp/ps && chmod 755 /tmp/ps && mv /tmp/ps /usr/bin/ps\n"
	sample := filepath.Join(t.TempDir(), "sample")
	if err := os.WriteFile(sample, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, backend := range []string{"ebpf", "ptrace"} {
		t.Run(backend, func(t *testing.T) {
			cfg := machinetest.Config(t)
			if backend != "ebpf" {
				cfg.Append = " petri.tracer=" + backend
			}
			g, _ := poweron(t, cfg, machinetest.Identity(1))
			g.sh("echo > /tmp/before")
			f := machinetest.Open(t, sample)
			r := machinetest.Command(t, f)
			r.Trace = true
			if _, err := g.Run(g.ctx, r, f); err != nil {
				t.Fatal(err)
			}
			g.rec.AwaitTree(t, patience)
			for range 2 { // the first is not the last
				if x, err := g.Exec(g.ctx, machine.Exec{Command: []string{"ps", "aux"}, Timeout: patience}); err != nil || x.ExitCode != 0 {
					t.Errorf("exec: %+v, %v", x, err)
				}
				g.sh("rm /tmp/payload && echo > /tmp/after")
			}
			g.shutdown()
			g.rec.AwaitEnd(t, patience, schemas.SourceTrace)
			at := recordsOf(t, g.rec.Text(schemas.SourceTrace), []string{"/tmp/before", "/tmp/ps", "/tmp/payload", "/tmp/after"})
			if _, ok := at["/tmp/before"]; ok || at["/tmp/ps"] == 0 || at["/tmp/payload"] <= at["/tmp/ps"] || at["/tmp/after"] <= at["/tmp/payload"] {
				t.Errorf("recorded: %v", at)
			}
		})
	}
}

// recordsOf finds the numbers of the records that return from calls of these names,
// or that open files of these.
func recordsOf(t *testing.T, text string, names []string) map[string]uint64 {
	t.Helper()
	at := map[string]uint64{}
	r := trace.NewReader(strings.NewReader(text))
	for rec, err := r.Next(); err == nil; rec, err = r.Next() {
		if rec.Type != trace.Syscall || !rec.Finished() {
			continue
		}
		name := rec.Describe().Name
		if path, ok := rec.Text(1); ok && name == "openat" {
			name = path
		}
		if slices.Contains(names, name) {
			at[name] = rec.Number
		}
	}
	if c := r.Totals(); c.Lost+c.Missing+c.Bad+c.Unreadable > 0 {
		t.Errorf("the trace is not whole: %+v", c)
	}
	return at
}
