// SPDX-License-Identifier: Apache-2.0

//go:build vm

package app_test

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"sync"
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

// ticker is a sample that takes its time and not the host's.
const ticker = `#include <stdio.h>
#include <unistd.h>
int main(void) {
	for (int i = 0; i < 5; i++) { puts("tick"); fflush(stdout); sleep(1); }
	return 0;
}
`

// BenchmarkTogether is how long ten analyses take that are submitted together,
// each with everything that is collected, of a sample that sleeps for five
// seconds: from the first submission to the last report. The reference is one.
func BenchmarkTogether(b *testing.B) {
	const n = 10
	bin := build(b)
	path := program(b, ticker)
	addr, _ := up(b, bin, "--parallel", strconv.Itoa(n))
	c, err := bus.Connect(b.Context(), addr, "bench")
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	request := app.Request{Path: path}
	overhead(b, c, request) // makes the template
	together := func(n int) time.Duration {
		begin := time.Now()
		var all sync.WaitGroup
		for range n {
			all.Go(func() { overhead(b, c, request) })
		}
		all.Wait()
		return time.Since(begin)
	}
	var one, ten time.Duration
	for b.Loop() {
		one, ten = together(1), together(n)
	}
	b.ReportMetric(one.Seconds(), "one-s")
	b.ReportMetric(ten.Seconds(), "ten-s")
	b.ReportMetric(float64(ten)/float64(one), "x-one")
	b.ReportMetric(0, "ns/op")
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
		b.Error(err)
		return 0
	}
	defer prep.Close()
	begin := time.Now()
	if err := prep.Submit(b.Context(), c); err != nil {
		b.Error(err)
		return 0
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
	if err == nil && (started.IsZero() || exited.IsZero()) {
		err = errors.New("the sample did not run to its end")
	}
	if err != nil {
		b.Error(err)
	}
	return took - exited.Sub(started)
}
