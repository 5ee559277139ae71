// SPDX-License-Identifier: Apache-2.0

//go:build vm

package qemu_test

import (
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/machinetest"
	"github.com/petri-sandbox/petri/sandboxd/machine/qemu"
	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/trace"
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
			if got := boot.Ready.Tracer; got.Backend != "ebpf" || got.Error != "" {
				t.Errorf("the tracer is not as fast as can be: %+v", got)
			}
			g.demo(arch)
			libs := "2"
			if cfg.CPU.Also.Name != "" {
				libs = "4"
			}
			if got := g.sh("ls -l /lib/*-linux-gnu*/libc.so.6 /lib/*-linux-gnu*/libstdc++.so.6 | wc -l"); got != libs {
				t.Errorf("%s of libc and libstdc++ are there, want %s", got, libs)
			}
			g.held()
			g.shutdown()

			if cfg.CPU.Cold != "" {
				return
			}
			warm := machinetest.WarmConfigOf(t, arch)
			warm.Untraced = true
			// One that is deaf only at times passes for well in two.
			for n := range 20 {
				if _, _, err := qemu.ToPong(t.Context(), warm, machinetest.NewRecorder(), machinetest.Identity(n)); err != nil {
					t.Fatalf("restored for the %dth time: %v", n+1, err)
				}
			}
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
				if took := time.Since(begin); took > 2*time.Minute {
					t.Errorf("a second took %v", took)
				}
				if n == 1 {
					w.restart(machinetest.Identity(2))
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

// restart has the machine boot, which its QEMU may not be able to.
func (g *guest) restart(id machine.Identity) {
	g.t.Helper()
	boot, err := g.Restart(g.ctx, id)
	if err != nil {
		g.t.Fatalf("restart: %v", err)
	}
	if boot.Machine.Start != "cold" || boot.Template != nil || boot.Fallback != "" {
		g.t.Errorf("restarted %+v", boot)
	}
	if got := g.sh("hostname"); got != id.Hostname {
		g.t.Errorf("host name %q after the restart, want %q", got, id.Hostname)
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

// held checks that a call by which root could change the kernel is told before it is
// let go.
func (g *guest) held() {
	g.t.Helper()
	if got := g.sh("rmmod nothing 2>&1 | grep -c nothing"); got != "1" {
		g.t.Errorf("rmmod says %q", got)
	}
	var calls []schemas.PossibleTampering
	for _, e := range g.rec.Events() {
		if e.Tampering != nil {
			calls = append(calls, *e.Tampering)
		}
	}
	if len(calls) != 1 || calls[0].Call != "delete_module" || calls[0].Comm != "rmmod" || calls[0].PID <= 1 || calls[0].Behind != "" {
		g.t.Errorf("held calls: %+v", calls)
	}
	for _, f := range g.rec.Faults() {
		if !strings.Contains(f, "no address") { // nobody serves DHCP here
			g.t.Errorf("fault: %s", f)
		}
	}
}

// BenchmarkEveryGuest measures [BenchmarkStart] for each CPU, with three cold
// boots and the median of twenty warm starts, the image's size, and what tracing
// costs.
func BenchmarkEveryGuest(b *testing.B) {
	for _, arch := range machinetest.Arches() {
		b.Run(arch, func(b *testing.B) {
			img := machinetest.ImageOf(b, arch)
			for b.Loop() {
				cold := machinetest.ConfigOf(b, arch)
				cfg := cold
				if cold.CPU.Cold != "" {
					measureBoot(b, cold)
				} else {
					cfg = machinetest.WarmConfigOf(b, arch)
					measureStart(b, cold, cfg)
				}
				b.ReportMetric(float64(img.Kernel.Size+img.Initramfs.Size)/(1<<20), "image-MiB")
				measureTracing(b, arch, cold, cfg)
			}
		})
	}
}

// measureTracing runs bench.c in turns in guests without the tracer's BPF
// programs, in others that have them loaded and do not trace it, and traced. It
// takes the least of each, from the program's first words to its end, by the host's
// clock: whatever disturbs can only add, and a guest's clock may be wrong.
func measureTracing(b *testing.B, arch string, cold, cfg qemu.Config) {
	b.Helper()
	without, attached, traced := cold, cfg, cfg
	without.Append = " petri.tracer=ptrace" // which is not used either
	without.Untraced, attached.Untraced = true, true
	ways := []struct {
		cfg     qemu.Config
		backend string
		least   time.Duration
	}{{cfg: without, backend: "ptrace"}, {cfg: attached, backend: "ebpf"}, {cfg: traced, backend: "ebpf"}}
	var lost, records uint64
	for range 2 {
		for i := range ways {
			w := &ways[i]
			took, c := bench(b, arch, w.cfg, w.backend)
			if w.least == 0 || took < w.least {
				w.least = took
			}
			lost, records = lost+c.Lost+c.Missing+c.Bad, max(records, c.Records)
		}
	}
	reference := float64(ways[0].least)
	b.ReportMetric(ms(ways[0].least), "untraced-ms")
	b.ReportMetric(float64(ways[1].least)/reference, "attached-x")
	b.ReportMetric(float64(ways[2].least)/reference, "traced-x")
	b.ReportMetric(float64(records), "records")
	b.ReportMetric(float64(lost), "lost")
	if records < 140_000 || lost > 0 {
		b.Errorf("%d records, %d lost", records, lost)
	}
}

// bench runs bench.c in a machine of its own.
func bench(b *testing.B, arch string, cfg qemu.Config, backend string) (took time.Duration, totals trace.Totals) {
	b.Helper()
	g, boot := poweron(b, cfg, machinetest.Identity(1))
	if got := boot.Ready.Tracer; got.Backend != backend {
		b.Fatalf("the tracer is %+v, want %s", got, backend)
	}
	sample := machinetest.ProgramOf(b, arch, "bench")
	run := machinetest.Command(b, sample)
	run.Trace = !cfg.Untraced
	if _, err := g.Run(g.ctx, run, sample); err != nil {
		b.Fatal(err)
	}
	g.rec.AwaitText(b, patience, schemas.SourceStdout, "begin\n")
	begin := time.Now()
	e := g.rec.AwaitExit(b, 4*patience)
	took = time.Since(begin)
	if e.ExitCode == nil || *e.ExitCode != 0 {
		b.Fatalf("bench ended %+v", e)
	}
	g.shutdown()
	if run.Trace {
		g.rec.AwaitEnd(b, patience, schemas.SourceTrace)
	}
	r := trace.NewReader(strings.NewReader(g.rec.Text(schemas.SourceTrace)))
	for err := error(nil); err == nil; {
		_, err = r.Next()
	}
	return took, r.Totals()
}
