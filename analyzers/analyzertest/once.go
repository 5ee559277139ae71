// SPDX-License-Identifier: Apache-2.0

package analyzertest

import (
	"bytes"
	"context"
	"io"
	"iter"
	"sync"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/schemas"
)

// Once runs one task as production does, in a confined child process, and
// returns the answer and what was uploaded, by digest. The job is one of scope
// artifact, such as [Job] makes. The test program's TestMain must call
// analyzers.Child(list) first.
func Once(t testing.TB, list []analyzers.Analyzer, job analyzers.Job) (schemas.FinishedTask, map[schemas.Digest][]byte) {
	t.Helper()
	data, err := io.ReadAll(job.Input.Reader())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	o := &once{data: data, job: job, done: cancel, uploads: map[schemas.Digest][]byte{}}
	err = analyzers.Run(ctx, list, analyzers.Services{Registry: o, Queue: o, Store: o, Uploads: o, Inbox: o, History: o}, analyzers.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if o.answer == nil {
		t.Fatal("the task was not answered")
	}
	return *o.answer, o.uploads
}

// once is a world with one task.
type once struct {
	data []byte
	job  analyzers.Job
	done func()

	mu      sync.Mutex
	taken   bool
	answer  *schemas.FinishedTask
	uploads map[schemas.Digest][]byte
}

func (o *once) Register(context.Context, schemas.Registration) error { return nil }

func (o *once) Next(ctx context.Context, analyzer string) (analyzers.Delivery, error) {
	o.mu.Lock()
	first := analyzer == o.job.Task.Analyzer && !o.taken
	o.taken = o.taken || first
	o.mu.Unlock()
	if first {
		return onceDelivery{o}, nil
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

func (o *once) Open(_ context.Context, d schemas.Digest) (io.ReadCloser, error) {
	if d != schemas.Sum(o.data) {
		return nil, analyzers.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(o.data)), nil
}

func (o *once) Put(_ context.Context, _ string, r io.Reader) (schemas.Digest, int64, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return schemas.Digest{}, 0, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	d := schemas.Sum(b)
	o.uploads[d] = b
	return d, int64(len(b)), nil
}

func (o *once) Finish(_ context.Context, t schemas.FinishedTask) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answer = &t
	return nil
}

func (o *once) Events(context.Context, schemas.TaskRef) iter.Seq2[schemas.Event, error] {
	return func(func(schemas.Event, error) bool) {}
}

type onceDelivery struct{ *once }

func (d onceDelivery) Task() analyzers.Task {
	return analyzers.Task{Ref: d.job.Task, Artifact: d.job.Artifact, Attempt: 1}
}
func (d onceDelivery) InProgress(context.Context) error { return nil }
func (d onceDelivery) Begin(context.Context) error      { return nil }
func (d onceDelivery) Return(context.Context) error     { d.done(); return nil }
func (d onceDelivery) Ack(context.Context) error        { d.done(); return nil }

func (d onceDelivery) Nak(context.Context, time.Duration) error {
	d.done()
	return nil
}
