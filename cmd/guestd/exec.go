// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
)

// maxExecOutput bounds what is kept of each of a command's two outputs.
const maxExecOutput = 16 << 10

// exec runs a command in the container, beside the sample and outside of its
// cgroup, and waits for it. The sample may have replaced whatever is run: once
// there is a sample that is recorded, so is this.
func (a *agent) exec(ctx context.Context, e machine.Exec) (any, error) {
	if len(e.Command) == 0 {
		return nil, errors.New("no command")
	}
	if a.box.gone() {
		return nil, errors.New("the container has gone down: the sample rebooted it")
	}
	var out, errOut clipped
	var wg sync.WaitGroup
	readers, writers, err := pipes(2)
	if err != nil {
		return nil, err
	}
	for i, into := range []*clipped{&out, &errOut} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer readers[i].Close()
			_, _ = readers[i].WriteTo(into)
		}()
	}
	pid, err := a.forkExec(e.Command, writers)
	for _, w := range writers {
		w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("run %s in the guest: %w", e.Command[0], err)
	}
	timer := time.AfterFunc(e.Timeout, func() { _ = syscall.Kill(-pid, syscall.SIGKILL) })
	defer timer.Stop()
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-pid, syscall.SIGKILL) })
	defer stop()
	var st syscall.WaitStatus
	if err := wait(pid, &st); err != nil {
		return nil, err
	}
	// A child in the background may hold the pipes open for ever.
	for _, r := range readers {
		_ = r.SetReadDeadline(time.Now().Add(time.Second))
	}
	wg.Wait()
	res := schemas.Exec{Command: e.Command, ExitCode: st.ExitStatus(), Stdout: out.String(), Stderr: errOut.String(), Cut: out.cut + errOut.cut}
	if st.Signaled() {
		res.Signal = unix.SignalName(st.Signal())
	}
	return res, fit(&res)
}

// fit cuts output until it fits into an answer: as JSON, a byte that is no
// text takes six.
func fit(res *schemas.Exec) error {
	for {
		b, err := json.Marshal(res)
		if err != nil || len(b) <= wire.MaxPayload*3/4 || len(res.Stdout)+len(res.Stderr) == 0 {
			return err
		}
		for _, s := range []*string{&res.Stdout, &res.Stderr} {
			keep := len(strings.ToValidUTF8((*s)[:len(*s)/2], ""))
			res.Cut += int64(len(*s) - keep)
			*s = (*s)[:keep]
		}
	}
}

func (a *agent) forkExec(argv []string, out []*os.File) (int, error) {
	u := user{name: "root", home: "/root"}
	var path string
	err := a.box.do(func() (err error) {
		path, err = lookPath(argv[0])
		return err
	})
	if err != nil {
		return 0, err
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		return 0, err
	}
	defer null.Close()
	cmd := command{
		path: path, argv: argv, env: environment(u, nil), dir: "/", user: u, files: [3]*os.File{null, out[0], out[1]},
	}
	a.mu.Lock()
	followed := a.followed
	a.mu.Unlock()
	if followed {
		if err := a.follow(&cmd); err != nil {
			return 0, err
		}
	}
	return a.box.spawn(cmd)
}

// lookPath finds a command as a shell in the container would.
func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, d := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		if p := filepath.Join(d, name); isFile(p) {
			return p, nil
		}
	}
	return "", unix.ENOENT
}

func pipes(n int) (readers, writers []*os.File, err error) {
	for range n {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, nil, err
		}
		readers, writers = append(readers, r), append(writers, w)
	}
	return readers, writers, nil
}

// clipped keeps the first bytes that are written to it.
type clipped struct {
	b   bytes.Buffer
	cut int64
}

func (c *clipped) Write(p []byte) (int, error) {
	keep := p[:min(len(p), maxExecOutput-c.b.Len())]
	c.b.Write(keep)
	c.cut += int64(len(p) - len(keep))
	return len(p), nil
}

func (c *clipped) String() string { return strings.ToValidUTF8(c.b.String(), "\ufffd") }
