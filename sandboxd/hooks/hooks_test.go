// SPDX-License-Identifier: Apache-2.0

package hooks_test

import (
	"strings"
	"testing"

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
		{"hook: []", "field hook not found"},
		{"hooks: [{name: memory, on: [x], when: y}]", "field when not found"},
		{"hooks: [{name: rootkit, on: [x]}]", `no hook "rootkit" (there are: console, dropped, memory)`},
		{"hooks: [{name: memory}]", "needs the events that trigger it"},
		{"hooks: [{name: memory, on: [a]}, {name: memory, on: [b]}]", "listed twice"},
		{"hooks: [{name: memory, on: ['UP']}]", "must begin with a-z"},
		{"hooks: [{name: memory, on: [a], required: true, async: true}]", "both required and async"},
		{"hooks: [{name: memory, on: [a], timeout: 2h}]", "between 1ms and 1h"},
		{"hooks: [{name: memory, on: [a], timeout: fast}]", "fast"},
		{strings.Repeat("#", 70_000), "65536 are allowed"},
		{"\t", "hooks:"},
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
