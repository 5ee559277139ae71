// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// command is a program to start inside the container.
type command struct {
	path   string
	argv   []string
	env    []string
	dir    string
	user   user
	files  [3]*os.File // standard input, output and error
	status *os.File    // descriptor 3, of a runner; nil: it has none
	cgroup *os.File    // nil: the agent's
	// attach, if set, is called with the child's number before it executes
	// the program.
	attach func(pid int) error
}

// spawn forks and execs inside the container and returns the child's number in
// the agent's process namespace, once the kernel has exec'd it.
//
// [syscall.ForkExec] would do, but for the time namespace: a child may not
// share its parent's memory and live in another time namespace (Linux 6.1,
// copy_process), and ForkExec's children share it until they exec.
func (c *container) spawn(cmd command) (pid int, err error) {
	f, err := newForker(cmd)
	if err != nil {
		return 0, err
	}
	defer f.close()
	err = c.do(func() error {
		pid, err = f.fork()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("fork: %w", err)
	}
	if cmd.attach != nil {
		err = cmd.attach(pid)
		if err == nil {
			_, err = f.gate.Write([]byte{0})
		}
		if err != nil {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	if err := errors.Join(err, f.result()); err != nil {
		var st syscall.WaitStatus
		_ = wait(pid, &st)
		return 0, err
	}
	return pid, nil
}

// wait reaps a child of the agent.
func wait(pid int, st *syscall.WaitStatus) error {
	for {
		_, err := syscall.Wait4(pid, st, 0, nil)
		if err != syscall.EINTR {
			return err
		}
	}
}

// forker holds everything that the child needs, so that it allocates nothing.
type forker struct {
	path, dir  *byte
	oomPath    *byte // takes the child's badness
	oomText    [1]byte
	atCWD      int
	argv, envv []*byte
	fds        [4]int
	nfds       int
	uid, gid   uint32
	clone      cloneArgs
	parentEnd  *os.File // of a pipe that carries the child's errno
	childEnd   *os.File
	childFD    int
	gateEnd    *os.File // of a pipe that the child reads a byte from first; nil: it does not
	gate       *os.File
	gateFD     int                    // or -1
	empty      [sigsetSize / 8]uint64 // the signal mask that the command starts with
}

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags, pidFD, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

func newForker(cmd command) (*forker, error) {
	f := &forker{gateFD: -1, uid: cmd.user.uid, gid: cmd.user.gid, oomText: [1]byte{'0'}, atCWD: unix.AT_FDCWD}
	var err error
	if f.oomPath, err = unix.BytePtrFromString("/proc/self/oom_score_adj"); err != nil {
		return nil, err
	}
	if f.path, err = unix.BytePtrFromString(cmd.path); err != nil {
		return nil, err
	}
	if f.dir, err = unix.BytePtrFromString(cmd.dir); err != nil {
		return nil, err
	}
	if f.argv, err = syscall.SlicePtrFromStrings(cmd.argv); err != nil {
		return nil, err
	}
	if f.envv, err = syscall.SlicePtrFromStrings(cmd.env); err != nil {
		return nil, err
	}
	for i, file := range cmd.files {
		f.fds[i] = int(file.Fd())
	}
	if f.nfds = len(cmd.files); cmd.status != nil {
		f.fds[f.nfds] = int(cmd.status.Fd())
		f.nfds++
	}
	f.clone.exitSignal = uint64(unix.SIGCHLD)
	if cmd.cgroup != nil {
		f.clone.flags |= unix.CLONE_INTO_CGROUP
		f.clone.cgroup = uint64(cmd.cgroup.Fd())
	}
	if f.parentEnd, f.childEnd, err = os.Pipe(); err != nil {
		return nil, err
	}
	if f.childFD = int(f.childEnd.Fd()); f.childFD < len(f.fds) {
		f.close() // the command would take its place
		return nil, fmt.Errorf("descriptor %d is not one to keep", f.childFD)
	}
	if cmd.attach != nil {
		if f.gateEnd, f.gate, err = os.Pipe(); err != nil {
			f.close()
			return nil, err
		}
		f.gateFD = int(f.gateEnd.Fd())
	}
	return f, nil
}

// fork is called on the thread inside the container.
func (f *forker) fork() (int, error) { return undisturbed(f.forkAndExec) }

// undisturbed forks with all signals blocked, so that no handler of the Go
// runtime runs in the child.
func undisturbed(fork func() (uintptr, syscall.Errno)) (int, error) {
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		return 0, err
	}
	pid, errno := fork()
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); err != nil {
		return 0, err
	}
	if errno != 0 {
		return 0, errno
	}
	return int(pid), nil
}

// forkAndExec is, in the child, a straight line of raw system calls: it has
// one thread, and of Go's runtime nothing works any more.
//
//go:noinline
//go:norace
//go:nosplit
func (f *forker) forkAndExec() (pid uintptr, errno syscall.Errno) {
	pid, _, errno = syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&f.clone)), unsafe.Sizeof(f.clone), 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); errno != 0 {
		goto fail
	}
	for i := 0; i < f.nfds; i++ {
		// The sources are all above 3: the agent's own 0 to 2 are its console,
		// and 3 is its port's or the runtime's.
		if _, _, errno = syscall.RawSyscall(unix.SYS_DUP3, uintptr(f.fds[i]), uintptr(i), 0); errno != 0 {
			goto fail
		}
	}
	// The agent can't be killed for want of memory, and what it starts would
	// inherit that, to be seen and to take the guest's last page. A sample that
	// has hidden the file from later commands fails nothing by it.
	if pid, _, errno = syscall.RawSyscall6(unix.SYS_OPENAT, uintptr(f.atCWD), uintptr(unsafe.Pointer(f.oomPath)), unix.O_WRONLY|unix.O_CLOEXEC, 0, 0, 0); errno == 0 {
		syscall.RawSyscall(unix.SYS_WRITE, pid, uintptr(unsafe.Pointer(&f.oomText[0])), 1)
		syscall.RawSyscall(unix.SYS_CLOSE, pid, 0, 0)
	}
	if _, _, errno = syscall.RawSyscall(sysSetgroups, 0, 0, 0); errno != 0 {
		goto fail
	}
	if _, _, errno = syscall.RawSyscall(sysSetgid, uintptr(f.gid), 0, 0); errno != 0 {
		goto fail
	}
	if _, _, errno = syscall.RawSyscall(sysSetuid, uintptr(f.uid), 0, 0); errno != 0 {
		goto fail
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(f.dir)), 0, 0); errno != 0 {
		goto fail
	}
	if f.gateFD >= 0 {
		if _, _, errno = syscall.RawSyscall(unix.SYS_READ, uintptr(f.gateFD), uintptr(unsafe.Pointer(&f.oomText[0])), 1); errno != 0 {
			goto fail
		}
	}
	if _, _, errno = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&f.empty)), 0, sigsetSize, 0, 0); errno != 0 {
		goto fail
	}
	_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(f.path)),
		uintptr(unsafe.Pointer(&f.argv[0])), uintptr(unsafe.Pointer(&f.envv[0])))
fail:
	f.empty[0] = uint64(errno)
	syscall.RawSyscall(unix.SYS_WRITE, uintptr(f.childFD), uintptr(unsafe.Pointer(&f.empty)), 8)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 253, 0, 0)
	}
}

// writeFromChild writes to a file of the container as a process inside it would:
// some mean the process namespace of whoever writes.
func (c *container) writeFromChild(path, text string) error {
	w := &childWriter{text: []byte(text), clone: cloneArgs{exitSignal: uint64(unix.SIGCHLD)}}
	var err error
	if w.path, err = unix.BytePtrFromString(path); err != nil {
		return err
	}
	var pid int
	if err := c.do(func() error {
		pid, err = undisturbed(w.forkAndWrite)
		return err
	}); err != nil {
		return fmt.Errorf("fork: %w", err)
	}
	var st syscall.WaitStatus
	if err := wait(pid, &st); err != nil {
		return err
	}
	if n := st.ExitStatus(); n != 0 {
		return &os.PathError{Op: "write", Path: path, Err: syscall.Errno(n)}
	}
	return nil
}

type childWriter struct {
	path  *byte
	text  []byte // not empty
	clone cloneArgs
}

// forkAndWrite is as bound as [forker.forkAndExec]. The child's exit status is
// the errno.
//
//go:noinline
//go:norace
//go:nosplit
func (w *childWriter) forkAndWrite() (pid uintptr, errno syscall.Errno) {
	const atFDCWD = ^uintptr(99) // AT_FDCWD, -100
	pid, _, errno = syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&w.clone)), unsafe.Sizeof(w.clone), 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	fd, _, errno := syscall.RawSyscall6(unix.SYS_OPENAT, atFDCWD, uintptr(unsafe.Pointer(w.path)), unix.O_WRONLY, 0, 0, 0)
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&w.text[0])), uintptr(len(w.text)))
	}
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(errno), 0, 0)
	}
}

// result waits for the child's exec, which closes its end of the pipe, or for
// the errno of what failed before.
func (f *forker) result() error {
	f.childEnd.Close()
	b, err := io.ReadAll(io.LimitReader(f.parentEnd, 8))
	if err != nil {
		return err
	}
	if len(b) == 8 {
		return syscall.Errno(binary.NativeEndian.Uint64(b))
	}
	return nil
}

func (f *forker) close() {
	f.childEnd.Close()
	f.parentEnd.Close()
	if f.gate != nil {
		f.gateEnd.Close()
		f.gate.Close()
	}
}
