// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tracer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// A kernel without BTF does not say where its structures hold what the tracer
// reads. But guestd knows what must be there, of itself and of a child: so it
// looks through the kernel's memory for that.

// childName is what guestd calls itself when it is the child, which has so many
// arguments and variables, and ends like this.
const (
	childName = "guestd-calibrating"
	childArgs = 37
	childVars = 41
	childCode = 77
)

// Calibrating ends the program if it is the child of a [Load] without offsets.
func Calibrating() {
	if os.Args[0] == childName {
		os.Exit(childCode)
	}
}

// offsetsFor reads the configured offsets, or finds them out.
func offsetsFor(cfg Config) (*offsets, error) {
	if cfg.Offsets != nil {
		return parseOffsets(cfg.Offsets)
	}
	fields, err := Calibrate()
	if err != nil {
		return nil, fmt.Errorf("find out the kernel's offsets: %w", err)
	}
	return &offsets{Fields: fields}, nil
}

// seenData is struct seen of bpf/calibrate.bpf.c, shared with the BPF programs.
type seenData struct {
	Task, Executed, Failed uint64
	Bprm                   [512]byte
	Memory                 [1024]byte
}

// Calibrate finds the offsets of this kernel, by the names that
// sandboxd/image.KernelOffsets gives them. What it needs to know of itself it
// changes for a moment, so that nothing else should happen meanwhile.
func Calibrate() (map[string]uint32, error) {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(calibrateObject))
	if err != nil {
		return nil, fmt.Errorf("parse BPF object: %w", err)
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("load BPF programs: %w", err)
	}
	defer coll.Close()
	m := coll.Maps[".data.seen"]
	if m == nil || int(m.ValueSize()) != int(unsafe.Sizeof(seenData{})) {
		return nil, errors.New("the object does not have its data as expected")
	}
	mem, err := unix.Mmap(m.FD(), 0, (int(m.ValueSize())+pageSize-1)&^(pageSize-1), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map BPF data: %w", err)
	}
	defer unix.Munmap(mem)
	watch, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_process_exec", Program: coll.Programs["watch_exec"]})
	if err != nil {
		return nil, fmt.Errorf("attach to tracepoint sched_process_exec: %w", err)
	}
	defer watch.Close()
	c := &calibration{
		look: coll.Programs["look"], seen: (*seenData)(unsafe.Pointer(&mem[0])),
		at: map[string]uint32{}, cache: map[uint64]object{},
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := c.run(); err != nil {
		return nil, err
	}
	return c.at, nil
}

type calibration struct {
	look  *ebpf.Program
	seen  *seenData
	at    map[string]uint32
	cache map[uint64]object // by address, as far as they were read
	err   error             // the first thing that was not found

	own, child object // struct task_struct of this thread and of the child
	pid        uint32 // of the child
	born, dead uint64 // between these times it was born
	bprm       object
}

// word is the size of the kernel's long, which is this program's too: a guest
// of two word sizes has an agent of the larger.
const word = uint32(unsafe.Sizeof(uintptr(0)))

const (
	taskSize   = 9 << 10 // bytes of a struct task_struct that are looked through
	objectSize = 512     // of what pointers in it lead to
	mmSize     = 1024
)

// An object is some of the kernel's memory; nothing lies beyond its end.
type object struct {
	addr uint64
	b    []byte
}

func (o object) u32(off uint32) uint32 {
	if int(off)+4 > len(o.b) {
		return 0
	}
	return binary.NativeEndian.Uint32(o.b[off:])
}

func (o object) u64(off uint32) uint64 {
	if int(off)+8 > len(o.b) {
		return 0
	}
	return binary.NativeEndian.Uint64(o.b[off:])
}

func (o object) word(off uint32) uint64 {
	if word == 4 {
		return uint64(o.u32(off))
	}
	return o.u64(off)
}

// find returns the first offset from which on, in steps, f is true.
func (o object) find(from, to, step uint32, f func(off uint32) bool) (uint32, bool) {
	for off := from; off+step <= min(to, uint32(len(o.b))); off += step {
		if f(off) {
			return off, true
		}
	}
	return 0, false
}

// read fetches memory of the kernel's; what cannot be read is missing.
func (c *calibration) read(addr uint64, n int) object {
	if o, ok := c.cache[addr]; ok && len(o.b) >= n {
		return o
	}
	o := object{addr: addr}
	for len(o.b) < n {
		part := min(n-len(o.b), len(c.seen.Memory))
		_, err := c.look.Run(&ebpf.RunOptions{Context: [2]uint64{addr + uint64(len(o.b)), uint64(part)}})
		if err != nil || c.seen.Failed != 0 {
			break
		}
		o.b = append(o.b, c.seen.Memory[:part]...)
	}
	c.cache[addr] = o
	return o
}

// follow reads what a pointer of the object's leads to.
func (c *calibration) follow(o object, off uint32, n int) object {
	p := o.word(off)
	if p < 4096 || p%4 != 0 {
		return object{}
	}
	return c.read(p, n)
}

// text reads the string that a pointer of the object's leads to.
func (c *calibration) text(o object, off uint32) string {
	b := c.follow(o, off, 64).b
	if p := o.word(off); b == nil && p >= 4096 {
		b = c.read(p, 64).b // strings are not aligned
	}
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return string(b[:i])
	}
	return ""
}

// field notes where a field is, or that it was not found.
func (c *calibration) field(name string, off uint32, ok bool) uint32 {
	if !ok {
		if c.err == nil {
			c.err = fmt.Errorf("%w: %s is not where it should be", ErrOffsets, name)
		}
		return 0
	}
	c.at[name] = off
	return off
}

func (c *calibration) run() error {
	restore, err := c.prepare()
	if err != nil {
		return err
	}
	defer restore()
	if err := c.bear(); err != nil {
		return err
	}
	var st syscall.WaitStatus
	defer func() { _, _ = syscall.Wait4(int(c.pid), &st, 0, nil) }()
	if err := c.numbers(); err != nil {
		return err
	}
	c.life()
	c.program()
	c.memory()
	c.credentials()
	c.directories()
	return c.err
}

// What prepare makes of this thread and process, to be recognised by.
const (
	ownName = "petri-calibrate"
	ownMask = 0o123
	ownUID  = 54321
	// ownDir is the current directory for a while.
	ownDir, ownDirName, ownDirParent, ownMount = "/proc/sys/kernel", "kernel", "sys", "proc"
)

// prepare makes this thread one that can be recognised, and reads its struct
// task_struct and what depends on it.
func (c *calibration) prepare() (restore func(), err error) {
	var undo []func()
	restore = func() {
		for _, f := range undo {
			f()
		}
	}
	defer func() {
		if err != nil {
			restore()
		}
	}()
	old := make([]byte, 16)
	name := append([]byte(ownName), 0)
	if err := unix.Prctl(unix.PR_GET_NAME, uintptr(unsafe.Pointer(&old[0])), 0, 0, 0); err != nil {
		return nil, fmt.Errorf("get the thread's name: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0); err != nil {
		return nil, fmt.Errorf("set the thread's name: %w", err)
	}
	undo = append(undo, func() { _ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&old[0])), 0, 0, 0) })
	mask := unix.Umask(ownMask)
	undo = append(undo, func() { unix.Umask(mask) })
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	if err := os.Chdir(ownDir); err != nil {
		return nil, err
	}
	undo = append(undo, func() { _ = os.Chdir(dir) })
	if _, err := c.look.Run(&ebpf.RunOptions{Context: [2]uint64{0, 0}}); err != nil {
		return nil, fmt.Errorf("run BPF program: %w", err)
	}
	c.own.addr = c.seen.Task
	return restore, nil
}

// bear starts the child and waits for its end, but does not reap it: the kernel
// keeps its struct task_struct.
func (c *calibration) bear() error {
	argv, env := make([]string, childArgs), make([]string, childVars)
	argv[0] = childName
	for i := range env {
		env[i] = "N=" + strconv.Itoa(i)
	}
	c.born = bootTime()
	pid, err := syscall.ForkExec("/proc/self/exe", argv, &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}})
	c.dead = bootTime()
	if err != nil {
		return fmt.Errorf("start the child: %w", err)
	}
	c.pid = uint32(pid)
	kill := time.AfterFunc(10*time.Second, func() { _ = unix.Kill(pid, unix.SIGKILL) })
	defer kill.Stop()
	for {
		err = unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("wait for the child: %w", err)
	}
	c.child = c.read(c.seen.Executed, taskSize)
	c.own = c.read(c.own.addr, taskSize)
	c.bprm = object{b: bytes.Clone(c.seen.Bprm[:])}
	return nil
}

// numbers finds who a task is. All else is behind it or must fit it.
func (c *calibration) numbers() error {
	tid, tgid := uint32(unix.Gettid()), uint32(os.Getpid())
	pid, ok := c.own.find(0, taskSize, 4, func(o uint32) bool {
		return c.own.u32(o) == tid && c.own.u32(o+4) == tgid && c.child.u32(o) == c.pid && c.child.u32(o+4) == c.pid
	})
	c.field("task_struct.pid", pid, ok)
	c.field("task_struct.tgid", pid+4, ok)
	leader, ok := c.child.find((pid+8)&^(word-1), taskSize, word, func(o uint32) bool { return c.child.word(o) == c.child.addr })
	c.field("task_struct.group_leader", leader, ok)
	parent, ok := c.child.find((pid+8)&^(word-1), taskSize, word, func(o uint32) bool { return c.child.word(o) == c.own.addr })
	c.field("task_struct.real_parent", parent, ok)
	var number uint32
	isPid := func(o uint32) bool {
		own, child := c.follow(c.own, o, 256), c.follow(c.child, o, 256)
		// A reference count, and the level, which is that of the first
		// namespace.
		if own.u32(4) != 0 || child.u32(4) != 0 || own.u32(0)-1 > 99 || child.u32(0)-1 > 99 {
			return false
		}
		n, ok := own.find(8, 200, 4, func(n uint32) bool { return own.u32(n) == tid && child.u32(n) == c.pid })
		number = n
		return ok
	}
	thread, ok := c.child.find(leader+word, taskSize, word, isPid)
	c.field("task_struct.thread_pid", thread, ok)
	c.field("pid.level", 4, ok)
	c.field("pid.numbers", number, ok)
	c.field("upid.nr", 0, ok)
	c.field("sizeof upid", 2*word, ok)
	return c.err
}

// statFields reads /proc/…/stat: field 3, the state, comes first.
func statFields(path string) ([]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 49 {
		return nil, fmt.Errorf("%s has %d fields", path, len(f))
	}
	return f, nil
}

// life finds what changes while a task lives.
func (c *calibration) life() {
	start, ok := c.child.find(c.at["task_struct.thread_pid"], taskSize, 4, func(o uint32) bool {
		mono, boot := c.child.u64(o), c.child.u64(o+8)
		return c.born <= boot && boot <= c.dead && boot-mono < uint64(time.Millisecond)
	})
	c.field("task_struct.start_boottime", start+8, ok)
	const zombie = 0x20
	code, ok := c.child.find(0, taskSize, 4, func(o uint32) bool {
		return c.child.u32(o) == zombie && c.child.u32(o+4) == childCode<<8 && c.child.u32(o+8) == uint32(unix.SIGCHLD)
	})
	c.field("task_struct.exit_code", code+4, ok)
	const forkedNoExec = 0x40 // PF_FORKNOEXEC of this thread, which others lack
	own, err1 := statFields("/proc/thread-self/stat")
	child, err2 := statFields(fmt.Sprintf("/proc/%d/stat", c.pid))
	if err := errors.Join(err1, err2); err != nil {
		c.err = errors.Join(c.err, err)
		return
	}
	flags := func(s []string) uint32 { n, _ := strconv.ParseUint(s[9-3], 10, 32); return uint32(n) }
	at, ok := c.child.find(0, 2048, 4, func(o uint32) bool {
		return (c.own.u32(o)^flags(own))&forkedNoExec == 0 && c.own.u32(o) != 0 && c.child.u32(o) == flags(child)
	})
	c.field("task_struct.flags", at, ok)
	name, ok := c.own.find(0, taskSize, 4, func(o uint32) bool { return bytes.HasPrefix(c.own.b[o:], []byte(ownName+"\x00")) })
	c.field("task_struct.comm", name, ok)
}

// program finds the struct linux_binprm's fields.
func (c *calibration) program() {
	argc, ok := c.bprm.find(0, 500, 4, func(o uint32) bool {
		return c.bprm.u32(o) == childArgs && c.bprm.u32(o+4) == childVars
	})
	c.field("linux_binprm.argc", argc, ok)
	c.field("linux_binprm.envc", argc+4, ok)
	names := (argc + 8 + word - 1) &^ (word - 1)
	c.field("linux_binprm.filename", names, ok && c.bprm.word(names) != 0)
	c.field("linux_binprm.interp", names+word, ok && c.bprm.word(names) == c.bprm.word(names+word))
}

// memory finds the address space, and the process' structures.
func (c *calibration) memory() {
	stat, err := statFields("/proc/self/stat")
	if err != nil {
		c.err = errors.Join(c.err, err)
		return
	}
	var ends [4]uint64
	for i := range ends {
		ends[i], _ = strconv.ParseUint(stat[48-3+i], 10, 64)
	}
	var args uint32
	mm, ok := c.own.find(0, taskSize, word, func(o uint32) (ok bool) {
		mm := c.follow(c.own, o, mmSize)
		args, ok = mm.find(0, mmSize-4*word, word, func(o uint32) bool {
			return mm.word(o) == ends[0] && mm.word(o+word) == ends[1] && mm.word(o+2*word) == ends[2] && mm.word(o+3*word) == ends[3]
		})
		return ok
	})
	c.field("task_struct.mm", mm, ok)
	for i, name := range []string{"arg_start", "arg_end", "env_start", "env_end"} {
		c.field("mm_struct."+name, args+uint32(i)*word, ok)
	}
	// Counts of all threads: references, those alive, those that there are.
	signal, ok := c.own.find(c.at["task_struct.comm"]&^(word-1), taskSize, word, func(o uint32) bool {
		s, zombie := c.follow(c.own, o, objectSize), c.follow(c.child, o, objectSize)
		return s.u32(4) > 1 && s.u32(4) < 1000 && s.u32(4) == s.u32(8) && zombie.u32(0) > 0 && zombie.u32(4) == 0 && zombie.u32(8) == 1
	})
	c.field("task_struct.signal", signal, ok)
	c.field("signal_struct.live", 4, ok)
	dead := c.follow(c.child, signal, objectSize)
	code, ok := dead.find(12, objectSize, 4, func(o uint32) bool { return dead.u32(o) == childCode<<8 })
	c.field("signal_struct.group_exit_code", code, ok)
	const groupExit = 4 // SIGNAL_GROUP_EXIT
	flags, ok := dead.find(code+4, objectSize, 4, func(o uint32) bool { return dead.u32(o) == groupExit })
	c.field("signal_struct.flags", flags, ok)
}

// credentials finds the effective user: it makes this thread another's for a
// moment.
func (c *calibration) credentials() {
	keep := ^uintptr(0)
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		c.err = errors.Join(c.err, err)
		return
	}
	if _, _, errno := syscall.RawSyscall(sysSetresuid, keep, ownUID, keep); errno != 0 {
		c.err = errors.Join(c.err, fmt.Errorf("become another user: %w", errno))
		return
	}
	clear(c.cache)
	own := c.read(c.own.addr, taskSize)
	var euid uint32
	cred, ok := own.find(0, c.at["task_struct.comm"], word, func(o uint32) (ok bool) {
		if own.word(o) != own.word(o+word) { // what it is to others comes first
			return false
		}
		cred := c.follow(own, o, 128)
		euid, ok = cred.find(4, 64, 4, func(o uint32) bool { return cred.u32(o) == ownUID })
		return ok
	})
	c.field("task_struct.cred", cred+word, ok)
	c.field("cred.euid", euid, ok)
	if _, _, errno := syscall.RawSyscall(sysSetresuid, keep, 0, keep); errno != 0 {
		c.err = errors.Join(c.err, fmt.Errorf("become root again: %w", errno))
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(dumpable), 0, 0, 0); err != nil {
		c.err = errors.Join(c.err, err)
	}
}

// directories finds where a process is. How a name leads up to the root is left
// out if it is not found.
func (c *calibration) directories() {
	var mask uint32
	fs, ok := c.own.find(c.at["task_struct.comm"]&^(word-1), taskSize, word, func(o uint32) (ok bool) {
		fs := c.follow(c.own, o, 128)
		mask, ok = fs.find(0, 64, 4, func(o uint32) bool { return fs.u32(o) == ownMask })
		return ok
	})
	c.field("task_struct.fs", fs, ok)
	c.field("task_struct.files", fs+word, ok && c.own.word(fs+word) != 0)
	c.field("path.mnt", 0, ok)
	c.field("path.dentry", word, ok)
	// Behind the mask: the root's path and the current directory's. The latter's
	// name is known.
	own := c.follow(c.own, fs, 128)
	var name, up uint32
	root, ok := own.find((mask+4+word-1)&^(word-1), 128-4*word, word, func(o uint32) (ok bool) {
		d := c.follow(own, o+3*word, 256)
		name, ok = d.find(0, 128, word, func(o uint32) bool { return c.text(d, o) == ownDirName })
		return ok
	})
	c.field("fs_struct.root", root, ok)
	c.field("fs_struct.pwd", root+2*word, ok)
	if c.err != nil {
		return
	}
	d := c.follow(own, root+3*word, 256)
	up, ok = d.find(0, name, word, func(o uint32) bool { return c.text(c.follow(d, o, 256), name) == ownDirParent })
	// A struct vfsmount is part of a struct mount, behind two links of a hash
	// table, the mount above, and the directory there.
	if mount := object(c.read(own.word(root+2*word)-uint64(word), 64)); ok && c.text(c.follow(mount, 0, 256), name) == ownMount {
		c.at["dentry.d_parent"], c.at["dentry.d_name.name"] = up, name
		c.at["mount.mnt"], c.at["mount.mnt_parent"], c.at["mount.mnt_mountpoint"] = 4*word, 2*word, 3*word
	}
}
