// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/cmd/guestd/hold"
)

// stageName is argv[0] of the agent's second life: it makes the container from
// the inside and then becomes busybox's init.
const stageName = "guestd-stage"

// container is where the sample lives: mount, process, host name and IPC
// namespaces of its own over a fresh overlay, with an ordinary init as its
// process 1. Nothing of the agent can be reached from inside: its files, its
// port, its descriptors and its processes are in other namespaces.
//
// One thread of the agent has entered the container. What must happen inside
// happens on that thread, by [container.do].
type container struct {
	init   int           // its process 1, as the agent's namespace counts
	dead   chan struct{} // closed when the init has gone
	status syscall.WaitStatus
	calls  chan func()
	tid    int // of the thread inside
	cgroup *os.File
	made   initState
	own    fileID // the agent's program
	// held hears of the sample's calls that may be tampering; nil: notHeld says why
	// there is none.
	held    *hold.Listener
	notHeld error
	memory  int64 // the sample's bound, in bytes; 0: none; set before it starts
}

// cgroupName shows in the sample's /proc/self/cgroup; any systemd machine has
// it.
const cgroupName = "user.slice"

func newContainer() (*container, error) {
	c := &container{dead: make(chan struct{}), calls: make(chan func())}
	if err := c.makeCgroup(); err != nil {
		return nil, err
	}
	ready := make(chan error)
	go c.inside(ready)
	return c, <-ready
}

// begin starts the container's init from the thread that enters it then: both,
// and all that they start, have the thread's filter of system calls.
func (c *container) begin() error {
	c.held, c.notHeld = hold.Install()
	// The pipe closes when the stage has become the init, and carries its
	// error if it could not.
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	pid, err := syscall.ForkExec("/proc/self/exe", []string{stageName}, &syscall.ProcAttr{
		Env:   []string{},
		Files: []uintptr{0, 1, w.Fd()},
		Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		},
	})
	w.Close()
	if err != nil {
		return fmt.Errorf("start the stage: %w", err)
	}
	c.init = pid
	text, _ := io.ReadAll(io.LimitReader(r, 4<<10))
	if len(text) > 0 {
		return errors.New(strings.TrimSpace(string(text)))
	}
	if c.own, err = exeOf("/proc/self"); err != nil {
		return err
	}
	if c.made, err = c.initState(); err != nil {
		return fmt.Errorf("look at the container's init: %w", err)
	}
	go func() {
		defer close(c.dead)
		_ = wait(pid, &c.status)
	}()
	return c.enter()
}

func (c *container) makeCgroup() error {
	// With the cpu controller all of the sample's processes get the share of one
	// of the agent's: a fork bomb doesn't keep the agent from answering.
	for _, ctl := range []string{"+memory", "+pids", "+cpu"} {
		// A kernel without a controller leaves the sample unbounded by it.
		_ = os.WriteFile(filepath.Join(cgroupDir, "cgroup.subtree_control"), []byte(ctl), 0)
	}
	dir := filepath.Join(cgroupDir, cgroupName)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	f, err := os.Open(dir)
	c.cgroup = f
	return err
}

// limit bounds the sample's cgroup. Zero is no bound.
func (c *container) limit(memory int64, tasks int) error {
	c.memory = memory
	for name, v := range map[string]int64{"memory.max": memory, "pids.max": int64(tasks)} {
		if v <= 0 {
			continue
		}
		err := os.WriteFile(filepath.Join(cgroupDir, cgroupName, name), []byte(strconv.FormatInt(v, 10)), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// inside is the thread that has entered the container. It never leaves, and
// dies with the agent.
func (c *container) inside(ready chan<- error) {
	runtime.LockOSThread()
	err := c.begin()
	ready <- err
	if err != nil {
		return // and end this thread
	}
	for f := range c.calls {
		f()
	}
}

func (c *container) enter() error {
	c.tid = unix.Gettid()
	// Without file-system attributes of its own a thread can't change its
	// root alone.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	for _, ns := range []string{"uts", "ipc", "pid", "mnt"} {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", c.init, ns), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open the container's %s namespace: %w", ns, err)
		}
		err = unix.Setns(fd, 0)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("enter the container's %s namespace: %w", ns, err)
		}
	}
	return unix.Chdir("/")
}

// do runs f inside the container.
func (c *container) do(f func() error) error {
	done := make(chan error)
	c.calls <- func() { done <- f() }
	return <-done
}

// gone reports whether the container's init has ended, and so everything in it.
func (c *container) gone() bool {
	select {
	case <-c.dead:
		return true
	default:
		return false
	}
}

// dying reports whether the container's init has ended, is ending, or has been
// sent what ends it (proc(5), /proc/PID/stat).
func (c *container) dying() bool {
	if c.gone() {
		return true
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.init))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest) // from the third field, the state, on
	if len(f) < 29 {
		return false
	}
	const exiting, signaled = 0x4, 0x400 // PF_EXITING, PF_SIGNALED of linux/sched.h
	flags, _ := strconv.ParseUint(f[6], 10, 64)
	if f[0] == "Z" || f[0] == "X" || flags&(exiting|signaled) != 0 {
		return true
	}
	b, err = os.ReadFile(fmt.Sprintf("/proc/%d/status", c.init))
	if err != nil {
		return true
	}
	for _, line := range strings.Split(string(b), "\n") {
		if k, v, _ := strings.Cut(line, ":"); k == "SigPnd" || k == "ShdPnd" {
			if pending, _ := strconv.ParseUint(strings.TrimSpace(v), 16, 64); pending&(1<<(unix.SIGKILL-1)) != 0 {
				return true
			}
		}
	}
	return false
}

// gather brings what runs in the guest and is not in the sample's cgroup into it,
// and counts it: the sample can leave it, can have the init start things, or become
// something, and can have the kernel start things, outside of the container too. The
// init is the sample's from then on.
func (c *container) gather() (strays int, err error) {
	tasks, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*")
	if err != nil {
		return 0, err
	}
	brought := ""
	for _, dir := range tasks {
		pid := strings.Split(dir, "/")[2]
		if pid == brought || !c.stray(pid, dir) {
			continue
		}
		switch werr := os.WriteFile(filepath.Join(cgroupDir, cgroupName, "cgroup.procs"), []byte(pid), 0); {
		case werr == nil:
			strays++
			brought = pid
		case !errors.Is(werr, unix.ESRCH): // it has ended meanwhile
			err = errors.Join(err, fmt.Errorf("bring process %d into the sample's cgroup: %w", innerPID(pid), werr))
		}
	}
	return strays, err
}

// stray reports whether a thread is neither the kernel's nor this program's, and not
// in the sample's cgroup, where it should be (proc(5), cgroups(7)). Of a process the
// first thread can have ended before the others.
func (c *container) stray(pid, dir string) bool {
	exe, err := exeOf(dir) // there is none of the kernel's and of the dead
	if err != nil || exe == c.own {
		return false
	}
	if pid == strconv.Itoa(c.init) {
		if now, err := c.initState(); err == nil && now == c.made {
			return false
		}
	}
	b, err := os.ReadFile(dir + "/cgroup")
	return err == nil && !slices.Contains(strings.Split(string(b), "\n"), "0::/"+cgroupName)
}

func exeOf(dir string) (fileID, error) {
	var st unix.Stat_t
	err := unix.Stat(dir+"/exe", &st)
	return idOf(&st), err
}

// initState is what decides what the container's init does: its program, and its
// inittab with the time of its last change.
type initState struct {
	exe, tab fileID
	changed  int64
}

func (c *container) initState() (initState, error) {
	var tab unix.Stat_t
	dir := fmt.Sprintf("/proc/%d", c.init)
	exe, err := exeOf(dir)
	err = errors.Join(err, unix.Stat(dir+"/root/etc/inittab", &tab))
	return initState{exe: exe, tab: idOf(&tab), changed: unix.TimespecToNsec(tab.Ctim)}, err
}

// members counts the sample's processes.
func (c *container) members() int {
	b, err := os.ReadFile(filepath.Join(cgroupDir, cgroupName, "cgroup.procs"))
	if err != nil {
		return 0
	}
	return strings.Count(string(b), "\n")
}

// freezeTime is how long the sample's processes may take to stand still: one
// that waits for a device does not.
const freezeTime = 5 * time.Second

// freeze stops all of the sample's processes, and returns when they stand
// still. They can be killed all the same.
func (c *container) freeze() error {
	if err := c.setFrozen("1"); err != nil {
		return err
	}
	// What is outside runs on until it is in, and may have started more.
	for range maxGather {
		strays, err := c.gather()
		if err != nil {
			return err
		}
		if strays == 0 {
			return awaitCgroup("frozen 1", freezeTime)
		}
	}
	return errors.New("it leaves its cgroup again and again")
}

// maxGather is how often strays are looked for: what is brought into a frozen
// cgroup starts nothing any more.
const maxGather = 16

// thaw undoes freeze.
func (c *container) thaw() error { return c.setFrozen("0") }

func (c *container) setFrozen(v string) error {
	return os.WriteFile(filepath.Join(cgroupDir, cgroupName, "cgroup.freeze"), []byte(v), 0)
}

// awaitCgroup returns when cgroup.events of the sample's cgroup has want, or,
// with [os.ErrDeadlineExceeded], when the limit is over; a negative one is none.
// The kernel reports a change of the file
// (Documentation/admin-guide/cgroup-v2.rst).
func awaitCgroup(want string, limit time.Duration) error {
	f, err := os.Open(filepath.Join(cgroupDir, cgroupName, "cgroup.events"))
	if err != nil {
		return err
	}
	defer f.Close()
	for begin := time.Now(); ; {
		b := make([]byte, 256)
		n, err := f.ReadAt(b, 0)
		if err != nil && err != io.EOF {
			return err
		}
		if strings.Contains(string(b[:n]), want) {
			return nil
		}
		wait := -1
		if limit >= 0 {
			if wait = int((limit - time.Since(begin)).Milliseconds()); wait <= 0 {
				return fmt.Errorf("no %q after %s: %w", want, limit, os.ErrDeadlineExceeded)
			}
		}
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}, wait)
		if err != nil && err != unix.EINTR {
			return err
		}
	}
}

// counter reads a number from one of the flat files of the sample's cgroup; one
// that the kernel does not have is 0.
func (c *container) counter(file, key string) int64 {
	b, err := os.ReadFile(filepath.Join(cgroupDir, cgroupName, file))
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(b), "\n") {
		if k, v, _ := strings.Cut(line, " "); k == key {
			n, _ := strconv.ParseInt(v, 10, 64)
			return n
		}
	}
	return 0
}

// stage runs as process 1 of the new namespaces: it mounts the root that the
// sample will see, leaves everything else behind, and becomes the init.
func stage() error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	const root = "/mnt"
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", romDir, overlayDir, overlayDir)
	if err := mountAll([]mountSpec{
		{"overlayfs:" + overlayDir, root, "overlay", unix.MS_NOATIME, options},
		{"proc", root + "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME, ""},
		{"sysfs", root + "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME, ""},
		{"devpts", root + "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,gid=5,mode=620,ptmxmode=666"},
	}); err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	// https://man7.org/linux/man-pages/man2/pivot_root.2.html, pivot_root(".", ".")
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0); err != nil {
		return err // else the agent's own would show, and protect the sample
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := 0; fd <= 1; fd++ {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return err
		}
	}
	unix.CloseOnExec(2)
	return unix.Exec("/sbin/init", []string{"/sbin/init"}, []string{"HOME=/", "TERM=linux", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
}
