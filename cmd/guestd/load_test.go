// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

func TestMapsFile(t *testing.T) {
	const maps = "7f00-7f10 r--p 00000000 00:15 42 /root/a.so\n" +
		"7f10-7f20 r-xp 00001000 00:15 42 /root/a.so\n" +
		"7f20-7f30 rw-p 00002000 00:15 43 /root/b.so\n" +
		"7f40-7f50 r-xp 00000000 00:00 0 \n"
	for path, want := range map[string]bool{"/root/a.so": true, "/root/b.so": false, "a.so": false, "/root/c.so": false} {
		if got := mapsFile([]byte(maps), path); got != want {
			t.Errorf("%s: %t", path, got)
		}
	}
}

// TestRunnerCommand checks that nothing of a sample is a part of a program.
func TestRunnerCommand(t *testing.T) {
	evil := []string{"/root/a.so", `"); system("id`, "-e", "--"}
	for _, how := range []string{schemas.HowMapped, schemas.HowLoaded} {
		got := runnerCommand(machine.Run{RunSample: schemas.RunSample{Path: evil[0], Command: evil}, Load: how})
		end := slices.Index(got, "--")
		if end != 3 || strings.Contains(strings.Join(got[:end], " "), "system") || got[end+1] != evil[0] || !slices.Equal(got[len(got)-3:], evil[1:]) {
			t.Errorf("%s: %q", how, got)
		}
	}
	if got := runnerCommand(machine.Run{}); got != nil {
		t.Errorf("a sample without a runner: %q", got)
	}
}

func TestRefusal(t *testing.T) {
	for _, tt := range []struct{ how, said, errno, reason string }{
		{schemas.HowMapped, "ok", "", ""},
		{schemas.HowLoaded, "forced", "", ""},
		{schemas.HowLoaded, "8", "ENOEXEC", "exec format error"},
		{schemas.HowMapped, "8", "", "refuses"},
		{schemas.HowMapped, "wrong ELF class\x1b", "", `\x1b`},
		{schemas.HowLoaded, "", "", "ended before"},
	} {
		err := refusal(machine.Run{Load: tt.how}, tt.said)
		var ne *machine.NotExecuted
		if tt.reason == "" && err == nil {
			continue
		}
		if !errors.As(err, &ne) || ne.Errno != tt.errno || !strings.Contains(ne.Reason, tt.reason) {
			t.Errorf("%s %q: %v", tt.how, tt.said, err)
		}
	}
}
