// SPDX-License-Identifier: Apache-2.0

package sandboxd_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/petri-sandbox/petri/schemas"
)

// TestNoRoom runs an analysis on a disk that is nearly full: its segments are
// cut and counted, and it comes to its end.
func TestNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		sub := b.submission(t)
		b.store.full = errors.New("the disk is 91 % full")
		names := b.analyse(t, sub)
		if !slices.Contains(names, schemas.EventCompleted) {
			t.Errorf("events %v", names)
		}
		var start schemas.StartAnalysis
		b.find(t, sub.ID, schemas.EventStartAnalysis, &start)
		n := 0
		for _, s := range start.Sources {
			if s.Source != schemas.SourceStdout {
				continue
			}
			n++
			if s.Segments != 0 || s.Lost != 6 || s.Cut != 6 || s.Produced != 6 || s.Status != schemas.StatusPartial || !strings.Contains(s.Reason, "91 % full") {
				t.Errorf("coverage %+v", s)
			}
		}
		if n != 1 {
			t.Errorf("%d sources are stdout in %+v", n, start.Sources)
		}
	})
}
