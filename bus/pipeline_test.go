// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// load is what a pipeline is given to do.
type load struct {
	tasks    int
	artifact int           // bytes; 0: the event alone
	every    time.Duration // between two tasks; 0: a flood
}

// workers is how many tasks the producer and the analyzer have in hand.
const workers = 32

// figures are what a pipeline has done.
type figures struct {
	perSecond float64
	p50, p99  time.Duration
}

// meter takes the time from when a task is produced to when its answer has
// reached the reporter.
type meter struct {
	load    load
	mu      sync.Mutex
	begin   []time.Time
	took    []time.Duration
	left    int
	all     chan struct{} // closed when nothing is left
	started time.Time
}

func newMeter(l load) *meter {
	return &meter{load: l, begin: make([]time.Time, l.tasks), took: make([]time.Duration, l.tasks), left: l.tasks, all: make(chan struct{})}
}

func (m *meter) done(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.took[n] != 0 {
		return
	}
	m.took[n] = time.Since(m.begin[n])
	if m.left--; m.left == 0 {
		close(m.all)
	}
}

// produce has send make the tasks and waits for all answers.
func (m *meter) produce(b *testing.B, send func(n int, data []byte) error) figures {
	b.Helper()
	m.started = time.Now()
	var g errgroup.Group
	g.SetLimit(workers)
	tick := time.NewTicker(max(m.load.every, time.Microsecond))
	defer tick.Stop()
	for n := range m.load.tasks {
		if m.load.every > 0 {
			<-tick.C
		}
		g.Go(func() error {
			var data []byte
			if m.load.artifact > 0 {
				data = noise(m.load.artifact)
				binary.LittleEndian.PutUint64(data, uint64(n))
			}
			m.mu.Lock()
			m.begin[n] = time.Now()
			m.mu.Unlock()
			return send(n, data)
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	select {
	case <-m.all:
	case <-time.After(2 * time.Minute):
		b.Fatalf("%d of %d tasks have no answer", m.left, m.load.tasks)
	}
	total := time.Since(m.started)
	slices.Sort(m.took)
	return figures{perSecond: float64(m.load.tasks) / total.Seconds(), p50: m.took[len(m.took)/2], p99: m.took[len(m.took)*99/100]}
}

// petriPipeline is an artifact's event to its analyzer, whose answer the clerk
// commits, to the reporter that is given finding and receipt. Each has its own
// connection.
func petriPipeline(b *testing.B, connect func(name string) *bus.Bus, l load) figures {
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	sandbox, analyzer, reporter := connect("sandbox"), connect("analyzer"), connect("reporter")
	const name = "bench"
	patient, enough := context.WithTimeout(ctx, time.Minute)
	defer enough()
	if err := analyzer.Register(patient, schemas.Registration{Name: name, Version: "1.0.0", Kinds: []schemas.Kind{schemas.KindDropped}, Scope: schemas.ScopeArtifact, Deadline: schemas.Duration(time.Minute)}); err != nil {
		b.Fatal(err)
	}
	clerk := bus.NewClerk(connect("clerk"), slog.New(slog.DiscardHandler))
	running.Go(func() { _ = clerk.Run(ctx) })

	digest := func(n int) schemas.Digest {
		var d schemas.Digest
		binary.LittleEndian.PutUint64(d[:], uint64(n))
		return d
	}
	m := newMeter(l)
	var mu sync.Mutex
	numbers := map[schemas.Digest]int{}
	cons, err := reporter.JetStream().OrderedConsumer(ctx, "LOG", jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{"petri.*.*.finding.>", "petri.*.*.receipt.>"}, DeliverPolicy: jetstream.DeliverNewPolicy,
	})
	if err != nil {
		b.Fatal(err)
	}
	findings := map[schemas.Digest]bool{} // of the one goroutine that the consumer calls
	cc, err := cons.Consume(func(msg jetstream.Msg) {
		e, err := schemas.ParseEvent(msg.Data())
		if err != nil {
			b.Error(err)
			return
		}
		switch e.Family() {
		case "finding":
			var f schemas.FindingCommitted
			if err := e.Decode(&f); err != nil {
				b.Error(err)
				return
			}
			findings[*f.Task.SHA256] = true
		case "receipt":
			var r schemas.Receipt
			if err := e.Decode(&r); err != nil || !findings[*r.Task.SHA256] {
				b.Errorf("receipt %v: %v", r, err)
				return
			}
			mu.Lock()
			n := numbers[*r.Task.SHA256]
			mu.Unlock()
			m.done(n)
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	defer cc.Stop()

	slots := make(chan struct{}, 2*workers)
	running.Go(func() {
		var answers sync.WaitGroup
		defer answers.Wait()
		for {
			tasks, err := analyzer.NextTasks(ctx, name, workers)
			if err != nil {
				if ctx.Err() == nil {
					b.Error(err)
				}
				return
			}
			for _, task := range tasks {
				slots <- struct{}{}
				answers.Go(func() {
					defer func() { <-slots }()
					if err := answer(ctx, analyzer, task, l.artifact); err != nil && ctx.Err() == nil {
						b.Error(err)
					}
				})
			}
		}
	})

	var analyses []*analysis
	for range 8 {
		a := newAnalysis(b, sandbox)
		a.event(schemas.StartAnalysis{})
		analyses = append(analyses, a)
	}
	return m.produce(b, func(n int, data []byte) error {
		a := analyses[n%len(analyses)]
		art := schemas.Artifact{Kind: schemas.KindDropped, SHA256: digest(n), Size: 4096}
		if data != nil {
			var err error
			if art.SHA256, art.Size, err = sandbox.Artifacts().PutBytes(ctx, art.Kind, data); err != nil {
				return err
			}
		}
		mu.Lock()
		numbers[art.SHA256] = n
		mu.Unlock()
		e, err := schemas.NewEvent("default", a.id, art.ID(a.id), time.Now(), schemas.OriginHost, art)
		if err != nil {
			return err
		}
		return sandbox.PublishArtifact(ctx, e, &art)
	})
}

// answer is what the analyzer does: read, find, hand in.
func answer(ctx context.Context, b *bus.Bus, task *bus.Task, size int) error {
	if size > 0 {
		r, _, err := b.Artifacts().Open(ctx, *task.Ref.SHA256)
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, r)
		r.Close()
		if err != nil || n != int64(size) {
			return fmt.Errorf("%d bytes of %s: %w", n, task.Ref.SHA256, err)
		}
	}
	err := b.Finish(ctx, schemas.FinishedTask{
		Task: task.Ref, Version: "1.0.0", Instance: "bench", Status: schemas.TaskDone,
		Findings: []schemas.Finding{{Kind: "bench", Title: "something was found", Severity: schemas.SeverityLow, Confidence: 50}},
	})
	if err != nil {
		return err
	}
	return task.Done()
}

// BenchmarkPipeline is the whole way of a finding, beside the same job on Redis.
func BenchmarkPipeline(b *testing.B) {
	type fsync struct {
		name, redis string
		every       time.Duration
	}
	for _, sync := range []fsync{{"always", "always", 0}, {"1s", "everysec", time.Second}} {
		for _, artifact := range []int{0, 4 << 10} {
			for _, flow := range []string{"flood", "100_per_s"} {
				l := load{tasks: 400, artifact: artifact, every: 10 * time.Millisecond}
				if flow == "flood" {
					l.tasks, l.every = 6000, 0
				}
				name := fmt.Sprintf("%s/sync=%s/artifact=%d/", flow, sync.name, artifact)
				var ref figures
				b.Run(name+"redis", func(b *testing.B) {
					for b.Loop() {
						ref = redisPipeline(b, sync.redis, l)
					}
					ref.report(b, l, figures{})
				})
				for _, n := range []int{1, 3} {
					b.Run(fmt.Sprintf("%snodes=%d", name, n), func(b *testing.B) {
						var f figures
						for b.Loop() {
							f = petriPipeline(b, nodes(b, n, sync.every), l)
						}
						f.report(b, l, ref)
					})
				}
			}
		}
	}
}

// report writes the figures of one line, and what they are to the reference's.
func (f figures) report(b *testing.B, l load, ref figures) {
	b.ReportMetric(0, "ns/op")
	ms := func(d time.Duration) float64 { return d.Seconds() * 1e3 }
	if l.every == 0 {
		b.ReportMetric(f.perSecond, "tasks/s")
		if ref.perSecond > 0 {
			b.ReportMetric(f.perSecond/ref.perSecond, "x-redis")
		}
		return
	}
	b.ReportMetric(ms(f.p50), "p50-ms")
	b.ReportMetric(ms(f.p99), "p99-ms")
	if ref.p50 > 0 {
		b.ReportMetric(float64(f.p50)/float64(ref.p50), "x-redis-p50")
	}
}

// nodes runs servers with Petri's streams and returns how to connect.
func nodes(b *testing.B, n int, sync time.Duration) func(name string) *bus.Bus {
	b.Helper()
	var addr bus.Address
	settle := func() error { return nil }
	if n > 1 {
		addr = bus.Address{URL: clusterURL(b, n, sync)}
	} else {
		s, err := bus.StartServer(b.TempDir(), bus.ServerOptions{Sync: sync})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(s.Close)
		addr, settle = s.Address(), s.Announce
	}
	connect := func(name string) *bus.Bus {
		c, err := bus.Connect(context.Background(), addr, name)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(c.Close)
		return c
	}
	setup := connect("setup")
	if err := errors.Join(setup.Reconcile(b.Context(), bus.Limits{Log: 1 << 30, Store: 1 << 30}), settle()); err != nil {
		b.Fatal(err)
	}
	registrar(b, setup)
	return connect
}
