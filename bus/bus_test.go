// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/faults"
	"github.com/petri-sandbox/petri/schemas"
)

// start runs a server of its own for a test and connects to it.
func start(t testing.TB) *bus.Bus {
	t.Helper()
	b, _ := startAt(t, t.TempDir())
	return b
}

func startAt(t testing.TB, dir string) (*bus.Bus, *bus.Server) {
	t.Helper()
	s, err := bus.StartServer(dir, bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	b, err := bus.Connect(context.Background(), s.Address(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if err := b.Reconcile(context.Background(), bus.Limits{Log: 64 << 20, Store: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	registrar(t, b)
	return b, s
}

// registrar lets analyzers in during the test.
func registrar(t testing.TB, b *bus.Bus) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = bus.NewRegistrar(b, slog.New(slog.NewTextHandler(t.Output(), nil))).Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// an analysis to write about.
type analysis struct {
	t  testing.TB
	b  *bus.Bus
	w  *bus.ContextWriter
	id string

	books faults.Books // what was acknowledged of it
}

func newAnalysis(t testing.TB, b *bus.Bus) *analysis {
	t.Helper()
	id := schemas.NewID(time.Now())
	w, err := b.OpenContext(context.Background(), "default", id)
	if err != nil {
		t.Fatal(err)
	}
	return &analysis{t: t, b: b, w: w, id: id}
}

// event publishes a context event.
func (a *analysis) event(data schemas.Typed) {
	a.t.Helper()
	e, err := schemas.NewEvent("default", a.id, a.w.NextID(), time.Now(), schemas.OriginHost, data)
	if err != nil {
		a.t.Fatal(err)
	}
	if err := a.w.Write(context.Background(), e); err != nil {
		a.t.Fatal(err)
	}
	a.books.Ack(e.ID)
}

// artifact stores and announces bytes.
func (a *analysis) artifact(kind schemas.Kind, text string, occurrence int) schemas.Digest {
	a.t.Helper()
	ctx := context.Background()
	d, _, err := a.b.Artifacts().Put(ctx, kind, strings.NewReader(text))
	if err != nil {
		a.t.Fatal(err)
	}
	art := schemas.Artifact{Kind: kind, SHA256: d, Size: int64(len(text)), Occurrence: occurrence}
	e, err := schemas.NewEvent("default", a.id, art.ID(a.id), time.Now(), schemas.OriginHost, art)
	if err != nil {
		a.t.Fatal(err)
	}
	if err := a.b.PublishArtifact(ctx, e, &art); err != nil {
		a.t.Fatal(err)
	}
	a.books.Ack(e.ID)
	return d
}

// names reads the analysis back: the type of each event without its ends.
func (a *analysis) names() []string {
	a.t.Helper()
	var out []string
	err := a.b.Read(context.Background(), "default", a.id, 0, func(e bus.Entry) error {
		out = append(out, e.Event.Family()+" "+e.Event.Name())
		return nil
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return out
}

// account reports what a test has cost the analyses that it wrote.
func account(t testing.TB, b *bus.Bus, list ...*analysis) {
	t.Helper()
	var books []*faults.Books
	for _, a := range list {
		books = append(books, &a.books)
	}
	faults.Account(context.Background(), t, b.JetStream(), "", books...)
}

// TestBooks has the books find what is lost, doubled and wrong.
func TestBooks(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "static", schemas.KindSample)
	a := newAnalysis(t, b)
	a.artifact(schemas.KindSample, "the sample", 0)
	a.event(schemas.StartAnalysis{})
	audit := func(want faults.Figures) {
		t.Helper()
		got, err := faults.Audit(t.Context(), b.JetStream(), &a.books)
		if err != nil || got != want {
			t.Errorf("%+v, not %+v: %v", got, want, err)
		}
	}
	audit(faults.Figures{Acked: 2})
	if err := a.books.Complete(t.Context(), b.JetStream(), a.id); err != nil {
		t.Fatal(err)
	}
	audit(faults.Figures{Acked: 2, Wrong: 1})
	finish(t, b, next(t, b, "static"), schemas.FinishedTask{})
	if missing := a.wait(time.Minute); len(missing) > 0 { // this claim is right
		t.Fatalf("missing: %+v", missing)
	}
	audit(faults.Figures{Acked: 2, Wrong: 1})
	a.books.Ack(a.id + "/context/9")
	audit(faults.Figures{Acked: 3, Lost: 1, Wrong: 1})
	err := b.Read(t.Context(), "default", a.id, 0, func(e bus.Entry) error { // once more, by somebody who writes what he likes
		_, err := b.JetStream().Publish(t.Context(), e.Subject, e.Body)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	audit(faults.Figures{Acked: 3, Lost: 1, Doubled: 3, Wrong: 1})
}
