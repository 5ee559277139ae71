// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/schemas"
)

// diskReserve is what artifacts leave free on the data directory's disk, in
// bytes, so that what comes last, the endings, finds room.
const diskReserve = 128 << 20

// FreeSpace is how many bytes are free where a directory lies or would lie.
func FreeSpace(dir string) (int64, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return int64(st.Bavail) * st.Bsize, nil
		}
		up := filepath.Dir(dir)
		if !errors.Is(err, os.ErrNotExist) || up == dir {
			return 0, fmt.Errorf("free space of %s: %w", dir, err)
		}
		dir = up
	}
}

// Room is what an analysis may need on the data directory's disk, in bytes: the
// guest's memory as it is dumped, again as it is stored, and the rest.
func (c *Config) Room() int64 { return 2*c.Memory + 2*diskReserve }

// CheckRoom refuses to begin an analysis that the disk has no room for. Of the
// disk of a server of the user's own nothing is known.
func (c *Config) CheckRoom() error {
	if c.NATS != "" {
		return nil
	}
	free, err := FreeSpace(c.Data)
	if err != nil {
		return err
	}
	if need := c.Room(); free < need {
		return fmt.Errorf("%s has %d MiB free, an analysis may need %d MiB (make room, or choose another directory: --data DIR)", c.Data, free>>20, need>>20)
	}
	return nil
}

// roomyStore keeps the reserve.
type roomyStore struct {
	sandboxd.Store
	dir string
}

var (
	_ sandboxd.Roomy  = roomyStore{}
	_ sandboxd.Keeper = roomyStore{}
	_ sandboxd.Keeper = storeAdapter{}
)

// Room implements [sandboxd.Roomy].
func (s roomyStore) Room(n int64) error {
	free, err := FreeSpace(s.dir)
	if err == nil && free < n+diskReserve {
		err = fmt.Errorf("the disk of %s has %d MiB free, of which %d MiB are kept for the log", s.dir, free>>20, diskReserve>>20)
	}
	return err
}

func (s roomyStore) Put(ctx context.Context, k schemas.Kind, r io.Reader) (schemas.Digest, int64, error) {
	if err := s.Room(0); err != nil {
		return schemas.Digest{}, 0, fmt.Errorf("store %s: %w", k, err)
	}
	return s.Store.Put(ctx, k, r)
}

// Keep implements [sandboxd.Keeper].
func (s roomyStore) Keep(ctx context.Context, d schemas.Digest) error {
	if k, ok := s.Store.(sandboxd.Keeper); ok {
		return k.Keep(ctx, d)
	}
	return nil
}
