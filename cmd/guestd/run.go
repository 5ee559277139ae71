// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/sandboxd/guest"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
)

// run receives the sample, starts the command in the container and returns
// when the kernel has exec'd it. How it ends comes later, as events.
func (a *agent) run(r machine.Run) (any, error) {
	a.mu.Lock()
	again := a.ran
	a.ran = true
	a.mu.Unlock()
	if again {
		return nil, errors.New("a sample has run in this guest already")
	}
	out, err := a.newConsole(r.Limits.Stdout)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.console = out
	a.mu.Unlock()
	if err := a.box.notHeld; err != nil {
		a.fault("the sample's calls that may be tampering are not held: %v", err)
	}
	if err := a.noDevices; err != nil {
		a.fault("the sample may open the guest's memory: %v", err)
	}
	s, err := a.place(r, out)
	if err != nil {
		out.started()
		out.wait()
		var ne *machine.NotExecuted
		if errors.As(err, &ne) {
			return guest.RunResult{NotExecuted: ne}, nil
		}
		return nil, err
	}
	out.started()
	begin := time.Now()
	inner := innerPID(strconv.Itoa(s.pid))
	watched := make(chan struct{})
	a.mu.Lock()
	a.watched = watched
	a.mu.Unlock()
	go func() {
		defer close(watched)
		a.watch(s.pid, begin, out)
	}()
	path := r.Command[0]
	if r.Load != "" {
		path = r.Path
	}
	return guest.RunResult{Started: &machine.Started{PID: inner, Path: path, SHA256: s.sum, How: r.Load, Forced: s.forced}}, nil
}

// placed is a sample that runs.
type placed struct {
	pid    int // as the agent counts
	sum    schemas.Digest
	forced bool
}

// place takes the sample in, checks what can be checked before, and starts it.
func (a *agent) place(r machine.Run, out *console) (placed, error) {
	sum, err := a.receiveSample(r)
	if err != nil {
		return placed{}, err
	}
	if len(r.Command) == 0 {
		return placed{}, errors.New("no command")
	}
	if err := a.check(r); err != nil {
		return placed{}, err
	}
	u, err := a.lookupUser(r.User)
	if err != nil {
		return placed{}, &machine.NotExecuted{Reason: err.Error()}
	}
	if err := a.box.limit(a.memoryLimit(r.Limits.Memory), r.Limits.Tasks); err != nil {
		return placed{}, fmt.Errorf("limit the sample: %w", err)
	}
	if k, err := a.box.keep(); err != nil {
		a.fault("files that the sample deletes are not kept: %v", err)
	} else {
		a.mu.Lock()
		a.kept = k
		a.mu.Unlock()
	}
	p := placed{sum: sum}
	if r.Load != "" {
		p.pid, p.forced, err = a.load(r, u, out)
		return p, err
	}
	if p.pid, err = a.start(r, u, out, nil); err != nil {
		return p, notExecuted(r.Command[0], err)
	}
	return p, nil
}

// notExecuted is the kernel's refusal to exec.
func notExecuted(path string, err error) *machine.NotExecuted {
	ne := &machine.NotExecuted{Reason: fmt.Sprintf("execve %s: %v", path, err)}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		ne.Errno = unix.ErrnoName(errno)
	}
	return ne
}

// receiveSample takes the bytes from the host into the container's file
// system. Nothing of the sample has run yet, so no path can be a trap.
func (a *agent) receiveSample(r machine.Run) (schemas.Digest, error) {
	sink := &sampleSink{sum: sha256.New(), done: make(chan struct{})}
	sink.err = a.box.do(func() error {
		if err := os.MkdirAll(r.Dir, 0o755); err != nil {
			return err
		}
		var err error
		sink.file, err = os.OpenFile(r.Path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
		return err
	})
	if sink.file != nil {
		defer sink.file.Close()
	}
	// The host sends in any case, so the stream is read in any case.
	if err := a.conn.Receive(guest.StreamSample, sink); err != nil {
		return schemas.Digest{}, err
	}
	<-sink.done
	if sink.err == nil && sink.n != r.Size {
		sink.err = fmt.Errorf("%d of %d bytes arrived", sink.n, r.Size)
	}
	if sink.err != nil {
		return schemas.Digest{}, fmt.Errorf("place the sample: %w", sink.err)
	}
	if err := sink.file.Chmod(0o755); err != nil {
		return schemas.Digest{}, err
	}
	sum := schemas.Digest(sink.sum.Sum(nil))
	a.mu.Lock()
	if a.own == nil {
		a.own = map[string]schemas.Digest{}
	}
	a.own[r.Path] = sum
	a.mu.Unlock()
	return sum, nil
}

type sampleSink struct {
	file *os.File
	sum  hash.Hash
	n    int64
	err  error
	done chan struct{}
}

func (s *sampleSink) Write(p []byte) {
	if s.err != nil {
		return
	}
	s.sum.Write(p)
	s.n += int64(len(p))
	_, s.err = s.file.Write(p)
}

func (s *sampleSink) End(st wire.Status) {
	if st.Error != "" && s.err == nil {
		s.err = errors.New(st.Error)
	}
	close(s.done)
}

// libraryDirs are where Debian's loader looks without a cache: ld.so(8), and the
// multiarch directories that Debian builds in, of which a guest has those of its
// own CPU.
var libraryDirs = []string{"/usr/lib/*-linux-gnu*", "/usr/lib", "/usr/lib64"}

// muslDirs are where musl's loader looks, as Debian configures it, and muslOwn
// what it never looks for because it is that itself: ldso/dynlink.c, "reserved".
var (
	muslDirs = []string{"/usr/lib/*-linux-musl*", "/usr/local/lib/*-linux-musl*"}
	muslOwn  = regexp.MustCompile(`^lib(c|pthread|rt|m|dl|util|xnet)\.`)
)

// check finds out before the run what the loader would stumble over: a kernel
// that runs a program whose libraries are missing has run the loader, and not
// the sample.
func (a *agent) check(r machine.Run) error {
	var missing []string
	err := a.box.do(func() error {
		if r.Load != "" && !isFile(runner) {
			return &machine.NotExecuted{Reason: "what loads it, " + runner + ", is not in the guest", Missing: []string{runner}}
		}
		if r.Interp != "" {
			if _, err := os.Stat(r.Interp); err != nil {
				return &machine.NotExecuted{Reason: fmt.Sprintf("its interpreter %s is not in the guest", printable(r.Interp)), Missing: []string{r.Interp}}
			}
		}
		if r.Program != "" && r.Env["PATH"] == "" {
			if _, err := lookPath(r.Program); err != nil {
				return &machine.NotExecuted{Reason: fmt.Sprintf("its interpreter %s is not in the guest", printable(r.Program)), Missing: []string{r.Program}}
			}
		}
		musl := strings.HasPrefix(filepath.Base(r.Interp), "ld-musl-")
		where := libraryDirs
		if musl {
			where = muslDirs
		}
		dirs := slices.Clone(r.RunPath)
		for _, d := range where {
			found, err := filepath.Glob(d)
			if err != nil {
				return err
			}
			dirs = append(dirs, found...)
		}
		find := func(lib string) string {
			for _, d := range dirs {
				if p := filepath.Join(d, lib); isFile(p) {
					return p
				}
			}
			if strings.Contains(lib, "/") && isFile(lib) {
				return lib
			}
			return ""
		}
		for _, lib := range r.Needed {
			if musl && muslOwn.MatchString(lib) {
				continue
			}
			if find(lib) == "" {
				missing = append(missing, lib)
			}
		}
		if musl { // its loader asks for no versions
			return nil
		}
		for _, v := range r.Versions {
			lib, version, _ := strings.Cut(v, " ")
			if p := find(lib); p != "" && !hasVersion(p, version) {
				missing = append(missing, v)
			}
		}
		return nil
	})
	if err != nil || len(missing) == 0 {
		return err
	}
	return &machine.NotExecuted{Reason: "the guest lacks " + strings.Join(missing, ", "), Missing: missing}
}

// hasVersion reports whether one of the image's libraries has a version of its
// symbols, or has none at all: then the loader lets it pass.
func hasVersion(library, version string) bool {
	f, err := elf.Open(library)
	if err != nil {
		return true // the loader will tell
	}
	defer f.Close()
	has, err := f.DynamicVersions()
	return err != nil || len(has) == 0 || slices.ContainsFunc(has, func(v elf.DynamicVersion) bool { return v.Name == version })
}

// printable is s, quoted if it would not show otherwise.
func printable(s string) string {
	if q := strconv.Quote(s); q != `"`+s+`"` {
		return q
	}
	return s
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}

// reserve is what the agent and the kernel keep of the guest's memory.
const reserve = 40 << 20

// memoryLimit is the sample's bound: what was asked for, or what is free now
// but for the reserve. A sample that takes it all is killed, not the guest.
func (a *agent) memoryLimit(asked int64) int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return asked
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemAvailable:" {
			if kb, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				free := max(kb<<10-reserve, 32<<20)
				if asked <= 0 || asked > free {
					return free
				}
			}
		}
	}
	return asked
}

// user is whom the sample runs as.
type user struct {
	name, home string
	uid, gid   uint32
}

// lookupUser reads the container's passwd, which is still the image's own.
func (a *agent) lookupUser(name string) (user, error) {
	if name == "" {
		name = "root"
	}
	var b []byte
	err := a.box.do(func() (err error) {
		b, err = os.ReadFile("/etc/passwd")
		return err
	})
	if err != nil {
		return user{}, err
	}
	for _, line := range strings.Split(string(b), "\n") {
		f := strings.Split(line, ":")
		if len(f) < 7 || f[0] != name && f[2] != name {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 == nil && err2 == nil {
			return user{name: f[0], home: f[5], uid: uint32(uid), gid: uint32(gid)}, nil
		}
	}
	return user{}, fmt.Errorf("the guest has no user %q", name)
}

// environment is what a login gives, and what was asked for.
func environment(u user, extra map[string]string) []string {
	env := map[string]string{
		"HOME": u.home, "USER": u.name, "LOGNAME": u.name, "SHELL": "/bin/sh", "LANG": "C.UTF-8",
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	}
	for k, v := range extra {
		env[k] = v
	}
	var out []string
	for k, v := range env {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return out
}

// start forks and execs the command inside the container.
func (a *agent) start(r machine.Run, u user, out *console, status *os.File) (pid int, err error) {
	var path string
	err = a.box.do(func() error {
		if err := os.Chown(r.Path, int(u.uid), int(u.gid)); err != nil {
			return err
		}
		path, err = lookPath(r.Command[0])
		return err
	})
	if err != nil {
		return 0, err
	}
	in, err := openStdin(r.Stdin)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	cmd := command{
		path: path, argv: r.Command, env: environment(u, r.Env), dir: r.Dir, user: u,
		files: [3]*os.File{in, out.write[0], out.write[1]}, status: status, cgroup: a.box.cgroup,
	}
	if r.Trace {
		if err := a.follow(&cmd); err != nil {
			return 0, err
		}
	}
	return a.box.spawn(cmd)
}

// openStdin gives what a program reads as its standard input: b, if it has
// any, and then the end. A pipe holds b without a writer.
func openStdin(b []byte) (*os.File, error) {
	if len(b) == 0 {
		return os.Open("/dev/null")
	}
	if len(b) > machine.MaxStdin {
		return nil, fmt.Errorf("standard input has %d bytes, more than %d", len(b), machine.MaxStdin)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if _, err := w.Write(b); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// innerPID is the process's number in the container.
func innerPID(pid string) int {
	b, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "NSpid:" {
			n, _ := strconv.Atoi(f[len(f)-1])
			return n
		}
	}
	return 0
}

// watch reports the end of the sample's first process, and that of the last.
func (a *agent) watch(pid int, begin time.Time, out *console) {
	var st syscall.WaitStatus
	if err := wait(pid, &st); err != nil {
		a.fault("wait for the sample: %v", err)
	}
	e := schemas.SampleExited{Reason: "exited", Ran: schemas.Duration(time.Since(begin).Round(time.Millisecond))}
	switch {
	case a.rebooted(st):
		e.Reason = "reboot"
	case st.Signaled():
		e.Reason, e.Signal = "killed", unix.SignalName(st.Signal())
	default:
		code := st.ExitStatus()
		e.ExitCode = &code
	}
	e.Left = a.box.members()
	a.tellKilled()
	_ = a.conn.Notify(guest.EventExited, e)
	for a.waitEmpty(-1); a.gather() > 0; a.waitEmpty(-1) {
		time.Sleep(strayTime) // whoever leaves without end costs no more than this
	}
	out.wait()
	a.tellKilled()
	_ = a.conn.Notify(guest.EventTree, machine.TreeExited{})
}

// tellKilled tells how many of the sample's processes the kernel has killed for
// the limit of its memory, if they are more than when it was last asked: what
// they would have done is not in the analysis.
func (a *agent) tellKilled() {
	n := a.box.counter("memory.events", "oom_kill")
	a.mu.Lock()
	more := n > a.killed
	a.killed = max(n, a.killed)
	a.mu.Unlock()
	if more {
		a.fault("the sample's memory limit of %d MiB has killed %d of its processes; give the guest more with --memory", a.box.memory>>20, n)
	}
}

// rebooted tells a reboot that the sample asked for from any other end: in a
// process namespace, reboot(2) kills the namespace's init, which takes the
// others with it, and ends its caller with exit code 0 (kernel/pid_namespace.c,
// reboot_pid_ns).
func (a *agent) rebooted(st syscall.WaitStatus) bool {
	caller := st.Exited() && st.ExitStatus() == 0
	victim := st.Signaled() && st.Signal() == unix.SIGKILL
	if !caller && !victim || !a.box.dying() {
		return false
	}
	select {
	case <-a.box.dead:
		return a.box.status.Signaled()
	case <-time.After(10 * time.Second): // the init goes after those that it kills, in a slow guest long after
		return false
	}
}

// strayTime is how soon a process that leaves the sample's cgroup is looked for.
const strayTime = 10 * time.Millisecond

// gather brings what has left the sample's cgroup back into it, and counts it.
func (a *agent) gather() int {
	n, err := a.box.gather()
	if err != nil {
		a.fault("%v", err)
	}
	return n
}

// waitEmpty returns when no process of the sample is left, or the limit is over;
// a negative one is none.
func (a *agent) waitEmpty(limit time.Duration) {
	if err := awaitCgroup("populated 0", limit); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		a.fault("watch the sample's processes: %v", err)
	}
}
