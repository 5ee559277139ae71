// SPDX-License-Identifier: Apache-2.0

//go:build vm

package faults_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/faults"
	"github.com/petri-sandbox/petri/schemas"
)

// full is the long form, which make faults runs; make test runs the short one.
var full = os.Getenv("PETRI_FAULTS") == "full"

// rounds is how often something is done, in the short form and the long one.
func rounds(short, long int) int {
	if full {
		return long
	}
	return short
}

// roleVariable says which process of the test's world the test program is.
const roleVariable = "PETRI_FAULTS_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		if err := child(role, os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A process is a child that can be killed.
type process struct {
	cmd   *exec.Cmd
	input io.Closer
	gone  chan struct{}
}

// spawn starts the test program in a role and returns when it says that it is
// ready.
func spawn(t testing.TB, role string, args ...string) *process {
	t.Helper()
	p, err := tryRole(t, nil, role, args...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// tryRole is spawn where a failure is no failure of the test. What the process
// says after it is ready is given to line, unless that is nil.
func tryRole(t testing.TB, line func(string), role string, args ...string) (*process, error) {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	p, err := launch(t, cmd, cmd.StdoutPipe, "ready", line)
	if err != nil {
		return nil, fmt.Errorf("%s: %w %s", role, err, stderr.String())
	}
	return p, nil
}

// launch starts a program and returns when a line of its output has a word in it.
// What comes after that is given to line, unless that is nil.
func launch(t testing.TB, cmd *exec.Cmd, output func() (io.ReadCloser, error), word string, line func(string)) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := output()
	if err != nil {
		return nil, err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, input: in, gone: make(chan struct{})}
	ready := make(chan struct{})
	var before strings.Builder // what it said until then; read once p is gone
	go func() {
		lines := bufio.NewScanner(out)
		is := false
		for lines.Scan() {
			switch text := lines.Text(); {
			case !is && strings.Contains(text, word):
				is = true
				close(ready)
			case !is:
				before.WriteString(text + "\n")
			case line != nil:
				line(text)
			}
		}
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
		close(p.gone)
	}()
	t.Cleanup(p.kill)
	select {
	case <-ready:
		return p, nil
	case <-p.gone:
		return nil, fmt.Errorf("it did not start: %s", before.String())
	case <-time.After(4 * time.Minute):
		p.kill()
		return nil, fmt.Errorf("it is not ready: %s", before.String())
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.gone
}

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// murder kills a process that lives: a fault that has come about by itself is not
// the one that is tested.
func (p *process) murder(t testing.TB) {
	t.Helper()
	p.kill()
	if st, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != syscall.SIGKILL {
		t.Fatalf("process %d was to be killed, and had ended before: %v", p.cmd.Process.Pid, p.cmd.ProcessState)
	}
}

// end lets a process that ends with its input do so.
func (p *process) end(t testing.TB) {
	t.Helper()
	p.input.Close()
	select {
	case <-p.gone:
	case <-time.After(4 * time.Minute):
		t.Fatalf("process %d does not come to an end", p.cmd.Process.Pid)
	}
}

// freeze stops a process, and returns when none of its threads runs any more.
func (p *process) freeze(t testing.TB) {
	t.Helper()
	p.signal(syscall.SIGSTOP)
	within(t, 4*time.Minute, "the process stands still", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
		for _, path := range threads {
			stat, err := os.ReadFile(path)
			if err == nil && !strings.HasPrefix(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " T") {
				return false
			}
		}
		return err == nil && len(threads) > 0
	})
}

// within waits until something is so.
func within(t testing.TB, limit time.Duration, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

func sayReady() { fmt.Println("ready") }

// world is a bus of processes.
type world struct {
	t       testing.TB
	addr    bus.Address
	listen  string // of a single server
	b       *bus.Bus
	clients []*bus.Bus // one of each server, until it dies
	names   []string   // of the servers
	servers []*process
	restart func(i int) *process
	routed  func(i int) map[string]bool // the other servers that a server reaches; nil: not known
}

// single is a world of one server, as petri up has it.
func single(t testing.TB, dir string) *world {
	t.Helper()
	w := &world{t: t, listen: "127.0.0.1:" + faults.FreePort(t)}
	w.restart = func(int) *process { return spawn(t, "server", dir, w.listen) }
	w.servers = []*process{w.restart(0)}
	addr, err := bus.ReadAddress(dir)
	if err != nil {
		t.Fatal(err)
	}
	w.addr = addr
	w.b = connect(t, addr)
	w.clients = []*bus.Bus{w.b}
	return w
}

func connect(t testing.TB, addr bus.Address) *bus.Bus {
	t.Helper()
	b, err := dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// dial connects to a bus that may be on its way up.
func dial(ctx context.Context, addr bus.Address) (*bus.Bus, error) {
	for end := time.Now().Add(4 * time.Minute); ; {
		try, cancel := context.WithTimeout(ctx, 30*time.Second)
		b, err := bus.Connect(try, addr, "faults")
		cancel()
		if err == nil || time.Now().After(end) {
			return b, err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// child is the main of every process but the test.
func child(role string, args []string) error {
	ctx := context.Background()
	switch role {
	case "server":
		return serve(ctx, args[0], args[1])
	case "node":
		return serveNode(args)
	}
	b, err := dial(ctx, addressOf(args[0]))
	if err != nil {
		return err
	}
	switch role {
	case "clerk":
		return runClerk(ctx, b, args[1])
	case "analyzer":
		return runAnalyzer(ctx, b, args[1], args[2])
	case "crowd":
		return runCrowd(ctx, b, args[1])
	case "large":
		return runLarge(ctx, b, args[1], args[2])
	case "putter":
		return runPutter(ctx, b, args[1])
	case "sandbox":
		return runSandbox(ctx, b, args[1])
	case "reporter":
		return runReporter(ctx, b)
	}
	return fmt.Errorf("no role %q", role)
}

// addressArg carries an address to a child; addressOf reads it.
func addressArg(a bus.Address) string {
	return strings.Join([]string{a.URL, a.CA, a.Creds}, " ")
}

func addressOf(s string) bus.Address {
	f := append(strings.Split(s, " "), make([]string, 3)...)
	return bus.Address{URL: f[0], CA: f[1], Creds: f[2]}
}

// serve is one embedded server. It ends when it cannot write, as petri's own
// process does, so that another is started.
func serve(ctx context.Context, dir, listen string) error {
	s, err := bus.StartServer(dir, bus.ServerOptions{Listen: listen})
	if err != nil {
		return err
	}
	b, err := s.Connect(ctx, "server")
	if err != nil {
		return err
	}
	if err := b.Reconcile(ctx, bus.Limits{Log: 1 << 30, Store: 4 << 30}); err != nil {
		return err
	}
	if err := errors.Join(s.SyncAssets(), s.Announce()); err != nil {
		return err
	}
	sayReady()
	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	select {
	case err := <-s.Failed():
		return err
	case <-over:
		b.Close()
		s.Close()
		return nil
	}
}

// ledger is what was acknowledged, and when.
type ledger struct {
	faults.Books
	mu   sync.Mutex
	last time.Time
	gap  time.Duration // the longest without an acknowledgement
}

func newLedger() *ledger { return &ledger{last: time.Now()} }

func (l *ledger) ack(id string, at time.Time) {
	l.Ack(id)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gap = max(l.gap, at.Sub(l.last))
	l.last = at
}

// more waits until so many more events are acknowledged.
func (l *ledger) more(t testing.TB, n int, limit time.Duration) {
	t.Helper()
	n += l.Acked()
	within(t, limit, fmt.Sprint(n, " events are acknowledged"), func() bool { return l.Acked() >= n })
}

// pause says how long nothing was acknowledged.
func (l *ledger) pause() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return "longest pause " + l.gap.Round(10*time.Millisecond).String()
}

// write publishes context events of an analysis of its own until ctx is done,
// each after the one before was acknowledged.
func (l *ledger) write(ctx context.Context, b *bus.Bus, id string) error {
	w, err := b.BeginContext(context.Background(), schemas.DefaultTenant, id)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		e, err := schemas.NewEvent(schemas.DefaultTenant, id, w.NextID(), time.Now(), schemas.OriginHost, schemas.Custom{Name: "note"})
		if err != nil {
			return err
		}
		if err := w.Write(context.Background(), e); err != nil {
			return err
		}
		l.ack(e.ID, time.Now())
	}
	return nil
}

// publishing runs writers while disturb goes on, over the world's connections in
// turn, and returns what was acknowledged to them.
func publishing(t testing.TB, w *world, writers int, disturb func(l *ledger)) *ledger {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	l := newLedger()
	errs := make(chan error, writers)
	for i := range writers {
		go func() { errs <- l.write(ctx, w.clients[i%len(w.clients)], schemas.NewID(time.Now())) }()
	}
	func() {
		defer stop() // also if disturb ends the test
		disturb(l)
	}()
	for range writers {
		if err := <-errs; err != nil {
			t.Errorf("a writer gave up: %v", err)
		}
	}
	return l
}
