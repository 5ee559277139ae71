// SPDX-License-Identifier: Apache-2.0

//go:build vm

package qemu_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/machinetest"
	"github.com/petri-sandbox/petri/sandboxd/machine/qemu"
	"github.com/petri-sandbox/petri/schemas"
)

func TestMain(m *testing.M) { machinetest.Main(m) }

// patience is how long anything in a guest may take: QEMU emulates, and other
// tests run beside.
const patience = 3 * time.Minute

// A guest is a machine, and what it has reported.
type guest struct {
	*qemu.Machine
	t   testing.TB
	ctx context.Context
	rec *machinetest.Recorder
}

// poweron starts a machine that lives as long as the test.
func poweron(t testing.TB, cfg qemu.Config, id machine.Identity) (*guest, machine.Boot) {
	t.Helper()
	return powered(t, cfg, id, func(context.Context, *qemu.Machine) error { return nil })
}

// fromStandby starts a machine that has stood by for a second.
func fromStandby(t testing.TB, cfg qemu.Config, id machine.Identity) (*guest, machine.Boot) {
	t.Helper()
	return powered(t, cfg, id, func(ctx context.Context, m *qemu.Machine) error {
		if err := m.Standby(ctx); err != nil {
			return err
		}
		if err := m.Pause(ctx); !errors.Is(err, machine.ErrGone) {
			return fmt.Errorf("a machine without an analysis could be used: %v", err)
		}
		<-time.After(time.Second) // what a clock that stood still would show
		return nil
	})
}

func powered(t testing.TB, cfg qemu.Config, id machine.Identity, before func(context.Context, *qemu.Machine) error) (*guest, machine.Boot) {
	t.Helper()
	rec := machinetest.NewRecorder()
	m := qemu.New(cfg, rec)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(func() {
		cancel()
		if err := m.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if err := before(ctx, m); err != nil {
		t.Fatal(err)
	}
	boot, err := m.Poweron(ctx, id)
	if err != nil {
		t.Fatalf("poweron: %v; the guest's console: %s", err, rec.Text(schemas.SourceSerial))
	}
	return &guest{Machine: m, t: t, ctx: ctx, rec: rec}, boot
}

// warmGuest restores a machine, untraced.
func warmGuest(t testing.TB) *guest {
	t.Helper()
	cfg := machinetest.WarmConfig(t)
	cfg.Untraced = true
	g, boot := poweron(t, cfg, machinetest.Identity(1))
	if boot.Machine.Start != "warm" {
		t.Fatalf("started %s, fallback %q", boot.Machine.Start, boot.Fallback)
	}
	return g
}

// start runs a tester program.
func (g *guest) start(program string, args ...string) machine.Started {
	g.t.Helper()
	return g.run(program, machinetest.Command(g.t, machinetest.Program(g.t, program), args...))
}

func (g *guest) run(program string, r machine.Run) machine.Started {
	g.t.Helper()
	s, err := g.Run(g.ctx, r, machinetest.Program(g.t, program))
	if err != nil {
		g.t.Fatalf("run %s: %v", program, err)
	}
	return s
}

// sh runs a shell command beside the sample and returns what it printed.
func (g *guest) sh(script string) string {
	g.t.Helper()
	res, err := g.Exec(g.ctx, machine.Exec{Command: []string{"sh", "-c", script}, Timeout: time.Minute})
	if err != nil {
		g.t.Fatalf("exec %q: %v", script, err)
	}
	if res.ExitCode != 0 {
		g.t.Fatalf("exec %q: exit code %d, signal %q, %q %q", script, res.ExitCode, res.Signal, res.Stdout, res.Stderr)
	}
	return strings.TrimSpace(res.Stdout)
}

// shutdown goes down in an orderly way.
func (g *guest) shutdown() {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.ctx, 2*time.Minute)
	defer cancel()
	if err := g.Shutdown(ctx); err != nil {
		g.t.Fatalf("shutdown: %v; faults: %q", err, g.rec.Faults())
	}
	for _, f := range g.rec.Faults() {
		if strings.Contains(f, "powered off qemu") {
			g.t.Error(f)
		}
	}
}

// TestColdBoot boots a guest from nothing to its agent's first words, restarts
// it, and looks whether anything in its memory survives.
func TestColdBoot(t *testing.T) {
	id := machinetest.Identity(1)
	g, boot := poweron(t, machinetest.Config(t), id)
	img := machinetest.Image(t)
	if boot.Ready.Kernel != img.KernelRelease {
		t.Errorf("guest runs kernel %q, the image holds %q", boot.Ready.Kernel, img.KernelRelease)
	}
	if boot.Ready.Tracer.Backend != "ebpf" {
		t.Errorf("tracer %+v", boot.Ready.Tracer)
	}
	want := schemas.MachineSpec{Arch: "amd64", Backend: "qemu", Start: "cold", Accel: "tcg", CPUs: 1, Memory: machinetest.Memory}
	if diff := cmp.Diff(want, boot.Machine); diff != "" {
		t.Errorf("machine (-want +got):\n%s", diff)
	}
	if boot.Template != nil || boot.Fallback != "" {
		t.Errorf("template %v, fallback %q of a machine that was to boot", boot.Template, boot.Fallback)
	}
	t.Logf("booted in %v", boot.Took)

	g.start("ends", "exit", "5")
	g.rec.AwaitTree(t, patience)
	g.sh("echo kept > /tmp/kept && sync")
	if diff := cmp.Diff(id.Hostname, g.sh("hostname")); diff != "" {
		t.Errorf("host name (-want +got):\n%s", diff)
	}

	next := machinetest.Identity(2)
	boot, err := g.Restart(g.ctx, next)
	if err != nil {
		t.Fatalf("restart: %v", err)
	}
	if boot.Machine.Start != "cold" {
		t.Errorf("restarted %s", boot.Machine.Start)
	}
	t.Logf("restarted in %v", boot.Took)
	if got := g.sh("ls /tmp /root"); strings.Contains(got, "kept") || strings.Contains(got, "sample") {
		t.Errorf("files survived the restart: %q", got)
	}
	if got := g.sh("hostname"); got != next.Hostname {
		t.Errorf("host name %q after the restart, want %q", got, next.Hostname)
	}
	// A restarted guest has run nothing yet.
	g.start("ends", "exit", "6")
	g.rec.Await(t, patience, "exit code 6", func(e machine.Event) bool {
		return e.Exited != nil && e.Exited.ExitCode != nil && *e.Exited.ExitCode == 6
	})
	g.shutdown()
	for _, e := range g.rec.Events() {
		if e.Off != nil {
			t.Errorf("an end that was asked for was reported: %+v", e.Off)
		}
	}
	// One that was shut down can be started again.
	if _, err := g.Poweron(g.ctx, id); err != nil {
		t.Fatalf("poweron after shutdown: %v", err)
	}
	if got := g.sh("hostname"); got != id.Hostname {
		t.Errorf("host name %q after the second poweron", got)
	}
	if err := g.Poweroff(g.ctx); err != nil {
		t.Errorf("poweroff: %v", err)
	}
	if _, err := g.Exec(g.ctx, machine.Exec{Command: []string{"true"}, Timeout: time.Second}); !errors.Is(err, machine.ErrGone) {
		t.Errorf("exec in a machine that is off: %v", err)
	}
	if f := g.rec.Faults(); len(f) > 0 {
		t.Errorf("faults: %q", f)
	}
}

// TestRun checks what a program is started with.
func TestRun(t *testing.T) {
	g := warmGuest(t)
	sample := machinetest.Program(t, "self")
	r := machinetest.Command(t, sample, "one", "two words", "", "'quoted' \"$HOME\" *", "grün\n")
	r.Env = map[string]string{"COLOUR": "blue", "HOME": "/elsewhere", "EMPTY": ""}
	r.Path, r.Dir, r.User = "/opt/in here/prog", "/opt/in here", "user"
	r.Command[0] = r.Path
	r.Stdin = bytes.Repeat([]byte("0123456789abcdef"), machine.MaxStdin/16)
	started := g.run("self", r)
	code := 0
	want := schemas.SampleExited{Reason: "exited", ExitCode: &code}
	got := g.rec.AwaitExit(t, patience)
	if got.Ran <= 0 {
		t.Errorf("it ran for %v", got.Ran)
	}
	got.Ran = 0
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("exit (-want +got):\n%s", diff)
	}
	g.rec.AwaitTree(t, patience)
	g.rec.AwaitEnd(t, patience, schemas.SourceStdout)
	g.rec.AwaitEnd(t, patience, schemas.SourceStderr)

	b, err := io.ReadAll(io.NewSectionReader(sample, 0, r.Size))
	if err != nil {
		t.Fatal(err)
	}
	if started.SHA256 != schemas.Sum(b) || started.Path != r.Path {
		t.Errorf("started %+v", started)
	}
	if first := machinetest.Identity(1).FirstPID; started.PID < first || started.PID > first+50 {
		t.Errorf("process number %d, want one from %d on", started.PID, first)
	}
	lines := []string{
		"arg 0=/opt/in here/prog", "arg 1=one", "arg 2=two words", "arg 3=", `arg 4='quoted' "$HOME" *`, "arg 5=grün", "",
		"env COLOUR=blue", "env EMPTY=", "env HOME=/elsewhere", "env LANG=C.UTF-8", "env LOGNAME=user",
		"env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "env SHELL=/bin/sh", "env USER=user",
		"cwd /opt/in here", "ids 1000 1000 1000 1000", "groups 0", "session 1", "signals 0 blocked 0 ignored",
		"fd 0 pipe", "fd 1 pipe", "fd 2 pipe",
		"stdin starts 0123456789abcdef0123456789abcdef", fmt.Sprintf("stdin has %d bytes", machine.MaxStdin), "",
	}
	if diff := cmp.Diff(strings.Join(lines, "\n"), g.rec.Text(schemas.SourceStdout)); diff != "" {
		t.Errorf("what it saw (-want +got):\n%s", diff)
	}
	if got := g.rec.Text(schemas.SourceStderr); got != "this is stderr\n" {
		t.Errorf("stderr %q", got)
	}
	if _, err := g.Run(g.ctx, machinetest.Command(t, sample), sample); err == nil {
		t.Error("a second sample ran in the same guest")
	}
	g.shutdown()
	if f := g.rec.Faults(); len(f) > 0 {
		t.Errorf("faults: %q", f)
	}
}

// TestExit checks how a program's end is told: each ran in a machine of its
// own, because a guest runs one sample.
func TestExit(t *testing.T) {
	code := func(n int) *int { return &n }
	tests := map[string]struct {
		args []string
		want schemas.SampleExited
	}{
		"code":   {[]string{"exit", "42"}, schemas.SampleExited{Reason: "exited", ExitCode: code(42)}},
		"signal": {[]string{"signal", "11"}, schemas.SampleExited{Reason: "killed", Signal: "SIGSEGV"}},
		"kill":   {[]string{"signal", "9"}, schemas.SampleExited{Reason: "killed", Signal: "SIGKILL"}},
		"orphan": {[]string{"orphan", "5000"}, schemas.SampleExited{Reason: "exited", ExitCode: code(0), Left: 1}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			g := warmGuest(t)
			g.start("ends", test.args...)
			got := g.rec.AwaitExit(t, patience)
			got.Ran = 0
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("exit (-want +got):\n%s", diff)
			}
			g.rec.AwaitTree(t, patience)
			if name == "orphan" {
				g.rec.AwaitText(t, patience, schemas.SourceStdout, "orphan done\n")
			}
		})
	}
}

// TestNotExecuted checks the refusals of the guest's kernel and loader.
func TestNotExecuted(t *testing.T) {
	file := func(t *testing.T, content string) *os.File {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return machinetest.Open(t, path)
	}
	tests := map[string]struct {
		content string
		change  func(*machine.Run)
		want    machine.NotExecuted
	}{
		"no_format": {"just words", nil, machine.NotExecuted{Reason: "execve /root/sample: exec format error", Errno: "ENOEXEC"}},
		"no_interpreter": {"#!/no/such/shell\n", nil,
			machine.NotExecuted{Reason: "execve /root/sample: no such file or directory", Errno: "ENOENT"}},
		"library": {"\x7fELF", func(r *machine.Run) { r.Needed = []string{"libc.so.6", "libnowhere.so.1"} },
			machine.NotExecuted{Reason: "the guest lacks libnowhere.so.1", Missing: []string{"libnowhere.so.1"}}},
		"version": {"\x7fELF", func(r *machine.Run) {
			r.Needed, r.Versions = []string{"libc.so.6", "libz.so.1"}, []string{"libc.so.6 GLIBC_2.2.5", "libc.so.6 GLIBC_2.99", "libz.so.1 ZLIB_1.2.9"}
		}, machine.NotExecuted{Reason: "the guest lacks libc.so.6 GLIBC_2.99", Missing: []string{"libc.so.6 GLIBC_2.99"}}},
		"loader": {"\x7fELF", func(r *machine.Run) { r.Interp = "/lib/ld-uClibc.so.0" },
			machine.NotExecuted{Reason: "its interpreter /lib/ld-uClibc.so.0 is not in the guest", Missing: []string{"/lib/ld-uClibc.so.0"}}},
		"interpreter": {"#!/bin/sh\r\n", func(r *machine.Run) { r.Interp = "/bin/sh\r" },
			machine.NotExecuted{Reason: `its interpreter "/bin/sh\r" is not in the guest`, Missing: []string{"/bin/sh\r"}}},
		"user": {"#!/bin/sh\n", func(r *machine.Run) { r.User = "nosuch" }, machine.NotExecuted{Reason: `the guest has no user "nosuch"`}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			g := warmGuest(t)
			sample := file(t, test.content)
			r := machinetest.Command(t, sample)
			if test.change != nil {
				test.change(&r)
			}
			_, err := g.Run(g.ctx, r, sample)
			var got *machine.NotExecuted
			if !errors.As(err, &got) {
				t.Fatalf("run: %v", err)
			}
			if diff := cmp.Diff(&test.want, got); diff != "" {
				t.Errorf("refusal (-want +got):\n%s", diff)
			}
			g.shutdown()
		})
	}
}

// TestOutput checks that output is whole up to its limit, and that what is
// beyond is counted and does not stop the program.
func TestOutput(t *testing.T) {
	g := warmGuest(t)
	r := machinetest.Command(t, machinetest.Program(t, "output"), "8", "1000")
	r.Limits.Stdout = 1 << 20
	g.run("output", r)
	if e := g.rec.AwaitExit(t, patience); e.ExitCode == nil || *e.ExitCode != 0 {
		t.Errorf("exit %+v", e)
	}
	g.rec.AwaitTree(t, patience)
	out := g.rec.AwaitEnd(t, patience, schemas.SourceStdout)
	want := schemas.SourceCoverage{Source: schemas.SourceStdout, Status: schemas.StatusWhole, Bytes: 1 << 20, Cut: 7 << 20}
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("stdout (-want +got):\n%s", diff)
	}
	if got := g.rec.Text(schemas.SourceStdout); got != strings.Repeat("x", 1<<20) {
		t.Errorf("%d bytes of stdout, or not those that were printed", len(got))
	}
	errs := g.rec.AwaitEnd(t, patience, schemas.SourceStderr)
	want = schemas.SourceCoverage{Source: schemas.SourceStderr, Status: schemas.StatusWhole, Bytes: 1000}
	if diff := cmp.Diff(want, errs); diff != "" {
		t.Errorf("stderr (-want +got):\n%s", diff)
	}
}

// TestMachine is about everything that one running machine can be asked for.
func TestMachine(t *testing.T) {
	g := warmGuest(t)
	g.start("ends", "sleep")
	g.rec.AwaitText(t, patience, schemas.SourceStdout, "started")

	t.Run("exec", func(t *testing.T) {
		res, err := g.Exec(g.ctx, machine.Exec{Command: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		want := schemas.Exec{Command: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, ExitCode: 3, Stdout: "out\n", Stderr: "err\n"}
		if diff := cmp.Diff(want, res); diff != "" {
			t.Errorf("result (-want +got):\n%s", diff)
		}
	})
	t.Run("exec_output_cut", func(t *testing.T) {
		res, err := g.Exec(g.ctx, machine.Exec{Command: []string{"head", "-c", "100000", "/dev/zero"}, Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		// NUL bytes take more room on the way than text.
		if n := len(res.Stdout); n < 4<<10 || n > 16<<10 || res.Cut != int64(100000-n) {
			t.Errorf("kept %d bytes, cut %d", n, res.Cut)
		}
	})
	t.Run("exec_timeout", func(t *testing.T) {
		// The grandchild holds the output open, for longer than anybody waits.
		res, err := g.Exec(g.ctx, machine.Exec{Command: []string{"sh", "-c", "sleep 10000 & sleep 10000"}, Timeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if res.Signal != "SIGKILL" {
			t.Errorf("result %+v", res)
		}
	})
	t.Run("exec_unknown", func(t *testing.T) {
		_, err := g.Exec(g.ctx, machine.Exec{Command: []string{"no-such-command"}, Timeout: time.Minute})
		if err == nil || !strings.Contains(err.Error(), "no-such-command") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("network", func(t *testing.T) {
		// Nobody answers here; the interface carries the address all the same.
		mac := machinetest.Identity(1).MAC
		deadline := time.Now().Add(patience)
		for g.sh("cat /sys/class/net/eth0/address") != mac {
			if time.Now().After(deadline) {
				t.Fatalf("MAC %s", g.sh("cat /sys/class/net/eth0/address"))
			}
		}
	})
	t.Run("pause_resume", func(t *testing.T) {
		if err := g.Pause(g.ctx); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(g.ctx, 500*time.Millisecond)
		defer cancel()
		if _, err := g.Exec(ctx, machine.Exec{Command: []string{"touch", "/tmp/paused"}, Timeout: 10 * time.Second}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("exec in a paused guest: %v", err)
		}
		if err := g.Resume(g.ctx); err != nil {
			t.Fatal(err)
		}
		if got := g.sh("echo awake"); got != "awake" {
			t.Errorf("after the resume: %q", got)
		}
	})
	t.Run("dump", func(t *testing.T) { testDump(t, g) })
	t.Run("flush", func(t *testing.T) {
		if err := g.Flush(g.ctx); err != nil {
			t.Error(err)
		}
	})
	t.Run("shutdown", func(t *testing.T) {
		g.shutdown()
		// The sample is killed, and that is told before the machine is off.
		if e := g.rec.AwaitExit(t, 0); e.Reason != "killed" || e.Signal != "SIGKILL" {
			t.Errorf("the sample's end: %+v", e)
		}
		if f := g.rec.Faults(); len(f) > 0 && !slices.ContainsFunc(f, func(s string) bool { return strings.Contains(s, "no address") }) {
			t.Errorf("faults: %q", f)
		}
	})
}

// testDump writes a core of the guest's RAM and finds in it what the guest
// holds in memory.
func testDump(t *testing.T, g *guest) {
	marker := fmt.Sprintf("marker-%x", sha256.Sum256([]byte(t.Name())))
	g.sh("echo " + marker + " > /tmp/marker")
	f, err := os.Create(filepath.Join(t.TempDir(), "core"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("stale"); err != nil {
		t.Fatal(err)
	}
	if err := g.DumpMemory(g.ctx, f); err != nil {
		t.Fatal(err)
	}
	core, err := elf.NewFile(f)
	if err != nil {
		t.Fatal(err)
	}
	if core.Type != elf.ET_CORE || core.Machine != elf.EM_X86_64 || core.Class != elf.ELFCLASS64 {
		t.Errorf("dump is %v %v %v", core.Type, core.Machine, core.Class)
	}
	var ram uint64
	found := false
	for _, p := range core.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		if p.Paddr < machinetest.Memory {
			ram += p.Filesz
		}
		b, err := io.ReadAll(p.Open())
		if err != nil || uint64(len(b)) != p.Filesz {
			t.Errorf("segment at %#x: %d of %d bytes, %v", p.Paddr, len(b), p.Filesz, err)
		}
		found = found || bytes.Contains(b, []byte(marker))
	}
	// QEMU's memory layout leaves the legacy video window out, or not.
	if ram < machinetest.Memory-1<<20 || ram > machinetest.Memory+1<<20 {
		t.Errorf("dump holds %d bytes of RAM, the guest has %d", ram, machinetest.Memory)
	}
	if !found {
		t.Error("what the guest's file system holds is not in the dump")
	}
	if fi, err := f.Stat(); err != nil || fi.Size() < machinetest.Memory {
		t.Errorf("dump has %d bytes, %v", fi.Size(), err)
	}
	if got := g.sh("cat /tmp/marker"); got != marker {
		t.Errorf("the guest does not go on: %q", got)
	}
}

// TestCollect checks which changes of files are found, and what is sent.
func TestCollect(t *testing.T) {
	g := warmGuest(t)
	g.start("drops")
	g.rec.AwaitTree(t, patience)
	sum, err := g.Collect(g.ctx, machine.Collect{MaxFile: 1 << 20, MaxFiles: 500, MaxTotal: 8 << 20, MaxList: 1000})
	if err != nil {
		t.Fatal(err)
	}
	files := g.rec.Files()
	type fact struct {
		Change, Reason, Target, Data string
		Mode                         uint32
		Stored                       bool
	}
	got := map[string]fact{}
	var deep []string
	for p, f := range files {
		if strings.HasPrefix(p, "/var/deep") {
			deep = append(deep, string(f.Data))
			continue
		}
		d := string(f.Data)
		if len(d) > 100 {
			d = fmt.Sprintf("%d bytes", len(d))
		}
		got[p] = fact{f.Change, f.Reason, f.Target, d, f.Mode, f.Stored}
		if f.Stored {
			if !f.Ended || f.Err != nil || f.Cut != 0 || f.SHA256 == nil || *f.SHA256 != schemas.Sum(f.Data) || f.Size != int64(len(f.Data)) {
				t.Errorf("%s: %d of %d bytes, cut %d, %v", p, len(f.Data), f.Size, f.Cut, f.Err)
			}
		}
	}
	want := map[string]fact{
		"/tmp/created": {Change: "created", Data: "created\n", Mode: 0o640, Stored: true},
		"/tmp/twin-a":  {Change: "created", Data: "the same bytes", Mode: 0o644, Stored: true},
		"/tmp/twin-b":  {Change: "created", Data: "the same bytes", Mode: 0o644, Stored: true},
		"/etc/profile": {Change: "modified", Data: "overwritten\n", Mode: 0o644, Stored: true},
		// What a deletion leaves is no file; the one before is told.
		"/etc/protocols": {Change: "deleted", Reason: "deleted"},
		// So is it where the directory was deleted, and made anew.
		"/etc/skel/.bash_logout":   {Change: "deleted", Reason: "deleted"},
		"/etc/skel/.bashrc":        {Change: "modified", Data: "replaced\n", Mode: 0o644, Stored: true},
		"/etc/skel/.profile":       {Change: "deleted", Reason: "deleted"},
		"/etc/dpkg/origins/debian": {Change: "deleted", Reason: "deleted"},
		"/etc/dpkg/origins/other":  {Change: "created", Data: "other\n", Mode: 0o644, Stored: true},

		"/tmp/link":              {Change: "created", Reason: "symbolic link", Target: "/etc/shadow", Mode: 0o777},
		"/tmp/dir":               {Change: "created", Mode: 0o711},
		"/tmp/dir/a\nb'\"\ufffd": {Change: "created", Data: "odd name\n", Mode: 0o600, Stored: true},
		"/tmp/fifo":              {Change: "created", Reason: "fifo", Mode: 0o600},
		"/tmp/device":            {Change: "created", Reason: "character device", Mode: 0o600},
		"/tmp/empty":             {Change: "created", Mode: 0o600, Stored: true},
		"/tmp/large":             {Change: "created", Reason: "larger than 1048576 bytes", Mode: 0o644},
		"/tmp/hole":              {Change: "created", Reason: "sparse: 0 bytes of it were written, and it was not read", Mode: 0o644},
		"/tmp/linked":            {Change: "created", Data: "linked\n", Mode: 0o644, Stored: true},
		"/tmp/linked-too":        {Change: "created", Data: "linked\n", Mode: 0o644, Stored: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("collected (-want +got):\n%s", diff)
	}
	// 21 directories, of which the longest paths are cut to one, and a file.
	if !slices.Contains(deep, "deep\n") {
		t.Errorf("the file at the end of a long path is not among %d", len(deep))
	}
	if all := len(want) + 22; sum.Listed != all || sum.Sent != 11 || sum.Omitted != 0 {
		t.Errorf("sum %+v, want %d", sum, all)
	}
	if f := files["/tmp/large"]; f != nil && (f.SHA256 == nil || f.Size != 17<<16) {
		t.Errorf("the large file is told as %+v", f.DroppedFile)
	}
	if f := files["/tmp/hole"]; f != nil && f.Size != 1<<40 {
		t.Errorf("the hole is told as %+v", f.DroppedFile)
	}

	// Fewer files than there are.
	sum, err = g.Collect(g.ctx, machine.Collect{MaxFile: 1 << 20, MaxFiles: 2, MaxTotal: 8 << 20, MaxList: 4})
	if err != nil {
		t.Fatal(err)
	}
	if sum.Listed != 4 || sum.Sent > 2 || int(sum.Omitted) != len(want)+22-4 {
		t.Errorf("sum with limits %+v", sum)
	}
}

// TestFallback checks that a template that cannot be restored costs the warm
// start and not the analysis.
func TestFallback(t *testing.T) {
	cfg := machinetest.WarmConfig(t)
	cfg.Untraced = true
	bad := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(bad, []byte("no device state"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Template.State = func() (*os.File, error) { return os.Open(bad) }
	g, boot := poweron(t, cfg, machinetest.Identity(1))
	if boot.Machine.Start != "cold" || !strings.HasPrefix(boot.Fallback, "warm start: ") {
		t.Errorf("start %s, fallback %q", boot.Machine.Start, boot.Fallback)
	}
	if got := g.sh("echo alive"); got != "alive" {
		t.Errorf("guest says %q", got)
	}
}

// TestTry checks that a snapshot is only taken for one that a guest comes out of.
func TestTry(t *testing.T) {
	cfg := machinetest.WarmConfig(t)
	ram, newState := cfg.Template.RAM, cfg.Template.State
	cfg.Template = nil
	state, err := newState()
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	for range 2 { // wherever the file's offset is
		if err := qemu.Try(t.Context(), &cfg, machinetest.NewRecorder(), ram, state); err != nil {
			t.Error(err)
		}
	}
	bad := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(bad, []byte("no device state"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := qemu.Try(t.Context(), &cfg, machinetest.NewRecorder(), ram, machinetest.Open(t, bad)); err == nil {
		t.Error("no device state was restored")
	}
}

// TestNoQEMU checks that what cannot start says why.
func TestNoQEMU(t *testing.T) {
	cfg := machinetest.Config(t)
	for name, binary := range map[string]string{"missing": "/nonexistent/qemu", "refuses": "/bin/false"} {
		t.Run(name, func(t *testing.T) {
			cfg := cfg
			cfg.Binary = binary
			before := machinetest.Descriptors(t)
			m := qemu.New(cfg, machinetest.NewRecorder())
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			_, err := m.Poweron(ctx, machinetest.Identity(1))
			if err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("poweron: %v", err)
			}
			if name == "missing" && !errors.Is(err, syscall.ENOENT) {
				t.Errorf("error %v", err)
			}
			if name == "refuses" && !strings.Contains(err.Error(), "exit status 1") {
				t.Errorf("error %v does not say how it ended", err)
			}
			if diff := cmp.Diff(before, machinetest.Descriptors(t)); diff != "" {
				t.Errorf("descriptors (-before +after):\n%s", diff)
			}
		})
	}
}
