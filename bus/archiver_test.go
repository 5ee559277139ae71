// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

func archiver(b *bus.Bus) *bus.Archiver {
	x := bus.NewArchiver(b, bus.ArchiverOptions{After: time.Hour, Log: slog.New(slog.DiscardHandler)})
	x.SetLate(0)
	return x
}

// inLog is how many messages the log holds of an analysis.
func inLog(t testing.TB, b *bus.Bus, id string) int {
	t.Helper()
	s, err := b.JetStream().Stream(context.Background(), "LOG")
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(context.Background(), jetstream.WithSubjectFilter(bus.AnalysisSubject("default", id)))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, k := range info.State.Subjects {
		n += int(k)
	}
	return n
}

// TestArchive moves an analysis: whoever reads it sees no difference, and the
// log has nothing of it.
func TestArchive(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := start(t)
	a, other := ended(t, b), ended(t, b)
	before, beside := bodies(t, b, a.id), bodies(t, b, other.id)
	file := export(t, b, a.id, bus.ExportOptions{})
	if err := archiver(b).Archive(ctx, "default", a.id); err != nil {
		t.Fatal(err)
	}
	if n := inLog(t, b, a.id); n != 0 {
		t.Errorf("the log has %d messages", n)
	}
	if diff := cmp.Diff(before, bodies(t, b, a.id)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(beside, bodies(t, b, other.id)); diff != "" {
		t.Error("another analysis changed:", diff)
	}
	if !bytes.Equal(export(t, b, a.id, bus.ExportOptions{}), file) {
		t.Error("exported it is another file")
	}
	entries, err := b.Context(ctx, "default", a.id)
	if err != nil || len(entries) != 3 {
		t.Errorf("%d context events, %v", len(entries), err)
	}
	if _, err := b.BeginContext(ctx, "default", a.id); !errors.Is(err, bus.ErrFenced) {
		t.Errorf("it can be begun anew: %v", err)
	}
	var watched []string
	if err := b.Watch(ctx, "default", a.id, bus.Feed{Event: func(e schemas.Event) error {
		watched = append(watched, e.Name())
		return nil
	}}); err != nil || len(watched) != 5 {
		t.Errorf("watched %v, %v", watched, err)
	}
	e, err := b.ArchiveEntry(ctx, "default", a.id)
	if err != nil {
		t.Fatal(err)
	}
	if e.Events != 5 || e.Context != 3 || len(e.Artifacts) != 2 || e.Imported || e.Submitted.IsZero() {
		t.Errorf("the entry is %+v", e)
	}
	found, err := b.FindArtifacts(ctx, "default", e.Artifacts[0].SHA256.String()[:8])
	if err != nil || len(found) != 1 {
		t.Errorf("found %v, %v", found, err)
	}
	// Again there is nothing to do.
	if err := archiver(b).Archive(ctx, "default", a.id); err != nil {
		t.Error(err)
	}
	if err := archiver(b).Archive(ctx, "default", schemas.NewID(time.Now())); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("one that is not there: %v", err)
	}
}

// TestArchiveLate writes behind archived and imported analyses, and archives
// that too.
func TestArchiveLate(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b, elsewhere := start(t), start(t)
	far := ended(t, elsewhere)
	if _, err := b.Import(ctx, bytes.NewReader(export(t, elsewhere, far.id, bus.ExportOptions{})), bus.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	near := ended(t, b)
	if err := archiver(b).Archive(ctx, "default", near.id); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{near.id, far.id} {
		for round := range 3 {
			w, err := b.OpenContext(ctx, "default", id)
			if err != nil {
				t.Fatal(err)
			}
			if w.Count() != 3+round {
				t.Fatalf("round %d: %d context events", round, w.Count())
			}
			a := &analysis{t: t, b: b, w: w, id: id}
			a.event(schemas.AnalysisAmended{Analyzer: fmt.Sprintf("late-%d", round), Run: schemas.LiveRun})
			before := bodies(t, b, id)
			if len(before) != 6+round || !strings.Contains(before[5+round], fmt.Sprintf("late-%d", round)) {
				t.Fatalf("round %d: %d events", round, len(before))
			}
			x := archiver(b)
			x.SetLate(time.Hour)
			if err := x.Archive(ctx, "default", id); !errors.Is(err, bus.ErrNotYet) {
				t.Errorf("young late events: %v", err)
			}
			if err := archiver(b).Archive(ctx, "default", id); err != nil {
				t.Fatal(err)
			}
			if n := inLog(t, b, id); n != 0 {
				t.Errorf("the log has %d messages", n)
			}
			if diff := cmp.Diff(before, bodies(t, b, id)); diff != "" {
				t.Error(diff)
			}
		}
	}
	if e, err := b.ArchiveEntry(ctx, "default", far.id); err != nil || !e.Imported {
		t.Errorf("the imported analysis' entry: %+v, %v", e, err)
	}
}

var errKilled = errors.New("killed")

// TestArchiveKilled ends a move behind each of its steps: the analysis is whole,
// its writers find their place, and the next move goes on.
func TestArchiveKilled(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"written", "verified", "entered", "purged"} {
		t.Run(step, func(t *testing.T) {
			ctx := t.Context()
			b := start(t)
			a := ended(t, b)
			for range 2 { // the first move, and one of what came late
				before := bodies(t, b, a.id)
				x := archiver(b)
				x.OnStep(func(s string) error {
					if s == step {
						return errKilled
					}
					return nil
				})
				if err := x.Archive(ctx, "default", a.id); !errors.Is(err, errKilled) {
					t.Fatalf("it was not killed: %v", err)
				}
				if diff := cmp.Diff(before, bodies(t, b, a.id)); diff != "" {
					t.Fatal("after the kill:", diff)
				}
				// An amendment finds its place wherever the events lie.
				w, err := b.OpenContext(ctx, "default", a.id)
				if err != nil {
					t.Fatal(err)
				}
				late := &analysis{t: t, b: b, w: w, id: a.id}
				late.event(schemas.AnalysisAmended{Analyzer: "late", Run: schemas.LiveRun})
				if len(bodies(t, b, a.id)) != len(before)+1 {
					t.Fatal("the amendment is not behind them")
				}
				before = bodies(t, b, a.id)
				if err := archiver(b).Archive(ctx, "default", a.id); err != nil {
					t.Fatal(err)
				}
				if n := inLog(t, b, a.id); n != 0 {
					t.Errorf("the log has %d messages", n)
				}
				if diff := cmp.Diff(before, bodies(t, b, a.id)); diff != "" {
					t.Fatal("after the next move:", diff)
				}
				late.w, err = b.OpenContext(ctx, "default", a.id)
				if err != nil {
					t.Fatal(err)
				}
				late.event(schemas.AnalysisAmended{Analyzer: "later", Run: schemas.LiveRun})
			}
		})
	}
}

// TestArchiveFences keeps a writer from an analysis that was moved and written
// to behind its back.
func TestArchiveFences(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := start(t)
	a := ended(t, b)
	stale, err := b.OpenContext(ctx, "default", a.id)
	if err != nil {
		t.Fatal(err)
	}
	if err := archiver(b).Archive(ctx, "default", a.id); err != nil {
		t.Fatal(err)
	}
	e, err := schemas.NewEvent("default", a.id, stale.NextID(), time.Now(), schemas.OriginHost, schemas.AnalysisAmended{Analyzer: "x", Run: "live"})
	if err != nil {
		t.Fatal(err)
	}
	if err := stale.Write(ctx, e); !errors.Is(err, bus.ErrFenced) {
		t.Errorf("the writer is not fenced: %v", err)
	}
}

// TestArchiveWhileRead moves analyses while others read them, slowly and fast:
// everybody sees every event, once and in order.
func TestArchiveWhileRead(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := start(t)
	for round := range 6 {
		a := newAnalysis(t, b)
		a.event(schemas.AnalysisSubmitted{Attempt: 1})
		for range 700 { // more than a reader is given at a time
			a.event(schemas.Custom{Name: "tick"})
		}
		a.event(schemas.AnalysisCompleted{})
		want := bodies(t, b, a.id)
		var wg sync.WaitGroup
		moved := make(chan struct{})
		for reader := range 4 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				var got []string
				err := b.Read(ctx, "default", a.id, 0, func(e bus.Entry) error {
					if reader < 2 && len(got) == 1+round*110 { // wait in the middle
						<-moved
					}
					got = append(got, e.Subject+" "+string(e.Body))
					return nil
				})
				if err != nil {
					t.Error(err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("round %d, reader %d saw another log (%d events, not %d)", round, reader, len(got), len(want))
				}
			}()
		}
		if err := archiver(b).Archive(ctx, "default", a.id); err != nil {
			t.Error(err)
		}
		close(moved)
		wg.Wait()
	}
}

// TestArchiveNotYet leaves alone what somebody still has to do with.
func TestArchiveNotYet(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := start(t)
	running := newAnalysis(t, b)
	running.event(schemas.AnalysisSubmitted{})
	if err := archiver(b).Archive(ctx, "default", running.id); !errors.Is(err, bus.ErrNotYet) {
		t.Errorf("one that runs: %v", err)
	}
	if err := b.Register(ctx, schemas.Registration{Name: "slow", Version: "1.0.0", Scope: schemas.ScopeArtifact, Kinds: []schemas.Kind{schemas.KindSample}}); err != nil {
		t.Fatal(err)
	}
	a := ended(t, b)
	err := archiver(b).Archive(ctx, "default", a.id)
	if !errors.Is(err, bus.ErrNotYet) || !strings.Contains(err.Error(), "slow") {
		t.Errorf("one with an open task: %v", err)
	}
	if n, err := archiver(b).Pass(ctx); n != 0 || err != nil {
		t.Errorf("a pass over young analyses moved %d, %v", n, err)
	}
}

// TestArchivePass moves what is old, by its id and by its last event.
func TestArchivePass(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := start(t)
	a := ended(t, b)
	x := bus.NewArchiver(b, bus.ArchiverOptions{After: time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	for inLog(t, b, a.id) > 0 {
		if _, err := x.Pass(ctx); err != nil {
			t.Fatal(err)
		}
	}
	// The projection comes back for what the log does not tell of.
	kv, err := b.JetStream().KeyValue(ctx, "STATE")
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Purge(ctx, "default."+a.id); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Pass(ctx); err != nil {
		t.Fatal(err)
	}
	if list, err := b.List(ctx, "default", 0); err != nil || len(list) != 1 || !list[0].Ended {
		t.Errorf("the list is %+v, %v", list, err)
	}
}

// TestArchiveRefusesDamage leaves an analysis in the log whose events are not
// whole.
func TestArchiveRefusesDamage(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := start(t)
	a := ended(t, b)
	s, err := b.JetStream().Stream(ctx, "LOG")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSubject("petri.default."+a.id+".context.start_analysis")); err != nil {
		t.Fatal(err)
	}
	if err := archiver(b).Archive(ctx, "default", a.id); err == nil || !strings.Contains(err.Error(), "missing or comes twice") {
		t.Errorf("the error is %v", err)
	}
	if n := inLog(t, b, a.id); n != 4 {
		t.Errorf("the log has %d messages", n)
	}
}

// TestArchiveWhileFollowed moves an analysis that somebody follows, and writes
// behind it: the follower misses nothing and sees nothing twice.
func TestArchiveWhileFollowed(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := start(t)
	a := ended(t, b)
	caughtUp, got, end := make(chan struct{}), make(chan string, 100), make(chan error, 1)
	go func() {
		end <- b.Follow(ctx, "default", a.id, 0, func() { close(caughtUp) }, func(e bus.Entry) error {
			got <- e.Event.ID
			if strings.HasSuffix(e.Event.ID, "/context/4") {
				return bus.ErrStop
			}
			return nil
		})
	}()
	<-caughtUp
	a.event(schemas.AnalysisAmended{Analyzer: "one", Run: schemas.LiveRun})
	if err := archiver(b).Archive(ctx, "default", a.id); err != nil {
		t.Fatal(err)
	}
	w, err := b.OpenContext(ctx, "default", a.id)
	if err != nil {
		t.Fatal(err)
	}
	late := &analysis{t: t, b: b, w: w, id: a.id}
	late.event(schemas.AnalysisAmended{Analyzer: "two", Run: schemas.LiveRun})
	if err := <-end; err != nil {
		t.Fatal(err)
	}
	close(got)
	seen := map[string]int{}
	for id := range got {
		seen[id]++
	}
	if len(seen) != 7 {
		t.Errorf("seen %v", seen)
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s was seen %d times", id, n)
		}
	}
}
