// SPDX-License-Identifier: Apache-2.0

//go:build vm && linux

package tracer_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestCalibrate: what a guest finds out by looking is what the kernel's BTF
// says.
func TestCalibrate(t *testing.T) {
	m := start(t)
	got := m.must(request{Op: "calibrate"}).Offsets
	var want struct{ Fields map[string]uint32 }
	if err := json.Unmarshal(built.offsets, &want); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		// What only the executed file's number needs, which a trace may lack.
		"mm_struct.exe_file", "file.f_inode", "inode.i_ino", "inode.i_sb", "super_block.s_dev",
	} {
		delete(want.Fields, name)
	}
	if diff := cmp.Diff(want.Fields, got); diff != "" {
		t.Error(diff)
	}
	m.load(request{Calibrate: true})
	f := m.traced(t, request{Argv: []string{"/usr/bin/paths"}, PIDNS: true})
	if len(f.events) != 21 || len(f.result.Gaps) > 0 {
		t.Errorf("%q, gaps %q", f.events, f.result.Gaps)
	}
}
