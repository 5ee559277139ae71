// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/auth"
	"github.com/petri-sandbox/petri/reporters/fold"
	"github.com/petri-sandbox/petri/schemas"
)

// documents reads result documents out of the store.
type documents struct {
	ctx   context.Context // of one fold
	store *bus.Store
}

func (d documents) Document(digest schemas.Digest, limit int64) ([]byte, error) {
	b, err := d.store.ReadAll(d.ctx, digest, limit)
	for _, is := range []error{bus.ErrNotFound, bus.ErrCorrupt, bus.ErrTooLarge} {
		if errors.Is(err, is) {
			return nil, fmt.Errorf("%w: %w", fold.ErrDocument, err)
		}
	}
	return b, err
}

// Fold makes an analysis' report out of its log.
func Fold(ctx context.Context, b *bus.Bus, tenant, analysis string) (*schemas.Report, int, error) {
	r, n, err := foldLog(ctx, b, tenant, analysis)
	if errors.Is(err, fold.ErrNoSubmission) {
		return nil, 0, fmt.Errorf("analysis %s: %w (petri list shows those there are)", analysis, bus.ErrNotFound)
	}
	return r, n, err
}

func foldLog(ctx context.Context, b *bus.Bus, tenant, analysis string) (*schemas.Report, int, error) {
	f := fold.New()
	foreign, err := b.ReadCounting(ctx, tenant, analysis, 0, func(e bus.Entry) error {
		f.Add(e.Event)
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	f.SetForeign(foreign)
	r, err := f.Report(documents{ctx, b.Artifacts().For(analysis)})
	return r, f.Events(), err
}

// reporterName keeps the reporter's place in the log.
const reporterName = "reporter"

// RunReporter writes the report of every analysis that ends, and again when
// something comes after its ending, until ctx is done.
func RunReporter(ctx context.Context, c Config, log *slog.Logger, ready func()) error {
	b, err := c.employ(ctx, auth.Reporter, "", "reporter", log)
	if err != nil {
		return err
	}
	b.LogTo(log)
	defer b.Close()
	ready()
	return b.Endings(ctx, reporterName, func(ctx context.Context, e schemas.Event) error {
		err := writeReport(ctx, b, e)
		var dead *bus.DeletedError
		if errors.As(err, &dead) {
			return nil
		}
		if err != nil {
			log.Error("write a report", "analysis", e.Analysis, "error", err)
		}
		return err
	})
}

func writeReport(ctx context.Context, b *bus.Bus, e schemas.Event) error {
	r, n, err := foldLog(ctx, b, e.Tenant, e.Analysis)
	if errors.Is(err, fold.ErrNoSubmission) || errors.Is(err, bus.ErrCorrupt) {
		return fmt.Errorf("%w: %w", bus.ErrUnreadable, err)
	}
	if err != nil {
		return err
	}
	body, err := fold.Encode(r)
	if err != nil {
		return err
	}
	d, size, err := b.Reports().Put(ctx, "report", bytes.NewReader(body))
	if err != nil {
		return err
	}
	w := schemas.ReportWritten{Format: "json", SHA256: d, Size: size, Events: n, Outcome: r.Outcome.Value, Verdict: r.Verdict.Value}
	// The id is that of the bytes: the same report is announced once.
	ev, err := schemas.NewEvent(e.Tenant, e.Analysis, e.Analysis+"/report/json/"+d.Token(), time.Now(), schemas.OriginHost, w)
	if err != nil {
		return err
	}
	return b.PublishReport(ctx, ev, "json")
}
