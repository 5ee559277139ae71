// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"log/slog"
	"time"

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
