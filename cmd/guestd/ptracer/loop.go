// SPDX-License-Identifier: Apache-2.0

//go:build linux

package ptracer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// options of every tracee. If we die so does the sample: nothing runs untraced.
const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACECLONE |
	unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_TRACEEXIT | unix.PTRACE_O_EXITKILL

// A task is a thread of the sample.
type task struct {
	tid, tgid   uint32
	nsTID, nsID uint32
	start       uint64
	held        bool         // its parent has not told of it yet: it waits
	armed       bool         // it has not executed a program yet: nothing is recorded
	resting     bool         // the next stop at a call is its end, which was not seen to begin
	open        bool         // rec is a call under way
	entered     bool         // and a record has said so
	retry       [6]bool      // arguments that could not be read
	rec         trace.Record // the call
}

// A process is what the threads of one have in common.
type process struct {
	threads int
	leader  uint32 // exit status of the first thread, if it has ended
	group   bool   // it ended as a whole: exit_group or a signal
}

// A loop is the tracing process. All of it runs on one thread, as ptrace asks
// for.
type loop struct {
	enc       *trace.Encoder
	native    sysno.ABI
	level     int // of the sample's pid namespace
	tasks     map[uint32]*task
	processes map[uint32]*process

	made, unreadable uint64
	out              io.Writer
}

func order() trace.Order {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return trace.LittleEndian
	}
	return trace.BigEndian
}

// tick is how old a record may become before it leaves.
const tick = 20 * time.Millisecond

// missed bounds how long a stop waits whose signal came before we slept.
const missed = 10 * time.Millisecond

// serve traces until its commands end. The kernel tells of stops by SIGCHLD, to
// the very thread that traces if it does not block it; Go does not let us, but
// its handler interrupts our sleep.
func serve(in *os.File, out io.Writer) error {
	runtime.LockOSThread()
	native, ok := natives[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("no ABI is known of %s", runtime.GOARCH)
	}
	l := &loop{native: native, tasks: map[uint32]*task{}, processes: map[uint32]*process{}, out: out}
	l.enc = trace.NewEncoder(native, order(), l.who, func(b []byte) error { return l.say(msgBlock, b) })
	l.enc.Counters = func() (uint64, uint64, uint64) { return l.made, 0, l.unreadable }
	fds := []unix.PollFd{{Fd: int32(in.Fd()), Events: unix.POLLIN}}
	sent, flushed := uint64(0), time.Now()
	left := false // tracees, or what is left of them: of an end nobody hears before it is waited for
	for {
		timeout := -1
		if left || l.made > sent {
			timeout = int(missed.Milliseconds())
		}
		n, err := unix.Poll(fds, timeout)
		idle := n == 0 && err == nil
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for the sample: %w", err)
		}
		if left, err = l.drain(); err != nil {
			return err
		}
		if idle { // for so long nothing has come: no parent will tell
			if err := l.releaseAll(); err != nil {
				return err
			}
		}
		if fds[0].Revents != 0 {
			var c [5]byte
			if _, err := io.ReadFull(in, c[:]); err != nil {
				return nil
			}
			if err := l.command(c); err != nil {
				return err
			}
			left = true // as far as is known
		}
		if l.made > sent && time.Since(flushed) >= tick {
			if err := l.enc.Flush(); err != nil {
				return err
			}
			sent, flushed = l.made, time.Now()
		}
	}
}

func (l *loop) say(kind byte, b []byte) error {
	_, err := l.out.Write(append(binary.NativeEndian.AppendUint32([]byte{kind}, uint32(len(b))), b...))
	return err
}

func (l *loop) command(c [5]byte) error {
	n := binary.NativeEndian.Uint32(c[1:])
	if c[0] == cmdAttach {
		text := ""
		if err := l.attach(n); err != nil {
			text = err.Error()
		}
		return l.say(msgAttached, []byte(text))
	}
	for _, t := range l.tasks {
		if t.open && !t.entered {
			r := t.rec
			r.Flags |= trace.Unfinished
			r.Attachments = append(r.Attachments[:len(r.Attachments):len(r.Attachments)], t.pending()...)
			if err := l.add(&r); err != nil {
				return err
			}
		}
	}
	now := bootTime()
	if err := l.add(&trace.Record{
		Type: trace.Stats, ABI: l.native, Begin: now, End: now, N: 5, Args: [6]uint64{1: l.made + 1, 3: l.unreadable},
	}); err != nil {
		return err
	}
	return errors.Join(l.enc.Flush(), l.say(msgFlushed, nil))
}

// attach stops a process, makes it a tracee and lets it go on.
func (l *loop) attach(pid uint32) error {
	if err := unix.PtraceSeize(int(pid)); err != nil {
		return fmt.Errorf("seize process %d: %w", pid, err)
	}
	if err := unix.PtraceInterrupt(int(pid)); err != nil {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	var st syscall.WaitStatus
	for {
		_, err := syscall.Wait4(int(pid), &st, unix.WALL, nil)
		if err == nil {
			break
		}
		if err != syscall.EINTR {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
	}
	if !st.Stopped() {
		return fmt.Errorf("process %d has ended", pid)
	}
	if err := unix.PtraceSetOptions(int(pid), options); err != nil {
		return fmt.Errorf("follow process %d: %w", pid, err)
	}
	t := &task{tid: pid, tgid: pid, armed: true, resting: true}
	l.tasks[pid] = t
	l.process(pid).threads++
	return l.goOn(pid, 0)
}

func (l *loop) process(tgid uint32) *process {
	p := l.processes[tgid]
	if p == nil {
		p = &process{}
		l.processes[tgid] = p
	}
	return p
}

// goOn lets a tracee run to its next stop. One that is gone is no error.
func (l *loop) goOn(tid uint32, signal int) error {
	if err := unix.PtraceSyscall(int(tid), signal); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("continue task %d: %w", tid, err)
	}
	return nil
}

// drain handles the stops that there are, and reports whether there may be more.
func (l *loop) drain() (more bool, _ error) {
	for {
		var st syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &st, unix.WALL|unix.WNOHANG, nil)
		switch {
		case err == syscall.EINTR:
		case err == syscall.ECHILD:
			return false, nil
		case err != nil:
			return false, fmt.Errorf("wait for the sample: %w", err)
		case pid == 0:
			return true, nil
		default:
			if err := l.stop(uint32(pid), st); err != nil {
				return false, err
			}
		}
	}
}

const (
	sigSyscall = syscall.SIGTRAP | 0x80
	// eventStop is PTRACE_EVENT_STOP.
	eventStop = 128
)

// stop handles one stop or end of a tracee.
func (l *loop) stop(tid uint32, st syscall.WaitStatus) error {
	if st.Exited() || st.Signaled() {
		return l.gone(tid, uint32(st))
	}
	if !st.Stopped() {
		return nil
	}
	t, event := l.tasks[tid], int(uint32(st))>>16
	if t == nil && event == unix.PTRACE_EVENT_EXEC {
		t = l.reappeared(tid)
	}
	if t == nil { // its parent's stop comes later, and is to be told of before
		l.adopt(tid).held = true
		return nil
	}
	signal := 0
	var err error
	switch {
	case st.StopSignal() == sigSyscall:
		err = l.atCall(t)
	case event == unix.PTRACE_EVENT_FORK || event == unix.PTRACE_EVENT_VFORK || event == unix.PTRACE_EVENT_CLONE:
		err = l.forked(t)
	case event == unix.PTRACE_EVENT_EXEC:
		err = l.executed(t)
	case event == unix.PTRACE_EVENT_EXIT:
		err = l.exiting(t)
	case event == eventStop:
		switch st.StopSignal() {
		case unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU:
			// It stays stopped, as it would untraced, until SIGCONT.
			_, _, _ = syscall.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_LISTEN, uintptr(tid), 0, 0, 0, 0)
			return nil
		}
	default:
		signal = int(st.StopSignal())
	}
	return errors.Join(err, l.goOn(tid, signal))
}

func (l *loop) add(r *trace.Record) error {
	l.made++
	return l.enc.Add(r)
}

// who tells whose a record is.
func (l *loop) who(tid uint32) trace.Identity {
	t := l.tasks[tid]
	if t == nil {
		return trace.Identity{}
	}
	return trace.Identity{TGID: t.tgid, NSTID: t.nsTID, NSPID: t.nsID, Start: t.start}
}

// callInfo is struct ptrace_syscall_info; what follows ip and sp depends on op.
type callInfo struct {
	op   uint8
	_    [3]uint8
	arch uint32
	ip   uint64
	sp   uint64
	v    [8]uint64
}

const (
	opEntry        = 1
	opExit         = 2
	getSyscallInfo = 0x420e
)

// atCall handles the beginning or the end of a call.
func (l *loop) atCall(t *task) error {
	var info callInfo
	_, _, errno := syscall.RawSyscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(t.tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno == syscall.ESRCH {
		return nil
	}
	if errno != 0 {
		return fmt.Errorf("look at a call of task %d: %w", t.tid, errno)
	}
	switch {
	case t.armed:
	case info.op == opEntry:
		t.resting = false
		return l.begins(t, &info)
	case info.op == opExit && t.resting:
		t.resting = false
	case info.op == opExit && t.open:
		return l.ends(t, resultOf(t.rec.ABI, info.v[0]))
	}
	return nil
}

func (l *loop) begins(t *task, info *callInfo) error {
	t.rec = trace.Record{
		Type: trace.Syscall, ABI: abiOf(info.arch, info.v[0]), TID: t.tid, Call: uint32(info.v[0]),
		Begin: bootTime(), IP: info.ip, Args: [6]uint64(info.v[1:7]), Attachments: nil,
	}
	t.open, t.entered, t.retry = true, false, [6]bool{}
	t.demux()
	d := t.rec.Describe()
	t.rec.N = uint8(len(d.Args))
	clear(t.rec.Args[t.rec.N:])
	t.captureIn()
	if d.Name == "exit_group" {
		l.process(t.tgid).group = true
	}
	if !d.Entry {
		return nil
	}
	t.entered = true
	r := t.rec
	r.Flags |= trace.Entry
	r.Attachments = append(r.Attachments[:len(r.Attachments):len(r.Attachments)], t.pending()...)
	return l.add(&r)
}

func (l *loop) ends(t *task, result int64) error {
	t.open = false
	t.rec.Result, t.rec.End = result, bootTime()
	if t.entered {
		t.rec.Flags |= trace.Continued
		t.rec.Attachments = nil
	}
	l.unreadable += t.captureOut()
	return l.add(&t.rec)
}

// resultOf makes 64 bits of a result: errors are negative, addresses are not.
func resultOf(abi sysno.ABI, v uint64) int64 {
	if abi.Word() == 4 && abi != sysno.X32 && int64(v) < -sysno.MaxErrno {
		return int64(uint32(v))
	}
	return int64(v)
}

func bootTime() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return uint64(ts.Nano())
}
