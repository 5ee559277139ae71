// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/faults"
	"github.com/petri-sandbox/petri/schemas"
)

// later moves the store's clock on.
func later(b *bus.Bus, d time.Duration) {
	b.SetClock(func() time.Time { return time.Now().Add(d) })
}

func collect(t *testing.T, b *bus.Bus, o bus.GCOptions) (removed, orphans int) {
	t.Helper()
	res, err := b.Collect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range res.Buckets {
		removed += r.Removed
		orphans += r.Orphans
	}
	return removed, orphans
}

// there reports whether the store has an object, whole.
func there(t testing.TB, st *bus.Store, d schemas.Digest) bool {
	t.Helper()
	r, _, err := st.Open(context.Background(), d)
	if errors.Is(err, bus.ErrNotFound) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	return true
}

// TestCollect lets every place that refers to an object be the only one, beside
// what nobody refers to.
func TestCollect(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := start(t)
	st := b.Artifacts()
	put := func(st *bus.Store, text string) schemas.Digest {
		t.Helper()
		d, _, err := st.Put(ctx, "test", strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	// In the log: an artifact, a sample, a segment, a result, a report, a
	// template with its parts. One analysis is archived.
	used := map[string]schemas.Digest{}
	for name, archive := range map[string]bool{"hot": false, "archived": true} {
		a := newAnalysis(t, b)
		sample := put(st, name+" sample")
		a.event(schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: a.id, Tenant: "default", Sample: schemas.Sample{SHA256: sample}, Submitted: time.Now()}, Attempt: 1})
		used[name+" sample"] = sample
		used[name+" artifact"] = a.artifact(schemas.KindDropped, name+" artifact", 0)
		seg := schemas.Segment{Source: schemas.SourceTrace, SHA256: put(st, name+" segment"), Size: int64(len(name + " segment")), From: time.Now()}
		e, err := schemas.NewEvent("default", a.id, seg.ID(a.id), time.Now(), schemas.OriginGuest, seg)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.PublishSegment(ctx, e, &seg); err != nil {
			t.Fatal(err)
		}
		used[name+" segment"] = seg.SHA256
		tpl := schemas.Template{Schema: schemas.TemplateSchema, Kernel: put(st, name+" kernel"), Initramfs: put(st, name+" initramfs"), RAM: put(st, name+" ram"), State: put(st, name+" state")}
		used[name+" kernel"], used[name+" initramfs"], used[name+" ram"], used[name+" state"] = tpl.Kernel, tpl.Initramfs, tpl.RAM, tpl.State
		text, err := json.Marshal(tpl)
		if err != nil {
			t.Fatal(err)
		}
		used[name+" template"] = a.artifact(schemas.KindTemplate, string(text), 0)
		a.event(schemas.StartAnalysis{})
		a.event(schemas.AnalysisCompleted{})
		a.report(name + " report")
		if archive {
			if err := archiver(b).Archive(ctx, "default", a.id); err != nil {
				t.Fatal(err)
			}
		}
	}
	// In the queue, and in the inbox, which no clerk reads.
	queued := put(st, "queued")
	used["queued"] = queued
	if err := b.Submit(ctx, schemas.Submission{ID: schemas.NewID(time.Now()), Tenant: "default", Profile: "amd64", Sample: schemas.Sample{SHA256: queued}, Submitted: time.Now()}); err != nil {
		t.Fatal(err)
	}
	used["result"], used["derived"] = put(st, "result"), put(st, "derived")
	task := schemas.TaskRef{Tenant: "default", Analysis: schemas.NewID(time.Now()), Run: schemas.LiveRun, Analyzer: "static"}
	if err := b.Finish(ctx, schemas.FinishedTask{Task: task, Status: schemas.TaskDone, Result: &schemas.ResultRef{SHA256: used["result"]}, Derived: []schemas.Derived{{SHA256: used["derived"]}}}); err != nil {
		t.Fatal(err)
	}
	garbage := []schemas.Digest{put(st, "garbage"), put(st, ""), put(st, string(noise(3<<20)))}
	put(b.Reports(), "a report that nobody names")

	if removed, _ := collect(t, b, bus.GCOptions{}); removed != 0 {
		t.Errorf("%d young objects were removed", removed)
	}
	if _, err := b.Collect(ctx, bus.GCOptions{Age: time.Minute}); err == nil {
		t.Error("an age of a minute is taken while others use the server")
	}
	later(b, 25*time.Hour)
	if removed, _ := collect(t, b, bus.GCOptions{DryRun: true}); removed != len(garbage)+1 {
		t.Errorf("%d objects would be removed, not %d", removed, len(garbage)+1)
	}
	if removed, _ := collect(t, b, bus.GCOptions{}); removed != len(garbage)+1 {
		t.Errorf("%d objects were removed, not %d", removed, len(garbage)+1)
	}
	for _, d := range garbage {
		if there(t, st, d) {
			t.Errorf("garbage %s is there", d)
		}
	}
	for name, d := range used {
		if !there(t, st, d) {
			t.Errorf("the %s is gone", name)
		}
	}
	if n := messages(t, b, "OBJ_REP"); n != 4 {
		t.Errorf("the reports' bucket has %d messages for two reports", n)
	}
	if removed, _ := collect(t, b, bus.GCOptions{}); removed != 0 {
		t.Errorf("%d more objects were removed", removed)
	}
}

// TestCollectOrphans leaves chunks without a meta record, and the mark of a
// deletion.
func TestCollectOrphans(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := start(t)
	st := b.Artifacts()
	d, _, err := st.Put(ctx, "test", bytes.NewReader(noise(3<<20)))
	if err != nil {
		t.Fatal(err)
	}
	if err := st.LoseMeta(ctx, d); err != nil {
		t.Fatal(err)
	}
	if _, orphans := collect(t, b, bus.GCOptions{}); orphans != 0 {
		t.Error("the chunks of what may be an upload were removed")
	}
	if _, orphans := collect(t, b, bus.GCOptions{Age: time.Nanosecond, Alone: true}); orphans != 1 {
		t.Errorf("%d orphans, not 1", orphans)
	}
	if n := messages(t, b, "OBJ_ART"); n != 0 {
		t.Errorf("%d messages are left", n)
	}
}

// TestRemoveRaces removes an object behind the back of somebody who uses it, and
// the other way round.
func TestRemoveRaces(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := start(t)
	st := b.Artifacts()
	for _, data := range [][]byte{noise(100), noise(3 << 20)} {
		put := func() schemas.Digest {
			d, _, err := st.Put(ctx, "test", bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		later(b, 0)
		d := put()
		later(b, 25*time.Hour)
		// A put makes it young: it stays.
		if gone, err := st.RemoveStale(ctx, d, func() { put() }); gone || err != nil || !there(t, st, d) {
			t.Errorf("what was put again is gone: %v, %v", gone, err)
		}
		later(b, 50*time.Hour)
		// So does who wants to announce it.
		if gone, err := st.RemoveStale(ctx, d, func() { _ = st.Keep(ctx, d) }); gone || err != nil || !there(t, st, d) {
			t.Errorf("what is kept is gone: %v, %v", gone, err)
		}
		later(b, 75*time.Hour)
		if gone, err := st.RemoveStale(ctx, d, func() {}); !gone || err != nil || there(t, st, d) {
			t.Errorf("not removed: %v, %v", gone, err)
		}
		if err := st.Keep(ctx, d); !errors.Is(err, bus.ErrNotFound) {
			t.Errorf("what is gone is kept: %v", err)
		}
		if n := messages(t, b, "OBJ_ART"); n != 0 {
			t.Errorf("%d messages are left", n)
		}
		if put(); !there(t, st, d) {
			t.Error("what was put again is not there")
		}
		if _, err := st.RemoveStale(ctx, d, func() {}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCollectConcurrently has analyses put the same few bytes, announce them and
// be deleted, while collectors run and days pass: what is announced is there.
func TestCollectConcurrently(t *testing.T) {
	t.Parallel()
	b := start(t)
	st := b.Artifacts()
	contents := make([][]byte, 6)
	for i := range contents {
		contents[i] = bytes.Repeat([]byte{byte(i)}, 100)
		if i%3 == 0 {
			contents[i] = noise(2<<20 + i)
		}
	}
	// The clock goes on by days, but by no more than hours between the put and
	// the announcement of one analysis: it stands while between holds it.
	var hours atomic.Int64
	b.SetClock(func() time.Time { return time.Now().Add(time.Duration(hours.Load()) * time.Hour) })
	var between sync.RWMutex
	tick := func() {
		between.Lock()
		defer between.Unlock()
		hours.Add(rand.Int64N(30))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var writers, others sync.WaitGroup
	var kept, gone atomic.Int64
	for range 3 {
		writers.Go(func() {
			for range 40 {
				between.RLock()
				a := newAnalysis(t, b)
				a.event(schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: a.id, Tenant: "default"}, Attempt: 1})
				data := contents[rand.IntN(len(contents))]
				d := a.artifact(schemas.KindDropped, string(data), 0)
				between.RUnlock()
				a.event(schemas.AnalysisCompleted{})
				tick()
				kept.Add(1)
				if !there(t, st, d) {
					t.Errorf("hour %d: announced bytes are gone", hours.Load())
					gone.Add(1)
					return
				}
				if _, err := b.Delete(context.Background(), "default", a.id, bus.DeleteOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var removed, snatched atomic.Int64
	for range 2 {
		others.Go(func() {
			for ctx.Err() == nil {
				res, err := b.Collect(ctx, bus.GCOptions{})
				if err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				for _, r := range res.Buckets {
					removed.Add(int64(r.Removed))
					snatched.Add(int64(r.Snatched))
				}
			}
		})
	}
	writers.Wait()
	cancel()
	others.Wait()
	faults.Figures{Acked: int(kept.Load()), Lost: int(gone.Load()), Note: fmt.Sprintf("%d objects removed, %d snatched in %d hours", removed.Load(), snatched.Load(), hours.Load())}.Report(t)
	if removed.Load() < 5 {
		t.Errorf("only %d objects were collected: nothing was tested", removed.Load())
	}
}
