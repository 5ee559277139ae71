// SPDX-License-Identifier: Apache-2.0

package protocol_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/sandboxd/protocol"
	"github.com/petri-sandbox/petri/schemas"
)

const steps = "steps:\n  - poweron\n  - run_sample\n  - trigger: look" + end

func TestGatesAndControl(t *testing.T) {
	p, err := protocol.Parse(steps + `gates:
  - {on: run_sample, name: approve, timeout: 2s, otherwise: stop}
  - {on: [look, post_poweron], name: look-2, otherwise: go}
control: {extend: 1m, stop: true, dump_memory: 2, screenshot: 3}
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []protocol.Gate{
		{On: []string{"run_sample"}, Name: "approve", Timeout: 2 * time.Second, Otherwise: "stop", Line: 8, Column: 5},
		{On: []string{"look", "post_poweron"}, Name: "look-2", Timeout: 10 * time.Second, Otherwise: "go", Line: 9, Column: 5},
	}
	if diff := cmp.Diff(want, p.Gates); diff != "" {
		t.Errorf("gates (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(protocol.Control{Extend: time.Minute, Stop: true, DumpMemory: 2, Screenshot: 3}, p.Control); diff != "" {
		t.Errorf("control (-want +got):\n%s", diff)
	}
	p, err = protocol.Parse(steps + "gates:\ncontrol:\n")
	if err != nil || len(p.Gates) != 0 || p.Control != (protocol.Control{}) {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestGateable keeps gates away from what they could only hold up.
func TestGateable(t *testing.T) {
	p, err := protocol.Parse(steps)
	if err != nil {
		t.Fatal(err)
	}
	got := p.Gateable()
	for _, name := range []string{"run_sample", "sample_started", "look", "pre_shutdown", "post_poweron", "pre_dump_memory"} {
		if !slices.Contains(got, name) {
			t.Errorf("no gate can be asked at %s", name)
		}
	}
	for _, name := range []string{schemas.EventPrePoweroff, schemas.EventPostPoweroff, schemas.EventFault, schemas.EventLogAway, schemas.EventStartAnalysis, schemas.EventGateAnswered, "failed_pause"} {
		if slices.Contains(got, name) {
			t.Errorf("a gate can be asked at %s", name)
		}
	}
}

func TestMistakesAboutOthers(t *testing.T) {
	gate := func(s string) string { return "gates:\n  - " + s + "\n" }
	tests := []struct{ text, want string }{
		{"gates: {on: x}", "line 7, column 8: gates is a list"},
		{"gates: [a]", "line 7, column 9: a gate is a mapping"},
		{gate("{name: a, otherwise: go}"), "line 8, column 5: gate a needs the event"},
		{gate("{on: run_sample, otherwise: go}"), "line 8, column 5: a gate needs a name"},
		{gate("{on: run_sample, name: a}"), "gate a needs to say what counts without an answer"},
		{gate("{on: run_sample, name: a.b, otherwise: go}"), `line 8, column 28: gate "a.b" must begin with a-z`},
		{gate("{on: run_sample, name: a, otherwise: maybe}"), `line 8, column 42: otherwise "maybe" is neither go nor stop`},
		{gate("{on: run_sample, name: a, otherwise: go, timeout: 5}"), `"5" is not a duration`},
		{gate("{on: run_sample, name: a, otherwise: go, timeout: 2h}"), "between 1ms and 1h"},
		{gate("{on: run_sample, name: a, otherwise: go, timeuot: 5s}"), `a gate has no option "timeuot" (did you mean timeout?)`},
		{gate("{on: run_sampel, name: a, otherwise: go}"), "line 8, column 5: gate a: nothing publishes run_sampel (did you mean run_sample?)"},
		{gate("{on: 'pre_*', name: a, otherwise: go}"), "must begin with a-z and hold only"},
		{gate("{on: {a: b}, name: a, otherwise: go}"), "on is the name of an event"},
		{gate("{on: [look, look], name: a, otherwise: go}"), "look is here twice"},
		{gate("{on: pre_poweroff, name: a, otherwise: go}"), "no gate can be asked at pre_poweroff"},
		{gate("{on: start_analysis, name: a, otherwise: go}"), "no gate can be asked at start_analysis"},
		{gate("{on: look, name: a, otherwise: go, timeout: 60s}"), "gate a may take 1m0s, and the trigger of look in line 4 waits for 1m0s"},
		{"gates:\n" + strings.Repeat("  - {on: look, name: a, otherwise: go}\n", 21), "20 are allowed"},
		{"control: yes please", "line 7, column 10: control is a mapping"},
		{"control: {extend: long}", `line 7, column 19: "long" is not a duration`},
		{"control: {extend: 2h}", "extend is between 1ms and 1h"},
		{"control: {stop: maybe}", "line 7, column 17: stop is true or false"},
		{"control: {dump_memory: -1}", "dump_memory is a number from 0 to 100"},
		{"control: {screenshot: 1000}", "screenshot is a number from 0 to 100"},
		{"control: {screenshots: 1}", `control has no option "screenshots" (did you mean screenshot?)`},
		{"control: {extend: 1s, extend: 2s}", "is here for the second time"},
	}
	for _, tt := range tests {
		_, err := protocol.Parse(steps + tt.text)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.60q:\n got %v\nwant %s", tt.text, err, tt.want)
		}
	}
}
