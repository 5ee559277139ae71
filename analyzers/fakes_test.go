// SPDX-License-Identifier: Apache-2.0

package analyzers_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/schemas"
)

// world is everything that a runner needs, in memory.
type world struct {
	mu         sync.Mutex
	objects    map[schemas.Digest][]byte
	uploads    map[schemas.Digest][]byte
	registered []schemas.Registration
	finished   []schemas.FinishedTask
	log        []schemas.Event
	naks       []time.Duration
	acks       int
	beats      int
	begun      int
	returned   int
	left       int // how often somebody was told to take no more
	queues     map[string]chan *delivery
	answered   chan struct{} // one element per ack or nak

	earlier     *schemas.TaskRef // what the memo answers
	force       bool
	breakPut    error
	breakOpen   error
	breakFinish int // how often
}

func newWorld() *world {
	return &world{
		objects: map[schemas.Digest][]byte{}, uploads: map[schemas.Digest][]byte{},
		queues: map[string]chan *delivery{}, answered: make(chan struct{}, 10000),
	}
}

func (w *world) services() analyzers.Services {
	return analyzers.Services{Registry: w, Queue: w, Store: w, Uploads: w, Inbox: w, History: w, Memo: w}
}

func (w *world) queue(name string) chan *delivery {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.queues[name] == nil {
		w.queues[name] = make(chan *delivery, 10000)
	}
	return w.queues[name]
}

func (w *world) add(b []byte) schemas.Digest {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := schemas.Sum(b)
	w.objects[d] = b
	return d
}

// submit makes an artifact task.
func (w *world) submit(analyzer string, a schemas.Artifact, attempt int) {
	w.queue(analyzer) <- &delivery{w: w, task: analyzers.Task{
		Ref: schemas.TaskRef{
			Tenant: schemas.DefaultTenant, Analysis: "01JD0000000000000000000000", Run: schemas.LiveRun,
			Analyzer: analyzer, SHA256: &a.SHA256, Kind: a.Kind,
		},
		Artifact: a, Attempt: attempt, Force: w.force,
	}}
}

func (w *world) sample(analyzer string, b []byte) {
	w.submit(analyzer, schemas.Artifact{Kind: schemas.KindSample, SHA256: w.add(b), Size: int64(len(b))}, 1)
}

// wait waits for n acks and naks.
func (w *world) wait(t *testing.T, n int) {
	t.Helper()
	late := time.After(100 * time.Second)
	for range n {
		select {
		case <-w.answered:
		case <-late:
			t.Fatal("an answer did not come")
		}
	}
}

func (w *world) Register(_ context.Context, r schemas.Registration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.registered = append(w.registered, r)
	return r.Check()
}

func (w *world) Next(ctx context.Context, analyzer string) (analyzers.Delivery, error) {
	select {
	case d := <-w.queue(analyzer):
		return d, nil
	case <-ctx.Done():
		w.mu.Lock()
		defer w.mu.Unlock()
		w.left++
		return nil, ctx.Err()
	}
}

func (w *world) Open(_ context.Context, d schemas.Digest) (io.ReadCloser, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.breakOpen != nil {
		return nil, w.breakOpen
	}
	b, ok := w.objects[d]
	if !ok {
		return nil, fmt.Errorf("get %s: %w", d, analyzers.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (w *world) Put(_ context.Context, _ string, r io.Reader) (schemas.Digest, int64, error) {
	if w.breakPut != nil {
		return schemas.Digest{}, 0, w.breakPut
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return schemas.Digest{}, 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	d := schemas.Sum(b)
	w.uploads[d] = b
	return d, int64(len(b)), nil
}

func (w *world) Finish(_ context.Context, t schemas.FinishedTask) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.breakFinish > 0 {
		w.breakFinish--
		return errors.New("the inbox is closed")
	}
	if _, err := json.Marshal(t); err != nil {
		return err
	}
	w.finished = append(w.finished, t)
	return nil
}

func (w *world) Earlier(context.Context, schemas.FinishedTask) (*schemas.TaskRef, error) {
	return w.earlier, nil
}

func (w *world) Events(context.Context, schemas.TaskRef) iter.Seq2[schemas.Event, error] {
	return func(yield func(schemas.Event, error) bool) {
		for _, e := range w.log {
			if !yield(e, nil) {
				return
			}
		}
	}
}

type delivery struct {
	w    *world
	task analyzers.Task
}

func (d *delivery) Task() analyzers.Task { return d.task }

func (d *delivery) InProgress(context.Context) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	d.w.beats++
	return nil
}

func (d *delivery) Ack(context.Context) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	d.w.acks++
	d.w.answered <- struct{}{}
	return nil
}

func (d *delivery) Begin(context.Context) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	d.w.begun++
	return nil
}

func (d *delivery) Return(context.Context) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	d.w.returned++
	d.w.answered <- struct{}{}
	return nil
}

func (d *delivery) Nak(_ context.Context, delay time.Duration) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	d.w.naks = append(d.w.naks, delay)
	d.w.answered <- struct{}{}
	return nil
}
