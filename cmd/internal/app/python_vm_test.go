// SPDX-License-Identifier: Apache-2.0

//go:build vm

package app_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/schemas"
)

const pythonSample = `#!/usr/bin/env python3
import ctypes, json, socket, sqlite3, ssl, subprocess, zlib
print("started by", subprocess.run(["/bin/echo", "a", "child"], capture_output=True, text=True).stdout, end="")
with open("/tmp/made", "w") as f:
    json.dump({"made": True}, f)
s = socket.socket()
s.settimeout(2)
s.connect_ex(("198.51.100.7", 8080))
`

// TestPython runs a script for python3 in the guest that has it, and in a sandbox
// without one hears how to have it.
func TestPython(t *testing.T) {
	bin := build(t)
	run(t, bin+"/petri", "--cache", cache(), "guest", "build", "amd64+python3")
	sample := filepath.Join(t.TempDir(), "sample.py")
	if err := os.WriteFile(sample, []byte(pythonSample), 0o600); err != nil {
		t.Fatal(err)
	}
	r, _, code := detonate(t, bin, filepath.Join(t.TempDir(), "data"), sample)
	if code != 0 || r.Outcome.Value != schemas.OutcomeCompleted {
		t.Errorf("exit code %d, outcome %+v", code, r.Outcome)
	}
	if m := r.Machine.Spec; m == nil || m.Arch != "amd64" || m.With != "python3" || m.Start != "warm" {
		t.Errorf("the machine: %+v", m)
	}
	if c := r.Console; c.ExitCode == nil || *c.ExitCode != 0 || c.Stdout != "started by a child\n" || c.Stderr != "" {
		t.Errorf("console: %+v", c)
	}
	if !slices.ContainsFunc(r.Processes, func(p schemas.Process) bool { return slices.Equal(p.Argv, []string{"/bin/echo", "a", "child"}) }) {
		t.Errorf("processes: %+v", r.Processes)
	}
	if f := file(r, "/tmp/made"); f == nil || !slices.Contains(f.Actions, "create") {
		t.Errorf("/tmp/made: %+v", f)
	}
	if !slices.ContainsFunc(r.Network.Connections, func(c schemas.NetworkActivity) bool { return c.Address == "198.51.100.7" && c.Port == 8080 }) {
		t.Errorf("connections: %+v", r.Network.Connections)
	}
	var dropped []string
	for _, a := range r.Artifacts {
		if a.Kind == schemas.KindDropped {
			dropped = append(dropped, a.Name)
		}
	}
	// Importing has left nothing: what is collected is the sample's own.
	if !slices.Contains(dropped, "/tmp/made") || slices.ContainsFunc(dropped, func(p string) bool { return strings.HasPrefix(p, "/usr/lib/python3") }) {
		t.Errorf("files that were collected: %q", dropped)
	}
}

// TestPythonNotBuilt has a cache with the usual guest only.
func TestPythonNotBuilt(t *testing.T) {
	bin, own := build(t), t.TempDir()
	if err := os.Mkdir(own+"/guests", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"apt", "warm", "guests/amd64"} {
		if err := os.Symlink(filepath.Join(cache(), name), filepath.Join(own, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range []string{"/usr/bin/python3", "/usr/bin/env python3"} {
		sample := filepath.Join(t.TempDir(), "sample.py")
		if err := os.WriteFile(sample, []byte("#!"+line+"\nprint(1)\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		r, _, code := detonate(t, bin, filepath.Join(t.TempDir(), "data"), "--cache", own, sample)
		if code != 4 || r.Outcome.Value != schemas.OutcomeNotExecuted {
			t.Errorf("%s: exit code %d, outcome %+v", line, code, r.Outcome)
		}
		if why := strings.Join(r.Outcome.Reasons, "; "); !strings.Contains(why, "python3 is not in the guest (build one that has it: petri guest build amd64+python3)") {
			t.Errorf("%s: %s", line, why)
		}
	}
}
