// SPDX-License-Identifier: Apache-2.0

package behavior

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// procKey names a process: its number in the guest, which comes again, and its
// start.
type procKey struct {
	tgid  uint32
	start uint64
}

type process struct {
	key    procKey
	info   schemas.Process
	path   string // of the program, as it was
	fds    *table
	dirs   *dirs
	live   int  // threads
	ended  bool // the last thread's end was seen
	beyond bool // over the limit: not in the result
}

type thread struct {
	tid, nstid uint32
	proc       *process
	comm       string

	pending *trace.Record // a call that has begun
	shown   bool          // an event has told of it
	flushed *flushed
}

// flushed is a call that was under way when the trace was flushed.
type flushed struct{ begin, number uint64 }

// processOf returns the process of an identity, a new one if it was not seen.
func (t *Tracker) processOf(key procKey, pid uint32) *process {
	if p := t.procs[key]; p != nil {
		return p
	}
	p := &process{key: key, dirs: &dirs{}, fds: &table{}}
	p.info = schemas.Process{PID: int(pid), Start: key.start, Argv: []string{}}
	if len(t.order) >= maxProcesses {
		t.sum.omitted["processes"]++
		p.beyond = true
	} else {
		t.order = append(t.order, p)
	}
	t.procs[key] = p
	return p
}

// threadOf returns the thread of a record.
func (t *Tracker) threadOf(r *trace.Record) *thread {
	key := procKey{r.Who.TGID, r.Who.Start}
	th := t.threads[r.TID]
	if r.Who == (trace.Identity{}) { // nobody knows any more
		if th != nil {
			return th
		}
		key.tgid = r.TID
	}
	if th != nil && th.proc.key == key {
		return th
	}
	p := t.processOf(key, r.Who.NSPID)
	return t.addThread(r.TID, r.Who.NSTID, p)
}

func (t *Tracker) addThread(tid, nstid uint32, p *process) *thread {
	if old := t.threads[tid]; old != nil {
		t.drop(old)
	}
	if len(t.threads) >= maxThreads {
		// The ends of all these were not seen: whoever is heard of again comes
		// back, with nothing known of it.
		for _, th := range t.threads {
			th.proc.live = 0
			t.leave(th.proc)
		}
		t.sum.omitted["threads"] += len(t.threads)
		clear(t.threads)
		t.waiting = nil
	}
	th := &thread{tid: tid, nstid: nstid, proc: p, comm: p.info.Comm}
	t.threads[tid] = th
	p.live++
	return th
}

// drop forgets a thread, and what its process held if it was the last one.
func (t *Tracker) drop(th *thread) {
	t.forget(th)
	delete(t.threads, th.tid)
	if th.proc.live--; th.proc.live <= 0 {
		t.leave(th.proc)
	}
}

// leave frees what a process that has no threads any more held.
func (t *Tracker) leave(p *process) {
	t.release(p)
	p.dirs = &dirs{}
	if p.ended || p.beyond {
		delete(t.procs, p.key)
	}
}

func (t *Tracker) fork(r *trace.Record) {
	th := t.threadOf(r)
	share := r.Args[5]
	who := trace.Identity{TGID: uint32(r.Args[1]), NSTID: uint32(r.Args[2]), NSPID: uint32(r.Args[3]), Start: r.Args[4]}
	key := procKey{who.TGID, who.Start}
	isThread := share&trace.ShareThread != 0
	if isThread {
		key = th.proc.key
	}
	p := t.processOf(key, who.NSPID)
	child := t.addThread(uint32(r.Args[0]), who.NSTID, p)
	child.comm = th.comm
	if p == th.proc {
		p.info.Threads++
	} else {
		t.inherit(p, th, share)
	}
	b := t.event(th, r, "process", "fork")
	b.Process = &schemas.ProcessBehavior{PID: int(who.NSPID), Start: who.Start, Thread: isThread}
	if isThread {
		b.Process.PID = int(who.NSTID)
		b.Process.Start = 0
	}
	t.emit(b)
}

// inherit gives a new process what it has from its parent.
func (t *Tracker) inherit(p *process, parent *thread, share uint64) {
	from := parent.proc
	p.info.Parent, p.info.ParentAt = from.info.PID, from.info.Start
	p.info.Path, p.info.Argv, p.info.Comm, p.path = from.info.Path, from.info.Argv, Printable(parent.comm), from.path
	p.info.ArgvOmitted = from.info.ArgvOmitted
	t.release(p)
	p.fds = t.share(from.fds, share&trace.ShareFiles != 0)
	if share&trace.ShareFS != 0 {
		p.dirs = from.dirs
	} else {
		d := *from.dirs
		p.dirs = &d
	}
}

func (t *Tracker) exec(r *trace.Record) {
	th := t.threadOf(r)
	p := th.proc
	if t.main == 0 {
		t.main = r.ABI
	}
	// It may have had another number, and is the only thread now.
	if old := t.threads[uint32(r.Args[0])]; old != nil && old != th && old.proc == p {
		th.comm, th.pending, th.shown = old.comm, old.pending, old.shown
		old.pending = nil
		t.waiting = replaced(t.waiting, old, th)
		t.drop(old)
	}
	t.unshareFiles(p)
	if cwd := r.Attached(trace.NoArg, trace.Cwd); cwd != nil && cwd.Flags&trace.Truncated == 0 {
		p.dirs.cwd = p.dirs.root + upwards(cwd.Strings(64))
	}
	raw, _ := r.Text(trace.NoArg)
	name := p.program(raw)
	p.path = name.path
	p.info.Path, p.info.Argv = Printable(name.path), []string{}
	if a := r.Attached(trace.NoArg, trace.Argv); a != nil {
		for _, arg := range a.Strings(maxArgs) {
			if t.text > maxText {
				t.sum.omitted["arguments"]++
				break
			}
			t.text += len(arg)
			p.info.Argv = append(p.info.Argv, Printable(arg))
		}
		if a.Flags&(trace.Truncated|trace.Unreadable) != 0 {
			t.sum.omitted["arguments"]++
		}
	}
	argc := min(r.Args[3], math.MaxInt32)
	p.info.ArgvOmitted = max(0, int(argc)-len(p.info.Argv))
	if a := r.Attached(trace.NoArg, trace.Comm); a != nil {
		th.comm = string(a.Data)
	}
	p.info.Comm = Printable(th.comm)
	t.closeOnExec(p)
	t.sum.file(p, name.path, "exec", "")

	b := t.event(th, r, "process", "exec")
	uid := int(int32(r.Args[5]))
	b.Process = &schemas.ProcessBehavior{
		PID: p.info.PID, Start: p.info.Start, Path: p.info.Path, Argv: p.info.Argv, ArgvOmitted: p.info.ArgvOmitted, UID: &uid,
	}
	if r.Untold.Arg(5) {
		b.Process.UID = nil
	}
	if a := r.Attached(trace.NoArg, trace.Interp); a != nil {
		b.Process.Name = Printable(string(a.Data))
	}
	t.emit(b)
}

func replaced(list []*thread, old, with *thread) []*thread {
	if i := slices.Index(list, old); i >= 0 {
		list[i] = with
	}
	return list
}

// upwards turns the names of a directory and those above it into a path.
func upwards(names []string) string {
	slices.Reverse(names)
	return "/" + strings.Join(names, "/")
}

func (t *Tracker) exit(r *trace.Record) {
	th := t.threadOf(r)
	p := th.proc
	// Two threads that end at once can both see that none is left.
	last := r.Args[1] == 0
	if last && !p.ended {
		at := r.Begin
		p.info.End = &at
		p.ended = true
		b := t.event(th, r, "process", "exit")
		b.Process = &schemas.ProcessBehavior{PID: p.info.PID, Start: p.info.Start}
		status := r.Args[2]
		if sig := int(status & 0x7f); sig != 0 {
			p.info.Signal = r.ABI.Signal(sig)
			b.Process.Signal = p.info.Signal
		} else {
			code := int(status >> 8 & 0xff)
			p.info.ExitCode = &code
			b.Process.ExitCode = &code
		}
		t.emit(b)
	}
	// A call that it dies in, such as exit, is over.
	if th.pending != nil && !th.shown && !strings.HasPrefix(th.pending.Describe().Name, "exit") {
		t.begun(th)
	}
	th.pending = nil
	if last {
		p.live = min(p.live, 1)
	}
	t.drop(th)
}

// execFailed is an exec that failed; of others the exec record tells.
func (c *call) execFailed(dir, name, argv int) {
	if c.errno == "" && c.r.Finished() || c.r.Flags&trace.Entry != 0 {
		return
	}
	p := schemas.ProcessBehavior{Path: Printable(c.pathAt(dir, name).path)}
	if a := c.r.Attached(uint8(argv), trace.Argv); a != nil {
		for _, arg := range a.Strings(maxArgs) {
			p.Argv = append(p.Argv, Printable(arg))
		}
	}
	if c.errno != "" {
		c.t.sum.file(c.p, c.pathAt(dir, name).path, "exec", c.errno)
	}
	c.emitProcess("exec", p)
}

func (c *call) prctl() {
	if c.r.ABI.Enum(sysno.SetPrctl, c.u64(0)) == "PR_SET_NAME" && c.maybe() {
		c.rename1(c.text(1))
	}
}

// rename1 gives the thread another name.
func (c *call) rename1(name string) {
	if len(name) > 15 {
		name = name[:15] // TASK_COMM_LEN
	}
	c.th.comm = name
	if c.th.tid == c.p.key.tgid {
		c.p.info.Comm = Printable(name)
	}
	c.emitProcess("rename", schemas.ProcessBehavior{Name: Printable(name)})
}

func (c *call) ptrace() {
	c.emitProcess("ptrace", schemas.ProcessBehavior{PID: c.int(1), Request: c.r.ABI.Enum(sysno.SetPtrace, c.u64(0))})
}

func (c *call) signal(pid, sig int) {
	if sig == 0 {
		return // asks only whether the process is there
	}
	c.emitProcess("signal", schemas.ProcessBehavior{PID: pid, Signal: c.r.ABI.Signal(sig)})
}

// setuid changes the user; the effective one is argument i.
func (c *call) setuid(i int) {
	uid := c.int(i)
	c.emitProcess("setuid", schemas.ProcessBehavior{UID: &uid, Name: c.desc.Name + "(" + c.ids() + ")"})
}

func (c *call) ids() string {
	var ids []string
	for i := range c.desc.Args {
		ids = append(ids, strconv.Itoa(c.int(i)))
	}
	return strings.Join(ids, ", ")
}
