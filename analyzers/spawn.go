// SPDX-License-Identifier: Apache-2.0

package analyzers

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/analyzers/internal/jail"
)

const (
	// probeTimeout bounds the first start of a child. It is long because the
	// program may have to be read from a slow disk.
	probeTimeout = 20 * time.Second
	// killGrace is how much longer than its own deadline a child lives, which runs
	// from when it has started to work.
	killGrace = 5 * time.Second
	// exitGrace is how long a child may take to exit after its last word.
	exitGrace = 2 * time.Second
	// maxStderr is how much of what a child prints is kept.
	maxStderr = 16 << 10
)

// spawner starts children.
type spawner struct {
	level  jail.Level
	status jail.Status // of the child that was tried
	empty  *os.File    // a directory that has been removed, for them to be in
}

// newSpawner finds the strongest level that is permitted here by trying it.
func newSpawner(ctx context.Context, dir string) (*spawner, error) {
	name, err := os.MkdirTemp(dir, "petri-empty-")
	if err != nil {
		return nil, fmt.Errorf("make empty directory: %w", err)
	}
	empty, err := os.Open(name)
	if err := errors.Join(err, os.Remove(name)); err != nil {
		return nil, fmt.Errorf("make empty directory: %w", err)
	}
	s := &spawner{empty: empty}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var tried []error
	for _, s.level = range jail.Levels() {
		a, err := s.run(ctx, request{Threads: 1, Events: -1, Jail: jail.Limits{Memory: 64 << 20, CPU: probeTimeout, Files: 16}}, nil, nil)
		if err == nil && a.status == "" {
			s.status = a.jail
			s.status.Network = s.status.Network || s.level.Network()
			return s, nil
		}
		if err == nil {
			err = errors.New(a.err)
		}
		tried = append(tried, fmt.Errorf("with %s: %w", s.level, err))
	}
	empty.Close()
	return nil, fmt.Errorf("start a child (its main must call analyzers.Child first): %w", errors.Join(tried...))
}

func (s *spawner) close() { s.empty.Close() }

// run starts a child, gives it the request and the files, and returns what it
// answers. An error says that it could not be tried, or that ctx was
// cancelled; whatever the child does is an answer. When run returns, no
// process of the child is left.
func (s *spawner) run(ctx context.Context, req request, files []*os.File, store put) (answer, error) {
	c, err := s.start(req, files)
	if err != nil {
		return answer{}, err
	}
	defer c.close()
	if req.Deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, req.Deadline.D()+killGrace, errDeadline)
		defer cancel()
	}
	stop := context.AfterFunc(ctx, c.kill)
	a, said := readAnswer(ctx, bufio.NewReaderSize(c.out, dataSize), req.Limits, store)
	if said != nil && !errors.Is(said, io.EOF) {
		c.kill() // garbage, or nothing more to be heard from it
	}
	state, stderr := c.wait()
	stop()
	var up *uploadError
	switch {
	case said == nil:
		a.printed = stderr
		return a, nil
	case context.Cause(ctx) == errDeadline:
		return failed("%s; the analyzer was killed", deadlineText(req.Deadline.D())), nil
	case ctx.Err() != nil:
		return answer{}, ctx.Err()
	case errors.As(said, &up):
		return answer{}, up
	case errors.Is(said, errGarbage):
		return failed("the analyzer's process wrote %v", said), nil
	case req.Analyzer == "" && errors.Is(said, io.EOF) && state.Success() && a.jail != (jail.Status{}):
		return a, nil
	}
	return failed("%s", death(state, stderr, req)), nil
}

var errDeadline = errors.New("deadline")

// death says why a child ended without an answer.
func death(state *os.ProcessState, stderr string, req request) string {
	first, _, _ := strings.Cut(strings.TrimSpace(stderr), "\n")
	memory := fmt.Sprintf("memory limit of %d MiB exceeded", req.Jail.Memory>>20)
	ws, _ := state.Sys().(syscall.WaitStatus)
	switch {
	case strings.Contains(stderr, "out of memory"), strings.Contains(stderr, "cannot allocate memory"), strings.Contains(stderr, "pthread_create failed"),
		// Go's runtime does not survive every allocation that fails.
		strings.HasPrefix(first, "SIGSEGV: ") && maxRSS(state) > req.Jail.Memory/2:
		return memory
	case strings.Contains(stderr, "SIGXCPU"), ws.Signaled() && ws.Signal() == syscall.SIGXCPU:
		return fmt.Sprintf("CPU time limit of %v exceeded", req.Jail.CPU)
	case strings.HasPrefix(first, "panic: "), strings.HasPrefix(first, "fatal error: "):
		return first
	case ws.Signaled():
		return fmt.Sprintf("the analyzer's process was killed by %s", unix.SignalName(ws.Signal()))
	case first != "":
		return fmt.Sprintf("the analyzer's process ended without an answer (%v): %s", state, first)
	}
	return fmt.Sprintf("the analyzer's process ended without an answer (%v)", state)
}

// maxRSS is the most memory that a process had, in bytes.
func maxRSS(state *os.ProcessState) int64 {
	ru, ok := state.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0
	}
	return ru.Maxrss << 10
}

// process is a child.
type process struct {
	cmd    *exec.Cmd
	in     *os.File // its request
	out    *os.File // its frames
	errs   *os.File // what it prints
	wg     sync.WaitGroup
	mu     sync.Mutex
	stderr []byte
	reaped bool
}

func (s *spawner) start(req request, files []*os.File) (*process, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	var ends [3][2]*os.File
	for i := range ends {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(ends[0][0], ends[0][1], ends[1][0], ends[1][1])
			return nil, fmt.Errorf("make pipe: %w", err)
		}
		ends[i] = [2]*os.File{r, w}
	}
	in, out, errs := ends[0], ends[1], ends[2]
	c := &process{in: in[1], out: out[0], errs: errs[0]}
	c.cmd = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{"petri-analyzer:" + req.Analyzer, childArg}, Env: jail.Env(),
		Dir:   fmt.Sprintf("/proc/self/fd/%d", s.empty.Fd()),
		Stdin: in[0], Stdout: errs[1], Stderr: errs[1], // a library that prints does not write frames
		ExtraFiles:  append([]*os.File{out[1]}, files...),
		SysProcAttr: s.level.Attr(req.Jail.Network),
	}
	err = c.cmd.Start()
	closeAll(in[0], out[1], errs[1])
	if err != nil {
		closeAll(in[1], out[0], errs[0])
		return nil, fmt.Errorf("start child: %w", err)
	}
	c.wg.Go(func() {
		c.in.Write(body) // if it fails, the child is dead, which is seen elsewhere
		c.in.Close()
	})
	c.wg.Go(func() {
		head, _ := io.ReadAll(io.LimitReader(c.errs, maxStderr))
		c.mu.Lock()
		c.stderr = head
		c.mu.Unlock()
		io.Copy(io.Discard, c.errs)
	})
	return c, nil
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// kill ends the child's process group, and everything that waits for it.
func (c *process) kill() {
	c.mu.Lock()
	if !c.reaped { // else the id may be someone else's
		syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
	}
	c.mu.Unlock()
	// Normally the death of the child closes the other ends.
	past := time.Now().Add(exitGrace)
	c.in.SetDeadline(past)
	c.out.SetDeadline(past)
	c.errs.SetDeadline(past)
}

// wait waits for the child's end, which is near: its output is closed, or it
// was killed.
func (c *process) wait() (*os.ProcessState, string) {
	timer := time.AfterFunc(exitGrace, c.kill)
	for {
		// Not reaped yet: the id stays its own while the group is killed.
		err := unix.Waitid(unix.P_PID, c.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			break
		}
	}
	timer.Stop()
	c.kill()
	c.mu.Lock()
	c.cmd.Wait()
	c.reaped = true
	c.mu.Unlock()
	c.wg.Wait()
	return c.cmd.ProcessState, string(c.stderr)
}

func (c *process) close() { closeAll(c.in, c.out, c.errs) }
