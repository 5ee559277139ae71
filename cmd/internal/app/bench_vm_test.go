// SPDX-License-Identifier: Apache-2.0

//go:build vm

package app_test

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/schemas"
)

// withoutMemory are hooks that take everything but the memory image.
const withoutMemory = `hooks:
  - name: dropped
    on: [pre_shutdown, pre_poweroff]
    timeout: 60s
  - name: console
    on: [post_shutdown, post_poweroff, machine_off]
    timeout: 30s
`

// BenchmarkAnalysis is what a submission to a running Petri costs beside the
// sample's own run time: from submit to the report in the log. The reference is
// the same with a cold boot.
func BenchmarkAnalysis(b *testing.B) {
	bin := build(b)
	path := program(b, sampleSource)
	hooks := b.TempDir() + "/hooks.yaml"
	if err := os.WriteFile(hooks, []byte(withoutMemory), 0o600); err != nil {
		b.Fatal(err)
	}
	addr, _ := up(b, bin)
	c, err := bus.Connect(b.Context(), addr, "bench")
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	request := app.Request{Path: path}
	overhead(b, c, request) // makes the template
	cold := request
	cold.Options.Cold = true
	reference := median(b, 3, c, cold)
	for _, bb := range []struct{ name, hooks string }{{"memory", ""}, {"no-memory", hooks}} {
		b.Run(bb.name, func(b *testing.B) {
			request.Hooks = bb.hooks
			var d time.Duration
			for b.Loop() {
				d = median(b, 20, c, request)
			}
			b.ReportMetric(float64(d.Milliseconds()), "ms/analysis")
			b.ReportMetric(float64(reference.Milliseconds()), "cold-ms/analysis")
			b.ReportMetric(float64(reference)/float64(d), "x-faster-than-cold")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func median(b *testing.B, n int, c *bus.Bus, r app.Request) time.Duration {
	all := make([]time.Duration, n)
	for i := range all {
		all[i] = overhead(b, c, r)
	}
	slices.Sort(all)
	return all[n/2]
}

// overhead runs one analysis and returns how long it took beyond the sample's
// own time.
func overhead(b *testing.B, c *bus.Bus, r app.Request) time.Duration {
	b.Helper()
	prep, err := app.Prepare(r)
	if err != nil {
		b.Fatal(err)
	}
	defer prep.Close()
	begin := time.Now()
	if err := prep.Submit(b.Context(), c); err != nil {
		b.Fatal(err)
	}
	var started, exited time.Time
	err = c.Follow(b.Context(), schemas.DefaultTenant, prep.Submission.ID, 0, nil, func(e bus.Entry) error {
		switch e.Event.Name() {
		case schemas.EventSampleStarted:
			started = e.Event.Time
		case schemas.EventSampleExited:
			exited = e.Event.Time
		}
		if e.Event.Family() == "report" {
			return bus.ErrStop
		}
		return nil
	})
	took := time.Since(begin)
	if err != nil {
		b.Fatal(err)
	}
	if started.IsZero() || exited.IsZero() {
		b.Fatal("the sample did not run")
	}
	return took - exited.Sub(started)
}
