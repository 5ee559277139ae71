// SPDX-License-Identifier: Apache-2.0

//go:build vm && linux

package tracer_test

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// rounds is how many turns each way of running has.
const rounds = 7

// BenchmarkTracing measures what tracing costs: 100,000 getppid and 20,000 open
// and close in one guest, without the tracer, with the tracer attached but
// looking elsewhere, and traced. The three take turns, so that what else the
// host does falls on all of them. Figures are the least of all turns, as whatever
// disturbs them can only add; the program's own clock counts, so that what guestd
// does meanwhile on the guest's only CPU is part of it.
func BenchmarkTracing(b *testing.B) {
	m := start(b)
	times := map[string][]float64{} // ns
	add := func(key string, ns int64) { times[key] = append(times[key], float64(ns)) }
	var lost, records uint64
	once := func(how string, arm bool) {
		res := m.must(request{Op: "run", Argv: []string{"/usr/bin/bench"}, Arm: arm, Timeout: time.Minute})
		var getppid, open int64
		if _, err := fmt.Sscan(res.Output, &getppid, &open); err != nil {
			b.Fatalf("%q: %v", res.Output, err)
		}
		add(how+" getppid", getppid)
		add(how+" open", open)
		add(how, getppid+open)
		add(how+" run", int64(res.Took))
		for _, s := range res.Stats {
			lost += s.Lost + s.Untracked
			records = max(records, s.Produced)
		}
	}
	for b.Loop() {
		for range rounds {
			once("untraced", false)
			add("load", int64(m.must(request{Op: "load"}).Took))
			once("attached", false)
			once("traced", true)
			m.must(request{Op: "unload"})
		}
	}
	least := func(key string) float64 { return slices.Min(times[key]) }
	for _, what := range []string{"", " getppid", " open", " run"} {
		reference := least("untraced" + what)
		name := "all"
		if what != "" {
			name = what[1:]
		}
		b.ReportMetric(reference/1e6, "untraced-"+name+"-ms")
		b.ReportMetric(least("attached"+what)/reference, "attached-"+name+"-x")
		b.ReportMetric(least("traced"+what)/reference, "traced-"+name+"-x")
	}
	b.ReportMetric(least("load")/1e6, "load-ms")
	b.ReportMetric(float64(records), "records")
	b.ReportMetric(float64(lost), "lost")
	b.ReportMetric(0, "ns/op")
	if lost > 0 || records < 140_000 {
		b.Errorf("%d records, %d lost", records, lost)
	}
}
