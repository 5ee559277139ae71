// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"

	"github.com/petri-sandbox/petri/schemas"
)

// An Entry is one event of the log where it lies, or where it lay before it was
// archived. What was imported has the sequence of the log that it comes from.
type Entry struct {
	Seq      uint64
	Subject  string
	Event    schemas.Event
	Body     []byte // the event as it was stored
	Archived bool   // it comes out of the archive
	foreign  bool   // it is no event: see foreign.go
}

// ErrStop ends a reading without an error when a reader's function returns it.
var ErrStop = errors.New("stop reading")

// Read calls fn with every event of an analysis, in the log's order, from a
// sequence on (0 is the beginning), until the end that there is now. Where the
// events lie, in the log, in the archive or in both, and whether they are moved
// meanwhile, makes no difference. Foreign messages are left out.
func (b *Bus) Read(ctx context.Context, tenant, analysis string, from uint64, fn func(Entry) error) error {
	_, err := b.ReadCounting(ctx, tenant, analysis, from, fn)
	return err
}

// ReadCounting is Read for whoever must say what was left out: how many messages
// the log has had under the analysis' subjects that are no events of it, since
// its beginning.
func (b *Bus) ReadCounting(ctx context.Context, tenant, analysis string, from uint64, fn func(Entry) error) (foreign uint64, err error) {
	if err := checkTokens(tenant, analysis); err != nil {
		return 0, err
	}
	r := &reading{b: b, tenant: tenant, analysis: analysis, from: from, fn: fn}
	err = r.run(ctx)
	return r.foreign(), err
}

// Follow is Read that goes on with what comes, until fn returns [ErrStop] or ctx
// is done. caughtUp, which may be nil, is called once, when everything that
// there was at the start has been read.
func (b *Bus) Follow(ctx context.Context, tenant, analysis string, from uint64, caughtUp func(), fn func(Entry) error) error {
	if err := checkTokens(tenant, analysis); err != nil {
		return err
	}
	r := &reading{b: b, tenant: tenant, analysis: analysis, from: from, caughtUp: caughtUp, follow: true, fn: fn}
	return r.run(ctx)
}

// follow gives fn the events of the log under some subjects, and what comes,
// through an ordered consumer, which the client recreates where it stood when
// the server restarts or a message is missed. It knows nothing of the archive.
func (b *Bus) follow(ctx context.Context, subjects []string, from uint64, caughtUp func(), fn func(Entry) error) error {
	err := b.batches(ctx, subjects, from, func(batch []Entry, pending uint64) error {
		for _, e := range batch {
			if e.foreign {
				continue
			}
			if err := fn(e); err != nil {
				return err
			}
		}
		if pending == 0 && caughtUp != nil {
			caughtUp()
			caughtUp = nil
		}
		return nil
	})
	if errors.Is(err, ErrStop) {
		return nil
	}
	return err
}

// Context returns an analysis' context events.
func (b *Bus) Context(ctx context.Context, tenant, analysis string) ([]Entry, error) {
	_, entries, err := b.openContext(ctx, tenant, analysis)
	return entries, err
}
