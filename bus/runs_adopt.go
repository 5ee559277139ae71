// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// ErrNotEnded says that an analysis goes on.
var ErrNotEnded = errors.New("the analysis has not ended")

// Adopt makes a run count in an analysis that has ended: what it has answered
// takes the place of what was answered before. It reports whether the log says
// so only now: adopting a run that is the newest adopted one changes nothing.
// An analysis that goes on gives an error that wraps [ErrNotEnded].
func (b *Bus) Adopt(ctx context.Context, tenant, analysis, run, by string) (adopted bool, err error) {
	if err := schemas.CheckRun(run); err != nil {
		return false, err
	}
	if r, err := b.Run(ctx, run); err == nil && r.State == schemas.RunForgotten {
		return false, fmt.Errorf("adopt %s: it is forgotten: %w", run, ErrNotFound)
	}
	for {
		w, entries, err := b.openContext(ctx, tenant, analysis)
		if err != nil {
			return false, err
		}
		if len(entries) == 0 {
			return false, fmt.Errorf("adopt %s in %s: %w", run, analysis, ErrNotFound)
		}
		ended, newest := false, schemas.LiveRun
		for _, e := range entries {
			ended = ended || schemas.Ending(e.Event.Name())
			var r schemas.RunAdopted
			if e.Event.Name() == schemas.EventRunAdopted && e.Event.Decode(&r) == nil {
				newest = r.Run
			}
		}
		if !ended {
			return false, fmt.Errorf("adopt %s in %s: %w", run, analysis, ErrNotEnded)
		}
		if newest == run {
			return false, nil
		}
		e, err := schemas.NewEvent(tenant, analysis, w.NextID(), time.Now(), schemas.OriginHost,
			schemas.RunAdopted{Run: run, By: clipString(oneLine(by), 128)})
		if err != nil {
			return false, err
		}
		if err := w.Write(ctx, e); !errors.Is(err, ErrFenced) {
			return err == nil, err
		}
	}
}
