// SPDX-License-Identifier: Apache-2.0

// Package child starts processes that die with their parent, and keeps the last
// of what they said.
package child

import (
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// A Process is a running child.
type Process struct {
	cmd    *exec.Cmd
	stderr tail
	done   chan struct{} // closed when it has been reaped
	err    error         // valid once done is closed
	killed atomic.Bool   // by Kill
}

// Start starts cmd in a process group of its own; it is killed when this program
// dies. What cmd leaves open is closed: the environment has no more than a
// path, the directory is the root. Standard error is kept, and copied to
// cmd.Stderr if that is set, which must stay open until the process has ended.
// cmd's SysProcAttr may hold more.
func Start(cmd *exec.Cmd) (*Process, error) {
	p := &Process{cmd: cmd, done: make(chan struct{})}
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	if cmd.Env == nil {
		cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	}
	if cmd.Stderr != nil {
		cmd.Stderr = tee{&p.stderr, cmd.Stderr}
	} else {
		cmd.Stderr = &p.stderr
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr.Setpgid = true
	started := make(chan error)
	go func() {
		// The death signal comes when the thread that forked ends, so it
		// stays until the child has gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ended reports whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Signal sends a signal to the process, not to its group.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// PID is the process' number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends the process' group and returns when the process is gone.
func (p *Process) Kill() {
	p.killed.Store(true)
	if !p.Ended() { // else its number may be another's
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
	<-p.done
}

// Failed reports whether the process, which must have ended, did so by a signal or
// with an error, and not because of [Process.Kill].
func (p *Process) Failed() bool { return p.err != nil && !p.killed.Load() }

// Stderr is the last of what the process wrote to standard error.
func (p *Process) Stderr() string { return p.stderr.String() }

// Cause says how the process, which must have ended, did so, and what it said last.
func (p *Process) Cause() string {
	s := p.Ending()
	if t := p.stderr.String(); t != "" {
		s += ": " + t
	}
	return s
}

// Ending says in a few words how the process, which must have ended, did so.
func (p *Process) Ending() string {
	if p.err != nil {
		return "ended: " + p.err.Error()
	}
	return "exited"
}

// LastWords is the line of what the process said last that tells why it ended:
// a panic's first, or the last, unless that reports the course of things. It may
// be empty.
func (p *Process) LastWords() string { return lastWords(p.stderr.String()) }

func lastWords(said string) string {
	last, crash := "", ""
	for line := range strings.Lines(said) {
		line = strings.TrimRight(line, " \r\n")
		switch {
		case crash == "" && (strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ")):
			crash = line
		case line != "":
			last = line
		}
	}
	switch {
	case crash != "":
		return crash
	case strings.HasPrefix(last, "\t"): // of a stack whose beginning is too far back
		return ""
	case strings.Contains(last, " level=INFO ") || strings.Contains(last, " level=DEBUG "):
		return ""
	}
	return last
}

// SocketPair returns a connected pair: our end, and one to inherit.
func SocketPair() (*net.UnixConn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "socket")
	ours, err := Conn(fds[0])
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// Conn makes a connection of a descriptor that is a Unix socket, and takes it
// over.
func Conn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, net.UnknownNetworkError(c.RemoteAddr().Network())
	}
	return u, nil
}

// tee writes to both. The second may fail, as a log on a full disk does: an
// error would break the child's pipe, and with it the child.
type tee struct {
	kept *tail
	copy io.Writer
}

func (t tee) Write(p []byte) (int, error) {
	_, _ = t.copy.Write(p)
	return t.kept.Write(p)
}

// tail keeps the last bytes that were written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailLen = 2 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[max(0, len(p)-tailLen):]...)
	t.b = t.b[max(0, len(t.b)-tailLen):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}
