// SPDX-License-Identifier: Apache-2.0

package fleet_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/sandboxd/fleet"
)

// TestReap ends what carries the sandbox' own mark, as a supervisor or as QEMU
// would, and nothing else.
func TestReap(t *testing.T) {
	ended := make(chan string, 3)
	start := func(mark string, more ...string) {
		t.Helper()
		// The shell's own arguments are what a list of processes shows.
		// It waits without a child, which would show them too until its exec.
		cmd := exec.Command("sh", append([]string{"-c", "read x", "sh", mark}, more...)...)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close() })
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		gone := make(chan struct{})
		go func() {
			_ = cmd.Wait() // a dead child stays in the list of processes until its parent looks
			ended <- mark
			close(gone)
		}()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-gone
		})
	}
	start("petri-reaptest-a1")
	start("guest=petri-reaptest-a1,process=petri-machine")
	stranger := "petri-reaptest2-a1"
	start(stranger, "see petri-reaptest-a1")
	n, err := fleet.New(fleet.Options{ID: "reaptest"}).Reap()
	if n != 2 || err != nil {
		t.Errorf("reaped %d, %v", n, err)
	}
	for range 2 {
		if mark := <-ended; mark == stranger {
			t.Error("another sandbox' process was ended")
		}
	}
	if n, err := fleet.New(fleet.Options{ID: "reaptest"}).Reap(); n != 0 || err != nil {
		t.Errorf("reaped %d more, %v", n, err)
	}
}

func TestFindQEMU(t *testing.T) {
	if _, err := fleet.FindQEMU(t.Context(), "vax"); err == nil || !strings.Contains(err.Error(), `"vax"`) {
		t.Errorf("unknown architecture: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := fleet.FindQEMU(t.Context(), "amd64"); !errors.Is(err, fleet.ErrNoQEMU) || !strings.Contains(err.Error(), "make setup") {
		t.Errorf("no QEMU: %v", err)
	}
}
