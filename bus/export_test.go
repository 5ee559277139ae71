// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/petrifile"
	"github.com/petri-sandbox/petri/schemas"
)

// ended writes a small analysis that has ended.
func ended(t testing.TB, b *bus.Bus) *analysis {
	t.Helper()
	a := newAnalysis(t, b)
	a.event(schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: a.id, Tenant: "default", Sample: schemas.Sample{Name: "sample"}, Submitted: time.Now().UTC()}, Attempt: 1})
	a.artifact(schemas.KindSample, "the sample of "+a.id, 0)
	a.artifact(schemas.KindMemory, strings.Repeat("memory of "+a.id, 200_000), 0)
	a.event(schemas.StartAnalysis{})
	a.event(schemas.AnalysisCompleted{})
	return a
}

// bodies reads an analysis' events as they are stored.
func bodies(t testing.TB, b *bus.Bus, id string) []string {
	t.Helper()
	var out []string
	if err := b.Read(context.Background(), "default", id, 0, func(e bus.Entry) error {
		out = append(out, e.Subject+" "+string(e.Body))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func export(t testing.TB, b *bus.Bus, id string, o bus.ExportOptions) []byte {
	t.Helper()
	var buf bytes.Buffer
	if _, err := b.Export(context.Background(), "default", id, &buf, o); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestExportImport carries an analysis to another installation: the same log,
// the same artifacts, and exported there the same file.
func TestExportImport(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]bus.ExportOptions{"whole": {}, "without_memory": {Without: []schemas.Kind{schemas.KindMemory}}} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			here := start(t)
			a := ended(t, here)
			file := export(t, here, a.id, o)
			there := start(t)
			im, err := there.Import(ctx, bytes.NewReader(file), bus.ImportOptions{Tenant: "default"})
			if err != nil {
				t.Fatal(err)
			}
			if im.Already || im.Stored != 2-len(o.Without) || im.Absent["memory"] != len(o.Without) {
				t.Errorf("imported %+v", im)
			}
			if diff := cmp.Diff(bodies(t, here, a.id), bodies(t, there, a.id)); diff != "" {
				t.Error("the log is another:", diff)
			}
			if !bytes.Equal(export(t, there, a.id, o), file) {
				t.Error("exported again it is another file")
			}
			list, err := there.List(ctx, "default", 0)
			if err != nil || len(list) != 1 || list[0].Analysis != a.id || !list[0].Imported || !list[0].Ended || list[0].Sample.Name != "sample" {
				t.Errorf("the list is %+v (%v)", list, err)
			}
			if n := logMessages(t, there); n != 0 {
				t.Errorf("the import published %d messages", n)
			}
			again, err := there.Import(ctx, bytes.NewReader(file), bus.ImportOptions{})
			if err != nil || !again.Already {
				t.Errorf("imported again: %+v, %v", again, err)
			}
			if again, err = here.Import(ctx, bytes.NewReader(file), bus.ImportOptions{}); err != nil || !again.Already || again.Stored != 0 {
				t.Errorf("imported where it comes from: %+v, %v", again, err)
			}
		})
	}
}

// logMessages is how many messages the log holds.
func logMessages(t testing.TB, b *bus.Bus) uint64 {
	t.Helper()
	s, err := b.JetStream().Stream(context.Background(), "LOG")
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return info.State.Msgs
}

// TestImportFillsIn imports an analysis whose memory image was left out, and
// then the whole of it.
func TestImportFillsIn(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	here, there := start(t), start(t)
	a := ended(t, here)
	small := export(t, here, a.id, bus.ExportOptions{Without: []schemas.Kind{schemas.KindMemory}})
	whole := export(t, here, a.id, bus.ExportOptions{})
	if _, err := there.Import(ctx, bytes.NewReader(small), bus.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	im, err := there.Import(ctx, bytes.NewReader(whole), bus.ImportOptions{})
	if err != nil || !im.Already || im.Stored != 1 {
		t.Errorf("imported %+v, %v", im, err)
	}
	if !bytes.Equal(export(t, there, a.id, bus.ExportOptions{}), whole) {
		t.Error("what was filled in is not there")
	}
}

// TestImportRefused offers what must not come in: nothing of it may show.
func TestImportRefused(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	here := start(t)
	a := ended(t, here)
	file := export(t, here, a.id, bus.ExportOptions{})
	for name, tt := range map[string]struct {
		file []byte
		opts bus.ImportOptions
		want error
	}{
		"empty":        {nil, bus.ImportOptions{}, petrifile.ErrFormat},
		"cut":          {file[:len(file)-1], bus.ImportOptions{}, petrifile.ErrFormat},
		"half":         {file[:len(file)/2], bus.ImportOptions{}, petrifile.ErrFormat},
		"more":         {append(bytes.Clone(file), 0), bus.ImportOptions{}, petrifile.ErrFormat},
		"other_tenant": {file, bus.ImportOptions{Tenant: "other"}, nil},
		"too_large":    {file, bus.ImportOptions{Caps: bus.Caps{schemas.KindMemory: 1000}}, bus.ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			there := start(t)
			_, err := there.Import(ctx, bytes.NewReader(tt.file), tt.opts)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("the error is %v", err)
			}
			if got := bodies(t, there, a.id); len(got) != 0 {
				t.Errorf("%d events are there", len(got))
			}
			if list, err := there.List(ctx, "default", 0); err != nil || len(list) != 0 {
				t.Errorf("the list has %d lines (%v)", len(list), err)
			}
		})
	}
	// The same analysis with one event more.
	there := start(t)
	if _, err := there.Import(ctx, bytes.NewReader(file), bus.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	before := bodies(t, there, a.id)
	a.event(schemas.AnalysisAmended{Analyzer: "static", Run: schemas.LiveRun})
	_, err := there.Import(ctx, bytes.NewReader(export(t, here, a.id, bus.ExportOptions{})), bus.ImportOptions{})
	if !errors.Is(err, bus.ErrOther) {
		t.Errorf("the error is %v", err)
	}
	if diff := cmp.Diff(before, bodies(t, there, a.id)); diff != "" {
		t.Error("it changed what was there:", diff)
	}
	account(t, here, a)
}

// TestExportRefused wants an ended analysis, and writes nothing of another.
func TestExportRefused(t *testing.T) {
	t.Parallel()
	b := start(t)
	a := newAnalysis(t, b)
	a.event(schemas.AnalysisSubmitted{})
	var out bytes.Buffer
	if _, err := b.Export(t.Context(), "default", a.id, &out, bus.ExportOptions{}); !errors.Is(err, petrifile.ErrUnfinished) {
		t.Errorf("of one that runs: %v", err)
	}
	if _, err := b.Export(t.Context(), "default", schemas.NewID(time.Now()), &out, bus.ExportOptions{}); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("of one that is not there: %v", err)
	}
	if out.Len() > 0 {
		t.Errorf("%d bytes were written: %q", out.Len(), out.Bytes())
	}
}
