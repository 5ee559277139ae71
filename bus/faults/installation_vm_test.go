// SPDX-License-Identifier: Apache-2.0

//go:build vm

package faults_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/faults"
	"github.com/petri-sandbox/petri/schemas"
)

// TestInstallation makes what docs/install-cluster.md says by hand: three servers
// of petri bus init, with its certificates, and each role a process with its own
// credentials. Then the server that leads the log is killed under them.
func TestInstallation(t *testing.T) {
	w := installation(t)
	users := func(user string) string { return addressArg(w.as(user)) }
	keep(t, 1, "analyzer", users("analyzer-count"), "count", "0")
	var said, reported heard
	hear(t, &reported, "reporter", users("reporter"))
	sandbox := hear(t, &said, "sandbox", users("sandboxd"), "count")

	l := newLedger()
	begun, done := map[string]bool{}, map[string]bool{}
	take := func() {
		for _, line := range said.take() {
			id := line.words[1]
			switch line.words[0] {
			case "begun":
				begun[id] = true
			case "acked":
				l.ack(id, line.at)
			case "completed":
				done[id] = true
			}
		}
	}
	more := func(n int) { // analyses than have been completed by now
		t.Helper()
		take()
		n += len(done)
		within(t, 4*time.Minute, fmt.Sprint(n, " analyses are completed"), func() bool {
			take()
			return len(done) >= n
		})
	}
	kills := rounds(1, 5)
	for range kills {
		more(8)
		w.failover(t, func() { more(8) }) // twice as many as may have been on their last step
	}
	more(8)
	sandbox.input.Close()
	select {
	case <-sandbox.gone:
	case <-time.After(4 * time.Minute):
		t.Fatal("the sandbox does not come to an end")
	}
	take()
	if len(begun) != len(done) {
		t.Errorf("of %d analyses %d were completed", len(begun), len(done))
	}
	out, err := faults.Audit(t.Context(), w.b.JetStream(), &l.Books)
	if err != nil {
		t.Fatal(err)
	}
	out.Note = fmt.Sprintf("%d kills of the leader, %s, %d analyses", kills, l.pause(), len(done))
	for id := range done {
		f, err := tally(t.Context(), w.b, id, 1, false)
		if err != nil {
			t.Error(err)
		}
		out = out.Add(f)
	}
	out.Report(t)
	reports := map[string]string{}
	within(t, 4*time.Minute, "each analysis has its report", func() bool {
		for _, line := range reported.take() {
			reports[line.words[1]] = line.words[2]
		}
		return len(reports) >= len(done)
	})
	for id := range done {
		if reports[id] != "1" {
			t.Errorf("the reporter saw %q findings of %s, which has one", reports[id], id)
		}
	}
}

// installed is a world of petri bus init.
type installed struct {
	*world
	dir string
}

// as is how a user reaches the servers.
func (i *installed) as(user string) bus.Address {
	return bus.Address{URL: i.addr.URL, CA: filepath.Join(i.dir, "ca", "ca.pem"), Creds: filepath.Join(i.dir, "users", user+".creds")}
}

// installation starts three servers and petri bus run, the programs that people
// run, and connects as who types petri commands.
func installation(t *testing.T) *installed {
	t.Helper()
	base := t.TempDir()
	petri := filepath.Join(base, "petri")
	t.Setenv("CGO_ENABLED", "0") // as make build does, whose cache this uses
	sh(t, "go", "build", "-trimpath", "-o", petri, "../../cmd/petri")
	i := &installed{world: &world{t: t, names: []string{"127.0.1.1", "127.0.1.2", "127.0.1.3"}}, dir: filepath.Join(base, "bus")}
	port, routes := freeEverywhere(t, i.names), freeEverywhere(t, i.names)
	sh(t, petri, "bus", "init", i.dir, "--replicas", "3", "--hosts", strings.Join(i.names, ","), "--port", port, "--cluster-port", routes)
	sh(t, petri, "bus", "user", i.dir, "analyzer", "count")
	var urls []string
	for _, host := range i.names {
		urls = append(urls, "tls://"+net.JoinHostPort(host, port))
	}
	i.addr.URL = strings.Join(urls, ",")
	program := func(env []string, args ...string) *process {
		t.Helper()
		cmd := exec.Command(petri, args...)
		cmd.Env = append(os.Environ(), env...)
		p, err := launch(t, cmd, cmd.StderrPipe, "msg=ready", nil)
		if err != nil {
			t.Fatalf("petri %s: %v", strings.Join(args, " "), err)
		}
		return p
	}
	i.restart = func(n int) *process {
		return program(nil, "bus", "serve", "--config", filepath.Join(i.dir, "nodes", i.names[n], "nats.conf"))
	}
	i.servers = make([]*process, len(i.names))
	var wg sync.WaitGroup
	for n := range i.names {
		wg.Go(func() { i.servers[n] = i.restart(n) })
	}
	wg.Wait()
	for _, part := range [][2]string{{"core", "bus"}, {"clerk", "clerk"}, {"archiver", "archiver"}} {
		a := i.as(part[1])
		run := program([]string{"PETRI_NATS=" + a.URL, "PETRI_CA=" + a.CA, "PETRI_CREDS=" + a.Creds}, "bus", "run", "--part", part[0], "--data", filepath.Join(base, "data"))
		t.Cleanup(func() {
			select {
			case <-run.gone:
				t.Errorf("petri bus run --part %s did not outlive the faults", part[0])
			default:
			}
		})
	}
	i.b = connect(t, i.as("admin"))
	st, err := i.b.JetStream().Stream(t.Context(), "LOG")
	if err != nil {
		t.Fatal(err)
	}
	if n := st.CachedInfo().Config.Replicas; n != 3 {
		t.Fatalf("the log has %d replicas", n)
	}
	return i
}

// whole reports whether all servers have everything of the log, and each reaches
// each, as far as that is known: those that follow may take longer to find each other
// again than to find the leader, and without it would be no cluster.
func (w *world) whole() bool {
	st, err := w.b.JetStream().Stream(w.t.Context(), "LOG")
	if err != nil || st.CachedInfo().Cluster == nil || len(st.CachedInfo().Cluster.Replicas) != 2 {
		return false
	}
	for _, r := range st.CachedInfo().Cluster.Replicas {
		if !r.Current || r.Offline {
			return false
		}
	}
	for i := range w.names {
		if w.routed != nil && len(w.routed(i)) < len(w.names)-1 {
			return false
		}
	}
	return true
}

// freeEverywhere is a port on which nobody listens on any of the hosts.
func freeEverywhere(t testing.TB, hosts []string) string {
	t.Helper()
	for range 20 {
		port, free := faults.FreePort(t), true
		for _, h := range hosts {
			l, err := net.Listen("tcp", net.JoinHostPort(h, port))
			if err != nil {
				free = false
				break
			}
			l.Close()
		}
		if free {
			return port
		}
	}
	t.Fatal("no port is free on all hosts")
	return ""
}

// heard is what a process has said, and when it came.
type heard struct {
	mu    sync.Mutex
	lines []heardLine
}

type heardLine struct {
	at    time.Time
	words []string
}

func (h *heard) add(line string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, heardLine{time.Now(), strings.Fields(line)})
}

func (h *heard) take() []heardLine {
	h.mu.Lock()
	defer h.mu.Unlock()
	lines := h.lines
	h.lines = nil
	return lines
}

// count is how many of the lines that nobody has taken begin with a word.
func (h *heard) count(word string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, l := range h.lines {
		if len(l.words) > 0 && l.words[0] == word {
			n++
		}
	}
	return n
}

// hear starts a role of which the test hears what it says.
func hear(t testing.TB, h *heard, role string, args ...string) *process {
	t.Helper()
	p, err := tryRole(t, h.add, role, args...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// say tells the test something, in one write.
func say(words ...any) { fmt.Println(words...) }

// runSandbox is what a sandbox is to the log, with four analyses at a time, until
// its input ends. It says what was acknowledged.
func runSandbox(ctx context.Context, b *bus.Bus, analyzer string) error {
	sayReady()
	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() {
			for {
				select {
				case <-over:
					errs <- nil
					return
				default:
				}
				if err := sandboxOne(ctx, b, analyzer); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	var all []error
	for range cap(errs) {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// sandboxOne writes one analysis from its beginning to its end.
func sandboxOne(ctx context.Context, b *bus.Bus, analyzer string) error {
	id := schemas.NewID(time.Now())
	say("begun", id)
	w, err := detonate(ctx, b, id, "sample "+id, []string{analyzer}, func(event string) { say("acked", event) })
	if err != nil {
		return err
	}
	e, err := schemas.NewEvent(schemas.DefaultTenant, id, w.NextID(), time.Now(), schemas.OriginHost, schemas.AnalysisCompleted{})
	if err != nil {
		return err
	}
	if err := w.Write(ctx, e); err != nil {
		return err
	}
	say("acked", e.ID)
	say("completed", id)
	return nil
}

// runReporter reads each analysis that has ended, and writes a report. It says
// how many findings it saw.
func runReporter(ctx context.Context, b *bus.Bus) error {
	sayReady()
	return b.Endings(ctx, "reporter", func(ctx context.Context, e schemas.Event) error {
		findings := 0
		err := b.Read(ctx, e.Tenant, e.Analysis, 0, func(e bus.Entry) error {
			if e.Event.Family() == "finding" {
				findings++
			}
			return nil
		})
		if err != nil {
			return err
		}
		d, size, err := b.Reports().Put(ctx, "report", strings.NewReader(fmt.Sprint(e.Analysis, " has ", findings)))
		if err != nil {
			return err
		}
		r, err := schemas.NewEvent(e.Tenant, e.Analysis, e.Analysis+"/report", e.Time, schemas.OriginHost, schemas.ReportWritten{Format: "json", SHA256: d, Size: size})
		if err != nil {
			return err
		}
		if err := b.PublishReport(ctx, r, "json"); err != nil {
			return err
		}
		say("reported", e.Analysis, findings)
		return nil
	})
}
