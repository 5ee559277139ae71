// SPDX-License-Identifier: Apache-2.0

//go:build vm && linux

package tracer_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/behavior"
	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// record keeps the traces as the test data of package schemas/behavior.
var record = flag.Bool("record", false, "write the traces to schemas/behavior/testdata")

// recordable are short, and show every kind of thing between them.
var recordable = []string{"int80", "untouched", "vforkexec", "threadexec", "paths", "connect", "kernel", "hidden", "helper"}

// facts is what the trace of one run says.
type facts struct {
	run     result
	records []trace.Record
	lines   []string // the records as text
	events  []string // see describe; of two that tell of one call, the later
	result  schemas.BehaviorResult
	totals  trace.Totals
	counts  map[string]uint64 // of the run's last Stats record: lost, unreadable, untracked
}

// traced runs a program and reads its trace, of which nothing may be missing:
// the tracer says how many records it has made, and all of them are here.
func (m *machine) traced(t *testing.T, r request) *facts {
	t.Helper()
	f := m.recorded(t, r)
	if f.run.TimeOut {
		t.Error("the program did not end by itself")
	}
	if f.totals.Lost != 0 || f.counts["untracked"] != 0 {
		t.Errorf("records or tasks were lost: %+v %v", f.totals, f.counts)
	}
	return f
}

// recorded is traced, but records may have been lost.
func (m *machine) recorded(t *testing.T, r request) *facts {
	t.Helper()
	r.Op, r.Arm = "run", true
	if r.Timeout == 0 {
		r.Timeout = 2 * time.Minute
	}
	f := &facts{run: m.must(r), counts: map[string]uint64{}}
	tr := trace.NewReader(bytes.NewReader(f.run.Trace))
	tracker := behavior.New(f.event())
	for {
		rec, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.Type == trace.Stats {
			f.counts["unreadable"] += rec.Args[3] - m.seen["unreadable"]
			f.counts["untracked"] += rec.Args[4] - m.seen["untracked"]
			m.seen["unreadable"], m.seen["untracked"] = rec.Args[3], rec.Args[4]
		}
		f.lines = append(f.lines, behavior.Format(rec))
		f.records = append(f.records, keep(rec))
		tracker.Add(rec)
	}
	f.totals = tr.Totals()
	// Both count from when the tracer was loaded.
	lost := f.totals.Lost
	f.totals.Lost -= m.seen["lost"]
	m.seen["lost"] = lost
	f.totals.Unreadable = f.counts["unreadable"]
	f.result = tracker.Result(f.totals)
	if n := len(f.records); n == 0 {
		t.Fatal("the trace is empty")
	}
	h := tr.Header()
	if got := h.First + uint64(h.Count); got+lost != h.Produced {
		t.Errorf("%d records have come and %d were lost, of %d", got, lost, h.Produced)
	}
	if f.records[0].Number != m.seen["records"] || f.totals.Missing+f.totals.Bad+f.totals.Skipped != 0 {
		t.Errorf("the trace goes on with record %d, not %d: %+v", f.records[0].Number, m.seen["records"], f.totals)
	}
	m.seen["records"] = h.First + uint64(h.Count)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%v: status %#x, %v\n%s", r.Argv, f.run.Status, f.run.Stats, clip(strings.Join(f.lines, "\n"), 20_000))
		}
	})
	return f
}

func keep(r *trace.Record) trace.Record {
	c := *r
	c.Attachments = slices.Clone(r.Attachments)
	for i := range c.Attachments {
		c.Attachments[i].Data = bytes.Clone(c.Attachments[i].Data)
	}
	return c
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// event collects events as lines.
func (f *facts) event() func(schemas.Behavior) {
	names := map[[2]uint64]int{} // processes, as they appear
	at := map[string]int{}
	return func(b schemas.Behavior) {
		who := [2]uint64{uint64(b.Actor.PID), b.Actor.Start}
		if names[who] == 0 {
			names[who] = len(names) + 1
		}
		text := fmt.Sprintf("%d %s", names[who], describe(b))
		key := fmt.Sprint(b.Record, b.Category, b.Action)
		if i, ok := at[key]; ok {
			f.events[i] = text
			return
		}
		at[key] = len(f.events)
		f.events = append(f.events, text)
	}
}

// describe renders an event without what differs from run to run.
func describe(b schemas.Behavior) string {
	s := []string{b.Category + "." + b.Action}
	add := func(format string, args ...any) {
		if v := fmt.Sprintf(format, args...); v != "" {
			s = append(s, v)
		}
	}
	if b.ABI != "" && b.ABI != "amd64" {
		add("%s", b.ABI)
	}
	switch {
	case b.Process != nil:
		p := b.Process
		add("%s", p.Path)
		if p.Argv != nil {
			add("%q", p.Argv)
		}
		add("%s%s%s", p.Name, p.Signal, p.Request)
		if p.Thread {
			add("thread")
		}
		if p.ExitCode != nil {
			add("%d", *p.ExitCode)
		}
	case b.File != nil:
		add("%s", b.File.Path)
		if b.File.Target != "" {
			add("-> %s", b.File.Target)
		}
		add("%s", b.File.Flags)
		add("%s", b.File.Mode)
		if b.File.Data != nil {
			add("%q", b.File.Data)
		}
	case b.Network != nil:
		n := b.Network
		add("%s", n.Family)
		add("%s%s", n.Address, n.Path)
		if n.Port != 0 {
			add("%d", n.Port)
		}
		if len(n.Data) > 0 {
			add("%q", n.Data)
		}
	case b.Memory != nil:
		add("%s%s", b.Memory.Name, b.Memory.Prot)
	case b.Kernel != nil:
		add("%s%s", b.Kernel.Name, b.Kernel.Command)
		add("%s", b.Kernel.Params)
	}
	if b.Errno != "" {
		add("= %s", b.Errno)
	} else if b.Syscall != "" && b.Result == nil {
		add("unfinished")
	}
	return strings.Join(s, " ")
}

// syscalls returns the records of a call, without those of its beginning.
func (f *facts) syscalls(name string) (out []trace.Record) {
	for _, r := range f.records {
		if r.Type == trace.Syscall && r.Flags&trace.Entry == 0 && r.Describe().Name == name {
			out = append(out, r)
		}
	}
	return out
}

// line reports whether there is a record that reads like this.
func (f *facts) line(t *testing.T, want string) {
	t.Helper()
	if !slices.Contains(f.lines, want) {
		t.Errorf("no record reads %s", want)
	}
}

// has reports whether there are these events, in this order, others between them.
func (f *facts) has(t *testing.T, want ...string) {
	t.Helper()
	left := want
	for _, e := range f.events {
		if len(left) > 0 && e == left[0] {
			left = left[1:]
		}
	}
	if len(left) > 0 {
		t.Errorf("there is no %q after %q in %q", left[0], want[:len(want)-len(left)], f.events)
	}
}

// family lists the processes: which is whose child, and how each ended.
func (f *facts) family() (out []string) {
	index := map[[2]uint64]int{}
	for i, p := range f.result.Processes {
		index[[2]uint64{uint64(p.PID), p.Start}] = i + 1
		s := fmt.Sprintf("%d of %d, %s", i+1, index[[2]uint64{uint64(p.Parent), p.ParentAt}], p.Comm)
		switch {
		case p.Signal != "":
			s += ", " + p.Signal
		case p.ExitCode != nil:
			s += fmt.Sprintf(", %d", *p.ExitCode)
		}
		out = append(out, s)
	}
	return out
}

// A factTest says all that must be seen of a tester program.
type factTest struct {
	name       string
	unreadable uint64
	global     bool // not in a pid namespace, where it would be process 1
	status     int  // as wait gives it
	family     []string
	events     []string
	check      func(t *testing.T, f *facts)
}

func factTests() []factTest {
	const exec = `1 process.exec /usr/bin/`
	return []factTest{
		{
			name: "int80", status: 3 << 8, family: []string{"1 of 0, int80, 3"},
			events: []string{
				exec + `int80 ["/usr/bin/int80"]`,
				`1 file.create i386 /tmp/int80.txt O_RDWR|O_CREAT 0600`,
				`1 file.write i386 /tmp/int80.txt "by int 0x80"`,
				`1 network.socket AF_INET`,
				`1 network.connect i386 AF_INET 203.0.113.7 6667 = ENETUNREACH`,
				`1 process.exit 3`,
			},
			check: func(t *testing.T, f *facts) {
				for name, number := range map[string]uint32{"open": 5, "write": 4, "connect": 102} {
					calls := f.syscalls(name)
					if len(calls) != 1 || calls[0].ABI != sysno.I386 || calls[0].Call != number {
						t.Errorf("%s: %+v", name, calls)
					}
				}
				for name, want := range map[string]uint64{"i386:open": 1, "i386:write": 1, "i386:connect": 1, "i386:exit": 1, "getpid": 1} {
					if got := f.result.Syscalls[name]; got != want {
						t.Errorf("%d calls of %s, want %d", got, name, want)
					}
				}
			},
		},
		{
			name: "untouched", family: []string{"1 of 0, untouched, 0"},
			events: []string{
				exec + `untouched ["/usr/bin/untouched"]`,
				`1 file.create /tmp/names O_RDWR|O_CREAT|O_TRUNC 0600`,
				`1 file.write /tmp/names "/tmp/untouched\x00"`,
				`1 file.write /tmp/names "fresh bytes"`,
				`1 file.open /tmp/untouched O_RDONLY = ENOENT`,
				`1 file.open <0x10> O_RDONLY = EFAULT`,
				`1 file.write fd:1 "fresh bytes"`,
				`1 process.exit 0`,
			},
			check: func(t *testing.T, f *facts) {
				f.line(t, `openat(AT_FDCWD, "/tmp/untouched"~, O_RDONLY) = -1 ENOENT (no such file or directory)`)
				f.line(t, `write(1, "fresh bytes"~, 11) = 11`)
			},
		},
		{
			name: "mux", family: []string{"1 of 0, mux, 0"},
			check: func(t *testing.T, f *facts) {
				if !slices.Contains(f.events, `1 network.connect i386 AF_INET 203.0.113.8 6668 = ENETUNREACH`) {
					t.Errorf("%q", f.events)
				}
				f.line(t, `i386:connect(4, {AF_INET, 203.0.113.8:6668}~, 16) = -1 ENETUNREACH (network is unreachable)`)
				f.line(t, `i386:socketcall(3, 0x1000) = -1 EFAULT (bad address)`)
			},
		},
		{
			// The kernel has read what these pointed to, so that the trace lacks it.
			name: "hidden", unreadable: 2, family: []string{"1 of 0, hidden, 0"},
			check: func(t *testing.T, f *facts) {
				var got []string
				for _, e := range f.events {
					if strings.Contains(e, "unreadable") || strings.Contains(e, "/tmp/null") || strings.Contains(e, "/tmp/short") {
						got = append(got, e)
					}
				}
				if diff := cmp.Diff([]string{
					`1 file.open <unreadable> O_RDONLY`,
					`1 file.create /tmp/short O_WRONLY|O_CREAT 0600`,
					`1 file.write /tmp/short "ending"`,
					`1 file.open /tmp/null O_RDONLY = ENOENT`,
				}, got); diff != "" {
					t.Error(diff)
				}
				calls := f.syscalls("readlink")
				if a := calls[len(calls)-1].Attached(0, trace.String); a == nil || a.Flags&trace.Unreadable == 0 {
					t.Errorf("the name that was taken away: %+v", a)
				}
				if diff := cmp.Diff([]string{"2 arguments could not be read in the guest"}, f.result.Gaps); diff != "" {
					t.Error(diff)
				}
			},
		},
		{
			// There was nothing to read for the kernel either.
			name: "wild", family: []string{"1 of 0, wild, 0"},
			check: func(t *testing.T, f *facts) {
				if n := len(f.events); f.events[n-2] != "1 file.open /tmp/honest O_RDONLY = ENOENT" {
					t.Errorf("%q", f.events[n-2])
				}
				f.line(t, "openat(AT_FDCWD, 0x10, O_RDONLY) = -1 EFAULT (bad address)")
				f.line(t, "openat(AT_FDCWD, 0xffffffff81000000, O_RDONLY) = -1 EFAULT (bad address)")
				f.line(t, "openat(AT_FDCWD, NULL, O_RDONLY) = -1 EFAULT (bad address)")
				f.line(t, "unlinkat(AT_FDCWD, 0x123456789000, 0x55) = -1 EINVAL (invalid argument)")
				f.line(t, "write(-1, 0x123456789000, 10) = -1 EBADF (bad file descriptor)")
				for _, r := range f.records {
					for _, a := range r.Attachments {
						if a.Flags&trace.Unreadable != 0 && r.Finished() {
							t.Errorf("shown as unreadable: %s", behavior.Format(&r))
						}
					}
				}
			},
		},
		{
			name: "vforkexec", family: []string{"1 of 0, vforkexec, 0", "2 of 1, exe, 5", "3 of 1, vforkexec, 6"},
			events: []string{
				exec + `vforkexec ["/usr/bin/vforkexec"]`,
				`1 process.fork`,
				`2 process.exec /usr/bin/vforkexec ["a child" "child" "of vfork"]`,
				`2 process.exit 5`,
				`1 process.fork`,
				`3 process.exec /nothing/here ["a child" "child" "of vfork"] = ENOENT`,
				`3 process.exit 6`,
				`1 process.exit 0`,
			},
		},
		{
			name: "rewrite", family: []string{"1 of 0, rewrite, 0"},
			events: []string{
				exec + `rewrite ["/usr/bin/rewrite"]`,
				`1 file.create /tmp/evil mknod 010600`,
				`1 process.fork thread`,
				`1 file.open /tmp/evil O_RDONLY`,
				`1 file.open /tmp/evil O_WRONLY`,
				`1 process.exit 0`,
			},
			check: func(t *testing.T, f *facts) {
				calls := f.syscalls("openat")
				a := calls[0].Attached(1, trace.String)
				if a == nil || a.Flags != 0 || string(a.Data) != "/tmp/evil" {
					t.Errorf("the name was %+v when the call began", a)
				}
				if calls[0].End-calls[0].Begin < 30e6 {
					t.Errorf("the call did not block: %d ns", calls[0].End-calls[0].Begin)
				}
				for _, file := range f.result.Files {
					if file.Path == "/tmp/good" {
						t.Error("the name that was written afterwards is in the result")
					}
				}
			},
		},
		{
			name: "doublefork", global: true, status: 2 << 8,
			family: []string{"1 of 0, doublefork, 2", "2 of 1, doublefork, 4", "3 of 2, doublefork, 7"},
			events: []string{
				exec + `doublefork ["/usr/bin/doublefork"]`,
				`1 process.fork`,
				`2 process.fork`,
				`3 file.write pipe "\x00"`,
				`2 process.exit 4`,
				`1 process.exit 2`,
				`3 file.create /tmp/daemon O_WRONLY|O_CREAT 0600`,
				`3 file.write /tmp/daemon "alive"`,
				`3 process.exit 7`,
			},
			check: func(t *testing.T, f *facts) {
				// The tree keeps who made it; the kernel says whose child it is now.
				var parents []int64
				for _, r := range f.syscalls("getppid") {
					parents = append(parents, r.Result)
				}
				if middle := f.result.Processes[1].PID; !slices.Equal(parents, []int64{int64(middle), 1}) {
					t.Errorf("the grandchild's parents were %v, want %d and then 1", parents, middle)
				}
			},
		},
		{
			name: "rename", family: []string{"1 of 0, kworker/0:1, 0", "2 of 1, kworker/0:1, 9"},
			events: []string{
				exec + `rename ["/usr/bin/rename"]`,
				`1 process.rename kworker/0:1`,
				`1 process.fork`,
				`2 process.exit 9`,
				`1 process.exit 0`,
			},
			check: func(t *testing.T, f *facts) {
				// It cannot rename what it has executed.
				if p := f.result.Processes[0]; p.Path != "/usr/bin/rename" || !slices.Equal(p.Argv, []string{"/usr/bin/rename"}) {
					t.Errorf("%+v", p)
				}
			},
		},
		{
			name: "memfd", status: 11 << 8, family: []string{"1 of 0, memfd:harmless, 11"},
			events: []string{
				exec + `memfd ["/usr/bin/memfd"]`,
				`1 memory.memfd harmless`,
				`1 file.open /proc/self/exe O_RDONLY`,
				`1 file.write memfd:harmless`,
				`1 process.exec memfd:harmless ["[kthreadd]" "again"]`,
				`1 process.exit 11`,
			},
			check: func(t *testing.T, f *facts) {
				for _, r := range f.records {
					if a := r.Attached(trace.NoArg, trace.Env); r.Type == trace.Exec && r.Args[4] == 1 && (a == nil || string(a.Data) != "SECRET=1\x00") {
						t.Errorf("its environment: %+v", a)
					}
				}
			},
		},
		{
			name: "seccomp", family: []string{"1 of 0, seccomp, 0"},
			events: []string{
				exec + `seccomp ["/usr/bin/seccomp"]`,
				`1 file.mkdir <not captured> 0700 = EPERM`,
				`1 process.exit 0`,
			},
			check: func(t *testing.T, f *facts) {
				if calls := f.syscalls("mkdir"); len(calls) != 1 || calls[0].Flags&trace.NoEntry == 0 || calls[0].Result != -1 {
					t.Errorf("the refused call: %+v", calls)
				}
			},
		},
		{
			name: "threadexec", status: 12 << 8, family: []string{"1 of 0, exe, 12"},
			events: []string{
				exec + `threadexec ["/usr/bin/threadexec"]`,
				`1 process.fork thread`,
				`1 process.exec /usr/bin/threadexec ["threadexec" "again"]`,
				`1 file.open /tmp/after O_RDONLY = ENOENT`,
				`1 process.exit 12`,
			},
		},
		{
			name: "killed", global: true, status: 6,
			family: []string{"1 of 0, killed, SIGABRT", "2 of 1, killed, SIGTERM"},
			events: []string{
				exec + `killed ["/usr/bin/killed"]`,
				`1 process.fork`,
				`1 process.signal SIGTERM`,
				`2 process.exit SIGTERM`,
				`1 process.signal SIGABRT`,
				`1 process.exit SIGABRT`,
			},
		},
		{
			name: "rwx", family: []string{"1 of 0, rwx, 0"},
			events: []string{
				exec + `rwx ["/usr/bin/rwx"]`,
				`1 memory.mmap_rwx PROT_READ|PROT_WRITE|PROT_EXEC`,
				`1 memory.mmap_rwx PROT_READ|PROT_WRITE|PROT_EXEC`,
				`1 process.exit 0`,
			},
			check: func(t *testing.T, f *facts) {
				// A call from code that the program has made itself.
				var code uint64
				for _, r := range f.syscalls("mmap") {
					if r.Args[2] == 7 {
						code = uint64(r.Result)
					}
				}
				if calls := f.syscalls("getpid"); len(calls) != 1 || calls[0].IP < code || calls[0].IP >= code+8192 {
					t.Errorf("getpid from %+v, not from %#x", calls, code)
				}
			},
		},
		{
			name: "module", family: []string{"1 of 0, module, 0"},
			events: []string{
				exec + `module ["/usr/bin/module"]`,
				`1 kernel.module_load debug=1 = ENOEXEC`,
				`1 file.open /etc/passwd O_RDONLY`,
				`1 kernel.module_load /etc/passwd hide=1 = ENOEXEC`,
				`1 kernel.module_unload netfilter = ENOENT`,
				`1 process.exit 0`,
			},
		},
		{
			name: "paths", family: []string{"1 of 0, paths, 0", "2 of 1, paths, 0"},
			events: []string{
				exec + `paths ["/usr/bin/paths"]`,
				`1 file.mkdir /tmp/paths 0700`,
				`1 file.create /tmp/paths/one O_RDWR|O_CREAT 0600`,
				`1 file.write /tmp/paths/one "12345"`,
				`1 file.write /tmp/paths/one "678"`,
				`1 file.mkdir /tmp/paths/sub 0755`,
				`1 file.open /tmp/paths/sub O_RDONLY|O_DIRECTORY`,
				`1 file.create /tmp/paths/two O_WRONLY|O_CREAT 0644`,
				`1 file.write /tmp/paths/two "x"`,
				`1 file.rename /tmp/paths/one -> /tmp/paths/sub/three`,
				`1 file.link /tmp/paths/sub/link -> three symbolic`,
				`1 file.link /tmp/paths/sub/hard -> /tmp/paths/sub/three`,
				`1 file.chmod /tmp/paths/sub/three 04755`,
				`1 process.fork`,
				`2 file.delete /tmp/paths/sub/hard`,
				`2 process.exit 0`,
				`1 file.delete /tmp/paths/sub/link`,
				`1 file.open /tmp/paths/sub/nowhere O_RDONLY = ENOENT`,
				`1 file.open /tmp/paths/two O_RDONLY`,
				`1 file.delete /tmp/paths/sub = ENOTEMPTY`,
				`1 process.exit 0`,
			},
		},
		{
			name: "connect", family: []string{"1 of 0, connect, 0"},
			events: []string{
				exec + `connect ["/usr/bin/connect"]`,
				`1 network.socket AF_INET`,
				`1 network.connect AF_INET 203.0.113.7 6667 = ENETUNREACH`,
				`1 network.socket AF_INET6`,
				`1 network.connect AF_INET6 2001:db8::7 443 = EADDRNOTAVAIL`,
				`1 network.socket AF_UNIX`,
				`1 network.connect AF_UNIX @petri = ECONNREFUSED`,
				`1 network.socket AF_INET`,
				`1 network.send AF_INET 203.0.113.9 53 "hello" = ENETUNREACH`,
				`1 network.socket AF_NETLINK`,
				`1 network.bind AF_NETLINK groups 0x1`,
				`1 network.socket AF_PACKET`,
				`1 network.socket AF_INET`,
				`1 network.bind AF_INET 0.0.0.0 31337`,
				`1 network.listen AF_INET 0.0.0.0 31337`,
				`1 process.exit 0`,
			},
		},
		{
			name: "kernel", family: []string{"1 of 0, kernel, 0"},
			events: []string{
				exec + `kernel ["/usr/bin/kernel"]`,
				`1 process.ptrace PTRACE_ATTACH = ESRCH`,
				`1 kernel.bpf BPF_PROG_LOAD = EFAULT`,
				`1 kernel.io_uring`,
				`1 kernel.kexec = EINVAL`,
				`1 kernel.reboot LINUX_REBOOT_CMD_POWER_OFF = EINVAL`,
				`1 memory.process_write`,
				`1 file.mkdir /tmp/mnt 0755`,
				`1 file.mount /tmp/mnt -> none MS_NOEXEC`,
				`1 file.mount /tmp/mnt umount`,
				`1 process.setuid setuid(1000)`,
				`1 process.exit 0`,
			},
			check: func(t *testing.T, f *facts) {
				if g := f.result.Gaps; len(g) != 2 || !strings.HasPrefix(g[0], "a file system was mounted") || !strings.HasPrefix(g[1], "io_uring was used") {
					t.Errorf("gaps: %q", f.result.Gaps)
				}
				f.result.Gaps = nil
			},
		},
		{
			// What it creates through the ring is not in the trace, and that is said.
			// The ring's worker is a thread of the process, and may be its last.
			name: "uring", family: []string{"1 of 0, uring, 0"},
			events: []string{
				exec + `uring ["/usr/bin/uring"]`,
				`1 kernel.io_uring`,
				`1 process.fork thread`,
				`1 process.exit 0`,
			},
			check: func(t *testing.T, f *facts) {
				if len(f.result.Gaps) != 1 || !strings.HasPrefix(f.result.Gaps[0], "io_uring was used") {
					t.Errorf("gaps: %q", f.result.Gaps)
				}
				f.result.Gaps = nil
			},
		},
		{
			name: "execveat", status: 13 << 8, family: []string{"1 of 0, execveat, 13"},
			events: []string{
				exec + `execveat ["/usr/bin/execveat"]`,
				`1 file.open /proc/self/exe O_RDONLY`,
				`1 file.create /tmp/copy O_WRONLY|O_CREAT 0700`,
				`1 file.write /tmp/copy`,
				`1 file.open /tmp O_RDONLY|O_DIRECTORY|O_PATH`,
				`1 process.exec /tmp/copy ["execveat" "1"]`,
				`1 file.open /tmp/copy O_RDONLY`,
				`1 file.delete /tmp/copy`,
				`1 process.exec /tmp/copy ["execveat" "2"]`,
				`1 process.exec /usr/bin/execveat ["execveat" "3"]`,
				`1 process.exit 13`,
			},
		},
		{
			name: "script", status: 17 << 8, family: []string{"1 of 0, script, 17", "2 of 1, busybox, 0"},
			check: func(t *testing.T, f *facts) {
				f.has(t,
					`1 file.create /tmp/script O_WRONLY|O_CREAT 0700`,
					`1 process.exec /tmp/script ["/bin/busybox" "sh" "/tmp/script" "argument"] /bin/busybox`,
					`1 file.open /tmp/script O_RDONLY|O_CLOEXEC`,
					`1 file.create /tmp/by-script O_WRONLY|O_CREAT|O_TRUNC 0666`,
					`1 file.write /tmp/by-script "from a script\n"`,
					`2 process.exec /bin/busybox ["/bin/busybox" "rm" "/tmp/by-script"]`,
					`2 file.delete /tmp/by-script`,
					`1 process.exit 17`)
			},
		},
		{
			name: "daemon", global: true,
			family: []string{"1 of 0, daemon, 0", "2 of 1, daemon, 0", "3 of 2, kworker/u2:1, 21"},
			check: func(t *testing.T, f *facts) {
				f.has(t, `1 process.fork`, `1 process.exit 0`)
				f.has(t,
					`2 process.fork`,
					`2 process.exit 0`,
					`3 file.delete /usr/bin/daemon`,
					`3 process.rename kworker/u2:1`,
					`3 file.create /tmp/bot O_WRONLY|O_CREAT 0600`,
					`3 file.write /tmp/bot "in the background"`,
					`3 process.exit 21`)
				// It cannot rename what it has executed.
				if p := f.result.Processes[2]; p.Path != "/usr/bin/daemon" || !slices.Equal(p.Argv, []string{"/usr/bin/daemon"}) {
					t.Errorf("%+v", p)
				}
			},
		},
		{
			// Two names of 4,095 bytes are more than a record holds.
			name: "longargs", unreadable: 1,
			family: []string{"1 of 0, exe, 0", "2 of 1, exe, 0", "3 of 1, exe, 0"},
			check: func(t *testing.T, f *facts) {
				calls := f.syscalls("openat")
				if len(calls) != 2 {
					t.Fatalf("%d calls of openat", len(calls))
				}
				long, longest := calls[0].Attached(1, trace.String), calls[1].Attached(1, trace.String)
				if long == nil || len(long.Data) != 4095 || long.Flags != trace.Truncated {
					t.Errorf("of the name of 5,000 bytes: %+v", long)
				}
				if longest == nil || len(longest.Data) != 4095 || longest.Flags&^trace.Truncated != 0 {
					t.Errorf("of the name of 4,095 bytes: %+v", longest)
				}
				renames := f.syscalls("rename")
				if len(renames) != 2 {
					t.Fatalf("%d calls of rename", len(renames))
				}
				for i, want := range [][2]int{{2999, 2999}, {4095, 3071}} {
					from, to := renames[i].Attached(0, trace.String), renames[i].Attached(1, trace.String)
					if from == nil || to == nil || len(from.Data) != want[0] || len(to.Data) != want[1] || (to.Flags == trace.Truncated) != (i == 1) {
						t.Errorf("rename %d: %d and %d bytes, want %d", i, len(from.Data), len(to.Data), want)
					}
				}
				child := f.result.Processes[1]
				if len(child.Argv) < 40 || child.Argv[40] != strings.Repeat("N", 99) {
					t.Errorf("arguments of the child: %q", child.Argv)
				}
				if n := f.result.Omitted["arguments"]; n != 1 {
					t.Errorf("omitted: %v", f.result.Omitted)
				}
				f.result.Omitted = nil
				if argv := f.result.Processes[0].Argv; len(argv) != 2 || argv[1] != strings.Repeat("x", 3000) {
					t.Errorf("arguments: %q", argv)
				}
			},
		},
		{
			name: "forks",
			check: func(t *testing.T, f *facts) {
				if n := len(f.result.Processes); n != 1001 {
					t.Fatalf("%d processes, want 1001", n)
				}
				root := f.result.Processes[0]
				for i, p := range f.result.Processes[1:] {
					if p.Parent != root.PID || p.ParentAt != root.Start || p.ExitCode == nil || *p.ExitCode != i%100 {
						t.Fatalf("child %d: %+v", i, p)
					}
				}
			},
		},
		// Last: it makes the kernel start programs for whatever crashes.
		{
			name: "helper", global: true, status: 0x80 | 6,
			family: []string{"1 of 0, helper, SIGABRT", "2 of 0, helper, 13"},
			events: []string{
				exec + `helper ["/usr/bin/helper"]`,
				`1 file.open /proc/sys/kernel/core_pattern O_WRONLY`,
				`1 file.write /proc/sys/kernel/core_pattern "|/rom/usr/bin/helper helped"`,
				`1 process.signal SIGABRT`,
				`2 process.exec /rom/usr/bin/helper ["/rom/usr/bin/helper" "helped"]`,
				`2 file.open /tmp/helped O_RDONLY = ENOENT`,
				`2 process.exit 13`,
				`1 process.exit SIGABRT`,
			},
			check: func(t *testing.T, f *facts) {
				for _, r := range f.syscalls("openat") {
					if text, _ := r.Text(1); text == "/tmp/helped" && r.Flags&trace.Helper == 0 {
						t.Error("the record does not say that the kernel has started the program")
					}
				}
			},
		},
	}
}

// TestFacts runs the tester programs.
func TestFacts(t *testing.T) {
	m := start(t)
	m.load(request{})
	for _, test := range factTests() {
		t.Run(test.name, func(t *testing.T) {
			f := m.traced(t, request{Argv: []string{"/usr/bin/" + test.name}, PIDNS: !test.global})
			if f.run.Status != test.status {
				t.Errorf("wait status %#x, want %#x", f.run.Status, test.status)
			}
			if *record && slices.Contains(recordable, test.name) {
				if err := os.WriteFile("../../../schemas/behavior/testdata/"+test.name+".trace", f.run.Trace, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if test.check != nil {
				test.check(t, f)
			}
			if test.family != nil {
				if diff := cmp.Diff(test.family, f.family()); diff != "" {
					t.Errorf("processes: %s", diff)
				}
			}
			if test.events != nil {
				if diff := cmp.Diff(test.events, f.events); diff != "" {
					t.Errorf("events: %s", diff)
				}
			}
			if (len(f.result.Gaps) > 0) != (test.unreadable > 0) || f.counts["unreadable"] != test.unreadable || f.result.Omitted != nil {
				t.Errorf("gaps %q, %v, omitted %v", f.result.Gaps, f.counts, f.result.Omitted)
			}
		})
	}
}

// TestFallback: where the kernel takes no BPF programs, ptrace sees the same.
func TestFallback(t *testing.T) {
	m := start(t)
	m.load(request{PTrace: true})
	same := []string{"int80", "mux", "vforkexec", "doublefork", "rename", "memfd", "killed", "rwx", "paths", "connect", "kernel", "execveat"}
	for _, test := range factTests() {
		if !slices.Contains(same, test.name) {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			f := m.traced(t, request{Argv: []string{"/usr/bin/" + test.name}, PIDNS: !test.global})
			if f.run.Status != test.status {
				t.Errorf("wait status %#x, want %#x", f.run.Status, test.status)
			}
			if diff := cmp.Diff(test.family, f.family()); diff != "" {
				t.Errorf("processes: %s", diff)
			}
			// A call's record is made when the process has stopped after it, and
			// others go on meanwhile.
			want, got := slices.Sorted(slices.Values(test.events)), slices.Sorted(slices.Values(f.events))
			if diff := cmp.Diff(want, got); test.events != nil && diff != "" {
				t.Errorf("events: %s", diff)
			}
		})
	}
}
