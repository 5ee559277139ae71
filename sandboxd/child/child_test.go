// SPDX-License-Identifier: Apache-2.0

package child_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/sandboxd/child"
)

// fullDisk fails like a log file on a full disk.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

// A log that cannot be written must not end the process that logs.
func TestProcessOutlivesItsLog(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "for i in 1 2 3; do echo line $i >&2; sleep 0.05; done; exit 7")
	cmd.Stderr = fullDisk{}
	p, err := child.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if got := p.Cause(); !strings.HasPrefix(got, "ended: exit status 7") {
		t.Errorf("the process %s", got)
	}
	if got := p.Stderr(); got != "line 1\nline 2\nline 3" {
		t.Errorf("its last words are %q", got)
	}
}

// TestLastWords finds the line that matters.
func TestLastWords(t *testing.T) {
	for said, want := range map[string]string{
		"time=1 level=INFO msg=ready\npetri: the disk is full\n":                                "petri: the disk is full",
		"time=1 level=ERROR msg=no\ntime=2 level=INFO msg=ready\n":                              "",
		"time=1 level=INFO msg=a\ntime=2 level=ERROR msg=no\n":                                  "time=2 level=ERROR msg=no",
		"panic: nil map\n\ngoroutine 1 [running]:\nmain.main()\n\t/x.go:3 +0x1d\nexit status 2": "panic: nil map",
		"ain.main()\n\t/x.go:3 +0x1d\n":                                                         "",
		"":                                                                                      "",
	} {
		p, err := child.Start(exec.Command("/bin/sh", "-c", `printf %s "$0" >&2`, said))
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		if got := p.LastWords(); got != want {
			t.Errorf("of %q the last words are %q, want %q", said, got, want)
		}
		if strings.Contains(p.Ending(), "level") {
			t.Errorf("it ended as %q", p.Ending())
		}
	}
}

func TestKillEndsTheGroup(t *testing.T) {
	p, err := child.Start(exec.Command("/bin/sh", "-c", "sleep 1000 & wait"))
	if err != nil {
		t.Fatal(err)
	}
	if p.Ended() {
		t.Fatal("it has ended by itself")
	}
	p.Kill()
	if !p.Ended() || !strings.Contains(p.Cause(), "killed") {
		t.Errorf("after Kill it %s", p.Cause())
	}
}
