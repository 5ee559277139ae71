// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/all"
	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// RunAnalyzers runs the analyzers that Petri brings until ctx is done. ready is
// called when all of them are registered.
func RunAnalyzers(ctx context.Context, c Config, log *slog.Logger, ready func()) error {
	b, err := c.Connect(ctx, "analyzers")
	if err != nil {
		return err
	}
	defer b.Close()
	list := all.List()
	host, _ := os.Hostname()
	instance := fmt.Sprintf("%s-%d", host, os.Getpid())
	reg := &registryAdapter{b: b, left: len(list), ready: ready}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, a := range list {
		wg.Add(1)
		go func() {
			defer wg.Done()
			b.Heartbeat(ctx, a.Info().Name, instance, a.Info().Version)
		}()
	}
	return analyzers.Run(ctx, list, analyzers.Services{
		Registry: reg, Queue: queueAdapter{b}, Store: openAdapter{b}, Uploads: uploadAdapter{b}, Inbox: b, History: historyAdapter{b},
	}, analyzers.Options{Instance: instance, Log: log, Heartbeat: bus.TaskAckWait / 3, Dir: c.Data})
}

// registryAdapter registers, and says when all are.
type registryAdapter struct {
	b     *bus.Bus
	mu    sync.Mutex
	left  int
	ready func()
}

func (r *registryAdapter) Register(ctx context.Context, reg schemas.Registration) error {
	if err := r.b.Register(ctx, reg); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left--; r.left == 0 {
		r.ready()
	}
	return nil
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
	t := analyzers.Task{Ref: d.t.Ref, Artifacts: d.t.Artifacts, Attempt: d.t.Attempt}
	if d.t.Artifact != nil {
		t.Artifact = *d.t.Artifact
	}
	return t
}

func (d delivery) InProgress(context.Context) error                 { return d.t.Keep() }
func (d delivery) Ack(ctx context.Context) error                    { return d.t.Done(ctx) }
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
