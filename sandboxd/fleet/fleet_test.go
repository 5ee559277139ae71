// SPDX-License-Identifier: Apache-2.0

package fleet_test

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/sandboxd/fleet"
	"github.com/petri-sandbox/petri/sandboxd/machine/supervisor"
	"github.com/petri-sandbox/petri/schemas"
)

// TestReap ends what is, by its arguments, a supervisor or a QEMU with the
// sandbox' own mark, and nothing else.
func TestReap(t *testing.T) {
	ended := make(chan string, 10)
	start := func(name string, args ...string) {
		t.Helper()
		// It waits without a child, which would show its arguments until its exec.
		cmd := exec.Command("sh")
		cmd.Args = args
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
			ended <- name
			close(gone)
		}()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-gone
		})
	}
	const mark = "petri-reaptest-a1"
	command := []string{"-c", "read x", "supervisor"}
	supervised := func(words ...string) []string { return append(append([]string{"petri"}, command...), words...) }
	machine := func(argv0, mark, process string) []string {
		return []string{argv0, "-c", "read x", "-name", "guest=" + mark + ",process=" + process, "-m", "1"}
	}
	start("supervisor", supervised(mark)...)
	start("qemu", machine("/usr/bin/qemu-system-x86_64", mark, "petri-machine")...)
	start("another's supervisor", supervised("petri-reaptest2-a1")...)
	start("another's QEMU", machine("qemu-system-x86_64", "petri-reaptest2-a1", "petri-machine")...)
	start("an editor", "vi", "-c", "read x", mark)
	start("more words", supervised(mark, "more")...)
	start("a shell's QEMU", machine("sh", mark, "petri-machine")...)
	start("a user's QEMU", machine("qemu-system-x86_64", mark, "mine")...)

	reap := func() (int, error) {
		return fleet.New(fleet.Options{ID: "reaptest", Supervisor: supervisor.Privileges{Args: command}}).Reap()
	}
	n, err := reap()
	if n != 2 || err != nil {
		t.Errorf("reaped %d, %v", n, err)
	}
	got := []string{<-ended, <-ended}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"qemu", "supervisor"}, got); diff != "" {
		t.Errorf("ended (-want +got):\n%s", diff)
	}
	if n, err := reap(); n != 0 || err != nil {
		t.Errorf("reaped %d more, %v", n, err)
	}
	select {
	case name := <-ended:
		t.Errorf("%s was ended", name)
	default:
	}
}

// TestIsolation checks that what a machine is kept from the host with is told.
func TestIsolation(t *testing.T) {
	got, err := fleet.New(fleet.Options{ID: "isolationtest", Supervisor: supervisor.Privileges{Args: []string{"-test.run=^$"}}}).Isolation()
	if err != nil {
		t.Fatal(err)
	}
	user := schemas.UserSandbox
	if os.Geteuid() == 0 {
		user = schemas.UserOwn
	}
	if got.User != user || (len(got.Namespaces) == 0) != (got.Reason != "") {
		t.Errorf("isolation %+v", got)
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
