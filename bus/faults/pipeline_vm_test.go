// SPDX-License-Identifier: Apache-2.0

//go:build vm

package faults_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// die ends this process as kill -9 does.
func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// luck dies with a probability in percent.
func luck(percent int) {
	if rand.IntN(100) < percent {
		die()
	}
}

// runClerk is a clerk with its registrar. Now and then it dies.
func runClerk(ctx context.Context, b *bus.Bus, lifetime string) error {
	if d, err := time.ParseDuration(lifetime); err == nil {
		time.AfterFunc(d/2+rand.N(d), die)
	}
	log := slog.New(slog.DiscardHandler)
	errs := make(chan error, 2)
	go func() { errs <- bus.NewClerk(b, log).Run(ctx) }()
	go func() { errs <- bus.NewRegistrar(b, log).Run(ctx) }()

	sayReady()
	return <-errs
}

const (
	kindRoot   schemas.Kind = "sample"
	kindNested schemas.Kind = "nested"
	maxNested               = 3 // how often the analyzer nest derives one from the other
)

// runAnalyzer is an analyzer that dies now and then: before it reads the bytes,
// in the middle of its work, and between its answer and the acknowledgement.
// One that is called nest derives, and everybody has one finding per task.
// Bytes that begin with poison kill whoever reads them.
func runAnalyzer(ctx context.Context, b *bus.Bus, name, percent string) error {
	p, err := strconv.Atoi(percent)
	if err != nil {
		return err
	}
	r := schemas.Registration{Name: name, Version: "1.0.0", Kinds: []schemas.Kind{kindRoot, kindNested}, Scope: schemas.ScopeArtifact, Deadline: schemas.Duration(time.Minute)}
	if err := b.Register(ctx, r); err != nil {
		return err
	}
	instance := strconv.Itoa(os.Getpid())
	go b.Heartbeat(ctx, name, instance, r.Version)
	sayReady()
	for {
		task, err := b.NextTask(ctx, name)
		if err != nil {
			return err
		}
		luck(p)
		body, err := b.Artifacts().ReadAll(ctx, task.Artifact.SHA256, 1<<20)
		if err != nil {
			return err
		}
		poison := bytes.HasPrefix(body, []byte("poison"))
		if poison && task.Attempt <= 3 {
			die()
		}
		done := schemas.FinishedTask{Task: task.Ref, Version: r.Version, Instance: instance, Status: schemas.TaskDone, Findings: []schemas.Finding{{Kind: "seen", Title: "seen"}}}
		if poison {
			done.Status, done.Error, done.Findings = schemas.TaskFailed, "poison", nil
		}
		if name == "nest" && task.Artifact.Depth < maxNested && done.Status == schemas.TaskDone {
			d, size, err := b.Upload(ctx, name, "upload", strings.NewReader("in "+string(body)))
			if err != nil {
				return err
			}
			done.Derived = []schemas.Derived{{Kind: kindNested, SHA256: d, Size: size}}
		}
		luck(p)
		if err := b.Finish(ctx, done); err != nil {
			return err
		}
		luck(p)
		if err := task.Done(); err != nil {
			return err
		}
	}
}

// keep runs processes of a role and starts each again when it dies, until stop
// is called. It returns how many deaths there were.
func keep(t testing.TB, n int, role string, args ...string) (stop func() int) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var mu sync.Mutex
	deaths := 0
	for range n {
		p := spawn(t, role, args...)
		wg.Go(func() {
			for {
				select {
				case <-p.gone:
				case <-ctx.Done():
					p.kill()
					return
				}
				for {
					mu.Lock()
					deaths++
					mu.Unlock()
					next, err := tryRole(t, nil, role, args...)
					if err == nil {
						p = next
						break
					}
					if ctx.Err() != nil {
						return
					}
				}
			}
		})
	}
	var once sync.Once
	stop = func() int {
		once.Do(cancel)
		wg.Wait()
		return deaths
	}
	t.Cleanup(func() { stop() })
	return stop
}

// flow puts analyses through analyzers and waits for each. It returns the row
// of what came of it.
func flow(t *testing.T, b *bus.Bus, what string, analyses int, analyzers []string, sample func(i int) string) row {
	t.Helper()
	r := row{what: what}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, 20)
	for i := range analyses {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			tasks, lost, doubled, wrong, err := one(t.Context(), b, sample(i), analyzers)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			r.acked, r.lost, r.doubled, r.wrong = r.acked+tasks, r.lost+lost, r.doubled+doubled, r.wrong+wrong
		})
	}
	wg.Wait()
	return r
}

// one is one analysis: its sample, and what is nested in it. The wait says that
// it is complete: then every task has its receipt, and its findings once.
func one(ctx context.Context, b *bus.Bus, sample string, analyzers []string) (tasks, lost, doubled, wrong int, err error) {
	id := schemas.NewID(time.Now())
	if _, err := detonate(ctx, b, id, sample, analyzers, func(string) {}); err != nil {
		return 0, 0, 0, 0, err
	}
	want := len(analyzers) * (1 + maxNested)
	if strings.HasPrefix(sample, "poison") {
		want = len(analyzers)
	}
	return tally(ctx, b, id, want)
}

// detonate writes an analysis of a sample as a sandbox does, and waits until it
// is complete. acked hears of every event that the log has acknowledged.
func detonate(ctx context.Context, b *bus.Bus, id, sample string, analyzers []string, acked func(event string)) (*bus.ContextWriter, error) {
	w, err := b.BeginContext(ctx, schemas.DefaultTenant, id)
	if err != nil {
		return nil, err
	}
	d, size, err := b.Artifacts().Put(ctx, kindRoot, strings.NewReader(sample))
	if err != nil {
		return nil, err
	}
	a := schemas.Artifact{Kind: kindRoot, SHA256: d, Size: size}
	e, err := schemas.NewEvent(schemas.DefaultTenant, id, a.ID(id), time.Now(), schemas.OriginHost, a)
	if err != nil {
		return nil, err
	}
	if err := b.PublishArtifact(ctx, e, &a); err != nil {
		return nil, err
	}
	acked(e.ID)
	if e, err = schemas.NewEvent(schemas.DefaultTenant, id, w.NextID(), time.Now(), schemas.OriginHost, schemas.StartAnalysis{}); err != nil {
		return nil, err
	}
	if err := w.Write(ctx, e); err != nil {
		return nil, err
	}
	acked(e.ID)
	missing, err := b.Wait(ctx, schemas.DefaultTenant, id, time.Now().Add(4*time.Minute), analyzers)
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("%s is not complete after 4 minutes: %+v", id, missing)
	}
	return w, err
}

// tally counts what the log has of an analysis that was called complete, in which
// there were so many tasks.
func tally(ctx context.Context, b *bus.Bus, id string, want int) (tasks, lost, doubled, wrong int, err error) {
	receipts, findings := map[string]int{}, map[string]int{}
	failed := 0
	var log []string
	err = b.Read(ctx, schemas.DefaultTenant, id, 0, func(e bus.Entry) error {
		var rc schemas.Receipt
		var f schemas.FindingCommitted
		log = append(log, fmt.Sprint(e.Seq, " ", e.Subject))
		switch {
		case e.Event.Decode(&rc) == nil:
			receipts[rc.Task.Analyzer+"/"+rc.Task.Token()]++
			if rc.Status != schemas.TaskDone {
				failed++
			}
		case e.Event.Decode(&f) == nil:
			findings[f.Task.Analyzer+"/"+f.Task.Token()]++
		}
		return nil
	})
	if err != nil {
		return 0, 0, 0, 0, err
	}
	if len(receipts) != want {
		wrong = 1 // it was called complete too early
		err = fmt.Errorf("%s has %d receipts, not %d, and was called complete; its log:\n%s", id, len(receipts), want, strings.Join(log, "\n"))
	}
	if lost = len(receipts) - failed - len(findings); lost < 0 {
		lost = 0
	}
	for _, m := range []map[string]int{receipts, findings} {
		for _, n := range m {
			doubled += n - 1
		}
	}
	return len(receipts), lost, doubled, wrong, err
}

// TestKillAnalyzers has analyzers die at every point, and the clerk too.
func TestKillAnalyzers(t *testing.T) {
	w := single(t, t.TempDir())
	killPipeline(t, w, "analyzers and clerk die at random", 10)
}

// TestKillAnalyzersOnCluster is the same on three servers, of which one, the
// leader, dies too.
func TestKillAnalyzersOnCluster(t *testing.T) {
	w, _ := trio(t)
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		time.Sleep(5 * time.Second)
		n := w.leader()
		w.servers[n].kill()
		time.Sleep(5 * time.Second)
		w.servers[n] = w.restart(n)
	}()
	killPipeline(t, w, "the same on three servers, the leader dies", 5)
	<-killed
}

func killPipeline(t *testing.T, w *world, what string, percent int) {
	t.Helper()
	addr := addressArg(w.addr)
	clerks := keep(t, 2, "clerk", addr, "4s")
	var stops []func() int
	names := []string{"count", "nest"}
	for _, name := range names {
		stops = append(stops, keep(t, 2, "analyzer", addr, name, strconv.Itoa(percent)))
	}
	r := flow(t, w.b, what, rounds(10, 60), names, func(i int) string { return fmt.Sprint("sample ", i) })
	deaths := 0
	for _, stop := range stops {
		deaths += stop()
	}
	r.note = fmt.Sprintf("%d analyzers and %d clerks died", deaths, clerks())
	record(t, r)
	if deaths == 0 {
		t.Error("nobody died")
	}
}

// TestPoison has bytes that kill whoever reads them, among others that do not.
func TestPoison(t *testing.T) {
	w := single(t, t.TempDir())
	addr := addressArg(w.addr)
	keep(t, 1, "clerk", addr, "")
	deaths := keep(t, 2, "analyzer", addr, "nest", "0")
	r := flow(t, w.b, "poison that kills every analyzer", 6, []string{"nest"}, func(i int) string {
		if i == 2 {
			return "poison"
		}
		return fmt.Sprint("sample ", i)
	})
	n := deaths()
	r.note = fmt.Sprintf("%d analyzers died", n)
	record(t, r)
	if n != 3 {
		t.Errorf("%d analyzers died, not 3", n)
	}
}

// TestStoppedAnalyzer has one analyzer stand still, as on a host that swaps,
// while another works on.
func TestStoppedAnalyzer(t *testing.T) {
	w := single(t, t.TempDir())
	addr := addressArg(w.addr)
	keep(t, 1, "clerk", addr, "")
	slow := spawn(t, "analyzer", addr, "count", "0")
	keep(t, 1, "analyzer", addr, "nest", "0")
	slow.signal(syscall.SIGSTOP)
	time.AfterFunc(time.Duration(rounds(5, 60))*time.Second, func() { slow.signal(syscall.SIGCONT) })
	r := flow(t, w.b, "an analyzer stands still", 20, []string{"count", "nest"}, func(i int) string { return fmt.Sprint("sample ", i) })
	record(t, r)
}

// runPutter stores bytes until it is killed.
func runPutter(ctx context.Context, b *bus.Bus, path string) error {
	sayReady()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, _, err = b.Artifacts().Put(ctx, schemas.KindMemory, f)
	return err
}

// TestKillUploader kills uploads in the middle, and has four of the same bytes
// at a time. What the store says that it has, it has.
func TestKillUploader(t *testing.T) {
	dir := t.TempDir()
	w := single(t, filepath.Join(dir, "data"))
	body := make([]byte, 48<<20)
	r := rand.NewChaCha8([32]byte{7})
	_, _ = r.Read(body)
	path := filepath.Join(dir, "body")
	if err := os.WriteFile(path, body, 0o600); err != nil {
		t.Fatal(err)
	}
	d := schemas.Sum(body)
	for i := range rounds(3, 15) {
		p := spawn(t, "putter", addressArg(w.addr), path)
		time.Sleep(time.Duration(20+30*i) * time.Millisecond)
		p.kill()
		if err := whole(t, w.b, d); err != nil && !errors.Is(err, bus.ErrNotFound) {
			t.Fatalf("after upload %d was killed: %v", i+1, err)
		}
	}
	var putters []*process
	for range 4 {
		putters = append(putters, spawn(t, "putter", addressArg(w.addr), path))
	}
	for _, p := range putters {
		<-p.gone
	}
	out := row{what: "uploads killed in the middle, then four of the same bytes", acked: 1}
	if err := whole(t, w.b, d); err != nil {
		t.Error(err)
		out.lost = 1
	}
	record(t, out)
}

// whole reads an artifact to its end.
func whole(t testing.TB, b *bus.Bus, d schemas.Digest) error {
	t.Helper()
	r, _, err := b.Artifacts().Open(t.Context(), d)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}
