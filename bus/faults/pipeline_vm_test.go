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
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/faults"
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
		if err := task.Begin(ctx); err != nil {
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

// kept are processes of which each is started again when it dies.
type kept struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	deaths atomic.Int64
}

// died is how many deaths there were.
func (k *kept) died() int { return int(k.deaths.Load()) }

// stop ends the processes, and returns how many deaths there were before.
func (k *kept) stop() int {
	k.cancel()
	k.wg.Wait()
	return k.died()
}

// keep runs so many processes of a role until stop is called, or the test ends.
func keep(t testing.TB, n int, role string, args ...string) *kept {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	k := &kept{cancel: cancel}
	t.Cleanup(func() { k.stop() })
	for range n {
		p := spawn(t, role, args...)
		k.wg.Go(func() {
			for {
				select {
				case <-p.gone:
				case <-ctx.Done():
					p.kill()
					return
				}
				if ctx.Err() != nil {
					return
				}
				k.deaths.Add(1)
				for {
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
	return k
}

// A stream of analyses goes through analyzers, each of which is waited for.
type stream struct {
	b         *bus.Bus
	analyzers []string
	sample    func(i int) string
	// enough reports, of how many are completed, whether no more need be begun;
	// nil: that is so from the start. It may cause faults meanwhile.
	enough func(done int) bool
	flat   bool // nothing is nested in the samples
}

// streamLimit is how long a stream may go on because it has not had enough.
const streamLimit = 4 * time.Minute

// flow lets at least so many analyses through and returns what came of it.
func (s stream) flow(t *testing.T, analyses int) (f faults.Figures, done int) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	var books faults.Books
	slots := make(chan struct{}, 20)
	end := time.Now().Add(streamLimit)
	for i := 0; ; i++ {
		slots <- struct{}{}
		mu.Lock()
		n := done
		mu.Unlock()
		if i >= analyses && (s.enough == nil || s.enough(n)) {
			break
		}
		if time.Now().After(end) {
			t.Errorf("after %d analyses in %s what was to happen has not", n, streamLimit)
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			g, err := s.one(t.Context(), &books, s.sample(i))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			} else {
				done++
			}
			f = f.Add(g)
		})
	}
	wg.Wait()
	all, err := faults.Audit(t.Context(), s.b.JetStream(), &books)
	if err != nil {
		t.Error(err)
	}
	return f.Add(all), done
}

// one is one analysis: its sample, and what is nested in it. The wait says that
// it is complete: then every task has its receipt, and its findings once.
func (s stream) one(ctx context.Context, books *faults.Books, sample string) (faults.Figures, error) {
	id := schemas.NewID(time.Now())
	if _, err := detonate(ctx, s.b, id, sample, s.analyzers, books.Ack); err != nil {
		return faults.Figures{}, err
	}
	if err := books.Complete(ctx, s.b.JetStream(), id); err != nil {
		return faults.Figures{}, err
	}
	poison := strings.HasPrefix(sample, "poison")
	if poison || s.flat {
		return tally(ctx, s.b, id, len(s.analyzers), poison)
	}
	return tally(ctx, s.b, id, len(s.analyzers)*(1+maxNested), false)
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
// there were so many tasks, and which may fail only if what they are about is
// poison. What is doubled an audit finds.
func tally(ctx context.Context, b *bus.Bus, id string, want int, poison bool) (f faults.Figures, err error) {
	receipts, findings := map[string]bool{}, map[string]bool{}
	failed := 0
	var log []string
	err = b.Read(ctx, schemas.DefaultTenant, id, 0, func(e bus.Entry) error {
		var rc schemas.Receipt
		var found schemas.FindingCommitted
		log = append(log, fmt.Sprint(e.Seq, " ", e.Subject))
		switch {
		case e.Event.Decode(&rc) == nil:
			receipts[rc.Task.Analyzer+"/"+rc.Task.Token()] = true
			if poison && rc.Status != schemas.TaskDone {
				failed++
			}
		case e.Event.Decode(&found) == nil:
			findings[found.Task.Analyzer+"/"+found.Task.Token()] = true
		}
		return nil
	})
	if err != nil {
		return f, err
	}
	f.Acked = len(receipts)
	f.Lost = max(0, len(receipts)-failed-len(findings))
	if len(receipts) != want {
		f.Wrong = 1 // it was called complete too early
		err = fmt.Errorf("%s has %d receipts, not %d, and was called complete; its log:\n%s", id, len(receipts), want, strings.Join(log, "\n"))
	}
	return f, err
}

// TestKillAnalyzers has analyzers die at every point, and the clerk too.
func TestKillAnalyzers(t *testing.T) {
	w := single(t, t.TempDir())
	killPipeline(t, w, 10, func(int) bool { return true }).Report(t)
}

// TestKillAnalyzersOnCluster is the same on three servers, of which one, the
// leader, dies too, and comes back, while analyses go on.
func TestKillAnalyzersOnCluster(t *testing.T) {
	w, _ := trio(t)
	kills, before := 0, 0
	f := killPipeline(t, w, 5, func(done int) bool {
		if kills < rounds(1, 4) && done >= before+5 {
			kills++
			w.failover(t, func() {}) // others are on their way, and wait
			before = done
		}
		return kills == rounds(1, 4) && done >= before+20 // as many as may have been on their way
	})
	f.Note += fmt.Sprintf(", and the leader %d times", kills)
	f.Report(t)
	if kills < rounds(1, 4) {
		t.Errorf("the leader died %d times", kills)
	}
}

// killPipeline has analyses go through analyzers that die, and clerks, until some
// of both have and enough says that it is enough.
func killPipeline(t *testing.T, w *world, percent int, enough func(done int) bool) faults.Figures {
	t.Helper()
	addr := addressArg(w.addr)
	clerks := keep(t, 2, "clerk", addr, "4s")
	names := []string{"count", "nest"}
	var analyzers []*kept
	for _, name := range names {
		analyzers = append(analyzers, keep(t, 2, "analyzer", addr, name, strconv.Itoa(percent)))
	}
	s := stream{b: w.b, analyzers: names, sample: func(i int) string { return fmt.Sprint("sample ", i) }}
	s.enough = func(done int) bool {
		is := enough(done) && clerks.died() > 0
		for _, a := range analyzers {
			is = is && a.died() > 0
		}
		return is
	}
	f, done := s.flow(t, rounds(10, 60))
	deaths := 0
	for _, a := range analyzers {
		deaths += a.stop()
	}
	f.Note = fmt.Sprintf("%d analyses, %d analyzers and %d clerks died", done, deaths, clerks.stop())
	return f
}

// TestPoison has bytes that kill whoever reads them, among others that do not.
func TestPoison(t *testing.T) {
	w := single(t, t.TempDir())
	addr := addressArg(w.addr)
	keep(t, 1, "clerk", addr, "")
	analyzers := keep(t, 2, "analyzer", addr, "nest", "0")
	f, _ := stream{b: w.b, analyzers: []string{"nest"}, sample: func(i int) string {
		if i == 2 {
			return "poison"
		}
		return fmt.Sprint("sample ", i)
	}}.flow(t, 6)
	n := analyzers.stop()
	f.Note = fmt.Sprintf("%d analyzers died", n)
	f.Report(t)
	if n != 3 {
		t.Errorf("%d analyzers died, not 3", n)
	}
}

// TestStoppedAnalyzer has one analyzer stand still, as on a host that swaps,
// while another works on: all that is that one's gets done meanwhile.
func TestStoppedAnalyzer(t *testing.T) {
	const analyses = 20
	w := single(t, t.TempDir())
	addr := addressArg(w.addr)
	keep(t, 1, "clerk", addr, "")
	slow := spawn(t, "analyzer", addr, "count", "0")
	keep(t, 1, "analyzer", addr, "nest", "0")
	slow.freeze(t)
	stopped := time.Now()
	results := make(chan faults.Figures, 1)
	go func() {
		f, _ := stream{b: w.b, analyzers: []string{"count", "nest"}, sample: func(i int) string { return fmt.Sprint("sample ", i) }}.flow(t, analyses)
		results <- f
	}()
	within(t, 4*time.Minute, "the other analyzer has answered everything", func() bool {
		return w.stored("petri.*.*.receipt.live.nest.*") == analyses*(1+maxNested)
	})
	if n := w.stored("petri.*.*.receipt.live.count.*"); n > 0 {
		t.Errorf("an analyzer that stands still has answered %d tasks", n)
	}
	time.Sleep(time.Duration(rounds(5, 60))*time.Second - time.Since(stopped)) // the fault is that time
	slow.signal(syscall.SIGCONT)
	still := time.Since(stopped)
	f := <-results
	f.Note = fmt.Sprintf("it stood still for %s", still.Round(time.Second))
	f.Report(t)
}

// stored is how many messages the log has under a subject.
func (w *world) stored(subject string) int {
	st, err := w.b.JetStream().Stream(w.t.Context(), "LOG")
	if err != nil {
		return 0
	}
	info, err := st.Info(w.t.Context(), jetstream.WithSubjectFilter(subject))
	if err != nil {
		return 0
	}
	n := 0
	for _, of := range info.State.Subjects {
		n += int(of)
	}
	return n
}

// runPutter stores the bytes of a file. It says after each MiB how much it has
// read, and when everything is stored.
func runPutter(ctx context.Context, b *bus.Bus, path string) error {
	sayReady()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	d, _, err := b.Artifacts().Put(ctx, schemas.KindMemory, &sayingReader{r: f})
	if err != nil {
		return err
	}
	say("stored", d)
	return nil
}

type sayingReader struct {
	r    io.Reader
	n    int64
	said int64
}

func (s *sayingReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	if mib := s.n >> 20; mib > s.said {
		s.said = mib
		say("read", mib)
	}
	return n, err
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
	kills := rounds(3, 15)
	for i := range kills {
		var said heard
		p := hear(t, &said, "putter", addressArg(w.addr), path)
		after := 1 + i*30/kills // MiB: some way before the end
		within(t, 4*time.Minute, fmt.Sprint("the upload has come to ", after, " MiB"), func() bool { return said.count("read") >= after })
		p.murder(t)
		if said.count("stored") > 0 {
			t.Fatal("the upload had ended before it was killed")
		}
		if err := whole(t, w.b, d); !errors.Is(err, bus.ErrNotFound) {
			t.Fatalf("after upload %d was killed: %v", i+1, err)
		}
	}
	var putters []*process
	stored := make([]heard, 4)
	for i := range stored {
		putters = append(putters, hear(t, &stored[i], "putter", addressArg(w.addr), path))
	}
	f := faults.Figures{Note: fmt.Sprint(kills, " uploads killed")}
	for i, p := range putters {
		<-p.gone
		f.Acked += stored[i].count("stored")
	}
	if f.Acked != len(putters) {
		t.Errorf("%d of %d uploads of the same bytes were acknowledged", f.Acked, len(putters))
	}
	if err := whole(t, w.b, d); err != nil {
		t.Error(err)
		f.Lost = f.Acked
	}
	f.Doubled = w.metas() - 1
	f.Report(t)
}

// metas is how many descriptions of artifacts the store has.
func (w *world) metas() int {
	w.t.Helper()
	st, err := w.b.JetStream().Stream(w.t.Context(), "OBJ_ART")
	if err != nil {
		w.t.Fatal(err)
	}
	info, err := st.Info(w.t.Context(), jetstream.WithSubjectFilter("$O.ART.M.>"))
	if err != nil {
		w.t.Fatal(err)
	}
	n := 0
	for _, of := range info.State.Subjects {
		n += int(of)
	}
	return n
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

// TestManyConsumers has a hundred analyzers registered, of which each owes an
// answer for every sample, among many consumers of others. The server takes a
// thousand on one stream: when they are there, one more analyzer is told so.
func TestManyConsumers(t *testing.T) {
	const analyzers = 100
	others := rounds(200, 780)
	w := single(t, t.TempDir())
	addr := addressArg(w.addr)
	keep(t, 1, "clerk", addr, "")
	st, err := w.b.JetStream().Stream(t.Context(), "LOG")
	if err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	g.SetLimit(16)
	for i := range others {
		g.Go(func() error {
			_, err := st.CreateConsumer(t.Context(), jetstream.ConsumerConfig{
				Durable: fmt.Sprint("other-", i), AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: fmt.Sprintf("petri.other%d.>", i),
			})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range analyzers {
		names = append(names, fmt.Sprint("many", i))
	}
	begun := time.Now()
	spawn(t, "crowd", addr, strings.Join(names, ","))
	registered := time.Since(begun)
	begun = time.Now()
	analyses := rounds(4, 40)
	f, _ := stream{b: w.b, analyzers: names, sample: func(i int) string { return fmt.Sprint("sample ", i) }, flat: true}.flow(t, analyses)
	took := time.Since(begun)
	info, err := st.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := info.State.Consumers; n < analyzers+others {
		t.Errorf("the log has %d consumers", n)
	}
	if full {
		for err = error(nil); err == nil; {
			_, err = st.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: schemas.NewID(time.Now()), AckPolicy: jetstream.AckExplicitPolicy})
		}
		r := schemas.Registration{Name: "late", Version: "1.0.0", Kinds: []schemas.Kind{kindRoot}, Scope: schemas.ScopeArtifact, Deadline: schemas.Duration(time.Minute)}
		if full := new(jetstream.APIError); !errors.As(err, &full) || full.ErrorCode != 10026 {
			t.Fatalf("make consumers until the server takes no more: %v", err)
		}
		if err := w.b.Register(t.Context(), r); err == nil || !strings.Contains(err.Error(), "maximum consumers") {
			t.Errorf("register one more: %v", err)
		}
	}
	f.Note = fmt.Sprintf("%d consumers; %d analyzers registered in %s; %.0f tasks a second", info.State.Consumers, analyzers,
		registered.Round(100*time.Millisecond), float64(analyses*analyzers)/took.Seconds())
	f.Report(t)
}

// runCrowd is many analyzers in one process, of which each finds one thing.
func runCrowd(ctx context.Context, b *bus.Bus, names string) error {
	g, ctx := errgroup.WithContext(ctx)
	var ready atomic.Int64
	all := strings.Split(names, ",")
	for _, name := range all {
		g.Go(func() error {
			r := schemas.Registration{Name: name, Version: "1.0.0", Kinds: []schemas.Kind{kindRoot}, Scope: schemas.ScopeArtifact, Deadline: schemas.Duration(time.Minute)}
			if err := b.Register(ctx, r); err != nil {
				return err
			}
			go b.Heartbeat(ctx, name, "crowd", r.Version)
			if ready.Add(1) == int64(len(all)) {
				sayReady()
			}
			for {
				task, err := b.NextTask(ctx, name)
				if err != nil {
					return err
				}
				err = b.Finish(ctx, schemas.FinishedTask{Task: task.Ref, Version: r.Version, Instance: "crowd", Status: schemas.TaskDone, Findings: []schemas.Finding{{Kind: "seen", Title: "seen"}}})
				if err != nil {
					return err
				}
				if err := task.Done(); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// TestLargeArtifact puts and gets bytes that do not shrink, by two processes of
// which neither may have more memory than for a small part of them.
func TestLargeArtifact(t *testing.T) {
	const most = 192 << 20 // of a process
	size := int64(rounds(512, 1024)) << 20
	w := single(t, t.TempDir())
	stored := make(chan string, 1)
	var peaks []int64
	run := func(role string, args ...string) {
		t.Helper()
		p, err := tryRole(t, func(line string) {
			var peak int64
			if _, err := fmt.Sscanf(line, "peak %d", &peak); err == nil {
				peaks = append(peaks, peak)
			} else if d, ok := strings.CutPrefix(line, "digest "); ok {
				stored <- d
			}
		}, role, append([]string{addressArg(w.addr)}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		<-p.gone
	}
	begun := time.Now()
	run("large", "put", strconv.FormatInt(size, 10))
	put := time.Since(begun)
	if len(stored) == 0 {
		t.Fatal("it is not stored")
	}
	begun = time.Now()
	run("large", "get", <-stored)
	got := time.Since(begun)
	if len(peaks) != 2 || slices.Max(peaks) > most {
		t.Errorf("of %d bytes the processes had up to %v in memory", size, peaks)
	}
	if len(stored) == 0 {
		t.Error("it cannot be read")
	}
	rate := func(d time.Duration) float64 { return float64(size>>20) / d.Seconds() }
	faults.Figures{Acked: 1, Lost: 1 - len(stored), Note: fmt.Sprintf("%d MiB, put with %.0f MiB a second and got with %.0f, memory %d and %d MiB",
		size>>20, rate(put), rate(got), peaks[0]>>20, peaks[1]>>20)}.Report(t)
}

// runLarge puts random bytes, so many, or gets what has a digest, and says with
// how much memory.
func runLarge(ctx context.Context, b *bus.Bus, what, arg string) error {
	sayReady()
	if what == "put" {
		size, err := strconv.ParseInt(arg, 10, 64)
		if err != nil {
			return err
		}
		d, _, err := b.Artifacts().Put(ctx, schemas.KindMemory, io.LimitReader(rand.NewChaCha8([32]byte{8}), size))
		if err != nil {
			return err
		}
		say("digest", d)
	} else {
		d, err := schemas.ParseDigest(arg)
		if err != nil {
			return err
		}
		r, _, err := b.Artifacts().Open(ctx, d)
		if err != nil {
			return err
		}
		defer r.Close()
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
		say("digest", d)
	}
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		return err
	}
	say("peak", use.Maxrss<<10)
	return nil
}
