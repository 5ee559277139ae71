// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/command"
	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/auth"
	"github.com/petri-sandbox/petri/schemas"
)

// RunCommand runs one analyzer that is a command until ctx is done. ready is
// called when it is registered.
func RunCommand(ctx context.Context, c Config, d schemas.Definition, log *slog.Logger, ready func()) error {
	a, err := command.New(d)
	if err != nil {
		return err
	}
	if err := a.Preflight(ctx); err != nil {
		return err
	}
	log.Info("the command is", "analyzer", d.Name, "command", strings.Join(d.Argv, " "), "limits", a.Describe())
	b, err := c.employ(ctx, auth.Analyzer, d.Name, "analyzer "+d.Name, log)
	if err != nil {
		return err
	}
	b.LogTo(log)
	defer b.Close()
	return runAnalyzer(ctx, b, a, analyzers.Options{Instance: instance(), Log: log, Dir: c.Data, Unconfined: c.Unconfined}, ready)
}

// instance names this process.
func instance() string {
	host, _ := os.Hostname()
	return fmt.Sprintf("%s-%d", host, os.Getpid())
}

// runAnalyzer registers one analyzer and runs it, and has its heart beat.
func runAnalyzer(ctx context.Context, b *bus.Bus, a analyzers.Analyzer, o analyzers.Options, ready func()) error {
	o.Stats, o.Heartbeat = &analyzers.Stats{}, bus.TaskAckWait/3
	info := a.Info()
	p := newPulse(info.Name, info.Version, o.Instance, o.Stats)
	beating, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { b.Beats(beating, p.beat) })
	defer wg.Wait()
	defer stop()
	return analyzers.Run(ctx, []analyzers.Analyzer{a}, analyzers.Services{
		Registry: registryAdapter{b, ready}, Queue: queueAdapter{b}, Store: openAdapter{b}, Uploads: uploadAdapter{b}, Inbox: b, History: historyAdapter{b}, Memo: b,
	}, o)
}

// registryAdapter registers, and says when it has.
type registryAdapter struct {
	b     *bus.Bus
	ready func()
}

func (r registryAdapter) Register(ctx context.Context, reg schemas.Registration) error {
	if err := r.b.Register(ctx, reg); err != nil {
		return err
	}
	r.ready()
	return nil
}

// pulse makes heartbeats of a runner's counts.
type pulse struct {
	base  bus.Beat
	stats *analyzers.Stats
	past  []count // of the last minute, the oldest first
}

type count struct {
	at time.Time
	n  uint64
}

func newPulse(name, version, instance string, stats *analyzers.Stats) *pulse {
	now := time.Now()
	return &pulse{
		base:  bus.Beat{Analyzer: name, Instance: instance, Version: version, Since: now.UTC().Truncate(time.Second)},
		stats: stats, past: []count{{now, 0}},
	}
}

// beat may be called by one goroutine only.
func (p *pulse) beat() bus.Beat {
	b, now := p.base, time.Now()
	for _, s := range p.stats.Snapshot() {
		if s.Name == b.Analyzer {
			b.Running, b.Done, b.Failed, b.Skipped = s.Running, s.Done, s.Failed, s.Skipped
			b.Error, b.ErrorAt = s.LastError, s.LastAt.UTC().Truncate(time.Second)
		}
	}
	n := b.Done + b.Failed + b.Skipped
	for len(p.past) > 1 && now.Sub(p.past[1].at) >= time.Minute {
		p.past = p.past[1:]
	}
	if took := now.Sub(p.past[0].at); took > 0 {
		b.Rate = math.Round(float64(n-p.past[0].n)/took.Seconds()*1000) / 1000
	}
	p.past = append(p.past, count{now, n})
	return b
}

// queueAdapter hands out tasks.
type queueAdapter struct{ b *bus.Bus }

func (q queueAdapter) Next(ctx context.Context, analyzer string) (analyzers.Delivery, error) {
	t, err := q.b.NextTask(ctx, analyzer)
	if err != nil {
		return nil, err
	}
	return delivery{t}, nil
}

type delivery struct{ t *bus.Task }

func (d delivery) Task() analyzers.Task {
	t := analyzers.Task{Ref: d.t.Ref, Artifacts: d.t.Artifacts, Omitted: d.t.Omitted, Attempt: d.t.Attempt, Force: d.t.Force}
	if d.t.Artifact != nil {
		t.Artifact = *d.t.Artifact
	}
	return t
}

func (d delivery) InProgress(context.Context) error                 { return d.t.Keep() }
func (d delivery) Ack(context.Context) error                        { return d.t.Done() }
func (d delivery) Begin(ctx context.Context) error                  { return d.t.Begin(ctx) }
func (d delivery) Return(ctx context.Context) error                 { return d.t.Return(ctx) }
func (d delivery) Nak(_ context.Context, delay time.Duration) error { return d.t.Retry(delay) }

// openAdapter opens artifacts.
type openAdapter struct{ b *bus.Bus }

func (s openAdapter) Open(ctx context.Context, d schemas.Digest) (io.ReadCloser, error) {
	r, _, err := s.b.Artifacts().Open(ctx, d)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", analyzers.ErrNotFound, err)
	}
	return r, err
}

// uploadAdapter takes what analyzers write.
type uploadAdapter struct{ b *bus.Bus }

func (u uploadAdapter) Put(ctx context.Context, analyzer string, r io.Reader) (schemas.Digest, int64, error) {
	return u.b.Upload(ctx, analyzer, "upload", r)
}

// historyAdapter reads the log.
type historyAdapter struct{ b *bus.Bus }

func (h historyAdapter) Events(ctx context.Context, t schemas.TaskRef) iter.Seq2[schemas.Event, error] {
	return func(yield func(schemas.Event, error) bool) {
		err := h.b.Read(ctx, t.Tenant, t.Analysis, 0, func(e bus.Entry) error {
			if !yield(e.Event, nil) {
				return bus.ErrStop
			}
			return nil
		})
		if err != nil {
			yield(schemas.Event{}, err)
		}
	}
}
