// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	disk := func(used, total int64) bus.Gauge { return bus.Gauge{Name: "disk", Used: used, Total: total} }
	for _, tt := range []struct {
		name   string
		marks  bus.Watermarks
		gauges []bus.Gauge
		want   string
		what   string
	}{
		{"nothing", bus.Watermarks{}, nil, bus.RoomOK, ""},
		{"below", bus.Watermarks{}, []bus.Gauge{disk(79, 100)}, bus.RoomOK, "disk"},
		{"at_the_first", bus.Watermarks{}, []bus.Gauge{disk(80, 100)}, bus.RoomRefuse, "disk"},
		{"at_the_second", bus.Watermarks{}, []bus.Gauge{disk(90, 100)}, bus.RoomCut, "disk"},
		{"more_than_all", bus.Watermarks{}, []bus.Gauge{disk(200, 100)}, bus.RoomCut, "disk"},
		{"other_marks", bus.Watermarks{Refuse: 95, Cut: 98}, []bus.Gauge{disk(94, 100)}, bus.RoomOK, "disk"},
		{"fullest", bus.Watermarks{}, []bus.Gauge{disk(10, 100), {Name: "LOG", Used: 85, Total: 100}, {Name: "ART", Used: 20, Total: 100}}, bus.RoomRefuse, "LOG"},
		{"too_few_bytes", bus.Watermarks{}, []bus.Gauge{{Name: "disk", Used: 10, Total: 100, RefuseBelow: 95}}, bus.RoomRefuse, "disk"},
		{"hardly_any_bytes", bus.Watermarks{}, []bus.Gauge{{Name: "disk", Used: 10, Total: 100, RefuseBelow: 95, CutBelow: 91}}, bus.RoomCut, "disk"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.marks.Judge(tt.gauges...)
			if got.Level != tt.want || got.What != tt.what || (got.Err() != nil) != (tt.want != bus.RoomOK) {
				t.Errorf("%+v, %v", got, got.Err())
			}
		})
	}
}

func TestWatermarksFlag(t *testing.T) {
	t.Parallel()
	var w bus.Watermarks
	if w.String() != "80,90" {
		t.Errorf("default %s", &w)
	}
	for _, bad := range []string{"", "80", "90,80", "0,90", "80,100", "80,90,95", "80,90x", "a,b"} {
		if err := w.Set(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if err := w.Set("85,95"); err != nil || w != (bus.Watermarks{Refuse: 85, Cut: 95}) {
		t.Errorf("%+v, %v", w, err)
	}
}

func queueable() schemas.Submission {
	return schemas.Submission{ID: schemas.NewID(time.Now()), Tenant: "default", Profile: "amd64", Submitted: time.Now()}
}

// TestRoom fills the disk, as far as can be told, and a stream, and empties them
// again: another host that submits is told.
func TestRoom(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dir := t.TempDir()
	s, err := bus.StartServer(dir, bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	b, err := bus.Connect(ctx, s.Address(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if err := b.Reconcile(ctx, bus.Limits{Log: 2 << 20, Store: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	var used atomic.Int64
	background(t, func(ctx context.Context) error {
		return b.KeepMeasuring(ctx, bus.Watermarks{}, func() (bus.Gauge, error) {
			return bus.Gauge{Name: "the disk", Used: used.Load(), Total: 100}, nil
		}, slog.New(slog.DiscardHandler))
	})
	level := func(want string) func() bool {
		return func() bool {
			r, err := b.Room(ctx)
			return err == nil && r.Level == want && !r.At.IsZero()
		}
	}
	eventually(t, level(bus.RoomOK))
	if err := b.Submit(ctx, queueable()); err != nil {
		t.Error(err)
	}
	used.Store(83)
	eventually(t, level(bus.RoomRefuse))
	if err := b.Submit(ctx, queueable()); !errors.Is(err, bus.ErrFull) || !strings.Contains(err.Error(), "the disk is 83 % full") {
		t.Errorf("submit: %v", err)
	}
	used.Store(95)
	eventually(t, level(bus.RoomCut))
	used.Store(0)
	eventually(t, level(bus.RoomOK))
	// A stream.
	full := newAnalysis(t, b)
	for i := range 18 {
		full.event(schemas.Custom{Name: "note", Payload: map[string]string{"text": strings.Repeat(fmt.Sprint(i%10), 100<<10)}})
	}
	eventually(t, level(bus.RoomRefuse))
	if err := b.Submit(ctx, queueable()); !errors.Is(err, bus.ErrFull) || !strings.Contains(err.Error(), "stream LOG") {
		t.Errorf("submit: %v", err)
	}
}
