// SPDX-License-Identifier: Apache-2.0

package analyzers

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// Stats counts what a runner does. The zero value is ready; it may be read
// while the runner runs, and shared by several.
type Stats struct {
	mu   sync.Mutex
	list map[string]*AnalyzerStats
}

// AnalyzerStats are the counts of one analyzer.
type AnalyzerStats struct {
	Name    string
	Taken   uint64 // deliveries
	Done    uint64 // tasks handed in, by status
	Failed  uint64
	Skipped uint64
	Dropped uint64 // deliveries given back
	Poison  uint64 // of the failed: delivered too often
	Running int
	// Took counts tasks by how long they took: Took[i] those below Bounds[i],
	// and the last one the rest.
	Took [len(Bounds) + 1]uint64
	Sum  time.Duration
}

// Bounds are the upper bounds of the buckets of [AnalyzerStats].Took.
var Bounds = [...]time.Duration{
	5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
	200 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second,
	20 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute,
}

// Snapshot returns the counts, ordered by name.
func (s *Stats) Snapshot() []AnalyzerStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []AnalyzerStats
	for _, a := range s.list {
		out = append(out, *a)
	}
	slices.SortFunc(out, func(a, b AnalyzerStats) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (s *Stats) update(name string, f func(*AnalyzerStats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.list == nil {
		s.list = map[string]*AnalyzerStats{}
	}
	a := s.list[name]
	if a == nil {
		a = &AnalyzerStats{Name: name}
		s.list[name] = a
	}
	f(a)
}

func (s *Stats) finished(name, status string, took time.Duration) {
	s.update(name, func(a *AnalyzerStats) {
		switch status {
		case schemas.TaskDone:
			a.Done++
		case schemas.TaskSkipped:
			a.Skipped++
		default:
			a.Failed++
		}
		i, _ := slices.BinarySearch(Bounds[:], took+1)
		a.Took[i]++
		a.Sum += took
	})
}
