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
// answer: the median of 20 warm starts, the worst of them, and as their reference cold
// boots.
func BenchmarkStart(b *testing.B) {
	warm := machinetest.WarmConfig(b)
	cold := machinetest.Config(b)
	for b.Loop() {
		measureStart(b, cold, warm)
	}
}

func measureStart(b *testing.B, cold, warm qemu.Config) {
	b.Helper()
	boot := measureBoot(b, cold)
	pong, assigned, worst := starts(b, warm, 20)
	b.ReportMetric(ms(pong), "warm-ms")
	b.ReportMetric(ms(worst), "worst-ms")
	b.ReportMetric(ms(assigned), "assign-ms")
	b.ReportMetric(float64(boot)/float64(pong), "cold/warm")
}

func measureBoot(b *testing.B, cold qemu.Config) time.Duration {
	b.Helper()
	boot, _, _ := starts(b, cold, 3)
	b.ReportMetric(ms(boot), "cold-ms")
	b.ReportMetric(0, "ns/op")
	return boot
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// starts measures n of them: the median to the agent's first answer, from there until
// it has taken on an identity, and the longest of both together.
func starts(b *testing.B, cfg qemu.Config, n int) (pong, assigned, worst time.Duration) {
	b.Helper()
	pongs, assigns := make([]time.Duration, n), make([]time.Duration, n)
	for i := range n {
		var err error
		if pongs[i], assigns[i], err = qemu.ToPong(b.Context(), cfg, machinetest.NewRecorder(), machinetest.Identity(i)); err != nil {
			b.Fatal(err)
		}
		worst = max(worst, pongs[i]+assigns[i])
	}
	slices.Sort(pongs)
	slices.Sort(assigns)
	return pongs[n/2], assigns[n/2], worst
}
