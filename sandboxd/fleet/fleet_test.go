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
	start := func(args ...string) *exec.Cmd {
		t.Helper()
		// The shell's own arguments are what a list of processes shows.
		// It waits without a child, which would show them too until its exec.
		cmd := exec.Command("sh", append([]string{"-c", "read x", "sh"}, args...)...)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close() })
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		return cmd
	}
	supervisor := start("petri-reaptest-a1")
	qemu := start("guest=petri-reaptest-a1,process=petri-machine")
	stranger := start("petri-reaptest2-a1", "see petri-reaptest-a1")
	ended := make(chan string, 3)
	for name, cmd := range map[string]*exec.Cmd{"supervisor": supervisor, "qemu": qemu, "stranger": stranger} {
		go func() {
			_ = cmd.Wait() // a dead child stays in the list of processes until its parent looks
			ended <- name
		}()
	}
	n, err := fleet.New(fleet.Options{ID: "reaptest"}).Reap()
	if n != 2 || err != nil {
		t.Errorf("reaped %d, %v", n, err)
	}
	for range 2 {
		if name := <-ended; name == "stranger" {
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
