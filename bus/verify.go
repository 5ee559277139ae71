// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/petri-sandbox/petri/bus/petrifile"
)

// Verify reads an analysis' log wherever it lies and checks that its events are
// whole and which of them checkpoints cover. key is whose checkpoints count,
// hexadecimal; empty is anybody's. An error says what does not belong; the log
// that comes with it is what was read before that.
func (b *Bus) Verify(ctx context.Context, tenant, analysis, key string) (*petrifile.Log, error) {
	log, err := petrifile.NewLog(tenant, analysis, key)
	if err != nil {
		return nil, err
	}
	foreign, err := b.ReadCounting(ctx, tenant, analysis, 0, func(e Entry) error {
		_, err := log.Add(petrifile.Entry{Seq: e.Seq, Subject: e.Subject, Body: e.Body})
		return err
	})
	log.SetForeign(foreign)
	if err == nil && log.Events() == 0 {
		err = fmt.Errorf("analysis %s: %w", analysis, ErrNotFound)
	}
	return log, err
}

// VerifyObject reads what the store has of an object that the log of an analysis
// names, and returns what is wrong with it, or nil.
func (b *Bus) VerifyObject(ctx context.Context, analysis string, o petrifile.Object) error {
	r, have, err := b.Artifacts().For(analysis).Open(ctx, o.SHA256)
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%s %s: the store does not have its bytes: %w", o.Kinds[0], o.SHA256, ErrNotFound)
	}
	if err != nil {
		return err
	}
	defer r.Close()
	if have.Size != o.Size {
		return fmt.Errorf("%s %s: the log says %d bytes, the store has %d: %w", o.Kinds[0], o.SHA256, o.Size, have.Size, ErrCorrupt)
	}
	_, err = io.Copy(io.Discard, r)
	return err
}
