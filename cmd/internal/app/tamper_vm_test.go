// SPDX-License-Identifier: Apache-2.0

//go:build vm

package app_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/schemas"
)

// tamper runs a root that does to its guest what it can. What it did before is
// in the report, which says from when on it is not to be believed, and the forged
// words count for nothing.
func tamper(t *testing.T, bin, data string, module []byte) {
	elf, err := os.ReadFile(program(t, "tamper.c"))
	if err != nil {
		t.Fatal(err)
	}
	sample := filepath.Join(t.TempDir(), "tamper")
	elf = binary.LittleEndian.AppendUint64(append(elf, module...), uint64(len(module)))
	if err := os.WriteFile(sample, elf, 0o700); err != nil {
		t.Fatal(err)
	}
	r, _, code := detonate(t, bin, data, "--runtime", "20s", sample)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("it printed %q\ncoverage %+v\ntimeline %+v", r.Console.Stdout, r.Coverage, r.Timeline)
		}
	})
	if r.Outcome.Value != schemas.OutcomeIncomplete || code != 5 {
		t.Errorf("exit code %d, outcome %+v", code, r.Outcome)
	}
	// What came before.
	for path, action := range map[string]string{"/tmp/before/fact": "delete", "/tmp/child": "write", "/tmp/by-init": "write", "/proc": "mount", "/dev": "mount", "/tmp/last": "write"} {
		if f := file(r, path); f == nil || !slices.Contains(f.Actions, action) {
			t.Errorf("%s: %+v, want %s", path, f, action)
		}
	}
	if !slices.ContainsFunc(r.Network.Connections, func(c schemas.NetworkActivity) bool { return c.Address == "198.51.100.9" && c.Port == 4444 }) {
		t.Errorf("connections: %+v", r.Network.Connections)
	}
	first := r.Processes[0].Path
	for _, argv := range [][]string{{"sh", "-c", "echo by a child >/tmp/child"}, {first, "init"}} {
		if !slices.ContainsFunc(r.Processes, func(p schemas.Process) bool { return slices.Equal(p.Argv, argv) }) {
			t.Errorf("no process is %q: %+v", argv, r.Processes)
		}
	}
	for _, line := range []string{
		"kill every process: done\n", "open the port: Operation not permitted\n", "open the memory: Operation not permitted\n", "started by init: done\n", "mount over /proc: done\n",
		"write into a process: done\n", "load a module: done\n", "unload it: done\n", "load nonsense: Exec format error\n",
	} {
		if !strings.Contains(r.Console.Stdout, line) {
			t.Errorf("it did not print %q", line)
		}
	}
	// From when on it is not to be believed.
	a := r.Coverage.Tampering
	if a == nil || a.First.Call != "process_vm_writev" || a.First.PID != r.Processes[0].PID || a.First.Behind != "" || a.First.Records < 50 {
		t.Fatalf("after possible tampering: %+v", a)
	}
	if a.Calls["init_module"] != 2 || a.Calls["delete_module"] != 3 || a.Calls["bpf"] < 20 {
		t.Errorf("held: %v", a.Calls)
	}
	if !slices.ContainsFunc(r.Coverage.Gaps, func(s string) bool { return strings.Contains(s, "comes after possible tampering: process ") }) {
		t.Errorf("gaps: %q", r.Coverage.Gaps)
	}
	// What was forged.
	if f := file(r, "/tmp/forged"); f != nil {
		t.Errorf("a forged file: %+v", f)
	}
	if r.Console.ExitCode != nil && *r.Console.ExitCode == 77 {
		t.Error("a forged end")
	}
}

// tamperOften runs a debugger, which is held once, and a program that calls bpf more
// often than it is held.
func tamperOften(t *testing.T, bin, data string) {
	r, _, _ := detonate(t, bin, data, program(t, "tamper.c"), "--", "often", "5000", "100")
	t.Logf("%s", r.Console.Stdout)
	if r.Console.ExitCode == nil || *r.Console.ExitCode != 0 {
		t.Errorf("it ended %+v", r.Console)
	}
	if a := r.Coverage.Tampering; a == nil || a.First.Call != "ptrace" || a.First.Request != "PTRACE_TRACEME" || a.Calls["ptrace"] != 1 || a.Calls["bpf"] != 64 {
		t.Errorf("after possible tampering: %+v", a)
	}
	if !slices.ContainsFunc(r.Coverage.Gaps, func(s string) bool { return strings.Contains(s, "has called bpf more than 64 times") }) || len(r.Coverage.Gaps) != 2 {
		t.Errorf("gaps: %q", r.Coverage.Gaps)
	}
}
