// SPDX-License-Identifier: Apache-2.0

//go:build linux

package ptracer_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/cmd/guestd/ptracer"
	"github.com/petri-sandbox/petri/schemas/behavior"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// subject is the program that is traced, testdata/subject.c.
var subject struct {
	once sync.Once
	path string
	err  error
}

func TestMain(m *testing.M) {
	ptracer.Main()
	code := m.Run()
	if subject.path != "" {
		_ = os.RemoveAll(filepath.Dir(subject.path))
	}
	os.Exit(code)
}

// cannot skips a test for what this machine lacks. Where everything must be there
// it fails.
func cannot(t testing.TB, format string, args ...any) {
	t.Helper()
	what := "NOT TESTED: " + fmt.Sprintf(format, args...)
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
}

func program(t testing.TB) string {
	t.Helper()
	subject.once.Do(func() {
		dir, err := os.MkdirTemp("", "ptracer-test-")
		if err != nil {
			subject.err = err
			return
		}
		subject.path = filepath.Join(dir, "subject")
		if out, err := exec.Command("gcc", "-O1", "-static", "-pthread", "-o", subject.path, "testdata/subject.c").CombinedOutput(); err != nil {
			subject.err = fmt.Errorf("compile the program to trace: %w (make setup)\n%s", err, out)
		}
	})
	if subject.err != nil {
		cannot(t, "%v", subject.err)
	}
	return subject.path
}

// limit bounds every wait of a test.
const limit = 2 * time.Minute

// traced is a program that is being traced.
type traced struct {
	t      testing.TB
	tracer *ptracer.Tracer
	cmd    *exec.Cmd
	out    *os.File
	ran    chan error

	mu     sync.Mutex
	blocks []byte
}

// start traces the subject from its execution on.
func start(t testing.TB, way string) *traced {
	t.Helper()
	path := program(t)
	gate, open, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	defer open.Close()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	x := &traced{t: t, out: out, ran: make(chan error, 1)}
	x.cmd = exec.Command(path, "stage", path, way)
	x.cmd.Env, x.cmd.ExtraFiles, x.cmd.Stdout = []string{}, []*os.File{gate}, in
	if x.tracer, err = ptracer.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		x.ran <- x.tracer.Run(context.Background(), func(b []byte) error {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.blocks = append(x.blocks, b...)
			return nil
		})
	}()
	if err := x.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = x.cmd.Process.Kill()
		_ = x.tracer.Close()
		out.Close()
	})
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := x.tracer.Attach(ctx, x.cmd.Process.Pid); err != nil {
		if strings.Contains(err.Error(), unix.EPERM.Error()) {
			cannot(t, "ptrace is not permitted: %v", err)
		}
		t.Fatal(err)
	}
	if _, err := open.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	return x
}

// flush brings out what there is.
func (x *traced) flush() {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(x.t.Context(), limit)
	defer cancel()
	if err := x.tracer.Flush(ctx); err != nil {
		x.t.Fatal(err)
	}
}

// wait waits for the program's end and returns its wait status.
func (x *traced) wait() syscall.WaitStatus {
	x.t.Helper()
	late := time.AfterFunc(limit, func() { _ = x.cmd.Process.Kill() })
	_ = x.cmd.Wait() // an exit code is no error here
	if !late.Stop() {
		x.t.Fatal("the program has not ended")
	}
	return x.cmd.ProcessState.Sys().(syscall.WaitStatus)
}

// records decodes all that there is. What a trace says of itself must be right:
// nothing broken or missing, every record counted, everybody known.
func (x *traced) records() []trace.Record {
	x.t.Helper()
	x.flush()
	x.mu.Lock()
	defer x.mu.Unlock()
	r := trace.NewReader(bytes.NewReader(x.blocks))
	var out []trace.Record
	for {
		rec, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			x.t.Fatal(err)
		}
		c := *rec
		c.Attachments = nil
		for _, a := range rec.Attachments {
			a.Data = bytes.Clone(a.Data)
			c.Attachments = append(c.Attachments, a)
		}
		if c.Type != trace.Stats && (c.Who.NSPID == 0 || c.Who.Start == 0 || c.Begin == 0) {
			x.t.Errorf("it is not said who and when: %+v", c)
		}
		out = append(out, c)
	}
	if got := r.Totals(); got.Bad+got.Skipped+got.Missing+got.Lost > 0 || got.Produced != uint64(len(out)) {
		x.t.Errorf("%d records, totals %+v", len(out), got)
	}
	return out
}

// lines renders records, with p1, p2, … for numbers of threads in the order of
// their appearance.
func lines(records []trace.Record, take func(*trace.Record) bool) []string {
	names := map[uint32]string{}
	name := func(id uint32) string {
		if names[id] == "" {
			names[id] = "p" + strconv.Itoa(len(names)+1)
		}
		return names[id]
	}
	var out []string
	for i := range records {
		r := &records[i]
		if r.Type == trace.Stats {
			continue
		}
		who := name(r.Who.NSTID)
		if !take(r) {
			continue
		}
		text := behavior.Format(r)
		if r.Type == trace.Fork {
			text = strings.Replace(text, strconv.Itoa(int(r.Args[2])), name(uint32(r.Args[2])), 1)
			text += fmt.Sprintf(" of %s, shares %b", name(uint32(r.Args[3])), r.Args[5])
		}
		out = append(out, who+" "+text)
	}
	return out
}

func life(r *trace.Record) bool { return r.Type != trace.Syscall }

// TestForks: every way to make a process is told of before what the child does,
// with what it shares, and how each ended.
func TestForks(t *testing.T) {
	x := start(t, "forks")
	if st := x.wait(); st != 0 {
		t.Errorf("wait status %#x", st)
	}
	records := x.records()
	path := program(t)
	want := []string{
		fmt.Sprintf("p1 +++ executing %q, [%q, %q] +++", path, path, "forks"),
		"p1 +++ new process p2 +++ of p2, shares 0", "p2 +++ exited with 1 +++",
		fmt.Sprintf("p1 +++ new process p3 +++ of p3, shares %b", trace.ShareVM), "p3 +++ exited with 2 +++",
		fmt.Sprintf("p1 +++ new process p4 +++ of p4, shares %b", trace.ShareFiles|trace.ShareFS), "p4 +++ killed by SIGTERM +++",
		"p1 +++ new process p5 +++ of p5, shares 0", "p5 +++ exited with 4 +++",
		"p1 +++ exited with 0 +++",
	}
	if diff := cmp.Diff(want, lines(records, life)); diff != "" {
		t.Error(diff)
	}
	exec := records[0]
	if env := exec.Attached(trace.NoArg, trace.Env); env == nil || string(env.Data) != "B=c\x00" || exec.Args[3] != 2 || exec.Args[4] != 1 {
		t.Errorf("environment %v, %d arguments, %d variables", env, exec.Args[3], exec.Args[4])
	}
	if comm := exec.Attached(trace.NoArg, trace.Comm); comm == nil || string(comm.Data) != "subject" {
		t.Errorf("comm %v", comm)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || exec.Args[1] != st.Ino {
		t.Errorf("inode %d, not %d (%v)", exec.Args[1], st.Ino, err)
	}
	told := map[uint32]bool{exec.TID: true}
	for i := range records {
		r := &records[i]
		if r.Type == trace.Fork {
			told[uint32(r.Args[0])] = true
		} else if r.Type != trace.Stats && !told[r.TID] {
			t.Errorf("record %d is of a thread that nobody has told of: %s", i, behavior.Format(r))
		}
	}
	// Each wait has a result, and the calls that end a process have none.
	waits := lines(records, func(r *trace.Record) bool { return r.Describe().Name == "wait4" && r.Type == trace.Syscall })
	if len(waits) != 8 || !strings.HasSuffix(waits[7], "= -1 ECHILD (no child processes)") {
		t.Errorf("waits: %q", waits)
	}
}

// TestThreads: threads are no processes, and only the last one to end ends theirs.
func TestThreads(t *testing.T) {
	x := start(t, "threads")
	if st := x.wait(); st.ExitStatus() != 5 {
		t.Errorf("wait status %#x", st)
	}
	got := lines(x.records(), life)
	shares := fmt.Sprintf("shares %b", trace.ShareThread|trace.ShareVM|trace.ShareFiles|trace.ShareFS)
	want := []string{
		got[0],
		"p1 +++ new thread p2 +++ of p1, " + shares, "p2 +++ thread ended +++",
		"p1 +++ new thread p3 +++ of p1, " + shares,
	}
	// The two that are left end at once: either may be the last, and says how the
	// process ended.
	if len(got) != 6 || !cmp.Equal(want, got[:4]) {
		t.Fatal(cmp.Diff(want, got))
	}
	end := got[4:]
	ends := []string{strings.Fields(end[0])[0], strings.Fields(end[1])[0]}
	slices.Sort(ends)
	if !slices.Equal(ends, []string{"p1", "p3"}) || !strings.HasSuffix(end[0], "+++ thread ended +++") || !strings.HasSuffix(end[1], "+++ exited with 5 +++") {
		t.Errorf("ends: %q", end)
	}
}

// TestThreadExec: a program that another thread than the first executes goes on
// under the first one's number.
func TestThreadExec(t *testing.T) {
	x := start(t, "threadexec")
	if st := x.wait(); st.ExitStatus() != 7 {
		t.Errorf("wait status %#x", st)
	}
	records := x.records()
	var execs []trace.Record
	for _, r := range records {
		if r.Type == trace.Exec {
			execs = append(execs, r)
		}
	}
	if len(execs) != 2 || execs[1].TID != execs[0].TID || uint32(execs[1].Args[0]) == execs[1].TID {
		t.Fatalf("executions %+v", execs)
	}
	if argv := execs[1].Attached(trace.NoArg, trace.Argv); argv == nil || string(argv.Data) != "renamed\x00quick\x00" {
		t.Errorf("arguments %v", argv)
	}
	result, err := behavior.Analyze(bytes.NewReader(x.blocks), nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := result.Processes; len(p) != 1 || p[0].ExitCode == nil || *p[0].ExitCode != 7 || !slices.Equal(p[0].Argv, []string{"renamed", "quick"}) {
		t.Errorf("processes %+v", p)
	}
	// The call has its end under the new number.
	done := lines(records, func(r *trace.Record) bool {
		return r.Type == trace.Syscall && r.Describe().Name == "execve" && r.Flags&trace.Continued != 0
	})
	if !slices.Equal(done, []string{"p1 <... execve resumed>) = 0"}) && !slices.Equal(done, []string{"p1 <... execve resumed>) = 0", "p1 <... execve resumed>) = 0"}) {
		t.Errorf("%q", done)
	}
}

// TestSignals: signals reach the program as they would untraced; what stops it
// stops it until it is continued.
func TestSignals(t *testing.T) {
	x := start(t, "signals")
	x.await("State:\tt", "State:\tT") // by a tracer's stop, or its own
	x.stopped()
	if err := x.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if st := x.wait(); !st.Signaled() || st.Signal() != syscall.SIGKILL {
		t.Errorf("wait status %#x", st)
	}
	records := x.records()
	got := lines(records, life)
	if len(got) != 2 || got[1] != "p1 +++ killed by SIGKILL +++" {
		t.Errorf("%q", got)
	}
	handled := lines(records, func(r *trace.Record) bool {
		return r.Type == trace.Syscall && r.Describe().Name == "rt_sigreturn" && r.Finished()
	})
	if len(handled) != 1 {
		t.Errorf("the handler has not returned: %q", handled)
	}
}

// stopped waits until the kill that stops the program has been recorded as done
// or begun, which is when a SIGCONT has something to continue.
func (x *traced) stopped() {
	x.t.Helper()
	for deadline := time.Now().Add(limit); ; {
		got := lines(x.records(), func(r *trace.Record) bool {
			return r.Type == trace.Syscall && strings.Contains(behavior.Format(r), "SIGSTOP")
		})
		if len(got) > 0 {
			x.await("State:\tt", "State:\tT")
			return
		}
		if time.Now().After(deadline) {
			x.t.Fatal("the program has not stopped itself")
		}
	}
}

// await waits for a line in the program's status.
func (x *traced) await(lines ...string) {
	x.t.Helper()
	for deadline := time.Now().Add(limit); ; {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", x.cmd.Process.Pid))
		if slices.ContainsFunc(lines, func(s string) bool { return bytes.Contains(b, []byte("\n"+s)) }) {
			return
		}
		if time.Now().After(deadline) {
			x.t.Fatalf("its status has none of %q: %s", lines, b)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestBlocked: a flush tells of a call that has not returned, and of the thread's
// end as it was.
func TestBlocked(t *testing.T) {
	x := start(t, "blocked")
	if _, err := io.ReadFull(x.out, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	x.await("State:\tS") // or it is still on its way to the call
	unfinished := func(r *trace.Record) bool { return r.Flags&trace.Unfinished != 0 }
	if got := lines(x.records(), unfinished); !slices.Equal(got, []string{"p1 pause( <unfinished ...>"}) {
		t.Errorf("%q", got)
	}
	if err := x.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	x.wait()
	if got := lines(x.records(), life); got[len(got)-1] != "p1 +++ killed by SIGKILL +++" {
		t.Errorf("%q", got)
	}
}

// TestTracerDies: nothing runs on untraced.
func TestTracerDies(t *testing.T) {
	x := start(t, "blocked")
	if _, err := io.ReadFull(x.out, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", x.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`TracerPid:\s+(\d+)`).FindSubmatch(b)
	pid, err := strconv.Atoi(string(m[1]))
	if err != nil || pid == 0 {
		t.Fatalf("the tracer is process %q", m[1])
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st := x.wait(); !st.Signaled() || st.Signal() != syscall.SIGKILL {
		t.Errorf("the program has ended with wait status %#x", st)
	}
	select {
	case err := <-x.ran:
		if err == nil {
			t.Error("Run says that all is well")
		}
	case <-time.After(limit):
		t.Error("Run goes on")
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := x.tracer.Flush(ctx); err == nil {
		t.Error("there was something to flush")
	}
}

// TestNobody: who is not there cannot be traced, and others still can.
func TestNobody(t *testing.T) {
	x := start(t, "quick")
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for _, pid := range []int{1<<31 - 1, 0} {
		if err := x.tracer.Attach(ctx, pid); err == nil {
			t.Errorf("process %d is traced", pid)
		}
	}
	if st := x.wait(); st.ExitStatus() != 7 {
		t.Errorf("wait status %#x", st)
	}
	if got := lines(x.records(), life); len(got) != 2 || got[1] != "p1 +++ exited with 7 +++" {
		t.Errorf("%q", got)
	}
}

// TestCalls: what arguments point to is captured as far as the bounds go; what is
// not there, or ends with its page, the records say.
func TestCalls(t *testing.T) {
	x := start(t, "calls")
	if st := x.wait(); st != 0 {
		t.Errorf("wait status %#x", st)
	}
	records := x.records()
	begin := slices.IndexFunc(records, func(r trace.Record) bool { return r.Type == trace.Syscall && r.Describe().Name == "munmap" })
	if begin < 0 {
		t.Fatal("there is no munmap")
	}
	address := regexp.MustCompile(`0x[0-9a-f]{6,}`)
	var got []string
	for _, line := range lines(records[begin+1:], func(r *trace.Record) bool { return r.Type == trace.Syscall }) {
		line = strings.TrimPrefix(address.ReplaceAllString(line, "PTR"), "p1 ")
		line = strings.ReplaceAll(line, strings.Repeat("x", 4095), "x*4095")
		line = strings.ReplaceAll(line, strings.Repeat("x", 256), "x*256")
		got = append(got, strings.ReplaceAll(line, strings.Repeat(`"argument", `, 24), "24*argument, "))
	}
	want := []string{
		`openat(AT_FDCWD, "/nowhere/at all", O_RDWR|O_CREAT|O_CLOEXEC, 0640) = -1 ENOENT (no such file or directory)`,
		`openat(AT_FDCWD, "x*4095"..., O_RDONLY) = -1 ENAMETOOLONG (file name too long)`,
		`openat(AT_FDCWD, 0x10, O_RDONLY) = -1 EFAULT (bad address)`,
		`unlink("/ends") = -1 ENOENT (no such file or directory)`,
		`unlink(PTR) = -1 EFAULT (bad address)`,
		`pipe2([3, 4], O_RDONLY) = 0`,
		`write(4, "x*256"..., 300) = 300`,
		`read(3, "x*256"..., 300) = 300`,
		`write(4, "one two three four five six", 27) = 27`,
		`readv(3, "one two "..., 6) = 12`,
		`writev(4, "one two "..., 6) = 12`,
		`writev(4, PTR, 1) = -1 EFAULT (bad address)`,
		`close(4) = 0`,
		`write(4, "gone", 4) = -1 EBADF (bad file descriptor)`,
		`socket(AF_INET, SOCK_DGRAM, 0) = 4`,
		`sendmsg(4, {{AF_INET, 127.0.0.1:6667}, "one "}, MSG_DONTWAIT|MSG_NOSIGNAL) = 4`,
		`connect(4, {AF_INET, 127.0.0.1:6667}, 16 <unfinished ...>`,
		`<... connect resumed>) = 0`,
		`connect(4, NULL, 16 <unfinished ...>`,
		`<... connect resumed>) = -1 EFAULT (bad address)`,
		`getpeername(4, {AF_INET, 127.0.0.1:6667}, PTR) = 0`,
		`connect(4, {AF_INET, 127.0.0.1:6667}, 2147483647 <unfinished ...>`,
		`<... connect resumed>) = -1 EINVAL (invalid argument)`,
		`execve("/nowhere", [24*argument, ...], PTR <unfinished ...>`,
		`<... execve resumed>) = -1 ENOENT (no such file or directory)`,
		`syscall_4095(0x1, 0x2, 0x3, 0x4, 0x5, 0x6) = -1 ENOSYS (function not implemented)`,
		`exit_group(0 <unfinished ...>`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
