// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// Entomb writes a tombstone and takes nothing away: a deletion that was cut
// short.
func (b *Bus) Entomb(ctx context.Context, t schemas.Tombstone) error {
	_, err := b.entomb(ctx, t)
	return err
}

// UndertakeWithin is Undertake that looks a second time after settle.
func (b *Bus) UndertakeWithin(ctx context.Context, log *slog.Logger, settle time.Duration) error {
	return b.undertake(ctx, log, settle)
}

// SetClock gives the store another clock.
func (b *Bus) SetClock(now func() time.Time) { b.now = now }

// LoseMeta takes an object's meta record away, and leaves its chunks.
func (s *Store) LoseMeta(ctx context.Context, d schemas.Digest) error {
	st, err := s.b.js.Stream(ctx, s.stream())
	if err != nil {
		return err
	}
	return st.Purge(ctx, jetstream.WithPurgeSubject(s.metaSubject(d.String())))
}

// LoseChunks takes an object's chunks away, and leaves its meta record.
func (s *Store) LoseChunks(ctx context.Context, d schemas.Digest) error {
	o, err := s.Stat(ctx, d)
	if err != nil {
		return err
	}
	st, err := s.b.js.Stream(ctx, s.stream())
	if err != nil {
		return err
	}
	return st.Purge(ctx, jetstream.WithPurgeSubject(s.chunkSubject(o.meta.NUID)), jetstream.WithPurgeKeep(uint64(o.meta.Chunks-1)))
}

// RemoveStale removes an object as a collector would that looked at it a while
// ago, before f.
func (s *Store) RemoveStale(ctx context.Context, d schemas.Digest, f func()) (bool, error) {
	o, err := s.Stat(ctx, d)
	if err != nil {
		return false, err
	}
	f()
	return s.remove(ctx, o)
}

// ArchiveFiles is the store of the archive's files.
func (b *Bus) ArchiveFiles() *Store { return b.archive() }

// SwapChunk puts another chunk in the place of an object's last.
func (s *Store) SwapChunk(ctx context.Context, d schemas.Digest) error {
	o, err := s.Stat(ctx, d)
	if err != nil {
		return err
	}
	if err := s.LoseChunks(ctx, d); err != nil {
		return err
	}
	_, err = s.b.js.Publish(ctx, s.chunkSubject(o.meta.NUID), s.b.encoder.EncodeAll([]byte("other bytes"), nil))
	return err
}
