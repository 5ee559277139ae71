// SPDX-License-Identifier: Apache-2.0

package analyzers

import (
	"testing"
	"time"

	"github.com/petri-sandbox/petri/analyzers/internal/jail"
	"github.com/petri-sandbox/petri/schemas"
)

// BenchmarkChild starts a child that only says hello and goes: what isolation
// costs per task.
func BenchmarkChild(b *testing.B) {
	s, err := newSpawner(b.Context(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer s.close()
	for _, s.level = range jail.Levels() {
		b.Run(s.level.String(), func(b *testing.B) {
			req := request{Threads: 1, Events: -1, Jail: jail.Limits{Memory: 64 << 20, CPU: time.Minute, Files: 16}, Deadline: schemas.Duration(time.Minute)}
			for b.Loop() {
				if a, err := s.run(b.Context(), req, nil, nil); err != nil || a.status != "" {
					b.Fatal(a, err)
				}
			}
		})
	}
}
