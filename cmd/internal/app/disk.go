// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/schemas"
)

// diskReserve is what artifacts leave free on the data directory's disk, in
// bytes, so that what comes last, the endings, finds room.
const diskReserve = 128 << 20

// FreeSpace is how many bytes are free where a directory lies or would lie.
func FreeSpace(dir string) (int64, error) {
	g, err := measureDisk(dir)
	return g.Total - g.Used, err
}

// measureDisk says how full the file system is where a directory lies or would
// lie. What is kept for root counts as neither used nor free, as df reckons.
func measureDisk(dir string) (bus.Gauge, error) {
	for at := dir; ; {
		var st unix.Statfs_t
		err := unix.Statfs(at, &st)
		if err == nil {
			used := int64(st.Blocks-st.Bfree) * st.Bsize
			return bus.Gauge{Name: "the disk of " + dir, Used: used, Total: used + int64(st.Bavail)*st.Bsize}, nil
		}
		up := filepath.Dir(at)
		if !errors.Is(err, os.ErrNotExist) || up == at {
			return bus.Gauge{}, fmt.Errorf("free space of %s: %w", dir, err)
		}
		at = up
	}
}

// disk measures the data directory's disk, on which an analysis needs room
// whatever the percentages say.
func (c *Config) disk() (bus.Gauge, error) {
	measure := c.measure
	if measure == nil {
		measure = measureDisk
	}
	g, err := measure(c.Data)
	g.RefuseBelow, g.CutBelow = c.Room(), diskReserve
	return g, err
}

// Room is what an analysis may need on the data directory's disk, in bytes: the
// guest's memory as it is dumped, again as it is stored, and the rest.
func (c *Config) Room() int64 { return 2*c.Memory + 2*diskReserve }

// CheckRoom refuses to begin an analysis that the disk has no room for. Of the
// disk of a server of the user's own nothing is known here; see [bus.Bus.Room].
func (c *Config) CheckRoom() error {
	if c.NATS != "" {
		return nil
	}
	g, err := c.disk()
	if err != nil {
		return err
	}
	if free, need := g.Total-g.Used, c.Room(); free < need {
		return fmt.Errorf("%s has %d MiB free, an analysis may need %d MiB (make room, or choose another directory: --data DIR)", c.Data, max(0, free)>>20, need>>20)
	}
	return c.Watermarks.Judge(g).Err()
}

// DiskRoom judges the data directory's disk. Of a server of the user's own nothing
// is known here.
func (c *Config) DiskRoom() (bus.Room, error) {
	if c.NATS != "" {
		return bus.Room{Level: bus.RoomOK}, nil
	}
	g, err := c.disk()
	return c.Watermarks.Judge(g), err
}

// roomyStore keeps what is left of a disk that is nearly full, and of a server
// that is, for what comes last.
type roomyStore struct {
	sandboxd.Store
	marks bus.Watermarks
	disk  func() (bus.Gauge, error)                   // nil: it is elsewhere
	room  func(ctx context.Context) (bus.Room, error) // what the bus process measured

	mu    *sync.Mutex
	known *bus.Room // what room said last
}

var (
	_ sandboxd.Roomy  = roomyStore{}
	_ sandboxd.Keeper = roomyStore{}
	_ sandboxd.Keeper = storeAdapter{}
)

// roomKnown is for how long it is known how much room a server has.
const roomKnown = 2 * time.Second

// Room implements [sandboxd.Roomy].
func (s roomyStore) Room(n int64) error {
	if s.disk != nil {
		g, err := s.disk()
		if err != nil {
			return err
		}
		g.Used += n
		if r := s.marks.Judge(g); r.Level == bus.RoomCut {
			return errCut(r)
		}
	}
	if r := s.server(); r.Level == bus.RoomCut {
		return errCut(r)
	}
	return nil
}

func errCut(r bus.Room) error {
	return fmt.Errorf("%s, and the rest is kept for the log", r.Detail)
}

// server is what is known of the server. While it does not answer that is what
// it was.
func (s roomyStore) server() bus.Room {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.known.At) > roomKnown {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if r, err := s.room(ctx); err == nil {
			*s.known = r
		}
		s.known.At = time.Now()
	}
	return *s.known
}

// bulk are the kinds that may be as large as the disk.
var bulk = []schemas.Kind{"segment", schemas.KindMemory, schemas.KindDropped}

// Put leaves out what is large where there is little room, and everything where
// there is none.
func (s roomyStore) Put(ctx context.Context, k schemas.Kind, r io.Reader) (schemas.Digest, int64, error) {
	err := s.reserve()
	if err == nil && slices.Contains(bulk, k) {
		err = s.Room(0)
	}
	if err != nil {
		return schemas.Digest{}, 0, fmt.Errorf("store %s: %w", k, err)
	}
	return s.Store.Put(ctx, k, r)
}

// reserve keeps the last of the disk.
func (s roomyStore) reserve() error {
	if s.disk == nil {
		return nil
	}
	g, err := s.disk()
	if err == nil && g.Total-g.Used < g.CutBelow {
		err = fmt.Errorf("%s has %d MiB free, of which %d MiB are kept for the log", g.Name, max(0, g.Total-g.Used)>>20, g.CutBelow>>20)
	}
	return err
}

// Keep implements [sandboxd.Keeper].
func (s roomyStore) Keep(ctx context.Context, d schemas.Digest) error {
	if k, ok := s.Store.(sandboxd.Keeper); ok {
		return k.Keep(ctx, d)
	}
	return nil
}
