// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// announcements is what an analysis has announced so far.
type announcements struct {
	mu     sync.Mutex
	closed bool
	count  map[artifactKey]int
}

type artifactKey struct {
	kind   schemas.Kind
	digest schemas.Digest
}

// errClosed says that an artifact came after start_analysis.
var errClosed = errors.New("the set of artifacts is closed")

// next gives the number of an artifact's next occurrence.
func (a *announcements) next(k artifactKey) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return 0, errClosed
	}
	if a.count == nil {
		a.count = map[artifactKey]int{}
	}
	n := a.count[k]
	a.count[k]++
	return n, nil
}

// close ends the announcing and lists everything, sorted.
func (a *announcements) close() []schemas.AnnouncedArtifact {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	out := []schemas.AnnouncedArtifact{}
	for k, n := range a.count {
		out = append(out, schemas.AnnouncedArtifact{Kind: k.kind, SHA256: k.digest, Occurrences: n})
	}
	slices.SortFunc(out, func(x, y schemas.AnnouncedArtifact) int {
		if c := strings.Compare(string(x.Kind), string(y.Kind)); c != 0 {
			return c
		}
		return strings.Compare(x.SHA256.String(), y.SHA256.String())
	})
	return out
}

// Store puts r's bytes into the store and announces them as a; kind, name,
// file, event and media type are the caller's.
func (c *Context) Store(ctx context.Context, a schemas.Artifact, r io.Reader) error {
	d, n, err := c.cfg.Store.Put(ctx, a.Kind, r)
	if err != nil {
		return err
	}
	a.SHA256, a.Size = d, n
	return c.Announce(ctx, a)
}

// Announce publishes an artifact that the store has.
func (c *Context) Announce(ctx context.Context, a schemas.Artifact) error {
	if err := schemas.CheckKind(a.Kind); err != nil {
		return err
	}
	var err error
	if a.Occurrence, err = c.announced.next(artifactKey{a.Kind, a.SHA256}); err != nil {
		return fmt.Errorf("announce %s: %w", a.Kind, err)
	}
	e, err := schemas.NewEvent(c.cfg.Tenant, c.cfg.Analysis, a.ID(c.cfg.Analysis), time.Now(), schemas.OriginHost, a)
	if err != nil {
		return err
	}
	return c.persist(ctx, func(ctx context.Context) error { return c.cfg.Log.PublishArtifact(ctx, e, &a) })
}

// StoreMemory dumps the guest's RAM and announces it. The guest stands still
// for the dump, but nobody waits for the compression and the store: they go on
// beside the protocol.
func (c *Context) StoreMemory(ctx context.Context, e schemas.Event) error {
	if r, ok := c.cfg.Store.(Roomy); ok {
		c.mu.Lock()
		n := c.boot.Machine.Memory
		c.mu.Unlock()
		if err := r.Room(2 * n); err != nil { // as it is dumped, and as it is stored
			return fmt.Errorf("memory image: %w", err)
		}
	}
	f, err := os.CreateTemp(c.cfg.Dir, "memory-")
	if err != nil {
		return fmt.Errorf("make room for the memory image: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil { // from here on it has no name, and leaves nothing behind
		f.Close()
		return err
	}
	if err := c.DumpMemory(ctx, f); err != nil {
		f.Close()
		return err
	}
	a := schemas.Artifact{Kind: schemas.KindMemory, MediaType: schemas.CoreMediaType, Name: "memory.elf", Event: e.ID}
	err = c.Background("memory", e, func(ctx context.Context) error {
		defer f.Close()
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		return c.Store(ctx, a, f)
	})
	if err != nil {
		f.Close()
	}
	return err
}
