// SPDX-License-Identifier: Apache-2.0

package hooks_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/hooks"
)

func TestDefault(t *testing.T) {
	c, err := hooks.Parse(hooks.Default)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Hooks) != len(hooks.Names()) {
		t.Errorf("%d hooks are configured, and there are %d", len(c.Hooks), len(hooks.Names()))
	}
}

func TestMistakes(t *testing.T) {
	tests := []struct{ text, want string }{
		{"hook: []", `line 1, column 1: unknown key "hook" (a configuration has only: hooks)`},
		{"hooks: [{name: memory, on: [x], requird: y}]", `line 1, column 33: unknown key "requird" (did you mean required?)`},
		{"hooks: [{name: rootkit, on: [x]}]", `line 1, column 16: no hook "rootkit" (there are: console, dropped, memory)`},
		{"hooks: [{on: [x]}]", "line 1, column 9: an entry needs the name of a hook (there are:"},
		{"hooks:\n  - name: memory\n", "line 2, column 5: memory needs the events that trigger it (on: [snapshots_capture])"},
		{"hooks: [{name: memory, on: [a]}, {name: memory, on: [b]}]", "line 1, column 34: memory is listed twice, first in line 1 (give it"},
		{"hooks: [{name: memory, on: ['UP']}]", "line 1, column 29: event name \"UP\" must begin with a-z"},
		{"hooks: [{name: memory, on: {a: b}}]", "line 1, column 28: on is a list of events"},
		{"hooks: [{name: memory, on: [a], required: true, async: true}]", "both required and async"},
		{"hooks: [{name: memory, on: [a], required: maybe}]", "line 1, column 43: required is true or false"},
		{"hooks: [{name: memory, on: [a], timeout: 2h}]", `line 1, column 42: timeout "2h" is not between 1ms and 1h0m0s (write`},
		{"hooks: [{name: memory, on: [a], timeout: fast}]", `timeout "fast" is not`},
		{"hooks: [{name: memory, name: console, on: [a]}]", `line 1, column 24: "name" is here for the second time`},
		{"hooks: memory", "line 1, column 8: hooks is a list"},
		{"hooks: [memory]", "line 1, column 9: an entry is a mapping"},
		{"hooks:\n\t- name: memory", "line 2, column 1: found character that cannot start any token (indent with spaces"},
		{strings.Repeat("#", 70_000), "65536 are allowed"},
	}
	for _, tt := range tests {
		_, err := hooks.Parse(tt.text)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.60q:\n got %v\nwant %s", tt.text, err, tt.want)
		}
	}
	if _, err := hooks.Parse("hooks: [{name: memory, on: ['pre_*', snapshots_capture]}]"); err != nil {
		t.Errorf("patterns: %v", err)
	}
}

// TestCheck refuses hooks that would never run.
func TestCheck(t *testing.T) {
	events := []string{"pre_shutdown", "post_shutdown", "my_event"}
	for on, want := range map[string]string{
		"[pre_shutdown, 'post_*', my_event]": "",
		"snapshots_capture":                  "",
		"[pre_shutdown, pre_shutdwon]":       "line 1, column 43: nothing publishes pre_shutdwon (did you mean pre_shutdown?)",
		"['x*']":                             "nothing publishes x* (there are: my_event,",
	} {
		c, err := hooks.Parse("hooks: [{name: memory, on: " + on + "}]")
		if err != nil {
			t.Fatal(err)
		}
		err = c.Check(events)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s:\n got %v\nwant %s", on, err, want)
		}
	}
}

// FuzzParse's property: what is accepted can be installed, and what is not
// gives an Error.
func FuzzParse(f *testing.F) {
	f.Add(hooks.Default)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := hooks.Parse(text)
		if err != nil {
			var e *hooks.Error
			if !errors.As(err, &e) {
				t.Errorf("%T: %v", err, err)
			}
			return
		}
		for _, h := range c.Hooks {
			if h.Name == "" || len(h.On) == 0 || h.Timeout < 0 || h.Timeout > time.Hour {
				t.Errorf("%+v was accepted", h)
			}
		}
	})
}
