// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// process is one running QEMU. It dies with the program that started it.
type process struct {
	cmd    *exec.Cmd
	stderr tail
	done   chan struct{} // closed when it has been reaped
	err    error         // valid once done is closed
}

// startProcess starts binary with the given inherited files.
func startProcess(binary string, args []string, files []*os.File) (*process, error) {
	p := &process{done: make(chan struct{})}
	p.cmd = exec.Command(binary, args...)
	p.cmd.ExtraFiles = files
	p.cmd.Stderr = &p.stderr
	p.cmd.Dir = "/"
	p.cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		// The death signal comes when the *thread* that started the child
		// ends, so the thread stays until the child has gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	return p, nil
}

// kill ends the process and returns when it is gone.
func (p *process) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// cause says how the process ended, for people. It is called once done is
// closed.
func (p *process) cause() string {
	s := "exited"
	if p.err != nil {
		s = p.err.Error()
	}
	if t := p.stderr.String(); t != "" {
		s += ": " + t
	}
	return s
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
