// SPDX-License-Identifier: Apache-2.0

package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/petrifile"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/reporters/fold"
	"github.com/petri-sandbox/petri/schemas"
)

// log is a bus with a clerk and the analyzer static registered.
type log struct {
	t *testing.T
	b *bus.Bus
}

func newLog(t *testing.T) log {
	t.Helper()
	b := app.StartBus(t)
	if err := b.Register(t.Context(), schemas.Registration{Name: "static", Version: "1", Scope: schemas.ScopeArtifact, Kinds: []schemas.Kind{schemas.KindSample}}); err != nil {
		t.Fatal(err)
	}
	return log{t, b}
}

// points of an analysis' life at which something can come into its log.
const (
	first  = "first"
	middle = "middle"
	last   = "last"
)

// analyze writes a small analysis and calls at at each of the points.
func (l log) analyze(id string, at func(point string)) {
	t, b, ctx := l.t, l.b, l.t.Context()
	t.Helper()
	begin := time.Date(2026, 11, 20, 16, 30, 0, 0, time.UTC)
	at(first)
	w, err := b.BeginContext(ctx, schemas.DefaultTenant, id)
	if err != nil {
		t.Fatal(err)
	}
	event := func(d schemas.Typed) {
		t.Helper()
		e, err := schemas.NewEvent(schemas.DefaultTenant, id, w.NextID(), begin, schemas.OriginHost, d)
		if err == nil {
			err = w.Write(ctx, e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	d, size, err := b.Artifacts().Put(ctx, schemas.KindSample, strings.NewReader("sample"))
	if err != nil {
		t.Fatal(err)
	}
	event(schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: id, Tenant: schemas.DefaultTenant, Submitted: begin, Expected: []string{"static"},
		Sample: schemas.Sample{SHA256: d, Size: size}}, Attempt: 1})
	a := schemas.Artifact{Kind: schemas.KindSample, SHA256: d, Size: size}
	e, err := schemas.NewEvent(schemas.DefaultTenant, id, a.ID(id), begin, schemas.OriginHost, a)
	if err == nil {
		err = b.PublishArtifact(ctx, e, &a)
	}
	if err != nil {
		t.Fatal(err)
	}
	at(middle)
	event(schemas.StartAnalysis{})
	task := l.take(id)
	err = b.Finish(ctx, schemas.FinishedTask{Task: task.Ref, Version: "1", Instance: "test", Status: schemas.TaskDone,
		Findings: []schemas.Finding{{Kind: "elf", Title: "it is no ELF file"}}})
	if err == nil {
		err = task.Done()
	}
	if err != nil {
		t.Fatal(err)
	}
	event(schemas.WaitAnalysis{Expected: []string{"static"}, Timeout: schemas.Duration(time.Minute)})
	missing, err := b.Wait(ctx, schemas.DefaultTenant, id, time.Now().Add(2*time.Minute), []string{"static"})
	if err != nil || len(missing) > 0 {
		t.Fatalf("missing are %v, %v", missing, err)
	}
	event(schemas.AnalysisCompleted{Missing: missing})
	at(last)
}

// take waits for the analysis' task. A copy of an announcement is a task too, of
// which nobody takes the second answer.
func (l log) take(id string) *bus.Task {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 2*time.Minute)
	defer cancel()
	for {
		task, err := l.b.NextTask(ctx, "static")
		if err != nil {
			l.t.Fatal(err)
		}
		if task.Ref.Analysis == id {
			return task
		}
		if err := task.Done(); err != nil {
			l.t.Fatal(err)
		}
	}
}

// bodies are the messages of an analysis by their subject.
func (l log) bodies(id string) map[string][]byte {
	l.t.Helper()
	out := map[string][]byte{}
	if err := l.b.Read(l.t.Context(), schemas.DefaultTenant, id, 0, func(e bus.Entry) error {
		out[e.Subject] = bytes.Clone(e.Body)
		return nil
	}); err != nil {
		l.t.Fatal(err)
	}
	return out
}

func (l log) report(id string) (*schemas.Report, string) {
	l.t.Helper()
	r, _, err := app.Fold(l.t.Context(), l.b, schemas.DefaultTenant, id)
	if err != nil {
		l.t.Fatal(err)
	}
	b, err := fold.Encode(r)
	if err != nil {
		l.t.Fatal(err)
	}
	return r, string(b)
}

// TestForeign has one message that is no event of an analysis come into its log:
// of each kind, at each point, on the subject of the context, of an artifact and
// of a receipt that is about to be written, or has been. The analysis goes on as
// if it were not there, and the report says that it was; the same wherever the
// analysis lies.
func TestForeign(t *testing.T) {
	l, far := newLog(t), newLog(t)
	ctx := t.Context()
	const clean = "01M7WZ34TR4T32M2AMXEPM8TA2"
	l.analyze(clean, func(string) {})
	events := l.bodies(clean)
	want, cleanReport := l.report(clean)
	if want.Outcome.Value != schemas.OutcomeNotExecuted || want.Coverage.Foreign != 0 || len(want.Timeline) != 4 || len(want.Findings) != 1 {
		t.Fatalf("the clean report is\n%s", cleanReport)
	}
	fixed := func(s string) func(string, []byte) []byte {
		return func(string, []byte) []byte { return []byte(s) }
	}
	kinds := map[string]func(id string, own []byte) []byte{
		"empty":            fixed(""),
		"no JSON":          fixed("+OK\r\n"),
		"no event":         fixed(`{"specversion":"1.0","id":"x"}`),
		"an answer":        fixed(`{"type":"io.nats.jetstream.api.v1.stream_msg_get_response","message":{"subject":"x","seq":1,"data":"e30=","time":"2026-11-20T16:30:00Z"}}`),
		"another analysis": func(_ string, own []byte) []byte { return own },
		"another tenant": func(id string, own []byte) []byte {
			return bytes.ReplaceAll(bytes.ReplaceAll(own, []byte(clean), []byte(id)), []byte(`"tenant":"default"`), []byte(`"tenant":"other"`))
		},
		"another's subject": func(id string, _ []byte) []byte {
			e, err := schemas.NewEvent(schemas.DefaultTenant, id, id+"/context/0", time.Unix(1e9, 0), schemas.OriginHost, schemas.Custom{Name: "elsewhere"})
			if err != nil {
				t.Fatal(err)
			}
			b, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
		"a copy": nil,
	}
	families := map[string]map[string]string{ // subjects, by point
		"context":  {first: "context.analysis_submitted", middle: "context.start_analysis", last: "context.analysis_completed"},
		"artifact": {}, "receipt": {},
	}
	for subject := range events {
		for family, points := range families {
			if rest := strings.TrimPrefix(subject, "petri.default."+clean+"."); family != "context" && strings.HasPrefix(rest, family+".") {
				points[first], points[middle], points[last] = rest, rest, rest
			}
		}
	}
	for kind, make := range kinds {
		for family, points := range families {
			for point, rest := range points {
				t.Run(strings.Join([]string{kind, family, point}, "/"), func(t *testing.T) {
					if kind == "a copy" && (point == first || family == "receipt" && point == middle) {
						return // there is nothing to copy yet
					}
					l, far := log{t, l.b}, log{t, far.b}
					id := schemas.NewID(time.Now())
					l.analyze(id, func(p string) {
						if p != point {
							return
						}
						subject, body := "petri.default."+id+"."+rest, []byte(nil)
						if kind == "a copy" {
							if family == "context" {
								subject = "petri.default." + id + ".context.analysis_submitted"
							}
							body = l.bodies(id)[subject]
						} else {
							body = make(id, events["petri.default."+clean+"."+rest])
						}
						if _, err := l.b.JetStream().Publish(ctx, subject, body); err != nil {
							t.Fatal(err)
						}
					})
					r, text := l.report(id)
					if r.Coverage.Foreign != 1 {
						t.Errorf("the report counts %d foreign messages", r.Coverage.Foreign)
					}
					r.Coverage.Foreign, r.Analysis.ID, r.Analysis.Submission = 0, want.Analysis.ID, want.Analysis.Submission
					if diff := cmp.Diff(want, r); diff != "" {
						t.Errorf("it is not the clean report: %s", diff)
					}
					l.same(id, far, text)
				})
			}
		}
	}
}

// same compares an analysis' report with that of its past, of its copy elsewhere
// and of what the archive has of it.
func (l log) same(id string, far log, report string) {
	t, ctx := l.t, l.t.Context()
	t.Helper()
	then, err := app.FoldAt(ctx, l.b, schemas.DefaultTenant, id, "analysis_completed")
	if err != nil || then.Coverage.Foreign != 1 {
		t.Errorf("of the past: %v", err)
	}
	var file, again bytes.Buffer
	if _, err := l.b.Export(ctx, schemas.DefaultTenant, id, &file, bus.ExportOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, _, c, err := petrifile.Verify(bytes.NewReader(file.Bytes()), ""); err != nil || c.Foreign != 1 {
		t.Errorf("verify the file: %+v, %v", c, err)
	}
	im, err := far.b.Import(ctx, bytes.NewReader(file.Bytes()), bus.ImportOptions{})
	if err != nil || im.Coverage.Foreign != 1 {
		t.Fatalf("import: %+v, %v", im, err)
	}
	if _, text := far.report(id); text != report {
		t.Errorf("the report of the import differs: %s", cmp.Diff(report, text))
	}
	x := bus.NewArchiver(l.b, bus.ArchiverOptions{Log: slog.New(slog.DiscardHandler)})
	if err := x.Archive(ctx, schemas.DefaultTenant, id); err != nil {
		t.Fatal(err)
	}
	if e, err := l.b.ArchiveEntry(ctx, schemas.DefaultTenant, id); err != nil || e.Foreign != 1 {
		t.Errorf("the archive's entry: %+v, %v", e, err)
	}
	if _, text := l.report(id); text != report {
		t.Errorf("the report of the archive differs: %s", cmp.Diff(report, text))
	}
	if log, err := l.b.Verify(ctx, schemas.DefaultTenant, id, ""); err != nil || log.Foreign() != 1 {
		t.Errorf("verify the analysis: %v", err)
	}
	if _, err := l.b.Export(ctx, schemas.DefaultTenant, id, &again, bus.ExportOptions{}); err != nil || !bytes.Equal(file.Bytes(), again.Bytes()) {
		t.Errorf("exported from the archive it is another file: %v", err)
	}
	// What comes after it is counted beside it, and in the way of nobody.
	if _, err := l.b.JetStream().Publish(ctx, "petri.default."+id+".context.analysis_amended", nil); err != nil {
		t.Fatal(err)
	}
	w, err := l.b.OpenContext(ctx, schemas.DefaultTenant, id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.b.JetStream().Publish(ctx, "petri.default."+id+".context.analysis_amended", nil); err != nil {
		t.Fatal(err)
	}
	e, err := schemas.NewEvent(schemas.DefaultTenant, id, w.NextID(), time.Unix(1e9, 0), schemas.OriginHost, schemas.AnalysisAmended{Analyzer: "static", Run: schemas.LiveRun})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(ctx, e); err != nil {
		t.Fatal(err)
	}
	if r, _ := l.report(id); r.Coverage.Foreign != 3 || r.Analysis.Amended != 1 {
		t.Errorf("after the archive: %d foreign messages, %d amendments", r.Coverage.Foreign, r.Analysis.Amended)
	}
	var seen, left uint64
	err = l.b.Watch(ctx, schemas.DefaultTenant, id, bus.Feed{Event: func(schemas.Event) error { seen++; return nil }, Gap: func(g bus.Gap) error { left += g.Foreign; return nil }})
	if err != nil || seen != im.Trailer.Events {
		t.Errorf("watched %d events, %v", seen, err)
	}
	if left != 0 { // what the archive has, has none among them
		t.Errorf("watched %d foreign messages", left)
	}
}

// TestForeignAlone has messages where there is no analysis.
func TestForeignAlone(t *testing.T) {
	l, ctx := newLog(t), t.Context()
	id := schemas.NewID(time.Now())
	for _, subject := range []string{
		"petri.default." + id + ".context.analysis_submitted", "petri.default." + id + ".context.analysis_completed",
		"petri.default." + id + ".artifact.x", "petri._tombstone.default." + id, "petri._registry.static", "petri._unregistry.static",
	} {
		if _, err := l.b.JetStream().Publish(ctx, subject, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := app.Fold(ctx, l.b, schemas.DefaultTenant, id); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("there is a report: %v", err)
	}
	if _, err := l.b.Export(ctx, schemas.DefaultTenant, id, io.Discard, bus.ExportOptions{}); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("it can be exported: %v", err)
	}
	x := bus.NewArchiver(l.b, bus.ArchiverOptions{Log: slog.New(slog.DiscardHandler)})
	if err := x.Archive(ctx, schemas.DefaultTenant, id); !errors.Is(err, bus.ErrNotYet) {
		t.Errorf("it can be archived: %v", err)
	}
	if dead, err := l.b.Tombstone(ctx, schemas.DefaultTenant, id); err != nil || dead != nil {
		t.Errorf("it was deleted: %v, %v", dead, err)
	}
	if r, err := l.b.Registered(ctx, "static"); err != nil || r.Version != "1" {
		t.Errorf("the analyzer is %+v, %v", r, err)
	}
	if regs, err := l.b.Registrations(ctx); err != nil || len(regs) != 1 {
		t.Errorf("the analyzers are %v, %v", regs, err)
	}
	l.analyze(id, func(string) {})
	if r, _ := l.report(id); r.Coverage.Foreign != 3 || len(r.Timeline) != 4 {
		t.Errorf("%d foreign messages, %d events", r.Coverage.Foreign, len(r.Timeline))
	}
	var left uint64
	err := l.b.Watch(ctx, schemas.DefaultTenant, id, bus.Feed{Event: func(schemas.Event) error { return nil }, Gap: func(g bus.Gap) error { left += g.Foreign; return nil }})
	if err != nil || left != 3 {
		t.Errorf("watched %d foreign messages, %v", left, err)
	}
}
