// SPDX-License-Identifier: Apache-2.0

package analyzers

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// TestInsist keeps a task while the bus does not answer, and only then.
func TestInsist(t *testing.T) {
	silent := errors.New("no answer")
	for name, tc := range map[string]struct {
		takes time.Duration // a call, until it fails
		good  int           // the call that does not; 0: none
		calls int
		err   bool
	}{
		"an answer at last":  {callTimeout, 3, 3, false},
		"a quick error":      {time.Second, 2, 1, true},
		"no answer for good": {callTimeout, 0, int(awayTime / callTimeout), true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				err := (&task{log: slog.New(slog.DiscardHandler)}).insist(t.Context(), func(context.Context) error {
					time.Sleep(tc.takes)
					if calls++; calls == tc.good {
						return nil
					}
					return silent
				})
				if (err != nil) != tc.err || calls < tc.calls || calls > tc.calls+1 {
					t.Errorf("%d calls, %v", calls, err)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), callTimeout/2) // told to stop meanwhile
		defer cancel()
		calls := 0
		err := (&task{log: slog.New(slog.DiscardHandler)}).insist(ctx, func(context.Context) error {
			time.Sleep(callTimeout)
			calls++
			return silent
		})
		if err == nil || calls != 1 {
			t.Errorf("told to stop: %d calls, %v", calls, err)
		}
	})
}
