// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command traceinit is PID 1 of the guests that test package tracer. It reads
// requests, a JSON line each, from its virtio port and answers in frames: a
// type, a little-endian length, and that many bytes.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/cmd/guestd/ptracer"
	"github.com/petri-sandbox/petri/cmd/guestd/tracer"
)

type request struct {
	Op      string        `json:"op"` // load, run, unload, calibrate or off
	Argv    []string      `json:"argv"`
	Arm     bool          `json:"arm"`
	PIDNS   bool          `json:"pidns"`
	Timeout time.Duration `json:"timeout"` // of the whole tree; then it is flushed and killed
	Ring    int           `json:"ring"`
	Slow    time.Duration `json:"slow"` // per block
	// Calibrate says to find the kernel's offsets out although they are there.
	Calibrate bool `json:"calibrate"`
	PTrace    bool `json:"ptrace"` // trace by package ptracer
}

type result struct {
	Error   string            `json:"error,omitempty"`
	Took    time.Duration     `json:"took"`
	Drain   time.Duration     `json:"drain"` // of the flush
	Status  int               `json:"status"`
	PID     int               `json:"pid"`
	Stats   []tracer.CPUStats `json:"stats,omitempty"`
	Clock   string            `json:"clock,omitempty"`
	Offsets map[string]uint32 `json:"offsets,omitempty"`
	TimeOut bool              `json:"timeout"`
}

type guest struct {
	mu     sync.Mutex
	port   *os.File
	in     *bufio.Reader
	tracer recorder
	stop   context.CancelFunc
	done   chan error
	slow   time.Duration
	buf    []byte
}

// recorder is package tracer's or ptracer's.
type recorder interface {
	Run(ctx context.Context, emit func(block []byte) error) error
	Flush(ctx context.Context) error
	Close() error
}

// stageName is what a child calls itself that waits to be attached to before it
// executes what its arguments say.
const stageName = "traceinit-stage"

// ptrace is about threads: a stage's only one is to be its first.
func init() {
	if os.Args[0] == stageName {
		runtime.LockOSThread()
	}
}

func stage() {
	gate := os.NewFile(3, "gate")
	_, _ = gate.Read(make([]byte, 1))
	gate.Close()
	fmt.Fprintln(os.Stderr, syscall.Exec(os.Args[1], os.Args[1:], os.Environ()))
	os.Exit(127)
}

func main() {
	tracer.Calibrating()
	ptracer.Main()
	if os.Args[0] == stageName {
		stage()
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "traceinit:", err)
		time.Sleep(time.Second)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	g, err := boot()
	if err != nil {
		return err
	}
	for {
		line, err := g.in.ReadBytes('\n')
		if err == io.EOF {
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			return err
		}
		var req request
		if err := json.Unmarshal(line, &req); err != nil {
			return err
		}
		var res result
		start := time.Now()
		switch req.Op {
		case "load":
			err = g.load(req)
		case "unload":
			g.stop()
			err = <-g.done
			if err == nil {
				err = g.tracer.Close()
			}
			g.tracer = nil
		case "run":
			res, err = g.exec(req)
		case "calibrate":
			res.Offsets, err = tracer.Calibrate()
		case "off":
			return nil
		}
		if res.Took == 0 {
			res.Took = time.Since(start)
		}
		if err != nil {
			res.Error = err.Error()
		}
		b, _ := json.Marshal(res)
		g.frame('r', b)
	}
}

func boot() (*guest, error) {
	for _, m := range []struct{ source, target, fstype string }{
		{"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}, {"devtmpfs", "/dev", "devtmpfs"},
		{"proc", "/rom/proc", "proc"}, {"devtmpfs", "/rom/dev", "devtmpfs"}, {"tmpfs", "/rom/tmp", "tmpfs"},
	} {
		_ = os.MkdirAll(m.target, 0o755)
		if err := unix.Mount(m.source, m.target, m.fstype, 0, ""); err != nil && err != unix.EBUSY {
			return nil, fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	files, _ := filepath.Glob("/modules/*.ko")
	sort.Strings(files)
	for _, f := range files {
		m, err := os.Open(f)
		if err != nil {
			return nil, err
		}
		_ = unix.FinitModule(int(m.Fd()), "", 0)
		m.Close()
	}
	for range 2000 {
		if names, _ := filepath.Glob("/dev/vport*p*"); len(names) > 0 {
			fd, err := unix.Open(names[0], unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err == unix.ENXIO {
				time.Sleep(2 * time.Millisecond)
				continue // the port is not ready yet
			}
			if err != nil {
				return nil, err
			}
			p := os.NewFile(uintptr(fd), names[0])
			return &guest{port: p, in: bufio.NewReader(p)}, nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return nil, fmt.Errorf("no port")
}

func (g *guest) frame(typ byte, b []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.buf = binary.LittleEndian.AppendUint32(append(g.buf[:0], typ), uint32(len(b)))
	g.buf = append(g.buf, b...)
	_, _ = g.port.Write(g.buf)
}

func (g *guest) load(req request) error {
	off, err := os.ReadFile("/tracer.json")
	if req.Calibrate || errors.Is(err, fs.ErrNotExist) {
		off, err = nil, nil
	}
	if err != nil {
		return err
	}
	g.tracer = nil
	if req.PTrace {
		t, err := ptracer.Start()
		if err != nil {
			return err
		}
		g.tracer = t
	} else {
		t, err := tracer.Load(tracer.Config{Offsets: off, Ring: req.Ring})
		if err != nil {
			return fmt.Errorf("%+v", err)
		}
		g.tracer = t
	}
	g.slow = req.Slow
	ctx, stop := context.WithCancel(context.Background())
	g.stop, g.done = stop, make(chan error, 1)
	go func() {
		g.done <- g.tracer.Run(ctx, func(b []byte) error {
			if g.slow > 0 {
				time.Sleep(g.slow)
			}
			if g.slow >= 0 {
				g.frame('t', b)
			}
			return nil
		})
	}()
	return nil
}

// alone reports whether only the process of package ptracer is left.
func (g *guest) alone() bool {
	if _, ok := g.tracer.(*ptracer.Tracer); !ok {
		return false
	}
	// A thread that ends leaves its children to another one, which may have been
	// looked at before or not yet.
	children := map[string]bool{}
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		b, _ := os.ReadFile(list)
		for _, pid := range strings.Fields(string(b)) {
			children[pid] = true
		}
	}
	return len(children) <= 1
}

// exec runs a program and waits for all that descend from it.
func (g *guest) exec(req request) (result, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var res result
	out, err := os.OpenFile("/out", os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return res, err
	}
	defer out.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		return res, err
	}
	defer null.Close()
	attr := &syscall.ProcAttr{
		Dir: "/root", Env: []string{"PATH=/usr/bin:/usr/sbin", "HOME=/root"}, Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
		Sys: &syscall.SysProcAttr{Chroot: "/rom", Setsid: true},
	}
	if req.PIDNS {
		attr.Sys.Cloneflags = syscall.CLONE_NEWPID
	}
	path, argv, start := req.Argv[0], req.Argv, time.Now()
	attach := func() error { return nil }
	if req.Arm {
		switch t := g.tracer.(type) {
		case *tracer.Tracer:
			if err := t.Arm(unix.Gettid()); err != nil {
				return res, err
			}
			defer t.Disarm(unix.Gettid())
		case *ptracer.Tracer:
			r, w, err := os.Pipe()
			if err != nil {
				return res, err
			}
			defer r.Close()
			defer w.Close()
			attr.Files = append(attr.Files, r.Fd())
			path, argv = "/proc/self/exe", append([]string{stageName}, req.Argv...)
			attach = func() error {
				err := t.Attach(context.Background(), res.PID)
				_, _ = w.Write([]byte{0})
				return err
			}
		}
	}
	res.PID, err = syscall.ForkExec(path, argv, attr)
	if err != nil {
		return res, err
	}
	if err := attach(); err != nil {
		return res, err
	}
	deadline := time.AfterFunc(req.Timeout, func() {
		res.TimeOut = true
		if g.tracer != nil {
			_ = g.tracer.Flush(context.Background())
		}
		_ = unix.Kill(-1, unix.SIGKILL)
	})
	for {
		var st syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &st, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			break
		}
		if pid == res.PID {
			res.Status = int(st)
			res.Took = time.Since(start)
		}
		if g.alone() {
			break
		}
	}
	deadline.Stop()
	start = time.Now()
	if g.tracer != nil {
		if err := g.tracer.Flush(context.Background()); err != nil {
			return res, err
		}
		if t, ok := g.tracer.(*tracer.Tracer); ok {
			res.Stats = t.Stats()
		}
	}
	res.Drain = time.Since(start)
	text, _ := os.ReadFile("/out")
	g.frame('o', text)
	clock, _ := os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	res.Clock = string(clock)
	return res, nil
}
