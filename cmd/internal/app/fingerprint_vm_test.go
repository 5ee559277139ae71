// SPDX-License-Identifier: Apache-2.0

//go:build vm

package app_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// fingerprintRuns is in how many warm guests the fingerprint is taken.
const fingerprintRuns = 20

// fresh are fields of which no two guests may have the same.
var fresh = []string{
	"clock_realtime", "clock_monotonic", "uptime", "sysinfo_uptime", "stat_btime", "rdtsc", "hostname", "etc_hostname", "machine_id", "boot_id", "mac_eth0", "pid",
	"urandom", "getrandom", "at_random", "random_uuid", "aslr_stack", "aslr_vdso", "aslr_mmap",
}

// mayRepeat are those of them that are drawn from few: some of twenty guests
// agree by chance, but never all.
var mayRepeat = []string{"hostname", "etc_hostname", "pid", "sysinfo_uptime", "stat_btime", "aslr_stack", "aslr_vdso", "aslr_mmap"}

const fingerprintProtocol = `name: fingerprint
steps:
  - poweron: {timeout: 60s}
  - wait_ip: {timeout: 20s}
  - run_sample
  - wait: {until: [tree_exited], limit: runtime}
  - shutdown: {timeout: 20s, on_failure: poweroff}
  - start_analysis
  - wait_analysis: {timeout: 60s}
`

const fingerprintHooks = `hooks:
  - name: console
    on: [post_shutdown, post_poweroff, machine_off]
    timeout: 30s
`

// TestFingerprint runs a program that prints what can be read of a machine in
// warm guests. What is the same in all of them tells an evasive sample where it
// is: it must be exactly what docs/threat-model.md lists.
func TestFingerprint(t *testing.T) {
	bin := build(t)
	addr, data := up(t, bin)
	b, err := bus.Connect(t.Context(), addr, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	dir := t.TempDir()
	for name, text := range map[string]string{"protocol.yaml": fingerprintProtocol, "hooks.yaml": fingerprintHooks} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sample := program(t, "fingerprint.c")
	var ids []string
	for range fingerprintRuns {
		ids = append(ids, strings.TrimSpace(run(t, bin+"/petri", "--data", data, "submit", "--retries", "0",
			"--protocol", dir+"/protocol.yaml", "--hooks", dir+"/hooks.yaml", sample)))
	}
	values := map[string]map[string]int{} // field, value: runs
	for _, id := range ids {
		waitForEnding(t, b, id)
		var r schemas.Report
		if err := json.Unmarshal([]byte(run(t, bin+"/petri", "--data", data, "--json", "report", id)), &r); err != nil {
			t.Fatal(err)
		}
		// It asks for BPF programs, as who means to tamper with them does.
		if len(r.Outcome.Reasons) != 1 || !strings.Contains(r.Outcome.Reasons[0], "BPF_PROG_GET_NEXT_ID") || r.Machine.Spec.Start != "warm" {
			t.Fatalf("analysis %s is %s (%q) after a %s start", id, r.Outcome.Value, r.Outcome.Reasons, r.Machine.Spec.Start)
		}
		for line := range strings.Lines(r.Console.Stdout) {
			name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
			if !ok {
				t.Fatalf("analysis %s printed %q", id, line)
			}
			if values[name] == nil {
				values[name] = map[string]int{}
			}
			values[name][value]++
		}
	}

	var same []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if len(values[name]) == 1 {
			same = append(same, name)
		}
		for value, n := range values[name] {
			if slices.Contains(fresh, name) && n > 1 && !slices.Contains(mayRepeat, name) {
				t.Errorf("%s is %q in %d of %d guests", name, value, n, fingerprintRuns)
			}
		}
	}
	for _, name := range fresh {
		if n := len(values[name]); n < fingerprintRuns/4 {
			t.Errorf("%s has %d values in %d guests; it must be fresh in each", name, n, fingerprintRuns)
		}
	}
	always, nearly := documented(t)
	// What is nearly the same may be the same in all of these.
	got := slices.DeleteFunc(slices.Clone(same), func(name string) bool { return slices.Contains(nearly, name) })
	if diff := gocmp.Diff(always, got); diff != "" {
		t.Errorf("what is the same in %d guests is not what docs/threat-model.md lists (-documented +measured):\n%s", fingerprintRuns, diff)
	}
	for _, name := range nearly {
		if values[name] == nil {
			t.Errorf("docs/threat-model.md lists %s, which the program does not print", name)
		}
	}
	t.Logf("%d fields, %d of them the same in %d guests", len(values), len(same), fingerprintRuns)
}

// documented reads the fields that docs/threat-model.md lists: those that are
// the same in every guest of a template, and those that nearly are. They stand
// in code quotes between markers.
func documented(t *testing.T) (always, nearly []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "docs/threat-model.md"))
	if err != nil {
		t.Fatal(err)
	}
	quoted := regexp.MustCompile("`([a-z0-9_]+)`")
	section := func(name string) []string {
		_, rest, ok1 := strings.Cut(string(b), "<!-- "+name+" -->")
		text, _, ok2 := strings.Cut(rest, "<!-- end -->")
		if !ok1 || !ok2 {
			t.Fatalf("docs/threat-model.md has no section between <!-- %s --> and <!-- end -->", name)
		}
		var out []string
		for _, m := range quoted.FindAllStringSubmatch(text, -1) {
			out = append(out, m[1])
		}
		slices.Sort(out)
		return out
	}
	return section("fingerprint: always the same"), section("fingerprint: nearly the same")
}
