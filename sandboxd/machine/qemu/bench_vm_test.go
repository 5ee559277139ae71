// SPDX-License-Identifier: Apache-2.0

//go:build vm

package qemu_test

import (
	"slices"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine/machinetest"
	"github.com/petri-sandbox/petri/sandboxd/machine/qemu"
)

// BenchmarkStart measures a machine from the exec of QEMU to the agent's first
// answer: the median of 20 warm starts, and as its reference cold boots.
func BenchmarkStart(b *testing.B) {
	warm := machinetest.WarmConfig(b)
	cold := machinetest.Config(b)
	median := func(cfg qemu.Config, n int) (pong, assigned time.Duration) {
		pongs, assigns := make([]time.Duration, n), make([]time.Duration, n)
		for i := range n {
			var err error
			if pongs[i], assigns[i], err = qemu.ToPong(b.Context(), cfg, machinetest.NewRecorder(), machinetest.Identity(i)); err != nil {
				b.Fatal(err)
			}
		}
		slices.Sort(pongs)
		slices.Sort(assigns)
		return pongs[n/2], assigns[n/2]
	}
	for b.Loop() {
		boot, _ := median(cold, 3)
		pong, assigned := median(warm, 20)
		ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
		b.ReportMetric(ms(boot), "cold-ms")
		b.ReportMetric(ms(pong), "warm-ms")
		b.ReportMetric(ms(assigned), "assign-ms")
		b.ReportMetric(float64(boot)/float64(pong), "cold/warm")
		b.ReportMetric(0, "ns/op")
	}
}
