// SPDX-License-Identifier: Apache-2.0

package app_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/schemas"
)

func TestCheckRoom(t *testing.T) {
	c := app.Config{Data: t.TempDir() + "/not/yet/made", Memory: 1 << 20}
	if free, err := app.FreeSpace(c.Data); err != nil || free <= 0 {
		t.Fatalf("%d bytes are free, %v", free, err)
	}
	c.Memory = 1 << 60
	err := c.CheckRoom()
	if err == nil || !strings.Contains(err.Error(), "make room") || !strings.Contains(err.Error(), c.Data) {
		t.Errorf("a guest of 1 EiB fits on the disk: %v", err)
	}
	c.NATS = "nats://elsewhere.example"
	if err := c.CheckRoom(); err != nil {
		t.Errorf("the disk of another host is judged by ours: %v", err)
	}
}

// TestRoomyStore fills a disk, and then a server whose disk is elsewhere.
func TestRoomyStore(t *testing.T) {
	disk, server := bus.Gauge{Name: "the disk", Total: 10_000 << 20}, bus.RoomOK
	s := app.NewRoomyStore(sink{}, func() (bus.Gauge, error) { return disk, nil }, func(context.Context) (bus.Room, error) {
		return bus.Room{Level: server, Detail: "the server is full"}, nil
	})
	put := func(k schemas.Kind) error {
		_, _, err := s.Put(t.Context(), k, strings.NewReader("bytes"))
		return err
	}
	for _, tt := range []struct {
		used          int64 // MiB
		large, report bool  // taken
	}{{0, true, true}, {8900, true, true}, {9000, false, true}, {9860, false, true}, {9880, false, false}} {
		disk.Used, disk.CutBelow = tt.used<<20, 128<<20
		if err := put("segment"); (err == nil) != tt.large {
			t.Errorf("%d MiB used: a segment: %v", tt.used, err)
		}
		if err := put(schemas.KindTrace); (err == nil) != tt.report {
			t.Errorf("%d MiB used: a manifest: %v", tt.used, err)
		}
	}
	disk.Used = 8000 << 20
	if err := s.Room(500 << 20); err != nil {
		t.Errorf("500 MiB of 2000: %v", err)
	}
	if err := s.Room(1100 << 20); err == nil || !strings.Contains(err.Error(), "the disk is 91 % full") {
		t.Errorf("1100 MiB of 2000: %v", err)
	}
	server = bus.RoomCut
	elsewhere := app.NewRoomyStore(sink{}, nil, func(context.Context) (bus.Room, error) {
		return bus.Room{Level: server, Detail: "the server is full"}, nil
	})
	if err := elsewhere.Room(0); err == nil || !strings.Contains(err.Error(), "the server is full") {
		t.Errorf("a full server: %v", err)
	}
}

// sink keeps nothing.
type sink struct{}

func (sink) Put(context.Context, schemas.Kind, io.Reader) (schemas.Digest, int64, error) {
	return schemas.Digest{}, 0, nil
}

func (sink) Open(context.Context, schemas.Digest) (io.ReadCloser, int64, error) {
	return nil, 0, bus.ErrNotFound
}

func TestCheckRoomPercent(t *testing.T) {
	c := app.Config{Data: "/data", Memory: 1 << 20}
	used := int64(0)
	c.SetMeasure(func(dir string) (bus.Gauge, error) {
		return bus.Gauge{Name: "the disk of " + dir, Used: used << 30, Total: 100 << 30}, nil
	})
	for n, want := range map[int64]bool{0: true, 79: true, 80: false, 95: false} {
		used = n
		if err := c.CheckRoom(); (err == nil) != want || err != nil && !errors.Is(err, bus.ErrFull) {
			t.Errorf("%d %% used: %v", n, err)
		}
	}
	used, c.Watermarks = 95, bus.Watermarks{Refuse: 97, Cut: 99}
	if err := c.CheckRoom(); err != nil {
		t.Errorf("95 %% used, of 97 allowed: %v", err)
	}
}
