// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// report stores a report of the analysis and announces it.
func (a *analysis) report(text string) schemas.Digest {
	a.t.Helper()
	ctx := context.Background()
	d, n, err := a.b.Reports().Put(ctx, "report", strings.NewReader(text))
	if err != nil {
		a.t.Fatal(err)
	}
	e, err := schemas.NewEvent("default", a.id, a.id+"/report/json/"+d.Token(), time.Now(), schemas.OriginHost,
		schemas.ReportWritten{Format: "json", SHA256: d, Size: n, Outcome: schemas.OutcomeCompleted})
	if err != nil {
		a.t.Fatal(err)
	}
	if err := a.b.PublishReport(ctx, e, "json"); err != nil {
		a.t.Fatal(err)
	}
	return d
}

// background runs f for the test, until its end.
func background(t *testing.T, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = f(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func listed(t *testing.T, b *bus.Bus, id string) bool {
	t.Helper()
	list, err := b.List(t.Context(), "default", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.Analysis == id {
			return true
		}
	}
	return false
}

// TestDelete deletes one of two analyses, in the log and in the archive: of the
// one only the tombstone is left, and the other has everything.
func TestDelete(t *testing.T) {
	t.Parallel()
	for name, archive := range map[string]bool{"hot": false, "archived": true} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			b := start(t)
			background(t, func(ctx context.Context) error { return b.Project(ctx, slog.New(slog.DiscardHandler)) })
			a, other := ended(t, b), ended(t, b)
			d, kept := a.report("its report"), other.report("the other's report")
			eventually(t, func() bool { return listed(t, b, a.id) && listed(t, b, other.id) })
			events, before := len(a.names()), bodies(t, b, other.id)
			var file schemas.Digest
			if archive {
				if err := archiver(b).Archive(ctx, "default", a.id); err != nil {
					t.Fatal(err)
				}
				e, err := b.ArchiveEntry(ctx, "default", a.id)
				if err != nil {
					t.Fatal(err)
				}
				file = e.File
			}
			got, err := b.Delete(ctx, "default", a.id, bus.DeleteOptions{By: "me\x1b", Reason: "because"})
			if err != nil {
				t.Fatal(err)
			}
			want := schemas.Tombstone{Tenant: "default", Analysis: a.id, By: "me ", Reason: "because", Events: uint64(events)}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("tombstone (-want +got):\n%s", diff)
			}
			var dead *bus.DeletedError
			err = b.Read(ctx, "default", a.id, 0, func(bus.Entry) error { return errors.New("there is an event") })
			if !errors.As(err, &dead) || !errors.Is(err, bus.ErrNotFound) || dead.By != "me " || time.Since(dead.At) > time.Minute {
				t.Errorf("read: %v", err)
			}
			if _, err := b.OpenContext(ctx, "default", a.id); !errors.As(err, &dead) {
				t.Errorf("write: %v", err)
			}
			if err := b.Follow(ctx, "default", a.id, 0, nil, func(bus.Entry) error { return nil }); !errors.As(err, &dead) {
				t.Errorf("follow: %v", err)
			}
			if n := inLog(t, b, a.id); n != 0 {
				t.Errorf("%d of its events are in the log", n)
			}
			if _, err := b.Reports().Stat(ctx, d); !errors.Is(err, bus.ErrNotFound) {
				t.Errorf("its report: %v", err)
			}
			if archive {
				if _, err := b.ArchiveEntry(ctx, "default", a.id); !errors.Is(err, bus.ErrNotFound) {
					t.Errorf("its entry in the archive: %v", err)
				}
				if n := messages(t, b, "OBJ_ARC"); n != 0 {
					t.Errorf("the archive has %d messages of file %s", n, file)
				}
			}
			if listed(t, b, a.id) {
				t.Error("it is listed")
			}
			if _, err := b.Delete(ctx, "default", a.id, bus.DeleteOptions{By: "another"}); !errors.As(err, &dead) || dead.By != "me " {
				t.Errorf("deleted again: %v", err)
			}
			if diff := cmp.Diff(before, bodies(t, b, other.id)); diff != "" {
				t.Errorf("the other analysis (-want +got):\n%s", diff)
			}
			if _, err := b.Reports().Stat(ctx, kept); err != nil {
				t.Errorf("the other's report: %v", err)
			}
			if ids, err := b.FindTombstones(ctx, "default", a.id[:8]); err != nil || len(ids) != 1 || ids[0] != a.id {
				t.Errorf("tombstones %v, %v", ids, err)
			}
		})
	}
}

func TestDeleteRefuses(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := start(t)
	running := newAnalysis(t, b)
	running.event(schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: running.id, Tenant: "default"}})
	queued := schemas.Submission{ID: schemas.NewID(time.Now()), Tenant: "default", Profile: "amd64", Submitted: time.Now()}
	if err := b.Submit(ctx, queued); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]error{running.id: bus.ErrRunning, queued.ID: bus.ErrRunning, schemas.NewID(time.Now()): bus.ErrNotFound} {
		if _, err := b.Delete(ctx, "default", id, bus.DeleteOptions{}); !errors.Is(err, want) {
			t.Errorf("%s: %v, not %v", id, err, want)
		}
		if dead, err := b.Tombstone(ctx, "default", id); dead != nil || err != nil {
			t.Errorf("%s: tombstone %v, %v", id, dead, err)
		}
	}
	if got := running.names(); len(got) != 1 {
		t.Errorf("its log is %v", got)
	}
}

// TestDeleteLateAnswer hands a task in whose analysis was deleted meanwhile.
func TestDeleteLateAnswer(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	other := ended(t, b)
	register(t, b, "static", schemas.KindSample)
	a := ended(t, b)
	task := next(t, b, "static")
	if _, err := b.Delete(t.Context(), "default", a.id, bus.DeleteOptions{By: "me"}); err != nil {
		t.Fatal(err)
	}
	finish(t, b, task, schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "one", Title: "late"}}})
	eventually(t, func() bool { return messages(t, b, "INBOX") == 0 })
	if n := inLog(t, b, a.id); n != 0 {
		t.Errorf("the log has %d events of it", n)
	}
	if n := messages(t, b, "DEAD"); n != 0 {
		t.Errorf("%d dead letters", n)
	}
	account(t, b, other)
}

// TestDeleteCutShort leaves a deletion behind its first step, and writes late:
// the bus process takes away what there is.
func TestDeleteCutShort(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := start(t)
	a, moved := ended(t, b), ended(t, b)
	d := a.report("its report")
	if err := archiver(b).Archive(ctx, "default", moved.id); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{a.id, moved.id} {
		if err := b.Entomb(ctx, schemas.Tombstone{Tenant: "default", Analysis: id, By: "me"}); err != nil {
			t.Fatal(err)
		}
	}
	background(t, func(ctx context.Context) error {
		return b.UndertakeWithin(ctx, slog.New(slog.NewTextHandler(t.Output(), nil)), time.Second)
	})
	gone := func() bool {
		return inLog(t, b, a.id) == 0 && messages(t, b, "OBJ_ARC") == 0 && messages(t, b, "OBJ_REP") == 0
	}
	eventually(t, gone)
	if _, err := b.Reports().Stat(ctx, d); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("its report: %v", err)
	}
	a.report("a late report") // by who had read the log before
	eventually(t, gone)
}

// streamHas reports whether a message of a stream has a text in it.
func streamHas(t *testing.T, b *bus.Bus, stream, text string) bool {
	t.Helper()
	st, err := b.JetStream().Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	for next := uint64(1); ; {
		m, err := st.GetMsg(t.Context(), next, jetstream.WithGetMsgSubject(">"))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return false
		}
		if err != nil {
			t.Fatal(err)
		}
		if next = m.Sequence + 1; bytes.Contains(m.Data, []byte(text)) {
			return true
		}
	}
}

// TestDeleteListed deletes one of two analyses that a run is about and that have
// dead letters: wherever the run's driver stands, nothing has the one's artifacts
// any more, and the run counts it as gone.
func TestDeleteListed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		parallel, victim int
		driven           bool
	}{
		"given_out":   {parallel: 2, victim: 0, driven: true},
		"listed_only": {parallel: 1, victim: 1, driven: true},
		"undriven":    {parallel: 2, victim: 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t)
			clerk(t, b)
			list := past(t, b, 2)
			register(t, b, "late", schemas.KindSample)
			var digests []string
			for i, a := range list {
				d := schemas.Sum([]byte(fmt.Sprintf("sample %d", i)))
				digests = append(digests, d.String())
				ref := schemas.TaskRef{Tenant: "default", Analysis: a.id, Run: schemas.LiveRun, Analyzer: "nobody", SHA256: &d, Kind: schemas.KindSample}
				handIn(t, b, ref, "one", schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "x", Title: "x"}}})
			}
			drained(t, b)
			if n := len(deadLetters(t, b)); n != 2 {
				t.Fatalf("%d dead letters", n)
			}
			stop := drive(t, b)
			run := startRun(t, b, schemas.RunState{Analyzers: []string{"late"}, Parallel: c.parallel})
			eventually(t, func() bool { return messages(t, b, "RUNS") == uint64(1+c.parallel) })
			if !c.driven {
				stop()
			}
			victim, other := digests[c.victim], digests[1-c.victim]
			for _, stream := range []string{"KV_RUNS", "DEAD"} {
				if !streamHas(t, b, stream, victim) {
					t.Errorf("%s did not have it", stream)
				}
			}
			if _, err := b.Delete(t.Context(), "default", list[c.victim].id, bus.DeleteOptions{By: "me"}); err != nil {
				t.Fatal(err)
			}
			for _, stream := range []string{"KV_RUNS", "DEAD", "RUNS"} {
				if streamHas(t, b, stream, victim) {
					t.Errorf("%s has the deleted analysis' sample", stream)
				}
				if !streamHas(t, b, stream, other) {
					t.Errorf("%s has not the other's sample", stream)
				}
			}
			if n := len(deadLetters(t, b)); n != 1 {
				t.Errorf("%d dead letters are left", n)
			}
			if !c.driven {
				drive(t, b)
			}
			work(t, b, "late", nil)
			if r := until(t, b, run, overAndDone); r.State != schemas.RunDone || r.Total != 2 || r.Done != 1 || r.Gone != 1 {
				t.Errorf("the run ended as %+v", r)
			}
			if streamHas(t, b, "KV_RUNS", victim) {
				t.Error("the list has the deleted analysis' sample again")
			}
		})
	}
}

// TestDeleteImport deletes an analysis and imports it again: it is there, and can
// be deleted once more.
func TestDeleteImport(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := start(t)
	a := ended(t, b)
	file, before := export(t, b, a.id, bus.ExportOptions{}), bodies(t, b, a.id)
	for range 2 {
		if _, err := b.Delete(ctx, "default", a.id, bus.DeleteOptions{By: "me"}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Import(ctx, bytes.NewReader(file), bus.ImportOptions{}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, bodies(t, b, a.id)); diff != "" {
			t.Errorf("imported again (-want +got):\n%s", diff)
		}
		if dead, err := b.Tombstone(ctx, "default", a.id); dead != nil || err != nil {
			t.Errorf("tombstone %v, %v", dead, err)
		}
	}
}
