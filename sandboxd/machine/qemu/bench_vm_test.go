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
	for b.Loop() {
		measureStart(b, cold, warm)
	}
}

func measureStart(b *testing.B, cold, warm qemu.Config) {
	b.Helper()
	boot := measureBoot(b, cold)
	pong, assigned := median(b, warm, 20)
	b.ReportMetric(ms(pong), "warm-ms")
	b.ReportMetric(ms(assigned), "assign-ms")
	b.ReportMetric(float64(boot)/float64(pong), "cold/warm")
}

func measureBoot(b *testing.B, cold qemu.Config) time.Duration {
	b.Helper()
	boot, _ := median(b, cold, 3)
	b.ReportMetric(ms(boot), "cold-ms")
	b.ReportMetric(0, "ns/op")
	return boot
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// median of n starts: to the agent's first answer, and until it has taken on an
// identity.
func median(b *testing.B, cfg qemu.Config, n int) (pong, assigned time.Duration) {
	b.Helper()
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
