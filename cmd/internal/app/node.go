// SPDX-License-Identifier: Apache-2.0

package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/sandboxd/child"
)

// Roles are the processes of a node, in the order in which they start.
var Roles = []string{"bus", "sandboxd", "analyzer", "reporter"}

// DaemonCommand is the hidden command that runs one role.
const DaemonCommand = "daemon"

// ServerVariable is the environment variable that names a NATS server of the
// user's own.
const ServerVariable = "PETRI_NATS"

// Environment variables that name the files of the credentials for such a server
// and of the authority that its certificate is from.
const (
	CredsVariable = "PETRI_CREDS"
	CAVariable    = "PETRI_CA"
)

// RunRole runs one process of a node until it is told to stop or its parent
// dies.
func RunRole(ctx context.Context, role string, c Config, log *slog.Logger, ready func()) error {
	switch role {
	case "bus":
		return RunBus(ctx, c, log, ready)
	case "sandboxd":
		return RunSandbox(ctx, c, log, ready)
	case "analyzer":
		return RunAnalyzers(ctx, c, log, ready)
	case commandRole:
		return readCommand(ctx, c, log, ready)
	case "reporter":
		return RunReporter(ctx, c, log, ready)
	}
	return fmt.Errorf("no role %q", role)
}

// A Node is a tree of processes: the bus, a sandbox, the analyzers and the
// reporter. A process that dies is started again; all die with this one.
type Node struct {
	cfg  Config
	log  *slog.Logger
	dir  string // of log files
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex
	procs map[string]*child.Process
}

// StartNode starts the tree and returns when every process is ready. Progress
// is told about each. Without a logger the tree's own log is a file beside the
// processes'. If a node runs on the data directory already the error
// wraps [bus.ErrInUse].
func StartNode(ctx context.Context, c Config, log *slog.Logger, progress func(role string)) (*Node, error) {
	n := &Node{cfg: c, log: log, dir: filepath.Join(c.Data, "log"), procs: map[string]*child.Process{}}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w (choose another: --data DIR)", err)
	}
	if n.log == nil {
		f, err := openLog(filepath.Join(n.dir, "node.log"))
		if err != nil {
			return nil, err
		}
		n.log = Logger(f, c.Verbose)
	}
	run, stop := context.WithCancel(context.Background())
	n.stop = stop
	// The bus first; the others need it.
	if err := n.startRole(ctx, run, Roles[0], progress); err != nil {
		n.Close()
		return nil, err
	}
	errs := make(chan error, len(Roles))
	for _, role := range Roles[1:] {
		go func() { errs <- n.startRole(ctx, run, role, progress) }()
	}
	var all []error
	for range Roles[1:] {
		all = append(all, <-errs)
	}
	if err := errors.Join(all...); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// startRole starts a role, waits until it is ready, and keeps it running.
func (n *Node) startRole(ctx, run context.Context, role string, progress func(string)) error {
	p, err := n.spawn(ctx, role)
	if err != nil {
		return err
	}
	progress(role)
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		n.keep(run, role, p)
	}()
	return nil
}

// keep starts a role again whenever it dies, more slowly each time.
func (n *Node) keep(run context.Context, role string, p *child.Process) {
	wait := 100 * time.Millisecond
	for {
		begin := time.Now()
		select {
		case <-p.Done():
		case <-run.Done():
			n.end(role, p)
			return
		}
		if time.Since(begin) > time.Minute {
			wait = 100 * time.Millisecond
		}
		n.log.Warn("a process of the node died, starting it again", "role", role, "cause", p.Ending(), "last", p.LastWords(), "log", n.logOf(role))
		for {
			select {
			case <-time.After(wait):
			case <-run.Done():
				return
			}
			wait = min(2*wait, 10*time.Second)
			next, err := n.spawn(run, role)
			if err == nil {
				p = next
				break
			}
			if run.Err() != nil {
				return
			}
			n.log.Error("start a process of the node again", "role", role, "error", err)
		}
	}
}

// stopTime is how long a process has to end by itself: longer than an analysis
// may take to write its ending.
const stopTime = 40 * time.Second

func (n *Node) end(role string, p *child.Process) {
	// The others need the bus to say goodbye.
	if role == Roles[0] {
		n.waitOthers()
	}
	_ = p.Signal(syscall.SIGTERM)
	select {
	case <-p.Done():
	case <-time.After(stopTime):
		n.log.Warn("a process of the node does not end, killing it", "role", role)
		p.Kill()
	}
}

// waitOthers returns when every process but the bus has ended.
func (n *Node) waitOthers() {
	for _, role := range Roles[1:] {
		n.mu.Lock()
		p := n.procs[role]
		n.mu.Unlock()
		if p != nil {
			select {
			case <-p.Done():
			case <-time.After(stopTime):
			}
		}
	}
}

// readyTime is how long a process may take to get ready; the first start of a
// bus on a slow disk is the longest.
const readyTime = 60 * time.Second

// spawn starts a role's process and waits until it says that it is ready.
func (n *Node) spawn(ctx context.Context, role string) (*child.Process, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	logFile, err := openLog(n.logOf(role))
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		logFile.Close()
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command(exe, n.args(role)...)
	cmd.Env = daemonEnv()
	if n.cfg.NATS != "" { // not an argument: it may hold a password, and everybody sees those
		cmd.Env = append(cmd.Env, ServerVariable+"="+n.cfg.NATS, CredsVariable+"="+n.cfg.Creds, CAVariable+"="+n.cfg.CA)
	}
	cmd.Stderr = logFile
	cmd.ExtraFiles = []*os.File{w}
	p, err := child.Start(cmd)
	w.Close()
	if err != nil {
		logFile.Close()
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	go func() {
		<-p.Done()
		logFile.Close()
	}()
	n.mu.Lock()
	n.procs[role] = p
	n.mu.Unlock()
	ready := make(chan bool, 1)
	go func() {
		b := make([]byte, 1)
		k, _ := r.Read(b) // one byte: ready; the end: it died
		ready <- k == 1
	}()
	select {
	case ok := <-ready:
		if ok {
			return p, nil
		}
		p.Kill()
		return nil, n.startError(role, p)
	case <-ctx.Done():
		p.Kill()
		return nil, ctx.Err()
	case <-time.After(readyTime):
		p.Kill()
		return nil, fmt.Errorf("%s was not ready after %s (its log: %s)", role, readyTime, logFile.Name())
	}
}

// startError says why a process did not come up. Its last words are meant for
// people.
func (n *Node) startError(role string, p *child.Process) error {
	text, petris := strings.CutPrefix(p.LastWords(), "petri: ")
	switch {
	case strings.Contains(text, bus.ErrInUse.Error()):
		return fmt.Errorf("%w: %s", bus.ErrInUse, n.cfg.Data)
	case text == "":
		text = p.Ending()
	}
	if !petris {
		text += " (its log: " + n.logOf(role) + ")"
	}
	return fmt.Errorf("start %s: %s", role, text)
}

// logOf is the file in which a process' log is.
func (n *Node) logOf(role string) string { return filepath.Join(n.dir, role+".log") }

func (n *Node) args(role string) []string {
	c := n.cfg
	args := []string{
		DaemonCommand, role, "--data", c.Data, "--cache", c.Cache, "--accel", c.Accel,
		"--parallel", strconv.Itoa(c.Parallel), "--memory", strconv.FormatInt(c.Memory>>20, 10),
		"--archive-after", c.ArchiveAfter.String(), "--watermarks", c.Watermarks.String(), "--sync", c.Sync.String(),
		"--pool", c.Pool.String(), "--queue", strconv.FormatInt(cmp.Or(c.Queue, DefaultQueue), 10),
	}
	for _, path := range c.Recorded {
		args = append(args, "--recorded", path)
	}
	if len(c.Recorded) > 0 {
		args = append(args, "--speed", strconv.FormatFloat(c.Speed, 'g', -1, 64))
	}
	for flag, v := range map[string]string{"--listen": c.Listen, "--guestd": c.Guestd} {
		if v != "" {
			args = append(args, flag, v)
		}
	}
	if c.Verbose {
		args = append(args, "--verbose")
	}
	return args
}

// daemonEnv is the environment of the node's processes: nothing that a user
// may have in hers but what finds programs and directories.
func daemonEnv() []string {
	var env []string
	for _, k := range []string{"PATH", "HOME", "TMPDIR", "LANG", "GOCOVERDIR"} {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	return env
}

// maxLog is when a log file begins anew; the one before is kept.
const maxLog = 10 << 20

func openLog(path string) (*os.File, error) {
	if fi, err := os.Stat(path); err == nil && fi.Size() > maxLog {
		_ = os.Rename(path, path+".1")
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open a log: %w", err)
	}
	return f, nil
}

// Close stops every process and returns when all have ended.
func (n *Node) Close() {
	n.stop()
	n.wg.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.procs { // those that never got ready
		p.Kill()
	}
}

// Daemon is the main of a role's process: it runs until SIGTERM, or until its
// parent dies, and tells the parent by descriptor 3 that it is ready.
func Daemon(role string, c Config, stderr io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	// A Ctrl-C goes to the whole terminal group; the parent decides.
	signal.Ignore(syscall.SIGINT)
	f := os.NewFile(3, "ready")
	var once sync.Once
	ready := func() {
		once.Do(func() {
			if f != nil {
				_, _ = f.Write([]byte{1})
				f.Close()
			}
		})
	}
	err := RunRole(ctx, role, c, Logger(stderr, c.Verbose), ready)
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || err == nil) {
		return nil
	}
	return err
}
