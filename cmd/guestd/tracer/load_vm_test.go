// SPDX-License-Identifier: Apache-2.0

//go:build vm && linux

package tracer_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// count counts the records that f accepts.
func (f *facts) count(of func(*trace.Record) bool) (n int) {
	for i := range f.records {
		if of(&f.records[i]) {
			n++
		}
	}
	return n
}

// TestForks: more processes than there are slots for at once, and far more in
// all.
func TestForks(t *testing.T) {
	m := start(t)
	m.load(request{})
	const n = 10_000
	f := m.traced(t, request{Argv: []string{"/usr/bin/forks", "10000", "600"}, PIDNS: true, Timeout: 2 * time.Minute})
	children := map[uint64]bool{}
	forks := f.count(func(r *trace.Record) bool {
		if r.Type == trace.Fork {
			children[r.Args[4]<<20|r.Args[3]] = true // start and pid
		}
		return r.Type == trace.Fork
	})
	exits := f.count(func(r *trace.Record) bool { return r.Type == trace.Exit && r.Args[1] == 0 })
	if forks != n || len(children) != n || exits != n+1 {
		t.Errorf("%d forks of %d children, %d exits", forks, len(children), exits)
	}
	unknown := f.count(func(r *trace.Record) bool { return r.Type != trace.Stats && r.Who == trace.Identity{} })
	if unknown > 0 {
		t.Errorf("of %d records it is not known whose they are", unknown)
	}
	codes := map[int]int{}
	for _, p := range f.result.Processes[1:] {
		if p.ExitCode != nil {
			codes[*p.ExitCode]++
		}
	}
	if len(codes) != 100 || f.result.Omitted["processes"] != 1 {
		t.Errorf("%d exit codes, omitted %v", len(codes), f.result.Omitted)
	}
}

// TestFlood: a million calls as fast as it goes. If the reader keeps up nothing
// is lost. If it does not, the program and the guest go on, each lost record is
// counted, and what comes afterwards is whole again.
func TestFlood(t *testing.T) {
	m := start(t)
	getppid, _ := sysno.AMD64.Number("getppid")
	flood := func(r *trace.Record) bool { return r.Call == uint32(getppid) }
	for _, test := range []struct {
		name string
		load request
		lost bool
	}{
		{name: "fast", load: request{}},
		{name: "slow", load: request{Ring: 256 << 10, Slow: 200 * time.Millisecond}, lost: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			m.load(test.load)
			f := m.recorded(t, request{Argv: []string{"/usr/bin/flood"}, PIDNS: true, Timeout: 2 * time.Minute})
			if f.run.TimeOut || f.run.Status != 21<<8 {
				t.Errorf("timed out %v, wait status %#x", f.run.TimeOut, f.run.Status)
			}
			if n := f.count(flood); test.lost != (n < 900_000) || test.lost != (f.totals.Lost > 0) {
				t.Errorf("%d of 900,000 calls were seen, %d records lost", n, f.totals.Lost)
			}
			if test.lost != slices.ContainsFunc(f.result.Gaps, func(s string) bool { return len(s) > 0 }) {
				t.Errorf("gaps: %q", f.result.Gaps)
			}
			t.Logf("%d records, %d lost, run %v, flush %v", len(f.records), f.totals.Lost, f.run.Took, f.run.Drain)
			after := m.traced(t, request{Argv: []string{"/usr/bin/quick"}, PIDNS: true})
			if len(after.events) != 2 || after.run.Status != 17<<8 {
				t.Errorf("afterwards: %q, wait status %#x", after.events, after.run.Status)
			}
			m.unload()
		})
	}
}

// TestQuick: programs that end before anybody can look, one after the other,
// some of them while the reader sleeps, and one that there is not.
func TestQuick(t *testing.T) {
	m := start(t)
	m.load(request{})
	for i := range 30 {
		if i%10 == 5 {
			time.Sleep(time.Second) // longer than it takes the reader to doze off
		}
		f := m.traced(t, request{Argv: []string{"/usr/bin/quick"}, PIDNS: i%2 == 0})
		want := []string{`1 process.exec /usr/bin/quick ["/usr/bin/quick"]`, `1 process.exit 17`}
		if !slices.Equal(f.events, want) || f.records[0].Type != trace.Exec || len(f.result.Gaps) > 0 {
			t.Fatalf("run %d: %q, begins with %s, gaps %q", i, f.events, f.lines[0], f.result.Gaps)
		}
	}
	if _, err := m.do(request{Op: "run", Argv: []string{"/usr/bin/nothing"}, Arm: true, Timeout: time.Second}); err == nil {
		t.Error("a program that there is not was run")
	}
	f := m.traced(t, request{Argv: []string{"/usr/bin/quick"}})
	if n := f.count(func(r *trace.Record) bool { return r.Type == trace.Exec }); n != 1 {
		t.Errorf("%d programs were recorded, want 1", n)
	}
}

// TestBlocked: what waits for ever when the trace is flushed is in it, and again
// when it is killed.
func TestBlocked(t *testing.T) {
	m := start(t)
	m.load(request{})
	f := m.recorded(t, request{Argv: []string{"/usr/bin/blocked"}, PIDNS: true, Timeout: 10 * time.Second})
	if !f.run.TimeOut || f.totals.Lost > 0 {
		t.Errorf("timed out %v, %+v", f.run.TimeOut, f.totals)
	}
	for _, line := range []string{
		`openat(AT_FDCWD, "/tmp/silent", O_RDONLY <unfinished ...>`,
		`accept(3, NULL, NULL <unfinished ...>`,
		`pause( <unfinished ...>`,
		`+++ killed by SIGKILL +++`,
	} {
		f.line(t, line)
	}
	want := []string{
		`1 process.exec /usr/bin/blocked ["/usr/bin/blocked"]`,
		`1 process.fork`,
		`2 network.socket AF_INET`,
		`2 network.bind AF_INET 0.0.0.0 4444`,
		`2 network.listen AF_INET 0.0.0.0 4444`,
		`2 network.accept AF_INET 0.0.0.0 4444 = ERESTARTSYS`,
		`1 process.fork thread`,
		`1 file.create /tmp/silent mknod 010600`,
		`1 file.open /tmp/silent O_RDONLY = ERESTARTSYS`,
		`1 process.exit SIGKILL`,
		`2 process.exit SIGKILL`,
	}
	slices.Sort(want) // which of the two comes first is up to the kernel
	got := slices.Sorted(slices.Values(f.events))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
