//go:build vm && linux

package tracer_test

import (
	"fmt"
	"testing"
	"time"
)

func TestZZ(t *testing.T) {
	m := start(t)
	one := func(what string, arm bool) {
		var p, o, d, c time.Duration = time.Hour, time.Hour, 0, time.Hour
		for range 8 {
			before := m.busy()
			res := m.must(request{Op: "run", Argv: []string{"/usr/bin/bench"}, Arm: arm, Timeout: time.Minute})
			c = min(c, m.busy()-before)
			var a, b int64
			fmt.Sscan(res.Output, &a, &b)
			p, o, d = min(p, time.Duration(a)), min(o, time.Duration(b)), max(d, res.Drain)
		}
		t.Logf("ZZ %s getppid %v, open and close %v, drain %v, qemu's cpu %v", what, p, o, d, c)
	}
	one("untraced", false)
	t.Logf("ZZ load %v", m.must(request{Op: "load"}).Took)
	one("attached", false)
	one("traced", true)
	m.must(request{Op: "unload"})
	m.must(request{Op: "load", Slow: -1})
	one("discarded", true)
}
