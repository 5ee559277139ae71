// SPDX-License-Identifier: Apache-2.0

//go:build vm

package qemu_test

import (
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine/machinetest"
	"github.com/petri-sandbox/petri/schemas"
)

// said is what demo.c prints in any guest.
var said = []string{"hello from the guest", "payload ran as root", "asked for 198.51.100.7 port 23", "done\n"}

// TestEveryGuest boots the guest of each CPU, has it run a program and collects
// what that leaves, and does the same in two warm ones, which must differ, where the
// catalogue does not say that there are none.
func TestEveryGuest(t *testing.T) {
	for _, arch := range machinetest.Arches() {
		t.Run(arch, func(t *testing.T) {
			cfg := machinetest.ConfigOf(t, arch)
			cfg.Untraced = true
			g, boot := poweron(t, cfg, machinetest.Identity(1))
			if boot.Machine.Arch != arch || boot.Machine.Start != "cold" || boot.Kernel != machinetest.ImageOf(t, arch).KernelRelease {
				t.Errorf("booted %+v", boot)
			}
			g.demo(arch)
			if got := g.sh("ls -l /lib/*-linux-gnu*/libc.so.6 /lib/*-linux-gnu*/libstdc++.so.6 | wc -l"); got != "2" {
				t.Errorf("%s of libc and libstdc++ are there", got)
			}
			g.shutdown()

			if cfg.CPU.Cold != "" {
				return
			}
			warm := machinetest.WarmConfigOf(t, arch)
			warm.Untraced = true
			var fresh []string
			for n := range 2 {
				w, boot := poweron(t, warm, machinetest.Identity(n))
				if boot.Machine.Start != "warm" {
					t.Fatalf("started %s, fallback %q", boot.Machine.Start, boot.Fallback)
				}
				w.demo(arch)
				fresh = append(fresh, w.sh("hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -A n -x"))
				// The guest's clock goes on, and a timer fires.
				begin := time.Now()
				w.sh("sleep 1")
				if took := time.Since(begin); took > 30*time.Second {
					t.Errorf("a second took %v", took)
				}
				w.shutdown()
			}
			one, two := strings.Split(fresh[0], "\n"), strings.Split(fresh[1], "\n")
			for i := range min(len(one), len(two)) {
				if one[i] == two[i] {
					t.Errorf("two guests have the same: %q", one[i])
				}
			}
		})
	}
}

// demo runs demo.c and looks at what it leaves.
func (g *guest) demo(arch string) {
	g.t.Helper()
	sample := machinetest.ProgramOf(g.t, arch, "demo")
	if _, err := g.Run(g.ctx, machinetest.Command(g.t, sample), sample); err != nil {
		g.t.Fatalf("run demo: %v", err)
	}
	if e := g.rec.AwaitExit(g.t, patience); e.ExitCode == nil || *e.ExitCode != 0 {
		g.t.Errorf("demo ended %+v", e)
	}
	g.rec.AwaitTree(g.t, patience)
	g.rec.AwaitText(g.t, patience, schemas.SourceStdout, "done\n")
	for _, want := range said {
		if got := g.rec.Text(schemas.SourceStdout); !strings.Contains(got, want) {
			g.t.Errorf("it printed no %q: %q", want, got)
		}
	}
	if got := g.sh("cat /etc/demo.conf; test ! -e /tmp/gone && echo gone"); got != "interval=60\ngone" {
		g.t.Errorf("it left %q", got)
	}
}

// BenchmarkEveryGuest measures [BenchmarkStart] for each CPU, with three cold
// boots and the median of twenty warm starts, and the image's size.
func BenchmarkEveryGuest(b *testing.B) {
	for _, arch := range machinetest.Arches() {
		b.Run(arch, func(b *testing.B) {
			img := machinetest.ImageOf(b, arch)
			for b.Loop() {
				cold := machinetest.ConfigOf(b, arch)
				if cold.CPU.Cold != "" {
					measureBoot(b, cold)
				} else {
					measureStart(b, cold, machinetest.WarmConfigOf(b, arch))
				}
				b.ReportMetric(float64(img.Kernel.Size+img.Initramfs.Size)/(1<<20), "image-MiB")
			}
		})
	}
}
