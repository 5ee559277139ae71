// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

func TestReadInOrder(t *testing.T) {
	b := start(t)
	a, other := newAnalysis(t, b), newAnalysis(t, b)
	var want []string
	for i := range 50 {
		name := fmt.Sprintf("event_%d", i)
		a.event(schemas.Custom{Name: name})
		other.event(schemas.Custom{Name: "noise"})
		want = append(want, "context "+name)
	}
	if diff := cmp.Diff(want, a.names()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	// From the middle on.
	var seqs []uint64
	if err := b.Read(t.Context(), "default", a.id, 0, func(e bus.Entry) error {
		seqs = append(seqs, e.Seq)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := b.Read(t.Context(), "default", a.id, seqs[30], func(bus.Entry) error { n++; return nil }); err != nil || n != 20 {
		t.Errorf("from the 31st on: %d events, %v", n, err)
	}
	// An analysis that is not there ends at once.
	if err := b.Read(t.Context(), "default", schemas.NewID(time.Now()), 0, func(bus.Entry) error { return errors.New("an event") }); err != nil {
		t.Error(err)
	}
}

func TestFollow(t *testing.T) {
	b := start(t)
	a := newAnalysis(t, b)
	a.event(schemas.Custom{Name: "first"})
	caught := make(chan struct{})
	got := make(chan string, 10)
	done := make(chan error, 1)
	go func() {
		done <- b.Follow(t.Context(), "default", a.id, 0, func() { close(caught) }, func(e bus.Entry) error {
			got <- e.Event.Name()
			if e.Event.Name() == "last" {
				return bus.ErrStop
			}
			return nil
		})
	}()
	<-caught
	a.event(schemas.Custom{Name: "last"})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if x, y := <-got, <-got; x != "first" || y != "last" {
		t.Errorf("%s, %s", x, y)
	}
}

func TestOneWriter(t *testing.T) { oneWriter(t, start(t)) }

func TestSameBytes(t *testing.T) { sameBytes(t, start(t)) }

// TestBeginContext is a sandbox that has found an analysis without events, and
// takes it up after somebody else has cancelled it or taken it.
func TestBeginContext(t *testing.T) {
	b := start(t)
	s := submit(t, b, "normal")
	early, err := b.BeginContext(t.Context(), "default", s.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Cancel(t.Context(), "default", s.ID, "somebody"); err != nil {
		t.Fatal(err)
	}
	e, err := schemas.NewEvent("default", s.ID, early.NextID(), time.Now(), schemas.OriginHost, schemas.AnalysisSubmitted{Submission: s, Attempt: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := early.Write(t.Context(), e); !errors.Is(err, bus.ErrFenced) {
		t.Errorf("whoever began before the cancellation: %v", err)
	}
	if _, err := b.BeginContext(t.Context(), "default", s.ID); !errors.Is(err, bus.ErrFenced) {
		t.Errorf("whoever begins after it: %v", err)
	}
	entries, err := b.Context(t.Context(), "default", s.ID)
	if err != nil || len(entries) != 2 {
		t.Errorf("%d events, %v", len(entries), err)
	}
}

func TestOneEnding(t *testing.T) {
	b := start(t)
	a := newAnalysis(t, b)
	a.event(schemas.Custom{Name: "begin"})
	endings := []schemas.Typed{schemas.AnalysisCompleted{}, schemas.AnalysisFailed{Reason: "x"}, schemas.AnalysisCancelled{By: "x"}}
	var wg sync.WaitGroup
	got := make([]string, 12)
	for i := range got {
		wg.Add(1)
		go func() {
			defer wg.Done()
			e, err := b.End(context.Background(), "default", a.id, endings[i%3])
			if err != nil {
				t.Error(err)
			}
			got[i] = e.Name()
		}()
	}
	wg.Wait()
	if len(slices.Compact(got)) != 1 {
		t.Errorf("they do not agree: %v", got)
	}
	if n := len(a.names()); n != 2 {
		t.Errorf("%d events: %v", n, a.names())
	}
}

func TestSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	b, s := startAt(t, dir)
	a := newAnalysis(t, b)
	for range 20 {
		a.event(schemas.Custom{Name: "before"})
	}
	if err := s.Announce(); err != nil {
		t.Fatal(err)
	}
	addr := s.Address()
	s.Kill() // as kill -9 does: nothing is written any more
	s, err := bus.StartServer(dir, bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if s.Address().URL != addr.URL || s.Address().Password != addr.Password {
		t.Error("clients that live on will not find the new server")
	}
	a.event(schemas.Custom{Name: "after"}) // over the old connection
	if n := len(a.names()); n != 21 {
		t.Errorf("%d events", n)
	}
}

func TestSecondServer(t *testing.T) {
	dir := t.TempDir()
	_, _ = startAt(t, dir)
	if _, err := bus.StartServer(dir, bus.ServerOptions{}); !errors.Is(err, bus.ErrInUse) {
		t.Errorf("a second server: %v", err)
	}
}

func TestListen(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:0", "nonsense", "example.org:4222", "127.0.0.1:x"} {
		if s, err := bus.StartServer(t.TempDir(), bus.ServerOptions{Listen: listen}); err == nil {
			s.Close()
			t.Errorf("it listens on %s", listen)
		}
	}
}

func TestCredentials(t *testing.T) {
	_, s := startAt(t, t.TempDir())
	a := s.Address()
	for _, bad := range []bus.Address{{URL: a.URL}, {URL: a.URL, User: a.User, Password: "petri"}, {URL: a.URL, User: "admin", Password: a.Password}} {
		if b, err := bus.Connect(t.Context(), bad, "stranger"); err == nil {
			b.Close()
			t.Errorf("%+v got in", bad)
		}
	}
}
