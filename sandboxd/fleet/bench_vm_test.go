// SPDX-License-Identifier: Apache-2.0

//go:build vm

package fleet_test

import (
	"bufio"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/sandboxd/fleet"
	"github.com/petri-sandbox/petri/sandboxd/image"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/machinetest"
)

// BenchmarkGuests measures the memory of ten and of fifty guests of one template
// at a time, and of one as the reference: what each has for itself alone
// (private) and its share of everything (pss), with QEMU and supervisor, in
// MiB; while they wait in the pool, and while they idle with an identity and a
// lease. ready-ms is the median time that a machine of the pool takes to that
// identity, one after the other.
func BenchmarkGuests(b *testing.B) {
	for _, n := range []int{1, 10, 50} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			for b.Loop() {
				measureGuests(b, n)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func measureGuests(b *testing.B, n int) {
	id := "fleetbench-" + strconv.Itoa(n)
	log := &logged{}
	f := pool(id, image.DefaultCache(), machinetest.Agents(b), fleet.Pool{machinetest.Arch: n}, fleet.HostMemory, log)
	stop := keeping(b, f)
	defer stop()
	await(b, f, n, log)
	report(b, "waiting", "petri-"+id, n)

	took := make([]time.Duration, n)
	recs := make([]*machinetest.Recorder, n)
	for i := range n {
		recs[i] = machinetest.NewRecorder()
		m, err := f.New(b.Context(), sandboxd.MachineSpec{Guest: machinetest.Arch, Analysis: strconv.Itoa(i), Pcap: sandboxd.DefaultPcap}, recs[i])
		if err != nil {
			b.Fatal(err)
		}
		defer m.Close()
		boot, err := m.Poweron(b.Context(), machinetest.Identity(i))
		if err != nil {
			b.Fatal(err)
		}
		if !boot.Pooled {
			b.Errorf("machine %d did not wait in the pool", i)
		}
		took[i] = boot.Took.D()
	}
	stop() // those that took their place
	for _, rec := range recs {
		rec.Await(b, time.Minute, "lease", func(e machine.Event) bool { return e.Lease != nil })
	}
	report(b, "running", "petri-"+id, n)
	slices.Sort(took)
	b.ReportMetric(float64(took[n/2].Microseconds())/1000, "ready-ms")
}

// report measures the machines of a mark, which are n.
func report(b *testing.B, what, mark string, n int) {
	b.Helper()
	sum := map[string]int64{} // KiB
	pids := machinetest.Processes(b, mark)
	if len(pids) != 2*n {
		b.Fatalf("%d processes, want a supervisor and a QEMU of each of %d machines", len(pids), n)
	}
	for _, pid := range pids {
		who := "supervisor"
		if mapping(b, pid, "memfd:template") != nil {
			who = "qemu"
		}
		m := rollup(b, pid)
		for _, w := range []string{who, "all"} {
			sum[w+"-private"] += m["Private_Clean"] + m["Private_Dirty"]
			sum[w+"-pss"] += m["Pss"]
		}
	}
	for _, k := range []string{"all-private", "all-pss", "qemu-private", "supervisor-private"} {
		b.ReportMetric(float64(sum[k])/1024/float64(n), what+"-"+k+"-MiB")
	}
}

// rollup is a process' smaps_rollup, in KiB.
func rollup(b *testing.B, pid string) map[string]int64 {
	b.Helper()
	f, err := os.Open("/proc/" + pid + "/smaps_rollup")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	out := map[string]int64{}
	for s := bufio.NewScanner(f); s.Scan(); {
		w := strings.Fields(s.Text())
		if len(w) != 3 || w[2] != "kB" {
			continue
		}
		n, err := strconv.ParseInt(w[1], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		out[strings.TrimSuffix(w[0], ":")] = n
	}
	return out
}
