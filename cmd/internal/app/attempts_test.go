// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/command"
	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/faults"
	"github.com/petri-sandbox/petri/schemas"
)

// sayings is a log of which a test asks how often something was said.
type sayings struct {
	mu   sync.Mutex
	text strings.Builder
	out  io.Writer
}

func (s *sayings) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Write(b)
	return s.out.Write(b)
}

func (s *sayings) count(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.text.String(), what)
}

// sleeping runs an analyzer whose command does nothing for so long. stop tells it
// to end, which it does at once.
func sleeping(t *testing.T, b *bus.Bus, d time.Duration) (said *sayings, stop func()) {
	t.Helper()
	def, err := command.Define(schemas.Definition{
		Name: "sleeping", Kinds: []schemas.Kind{schemas.KindSample}, Argv: []string{"/bin/sleep", fmt.Sprint(d.Seconds())}, Timeout: schemas.Duration(time.Hour),
	}, "/")
	if err != nil {
		t.Fatal(err)
	}
	a, err := command.New(def)
	if err != nil {
		t.Fatal(err)
	}
	said = &sayings{out: t.Output()}
	log := slog.New(slog.NewTextHandler(said, nil))
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan struct{})
	dir := t.TempDir()
	go func() {
		defer close(done)
		o := analyzers.Options{Instance: "test", Concurrency: 2, Drain: -1, Log: log, Dir: dir, Unconfined: true}
		if err := runAnalyzer(ctx, b, a, o, func() { close(ready) }); err != nil {
			t.Errorf("the analyzer ended: %v", err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	select {
	case <-ready:
	case <-time.After(2 * time.Minute):
		t.Fatal("the analyzer is not registered")
	}
	return said, stop
}

// sampled writes an analysis of one sample into the log.
func sampled(t *testing.T, b *bus.Bus, books *faults.Books) (id string) {
	t.Helper()
	id = schemas.NewID(time.Now())
	w, err := b.BeginContext(t.Context(), schemas.DefaultTenant, id)
	if err != nil {
		t.Fatal(err)
	}
	d, size, err := b.Artifacts().Put(t.Context(), schemas.KindSample, strings.NewReader("the sample"))
	if err != nil {
		t.Fatal(err)
	}
	a := schemas.Artifact{Kind: schemas.KindSample, SHA256: d, Size: size}
	e, err := schemas.NewEvent(schemas.DefaultTenant, id, a.ID(id), time.Now(), schemas.OriginHost, a)
	if err == nil {
		err = b.PublishArtifact(t.Context(), e, &a)
	}
	if err != nil {
		t.Fatal(err)
	}
	books.Ack(e.ID)
	if e, err = schemas.NewEvent(schemas.DefaultTenant, id, w.NextID(), time.Now(), schemas.OriginHost, schemas.StartAnalysis{}); err == nil {
		err = w.Write(t.Context(), e)
	}
	if err != nil {
		t.Fatal(err)
	}
	books.Ack(e.ID)
	return id
}

// taken is how often tasks of the analyzer were given out.
func taken(t *testing.T, b *bus.Bus) uint64 {
	c, err := b.JetStream().Consumer(t.Context(), "LOG", "az-sleeping-live")
	if err != nil {
		return 0 // the bus is away
	}
	return c.CachedInfo().Delivered.Consumer
}

// answered waits until the analysis is complete, and checks that its task was
// done.
func answered(t *testing.T, b *bus.Bus, id string, books *faults.Books) {
	t.Helper()
	missing, err := b.Wait(t.Context(), schemas.DefaultTenant, id, time.Now().Add(3*time.Minute), nil)
	if err != nil || len(missing) > 0 {
		t.Fatalf("missing %+v, %v", missing, err)
	}
	if err := books.Complete(t.Context(), b.JetStream(), id); err != nil {
		t.Fatal(err)
	}
	receipts := 0
	err = b.Read(t.Context(), schemas.DefaultTenant, id, 0, func(e bus.Entry) error {
		var r schemas.Receipt
		if e.Event.Decode(&r) == nil {
			receipts++
			if r.Status != schemas.TaskDone {
				t.Errorf("the task is %s: %s", r.Status, r.Error)
			}
		}
		return nil
	})
	if err != nil || receipts != 1 {
		t.Errorf("%d receipts, %v", receipts, err)
	}
}

// eventually waits for what tells nobody of itself.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(3 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// TestRestartedAnalyzers has the analyzers' daemon told to end, and started again,
// more often during one task than a task is tried: it is done in the end.
func TestRestartedAnalyzers(t *testing.T) {
	t.Parallel()
	b := StartBus(t)
	_, stop := sleeping(t, b, time.Hour)
	var books faults.Books
	id := sampled(t, b, &books)
	const restarts = analyzers.MaxAttempts + 2
	for n := range uint64(restarts) {
		eventually(t, "the task is taken", func() bool { return taken(t, b) > n })
		stop()
		_, stop = sleeping(t, b, time.Hour)
	}
	stop()
	sleeping(t, b, 0)
	answered(t, b, id, &books)
	faults.Account(t.Context(), t, b.JetStream(), fmt.Sprintf("%d restarts during one task", restarts), &books)
}

// TestBusAwayDuringTask takes the bus away for longer than a task may be without
// a sign of life. When it is back it gives the task out again, to the process that
// has it in work: that is no second attempt.
func TestBusAwayDuringTask(t *testing.T) {
	t.Parallel()
	dir, listen := t.TempDir(), "127.0.0.1:"+faults.FreePort(t)
	serve := func() func() {
		t.Helper()
		s, err := bus.StartServer(dir, bus.ServerOptions{Listen: listen})
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.Connect(t.Context(), "test")
		if err == nil {
			err = b.Reconcile(t.Context(), bus.Limits{Log: 64 << 20, Store: 64 << 20})
		}
		if err == nil {
			err = s.Announce()
		}
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		log := slog.New(slog.NewTextHandler(t.Output(), nil))
		running.Go(func() { _ = bus.NewClerk(b, log).Run(ctx) })
		running.Go(func() { _ = bus.NewRegistrar(b, log).Run(ctx) })
		return sync.OnceFunc(func() { cancel(); running.Wait(); b.Close(); s.Close() })
	}
	end := serve()
	t.Cleanup(func() { end() })
	addr, err := bus.ReadAddress(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := bus.Connect(t.Context(), addr, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	said, stop := sleeping(t, b, 2*bus.TaskAckWait)
	var books faults.Books
	id := sampled(t, b, &books)
	eventually(t, "the task is taken", func() bool { return taken(t, b) == 1 })
	end()
	time.Sleep(bus.TaskAckWait + time.Second) // the fault is that time
	end = serve()
	eventually(t, "the task is given out again", func() bool { return taken(t, b) > 1 })
	answered(t, b, id, &books)
	stop()
	if n, back := said.count(`msg="task finished"`), said.count(`msg="task given back"`); n != 1 || back != 0 {
		t.Errorf("the work was done %d times, and given back %d times", n, back)
	}
	faults.Account(t.Context(), t, b.JetStream(), "", &books)
}
