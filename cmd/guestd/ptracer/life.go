// SPDX-License-Identifier: Apache-2.0

//go:build linux

package ptracer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/cmd/guestd/procfs"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// What the kernel says of processes in /proc, as far as it is recorded.
const (
	maxFile  = 16 << 10
	ticks    = 100 // USER_HZ of every CPU that there are guests of
	maxNames = 40
)

// status returns the words of a line of /proc/TID/status.
func status(tid uint32, key string) []string {
	for line := range strings.SplitSeq(string(procfs.Read(tid, "status", maxFile)), "\n") {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.Fields(rest)
		}
	}
	return nil
}

func number(words []string, i int) uint32 {
	if i < 0 || i >= len(words) {
		return 0
	}
	n, _ := strconv.ParseUint(words[i], 10, 32)
	return uint32(n)
}

// identify fills in who a task is.
func (l *loop) identify(t *task) {
	t.tgid = number(status(t.tid, "Tgid"), 0)
	t.nsTID = number(status(t.tid, "NSpid"), l.level)
	t.nsID = number(status(t.tid, "NStgid"), l.level)
	stat := procfs.Read(t.tgid, "stat", maxFile)
	if f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); len(f) > 22-3 {
		n, _ := strconv.ParseUint(f[22-3], 10, 64)
		t.start = n * (1e9 / ticks)
	}
}

// adopt takes up a thread that the kernel has made a tracee.
func (l *loop) adopt(tid uint32) *task {
	t := &task{tid: tid, resting: true}
	l.identify(t)
	for _, other := range l.tasks {
		t.armed = t.armed || other.armed && other.tgid == t.tgid
	}
	l.tasks[tid] = t
	l.process(t.tgid).threads++
	l.enc.Forget(tid)
	return t
}

// record begins a record of another type about a task.
func (l *loop) record(t *task, typ trace.Type, n uint8) trace.Record {
	now := bootTime()
	return trace.Record{Type: typ, ABI: l.native, TID: t.tid, Begin: now, End: now, N: n}
}

func (l *loop) forked(t *task) error {
	msg, err := unix.PtraceGetEventMsg(int(t.tid))
	if err != nil {
		return ignoreGone(err)
	}
	tid := uint32(msg)
	c := l.tasks[tid]
	if c == nil {
		c = l.adopt(tid)
	}
	if t.armed {
		return l.release(c)
	}
	r := l.record(t, trace.Fork, 6)
	r.Args = [6]uint64{uint64(tid), uint64(c.tgid), uint64(c.nsTID), uint64(c.nsID), c.start, t.shares()}
	return errors.Join(l.add(&r), l.release(c))
}

// release lets a new thread go on that has been held.
func (l *loop) release(t *task) error {
	if !t.held {
		return nil
	}
	t.held = false
	return l.goOn(t.tid, 0)
}

// shares says what the child of the call under way shares with its parent.
func (t *task) shares() (share uint64) {
	var flags uint64
	switch t.rec.Describe().Name {
	case "vfork":
		return trace.ShareVM
	case "clone":
		flags = t.rec.Args[0]
		if a := t.rec.ABI.String(); a == "s390x" {
			flags = t.rec.Args[1]
		}
	case "clone3":
		if b := t.read(t.rec.Args[0], 8); len(b) == 8 {
			flags = binary.NativeEndian.Uint64(b)
		}
	}
	for bit, what := range map[uint64]uint64{
		unix.CLONE_VM: trace.ShareVM, unix.CLONE_FILES: trace.ShareFiles, unix.CLONE_FS: trace.ShareFS, unix.CLONE_THREAD: trace.ShareThread,
	} {
		if flags&bit != 0 {
			share |= what
		}
	}
	return share
}

// releaseAll lets those go on whose parents have ended without a word.
func (l *loop) releaseAll() (err error) {
	for _, t := range l.tasks {
		err = errors.Join(err, l.release(t))
	}
	return err
}

// reappeared takes up the first thread of a process, which has told of its end:
// another one has executed a program and has its number now. It is nil if that one
// is not known.
func (l *loop) reappeared(tid uint32) *task {
	msg, err := unix.PtraceGetEventMsg(int(tid))
	old := l.tasks[uint32(msg)]
	if err != nil || old == nil {
		return nil
	}
	delete(l.tasks, old.tid)
	l.enc.Forget(old.tid)
	l.enc.Forget(tid)
	t := old.moved(tid)
	l.tasks[tid] = t
	return t
}

// moved is a thread that has executed a program and so got the number of the
// first.
func (t *task) moved(tid uint32) *task {
	m := &task{tid: tid, tgid: t.tgid, armed: t.armed, open: t.open, entered: t.entered, rec: t.rec}
	m.rec.TID = tid
	return m
}

func (l *loop) executed(t *task) error {
	msg, err := unix.PtraceGetEventMsg(int(t.tid))
	if err != nil {
		return ignoreGone(err)
	}
	if old := l.tasks[uint32(msg)]; old != nil && old != t {
		// Another thread than the first has executed a program, and is the first
		// now; that one has ended without a word.
		delete(l.tasks, old.tid)
		l.process(t.tgid).threads--
		l.enc.Forget(old.tid)
		l.enc.Forget(t.tid)
		*t = *old.moved(t.tid)
	}
	if t.armed {
		t.armed = false
		l.level = len(status(t.tid, "NSpid")) - 1
		t.open, t.resting = false, true
	}
	l.identify(t)
	r := l.record(t, trace.Exec, 6)
	argv, env := procfs.Read(t.tid, "cmdline", procfs.MaxArgv+1), procfs.Read(t.tid, "environ", procfs.MaxEnv+1)
	r.Args = [6]uint64{uint64(msg), 0, 0, uint64(bytes.Count(argv, []byte{0})), uint64(bytes.Count(env, []byte{0})), uint64(number(status(t.tid, "Uid"), 1))}
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/exe", t.tid), &st); err == nil {
		r.Args[1] = st.Ino
		r.Args[2] = uint64(unix.Major(uint64(st.Dev)))<<20 | uint64(unix.Minor(uint64(st.Dev)))
	}
	attach := func(kind trace.Kind, b []byte, limit int) {
		a := trace.Attachment{Arg: trace.NoArg, Kind: kind, Data: b}
		if len(b) > limit {
			a.Data, a.Flags = b[:limit], trace.Truncated
		}
		r.Attachments = append(r.Attachments, a)
	}
	attach(trace.String, t.executable(), maxString)
	attach(trace.Argv, argv, procfs.MaxArgv)
	attach(trace.Comm, bytes.TrimSuffix(procfs.Read(t.tid, "comm", 64), []byte("\n")), 16)
	attach(trace.Env, env, procfs.MaxEnv)
	if b := cwd(t.tid); b != nil {
		attach(trace.Cwd, b, procfs.MaxArgv)
	}
	return l.add(&r)
}

// executable is the name that the program was executed by, as the kernel puts
// it together, or, of the first, that of the file.
func (t *task) executable() []byte {
	if !t.open {
		return []byte(inside(t.tid, "exe"))
	}
	var name string
	for _, a := range t.rec.Attachments {
		if a.Kind == trace.String {
			name = string(a.Data)
		}
	}
	if fd := int32(t.rec.Args[0]); t.rec.Describe().Name == "execveat" && fd != unix.AT_FDCWD && !path.IsAbs(name) {
		name = strings.TrimSuffix(fmt.Sprintf("/dev/fd/%d/%s", fd, name), "/")
	}
	return []byte(name)
}

// inside reads a link of /proc/TID and returns the name as the process knows it.
func inside(tid uint32, name string) string {
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/%s", tid, name))
	if err != nil {
		return ""
	}
	root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", tid))
	if rest, ok := strings.CutPrefix(target, root); ok && err == nil && root != "/" && (rest == "" || rest[0] == '/') {
		target = "/" + strings.TrimPrefix(rest, "/")
	}
	return target
}

// cwd lists the names of the current directory and of those above it.
func cwd(tid uint32) []byte {
	dir := inside(tid, "cwd")
	if !path.IsAbs(dir) {
		return nil
	}
	out := []byte{}
	for i := 0; dir != "/" && i < maxNames; i++ {
		out = append(append(out, path.Base(dir)...), 0)
		dir = path.Dir(dir)
	}
	return out
}

// exiting is the last that we see of a thread before it ends.
func (l *loop) exiting(t *task) error {
	msg, err := unix.PtraceGetEventMsg(int(t.tid))
	if err != nil {
		return ignoreGone(err)
	}
	return l.ended(t, uint32(msg))
}

// ended records the end of a thread, once.
func (l *loop) ended(t *task, code uint32) error {
	delete(l.tasks, t.tid)
	p := l.process(t.tgid)
	p.threads--
	if code&0x7f != 0 {
		p.group = true
	}
	if t.tid == t.tgid {
		p.leader = code
	}
	last := p.threads <= 0
	if last {
		delete(l.processes, t.tgid)
	}
	if t.armed {
		return nil
	}
	var err error
	l.tasks[t.tid] = t // for its identity
	if t.open && !t.entered {
		r := t.rec
		r.Flags |= trace.Unfinished
		err = l.add(&r)
	}
	r := l.record(t, trace.Exit, 3)
	r.Args[0], r.Args[1] = uint64(code), uint64(max(p.threads, 0))
	if last {
		r.Args[2] = uint64(code)
		if !p.group {
			r.Args[2] = uint64(p.leader)
		}
	}
	err = errors.Join(err, l.add(&r))
	delete(l.tasks, t.tid)
	l.enc.Forget(t.tid)
	return err
}

// gone is the end of a thread, which [loop.exiting] has told of, unless it was
// killed on its way there.
func (l *loop) gone(tid uint32, code uint32) error {
	if t := l.tasks[tid]; t != nil {
		return l.ended(t, code)
	}
	return nil
}

func ignoreGone(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}
