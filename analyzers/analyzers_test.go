// SPDX-License-Identifier: Apache-2.0

package analyzers_test

import (
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/schemas"
)

func TestInfoCheck(t *testing.T) {
	good := analyzers.Info{Name: "a-1", Version: "1.2.3-rc.1+build.5", Kinds: []schemas.Kind{"sample"}}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for want, edit := range map[string]func(*analyzers.Info){
		"analyzer name":    func(i *analyzers.Info) { i.Name = "A" },
		"analyzer name ":   func(i *analyzers.Info) { i.Name = strings.Repeat("a", 33) },
		"is not semantic":  func(i *analyzers.Info) { i.Version = "1.2" },
		"is not semantic ": func(i *analyzers.Info) { i.Version = "v1.2.3" },
		"version has 0":    func(i *analyzers.Info) { i.Version = "" },
		"0 kinds":          func(i *analyzers.Info) { i.Kinds = nil },
		"kind":             func(i *analyzers.Info) { i.Kinds = []schemas.Kind{"Sample"} },
		"scope":            func(i *analyzers.Info) { i.Scope = "world" },
		"has no kinds":     func(i *analyzers.Info) { i.Scope = schemas.ScopeAnalysis },
		"after":            func(i *analyzers.Info) { i.After = "artifacts" },
		"reads":            func(i *analyzers.Info) { i.Reads = []schemas.Kind{"sample"} },
		"negative":         func(i *analyzers.Info) { i.Deadline = -time.Second },
		"memory of":        func(i *analyzers.Info) { i.Memory = 1 << 20 },
	} {
		i := good
		edit(&i)
		if err := i.Check(); err == nil || !strings.Contains(err.Error(), strings.TrimSpace(want)) {
			t.Errorf("%+v: %v, want %s", i, err, want)
		}
	}
}
