// SPDX-License-Identifier: Apache-2.0

package behavior_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/analyzertest"
	"github.com/petri-sandbox/petri/analyzers/behavior"
	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

func TestGolden(t *testing.T) { analyzertest.Golden(t, behavior.New()) }

// tape writes a trace of one amd64 guest.
type tape struct {
	t   testing.TB
	enc *trace.Encoder
	out bytes.Buffer
	now uint64
}

func newTape(t testing.TB) *tape {
	p := &tape{t: t, now: 1e9}
	who := func(tid uint32) trace.Identity {
		return trace.Identity{TGID: tid, NSTID: tid - 1000, NSPID: tid - 1000, Start: uint64(tid) * 1e6}
	}
	p.enc = trace.NewEncoder(sysno.AMD64, trace.LittleEndian, who, func(b []byte) error {
		p.out.Write(b)
		return nil
	})
	return p
}

func (p *tape) add(r trace.Record) {
	p.t.Helper()
	p.now += 1e6
	r.ABI, r.Begin, r.N = sysno.AMD64, p.now, 6
	if r.Flags&(trace.Entry|trace.Unfinished) == 0 {
		r.End = p.now + 1000
	}
	if err := p.enc.Add(&r); err != nil {
		p.t.Fatal(err)
	}
}

func str(arg uint8, s string) trace.Attachment {
	return trace.Attachment{Arg: arg, Kind: trace.String, Data: []byte(s)}
}

// call is a system call of a thread; an int is an argument, a string one that
// points to it, bytes are attached as they are.
func (p *tape) call(tid uint32, name string, result int64, args ...any) {
	p.t.Helper()
	p.raw(tid, name, result, 0, args...)
}

func (p *tape) raw(tid uint32, name string, result int64, flags trace.Flags, args ...any) {
	p.t.Helper()
	nr, ok := sysno.AMD64.Number(name)
	if !ok {
		p.t.Fatalf("there is no call %s", name)
	}
	r := trace.Record{Type: trace.Syscall, TID: tid, Call: uint32(nr), Result: result, Flags: flags}
	for i, a := range args {
		switch a := a.(type) {
		case int:
			r.Args[i] = uint64(a)
		case string:
			r.Args[i] = 0x7ffd0000
			r.Attachments = append(r.Attachments, str(uint8(i), a))
		case trace.Attachment:
			r.Args[i] = 0x7ffd1000
			a.Arg = uint8(i)
			r.Attachments = append(r.Attachments, a)
		}
	}
	p.add(r)
}

func (p *tape) exec(tid uint32, path string, argv ...string) {
	p.t.Helper()
	p.add(trace.Record{Type: trace.Exec, TID: tid, Args: [6]uint64{uint64(tid)}, Attachments: []trace.Attachment{
		str(trace.NoArg, path),
		{Arg: trace.NoArg, Kind: trace.Argv, Data: []byte(strings.Join(argv, "\x00") + "\x00")},
		{Arg: trace.NoArg, Kind: trace.Comm, Data: []byte(filepath.Base(path))},
		{Arg: trace.NoArg, Kind: trace.Cwd, Data: []byte("tmp\x00")},
	}})
}

func (p *tape) fork(tid, child uint32) {
	p.t.Helper()
	p.add(trace.Record{Type: trace.Fork, TID: tid, Args: [6]uint64{uint64(child), uint64(child), uint64(child - 1000), uint64(child - 1000), uint64(child) * 1e6}})
}

func (p *tape) exit(tid uint32, status uint64) {
	p.t.Helper()
	p.add(trace.Record{Type: trace.Exit, TID: tid, Args: [6]uint64{status, 0, status}})
}

func (p *tape) bytes() []byte {
	p.t.Helper()
	if err := p.enc.Flush(); err != nil {
		p.t.Fatal(err)
	}
	return p.out.Bytes()
}

func inet(addr [4]byte, port uint16) trace.Attachment {
	b := []byte{2, 0, 0, 0, addr[0], addr[1], addr[2], addr[3], 0, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(b[2:], port)
	return trace.Attachment{Kind: trace.Sockaddr, Data: b}
}

func unixAddr(path string) trace.Attachment {
	return trace.Attachment{Kind: trace.Sockaddr, Data: append([]byte{1, 0}, path+"\x00"...)}
}

const (
	enoent, eperm, econnrefused = -2, -1, -111
	creat                       = 0o1101 // O_WRONLY|O_CREAT|O_TRUNC
	at                          = -100   // AT_FDCWD
)

// dropper does everything that is looked for.
func dropper(t testing.TB) []byte {
	p := newTape(t)
	p.exec(1002, "/tmp/sample", "./sample", "-x")
	p.call(1002, "ptrace", eperm, 0, 0, 0, 0) // PTRACE_TRACEME
	p.call(1002, "prctl", 0, 15, "[kworker/0:1]")
	p.call(1002, "openat", enoent, at, "/etc/nothing", 0, 0)
	p.call(1002, "openat", 3, at, "/tmp/payload", creat, 0o644)
	p.call(1002, "write", 4, 3, trace.Attachment{Kind: trace.Bytes, Data: []byte("\x7fELF")}, 4)
	p.call(1002, "close", 0, 3)
	p.call(1002, "chmod", 0, "/tmp/payload", 0o755)
	p.call(1002, "chmod", 0, "/tmp/other", 0o600)
	p.call(1002, "mprotect", 0, 0x1000, 4096, 7)
	p.call(1002, "mprotect", 0, 0x1000, 4096, 5)
	p.call(1002, "memfd_create", 4, "x", 0)
	p.fork(1002, 1005)
	p.exec(1005, "/dev/fd/4", "x")
	p.exit(1005, 0)
	p.fork(1002, 1003)
	p.exec(1003, "/tmp/payload", "payload")
	p.call(1003, "unlink", 0, "/tmp/sample")
	p.call(1003, "socket", 5, 2, 1, 0)
	p.raw(1003, "connect", 0, trace.Entry, 5, inet([4]byte{192, 0, 2, 1}, 6667), 16)
	p.now -= 1e6 // the same call
	p.raw(1003, "connect", econnrefused, trace.Continued, 5, 0x7ffd1000, 16)
	p.call(1003, "connect", 0, 5, inet([4]byte{192, 0, 2, 7}, 80), 16)
	p.call(1003, "socket", 6, 1, 1, 0)
	p.call(1003, "connect", 0, 6, unixAddr("/run/nscd/socket"), 20)
	p.call(1003, "init_module", eperm, 0x5000, 1234, "debug=1")
	p.call(1003, "reboot", eperm, 0xfee1dead, 672274793, 0x4321fedc)
	p.call(1003, "io_uring_setup", 7, 8, 0)
	p.call(1003, "mount", 0, "none", "/proc", "tmpfs", 0, 0)
	p.call(1003, "setuid", 0, 0)
	p.fork(1003, 1004)
	p.exec(1004, "/proc/self/fd/4", "x")
	p.call(1004, "execve", enoent, "/bin/nothing", 0, 0)
	p.raw(1004, "nanosleep", 0, trace.Unfinished, 0, 0)
	p.exit(1004, 9) // SIGKILL
	p.exit(1003, 3<<8)
	p.exit(1002, 0)
	return p.bytes()
}

// inputs are the traces in testdata.
func inputs(t testing.TB) map[string][]byte {
	quiet := newTape(t)
	quiet.exec(1002, "/bin/true", "true")
	quiet.exit(1002, 0)
	whole := dropper(t)
	return map[string][]byte{
		"dropper":   whole,
		"quiet":     quiet.bytes(),
		"empty":     {},
		"garbage":   bytes.Repeat([]byte("not a trace "), 100),
		"truncated": whole[:len(whole)/2],
	}
}

// TestInputs keeps testdata what inputs makes.
func TestInputs(t *testing.T) {
	for name, want := range inputs(t) {
		path := filepath.Join("testdata", name+".in")
		if flag.Lookup("update").Value.String() == "true" {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what this test makes (%v); go test -update writes it", path, err)
		}
	}
}

func analyze(t testing.TB, b []byte) (analyzers.Collected, schemas.BehaviorResult) {
	t.Helper()
	job := analyzertest.Job(behavior.New(), "x", b)
	c, err := analyzers.Collect(t.Context(), behavior.New(), job)
	if err != nil {
		t.Fatal(err)
	}
	var r schemas.BehaviorResult
	if err := json.Unmarshal(c.Result, &r); err != nil {
		t.Fatal(err)
	}
	return c, r
}

// TestFacts names what the dropper must be seen doing, how often, and that
// what has only been tried counts for less.
func TestFacts(t *testing.T) {
	c, _ := analyze(t, dropper(t))
	got := map[string]string{}
	for _, f := range c.Findings {
		got[f.Kind] = string(f.Severity) + " " + f.Title
		if f.Kind != "trace_gaps" && (len(f.Evidence) == 0 || f.Evidence[0].Record == nil || f.Evidence[0].Artifact == nil) {
			t.Errorf("%s has no evidence", f.Kind)
		}
	}
	want := map[string]string{
		"process_summary":       "info 4 processes, 4 programs run",
		"file_summary":          got["file_summary"], // of which package behavior says more
		"network_summary":       "info 2 attempts to connect, 0 datagram calls",
		"fileless_execution":    "high ran a program that has no file (1×)",
		"descriptor_executed":   "medium ran a program through a descriptor in /proc, which may have no file (1×)",
		"written_file_executed": "medium ran a program that it had written (1×)",
		"executable_deleted":    "medium deleted a program that it had run (1×)",
		"file_made_executable":  "low made a file executable (1×)",
		"filesystem_mounted":    "low changed mounts (1×)",
		"memory_wx":             "low mapped memory that is writable and executable (1×)",
		"memory_file":           "info made a file in memory (1×)",
		"debugger_check":        "low asked to be traced, which finds debuggers (1×, 1 failed)",
		"process_renamed":       "info changed the name of a process (1×)",
		"user_changed":          "info changed its user (1×)",
		"module_loaded":         "low loaded a kernel module (1×, 1 failed)",
		"machine_stopped":       "low shut down or restarted the machine (1×, 1 failed)",
		"io_uring_used":         "low used io_uring, whose operations are not seen (1×)",
		"trace_gaps":            "info the trace does not show everything",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	i := slices.IndexFunc(c.Findings, func(f schemas.Finding) bool { return f.Kind == "network_summary" })
	var net behavior.NetworkSummary
	if err := json.Unmarshal(c.Findings[i].Data, &net); err != nil {
		t.Fatal(err)
	}
	// The call that blocked was seen twice, and is one.
	if diff := cmp.Diff(behavior.NetworkSummary{
		Connect: behavior.Count{Calls: 2, Failed: 1}, Addresses: []string{"connect 192.0.2.1:6667", "connect 192.0.2.7:80"},
	}, net); diff != "" {
		t.Error(diff)
	}
}

// TestForeign: a program may write into its own memory.
func TestForeign(t *testing.T) {
	for name, want := range map[string]bool{"own": false, "other": true, "own_file": false, "other_file": true} {
		t.Run(name, func(t *testing.T) {
			p := newTape(t)
			p.exec(1002, "/bin/true", "true")
			switch name {
			case "own":
				p.call(1002, "process_vm_writev", 5, 2)
			case "other":
				p.call(1002, "process_vm_writev", 5, 3)
			case "own_file":
				p.call(1002, "openat", 3, at, "/proc/self/mem", 2)
			case "other_file":
				p.call(1002, "openat", 3, at, "/proc/3/mem", 2)
			}
			p.call(1002, "write", 5, 3, trace.Attachment{Kind: trace.Bytes, Data: []byte("patch")}, 5)
			c, _ := analyze(t, p.bytes())
			if got := slices.ContainsFunc(c.Findings, func(f schemas.Finding) bool { return f.Kind == "process_memory_write" }); got != want {
				t.Errorf("found: %v", got)
			}
		})
	}
}

func TestCoverage(t *testing.T) {
	job := analyzertest.Job(behavior.New(), "x", nil)
	job.Manifest = &schemas.Manifest{Coverage: schemas.SourceCoverage{Lost: 5, Cut: 7}}
	c, err := analyzers.Collect(t.Context(), behavior.New(), job)
	if err != nil {
		t.Fatal(err)
	}
	f := c.Findings[len(c.Findings)-1]
	if f.Kind != "trace_gaps" || string(f.Data) != `{"lost":5,"cut":7}` {
		t.Errorf("%s %s", f.Kind, f.Data)
	}
}

func TestInterrupted(t *testing.T) {
	done, cancel := context.WithCancel(t.Context())
	cancel()
	job := analyzertest.Job(behavior.New(), "x", dropper(t))
	if _, err := analyzers.Collect(done, behavior.New(), job); err == nil {
		t.Error("it goes on when its time is up")
	}
}

func FuzzAnalyze(f *testing.F) {
	for _, b := range inputs(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, r := analyze(t, b) // fails unless Analyze returns nil
		if len(c.Findings) == 0 || c.Findings[0].Kind != "process_summary" || c.Cut != (schemas.TaskCut{}) || len(c.Findings) > 30 {
			t.Fatalf("%+v, cut %+v", c.Findings, c.Cut)
		}
		if r.Schema != schemas.BehaviorSchema {
			t.Fatal(r.Schema)
		}
		again, _ := analyze(t, b)
		if diff := cmp.Diff(c, again); diff != "" {
			t.Fatalf("two runs differ: %s", diff)
		}
	})
}

func BenchmarkAnalyze(b *testing.B) {
	p := newTape(b)
	p.exec(1002, "/bin/true", "true")
	for i := range 100_000 {
		p.call(1002, "openat", 3, at, "/tmp/file"+string(rune('a'+i%26)), creat, 0o644)
		p.call(1002, "write", 4, 3, trace.Attachment{Kind: trace.Bytes, Data: []byte("data")}, 4)
		p.call(1002, "close", 0, 3)
	}
	data := p.bytes()
	job := analyzertest.Job(behavior.New(), "x", data)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := analyzers.Collect(b.Context(), behavior.New(), job); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(300_000*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}
