// SPDX-License-Identifier: Apache-2.0

package app_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/reporters/fold"
	"github.com/petri-sandbox/petri/schemas"
)

// TestFoldAt asks for the report of a small analysis as it stood at each point,
// and at points that are none.
func TestFoldAt(t *testing.T) {
	ctx := context.Background()
	s, err := bus.StartServer(t.TempDir(), bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := s.Connect(ctx, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Reconcile(ctx, bus.Limits{Log: 64 << 20, Store: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	begin := time.Date(2026, 11, 20, 16, 30, 0, 0, time.UTC)
	id := schemas.NewID(begin)
	w, err := b.OpenContext(ctx, schemas.DefaultTenant, id)
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range []schemas.Typed{
		schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: id, Tenant: schemas.DefaultTenant, Submitted: begin}, Attempt: 1},
		schemas.SampleStarted{PID: 7},
		schemas.Fault{Text: "one"},
		schemas.Fault{Text: "two"},
		schemas.StartAnalysis{},
		schemas.AnalysisCompleted{},
		schemas.RunAdopted{Run: "r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA", By: "test"},
	} {
		e, err := schemas.NewEvent(schemas.DefaultTenant, id, w.NextID(), begin.Add(time.Duration(i)*time.Second), schemas.OriginHost, d)
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 { // a guest's clock may be anywhere
			e.Origin, e.Time = schemas.OriginGuest, begin.AddDate(10, 0, 0)
		}
		if err := w.Write(ctx, e); err != nil {
			t.Fatal(err)
		}
	}
	for at, want := range map[string]int{
		"1": 1, "7": 7, "start_analysis": 5, "run_adopted": 7, id + "/context/2": 3, "context/2": 3,
		"2026-11-20T16:30:02Z": 3, "2026-11-20T17:30:03.5+01:00": 4, "2030-01-01T00:00:00Z": 7,
	} {
		r, err := app.FoldAt(ctx, b, schemas.DefaultTenant, id, at)
		if err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		if len(r.Timeline) != want {
			t.Errorf("%s: %d events, not %d", at, len(r.Timeline), want)
		}
	}
	for at, want := range map[string]string{
		"0": "events 1 to 7", "8": "events 1 to 7", "-1": "events 1 to 7", "fault": "the ordinals 3 4",
		"nothing": "2 sample_started", "context/9": "no ordinal, no id", "2026-11-20T16:29:59Z": "begins at 2026-11-20T16:30:00Z",
	} {
		_, err := app.FoldAt(ctx, b, schemas.DefaultTenant, id, at)
		if !errors.Is(err, app.ErrBadInput) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: the error is %v; it should hold %q", at, err, want)
		}
	}
	if _, err := app.FoldAt(ctx, b, schemas.DefaultTenant, schemas.NewID(begin), "1"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("of no analysis: %v", err)
	}
	// Behind the last event it is the report of now, byte for byte.
	now, _, err := app.Fold(ctx, b, schemas.DefaultTenant, id)
	if err != nil {
		t.Fatal(err)
	}
	then, err := app.FoldAt(ctx, b, schemas.DefaultTenant, id, "7")
	if err != nil {
		t.Fatal(err)
	}
	x, err := fold.Encode(now)
	if err != nil {
		t.Fatal(err)
	}
	y, err := fold.Encode(then)
	if err != nil {
		t.Fatal(err)
	}
	if string(x) != string(y) {
		t.Errorf("the report of now:\n%s\nand of then:\n%s", x, y)
	}
}
