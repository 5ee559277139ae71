// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// TestFeed tells of gaps where people read, and keeps them out of what machines
// do.
func TestFeed(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	e, err := schemas.NewEvent("default", "A", "A/context/0", at, schemas.OriginHost, schemas.Custom{Name: "mine"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		json, named  bool
		out, stderr  string
		machineLines int
	}{
		{false, false, "(2 events came late: read from the log)\n03:04:05.000  mine                   host  \n(12 behaviour events of A not shown)\n(1 behaviour event of A not shown)\n", "", 0},
		{false, true, "(2 events came late: read from the log)\nA  03:04:05.000  mine                   host  \n(12 behaviour events of A not shown)\n(1 behaviour event of A not shown)\n", "", 0},
		{true, true, "", "(2 events came late: read from the log)\n(12 behaviour events of A not shown)\n(1 behaviour event of A not shown)\n", 1},
	} {
		var out, stderr bytes.Buffer
		g := &global{json: tt.json}
		f := g.feed(&out, &stderr, tt.named)
		for _, err := range []error{f.Gap(bus.Gap{Events: 2}), f.Event(e), f.Gap(bus.Gap{Behavior: 12, Analysis: "A"}), f.Gap(bus.Gap{Behavior: 1, Analysis: "A"})} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if tt.json {
			if got, err := schemas.ParseEvent(out.Bytes()); err != nil || got.ID != e.ID || strings.Count(out.String(), "\n") != tt.machineLines {
				t.Errorf("%q, %v", out.String(), err)
			}
		} else if diff := cmp.Diff(tt.out, out.String()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(tt.stderr, stderr.String()); diff != "" {
			t.Errorf("stderr (-want +got):\n%s", diff)
		}
	}
}

// TestAskCommand maps what a gate's command does to an answer.
func TestAskCommand(t *testing.T) {
	e, err := schemas.NewEvent("default", "A", "A/context/0", time.Unix(0, 0), schemas.OriginHost, schemas.RunSample{Path: "/root/x"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		script string
		want   *schemas.GateAnswer
		err    string
	}{
		{"grep -q run_sample && echo looks good && echo more", &schemas.GateAnswer{Decision: "go", Reason: "looks good"}, ""},
		{"echo no; exit 1", &schemas.GateAnswer{Decision: "stop", Reason: "no"}, ""},
		{"exit 2", nil, "exit status 2"},
		{"kill -9 $$", nil, "signal: killed"},
		{"sleep 60", nil, "not done after 2s"},
		{"head -c 100000 /dev/zero | tr '\\0' x", &schemas.GateAnswer{Decision: "go", Reason: strings.Repeat("x", 512)}, ""},
	} {
		a, err := askCommand(context.Background(), 2*time.Second, []string{"sh", "-c", tt.script}, e)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: error %v, want %s", tt.script, err, tt.err)
			}
			continue
		}
		if diff := cmp.Diff(tt.want, a); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", tt.script, err, diff)
		} else if err := a.Check(); err != nil {
			t.Errorf("%s: the sandbox would not take it: %v", tt.script, err)
		}
	}
	if _, err := askCommand(context.Background(), time.Second, []string{"/nonexistent"}, e); err == nil {
		t.Error("a command that is not there answered")
	}
}
