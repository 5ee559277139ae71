// SPDX-License-Identifier: Apache-2.0

package protocol_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/sandboxd/protocol"
	"github.com/petri-sandbox/petri/schemas"
)

func TestDefault(t *testing.T) {
	p, err := protocol.Parse(protocol.Default)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range p.Steps {
		got = append(got, string(s.Kind)+" "+s.Timeout.String()+" "+string(s.OnFailure))
	}
	want := []string{
		"poweron 30s stop", "wait_ip 10s continue", "run_sample 10s stop", "wait 20s continue", "pause 10s stop",
		"trigger 1m0s continue", "resume 10s stop", "shutdown 10s poweroff", "start_analysis 1m0s continue", "wait_analysis 1m0s continue",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	w := p.Steps[3]
	if diff := cmp.Diff([]string{"tree_exited"}, w.Until); diff != "" || !w.Runtime {
		t.Errorf("wait %+v", w)
	}
}

// end is what every protocol ends with.
const end = "\n  - start_analysis\n  - wait_analysis\n"

func TestSteps(t *testing.T) {
	tests := []struct {
		text string
		want protocol.Step
	}{
		{"- wait: 5s", protocol.Step{Kind: "wait", Timeout: 5 * time.Second, OnFailure: "continue"}},
		{"- wait: {for: 1m}", protocol.Step{Kind: "wait", Timeout: time.Minute, OnFailure: "continue"}},
		{"- wait: {until: sample_exited, limit: 3s}", protocol.Step{Kind: "wait", Timeout: 3 * time.Second, OnFailure: "continue", Until: []string{"sample_exited"}}},
		{"- trigger: my_event", protocol.Step{Kind: "trigger", Timeout: time.Minute, OnFailure: "continue", Event: "my_event"}},
		{"- trigger: {event: my_event, payload: {a: b}}", protocol.Step{Kind: "trigger", Timeout: time.Minute, OnFailure: "continue", Event: "my_event", Payload: map[string]string{"a": "b"}}},
		{"- exec: sh -c 'echo \"a b\"'", protocol.Step{Kind: "exec", Timeout: 10 * time.Second, OnFailure: "continue", Command: []string{"sh", "-c", "echo \"a b\""}}},
		{"- exec: {command: [ps, aux], timeout: 2s, on_failure: stop}", protocol.Step{Kind: "exec", Timeout: 2 * time.Second, OnFailure: "stop", Command: []string{"ps", "aux"}}},
		{"- restart: {timeout: 40s}", protocol.Step{Kind: "restart", Timeout: 40 * time.Second, OnFailure: "stop"}},
		{"- poweroff", protocol.Step{Kind: "poweroff", Timeout: 10 * time.Second, OnFailure: "continue"}},
		{"- dump_memory", protocol.Step{Kind: "dump_memory", Timeout: time.Minute, OnFailure: "continue"}},
	}
	for _, tt := range tests {
		p, err := protocol.Parse("steps:\n  - poweron: {cold: true}\n  " + tt.text + end)
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
			continue
		}
		if !p.Steps[0].Cold {
			t.Error("poweron is not cold")
		}
		got := p.Steps[1]
		if got.Line != 3 || got.Column != 5 {
			t.Errorf("%s: line %d, column %d", tt.text, got.Line, got.Column)
		}
		got.Line, got.Column = 0, 0
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.text, diff)
		}
	}
}

// TestMistakes says of each mistake where it is and how to mend it.
func TestMistakes(t *testing.T) {
	tests := []struct{ text, want string }{
		{"", "a mapping with the keys name and steps"},
		{"- poweron", "a mapping with the keys name and steps"},
		{"steps: []", "needs steps"},
		{"step:\n  - poweron" + end, `line 1, column 1: unknown key "step"`},
		{"steps:\n  - powron" + end, `line 2, column 5: unknown step "powron" (did you mean poweron?)`},
		{"steps:\n  - explode" + end, `line 2, column 5: unknown step "explode" (there are: dump_memory, exec,`},
		{"steps:\n  - poweron: {timeuot: 5s}" + end, `line 2, column 15: poweron has no option "timeuot" (did you mean timeout?)`},
		{"steps:\n  - poweron: {timeout: soon}" + end, `line 2, column 24: "soon" is not a duration (write 500ms`},
		{"steps:\n  - poweron: {timeout: 5}" + end, "is not a duration"},
		{"steps:\n  - poweron: {timeout: 2h}" + end, "between 1ms and 1h"},
		{"steps:\n  - poweron: {on_failure: retry}" + end, `on_failure "retry" is none of stop, continue, poweroff`},
		{"steps:\n  - poweron: 5s" + end, "write the options of poweron in braces"},
		{"steps:\n  - pause" + end, "pause before poweron"},
		{"steps:\n  - poweron\n  - start_analysis\n  - poweroff\n  - wait_analysis\n", "line 4, column 5: poweroff after start_analysis"},
		{"steps:\n  - poweron\n", "ends with start_analysis and wait_analysis"},
		{"steps:\n  - wait_analysis\n  - start_analysis\n", "wait_analysis needs start_analysis before it"},
		{"steps:\n  - start_analysis" + end, "start_analysis comes once"},
		{"steps:\n  - trigger" + end, "trigger needs the name of an event"},
		{"steps:\n  - trigger: post_poweron" + end, "only the sandbox publishes"},
		{"steps:\n  - trigger: analysis_completed" + end, "only the sandbox publishes"},
		{"steps:\n  - trigger: No" + end, "must begin with a-z"},
		{"steps:\n  - poweron\n  - exec" + end, "exec needs a command"},
		{"steps:\n  - poweron\n  - exec: \"a 'b\"" + end, "a quote is not closed"},
		{"steps:\n  - poweron\n  - wait: {until: [quiet]}" + end, "needs how long"},
		{"steps:\n  - poweron: {a: 1}\n    pause:" + end, "a step has one name"},
		{"steps:\n  - poweron\n  - [a]" + end, "a step is a name"},
		{"steps:\n\t- poweron", "line 2, column 1: found character that cannot start any token (indent with spaces"},
		{"steps:\n  - poweron: {timeout: 1s, timeout: 99s}" + end, `line 2, column 28: "timeout" is here for the second time, after line 2 (keep one of them)`},
		{"steps:\n  - poweron" + end + "steps:\n  - poweron" + end, `line 5, column 1: "steps" is here for the second time`},
		{"steps:\n  - poweron" + end + "---\n", "a second document begins here"},
		{"steps:\n  - poweron: {cold: maybe}" + end, "line 2, column 21: cold is true or false"},
		{"steps:\n  - poweron\n  - wait: {until: [tree_exitd]}" + end, "line 3, column 20: until: nothing publishes tree_exitd (did you mean tree_exited?)"},
		{"steps:\n  - poweron\n  - wait: {until: my_evnt}\n  - trigger: my_event" + end, "did you mean my_event?"},
		{"steps:\n  - poweron\n  - wait: {until: analysis_completed}" + end, "nothing publishes analysis_completed (there are: analysis_claimed,"},
		{"steps:\n  - poweron\n  - wait: {until: []}" + end, "until is a name or a list of names"},
		{"name: [a]\nsteps:\n  - poweron" + end, "line 1, column 7: name is one text"},
		{strings.Repeat("#", 70_000), "bytes; 65536 are allowed"},
		{"steps:\n" + strings.Repeat("  - wait: 1s\n", 201) + end, "200 are allowed"},
	}
	for _, tt := range tests {
		_, err := protocol.Parse(tt.text)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.60q:\n got %v\nwant %s", tt.text, err, tt.want)
		}
	}
	// Several mistakes are told at once.
	_, err := protocol.Parse("steps:\n  - powron\n  - pausee" + end)
	if n := strings.Count(err.Error(), "unknown step"); n != 2 {
		t.Errorf("%d of 2 mistakes: %v", n, err)
	}
}

// TestEvents holds the list to the schemas: an event that is missing in it could
// not be waited for.
func TestEvents(t *testing.T) {
	p, err := protocol.Parse(protocol.Default)
	if err != nil {
		t.Fatal(err)
	}
	// These are published when no step and no hook is left, or by a protocol.
	after := []string{schemas.EventWaitAnalysis, schemas.EventCompleted, schemas.EventFailed, schemas.EventCancelled, schemas.EventAmended, schemas.EventRunAdopted, "custom"}
	for _, info := range schemas.Types() {
		e := schemas.Event{Type: info.Name}
		if e.Family() == "context" && !slices.Contains(p.Events(), e.Name()) && !slices.Contains(after, e.Name()) {
			t.Errorf("%s is not listed", e.Name())
		}
	}
}

func TestSplit(t *testing.T) {
	tests := []struct {
		in   string
		want []string
	}{
		{"", nil}, {"   ", nil},
		{"sh {sample}", []string{"sh", "{sample}"}},
		{`a 'b c' "d e" f\ g`, []string{"a", "b c", "d e", "f g"}},
		{`"" ''`, []string{"", ""}},
		{`'a\b' "a\"b"`, []string{`a\b`, `a"b`}},
		{"$HOME `id` *", []string{"$HOME", "`id`", "*"}},
		{"a'b'c", []string{"abc"}},
	}
	for _, tt := range tests {
		got, err := protocol.Split(tt.in)
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.in, diff)
		}
	}
	for _, bad := range []string{"'", `"a`, `a\`} {
		if _, err := protocol.Split(bad); err == nil {
			t.Errorf("%q was split", bad)
		}
	}
}

// FuzzParse's property: a protocol that is accepted obeys the rules that the
// sandbox relies on, and one that is not gives an Error.
func FuzzParse(f *testing.F) {
	f.Add(protocol.Default)
	f.Add("steps:\n  - poweron\n  - exec: [a, b]" + end)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := protocol.Parse(text)
		if err != nil {
			var e *protocol.Error
			if !errors.As(err, &e) {
				t.Errorf("%T: %v", err, err)
			}
			return
		}
		for i, s := range p.Steps {
			if s.Timeout <= 0 || s.Timeout > time.Hour {
				t.Errorf("step %d may take %s", i, s.Timeout)
			}
			if s.Kind == protocol.WaitAnalysis && i != len(p.Steps)-1 && p.Steps[i+1].Kind != protocol.StartAnalysis {
				t.Errorf("%s comes after wait_analysis", p.Steps[i+1].Kind)
			}
		}
	})
}
