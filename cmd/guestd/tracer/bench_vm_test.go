// SPDX-License-Identifier: Apache-2.0

//go:build vm && linux

package tracer_test

import (
	"fmt"
	"testing"
	"time"
)

// TestCost measures what tracing costs in the guest: the benchmark program with
// nothing attached, with the tracer attached but looking elsewhere, and traced.
func TestCost(t *testing.T) {
	m := start(t)
	t.Logf("boot to the first answer: %v", m.boot.Round(time.Millisecond))
	bench := func(what string, arm bool) (getppid, open time.Duration) {
		getppid, open = time.Hour, time.Hour
		for range 5 {
			res := m.must(request{Op: "run", Argv: []string{"/usr/bin/bench"}, Arm: arm, Timeout: time.Minute})
			var a, b int64
			if _, err := fmt.Sscan(res.Output, &a, &b); err != nil {
				t.Fatalf("%q: %v", res.Output, err)
			}
			getppid, open = min(getppid, time.Duration(a)), min(open, time.Duration(b))
			t.Logf("%-9s getppid %v, open and close %v, run %v, drain %v, trace %d KiB, stats %+v, clock %s", what,
				time.Duration(a), time.Duration(b), res.Took, res.Drain, len(res.Trace)>>10, res.Stats, res.Clock)
			for _, s := range res.Stats {
				if s.Lost > 0 || s.Untracked > 0 {
					t.Errorf("lost: %+v", s)
				}
			}
		}
		return getppid, open
	}
	p0, o0 := bench("untraced", false)
	for range 3 {
		load := m.must(request{Op: "load"})
		t.Logf("load and attach: %v", load.Took)
		unload := m.must(request{Op: "unload"})
		t.Logf("unload: %v", unload.Took)
	}
	m.must(request{Op: "load"})
	p1, o1 := bench("attached", false)
	p2, o2 := bench("traced", true)
	ratio := func(a, b time.Duration) float64 { return float64(a) / float64(b) }
	t.Logf("attached/untraced: getppid %.2f, open and close %.2f, sum %.2f", ratio(p1, p0), ratio(o1, o0), ratio(p1+o1, p0+o0))
	t.Logf("traced/untraced: getppid %.2f, open and close %.2f, sum %.2f", ratio(p2, p0), ratio(o2, o0), ratio(p2+o2, p0+o0))
}
