// SPDX-License-Identifier: Apache-2.0

package analyzers

import (
	"log/slog"
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

	LastError string    // of the last task that failed
	LastAt    time.Time // when it was handed in

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

// report logs the counts of every analyzer that had something to do.
func (s *Stats) report(l *slog.Logger) {
	for _, a := range s.Snapshot() {
		l.Info("analyzer's tasks", "analyzer", a.Name, "taken", a.Taken, "done", a.Done, "failed", a.Failed, "skipped", a.Skipped,
			"dropped", a.Dropped, "poison", a.Poison, "took", a.Sum, "half_below", a.below(50), "most_below", a.below(99))
	}
}

// below is a bound that so many per cent of the tasks stayed below; past the
// last bound it is the time of all of them.
func (a *AnalyzerStats) below(percent uint64) time.Duration {
	var all, n uint64
	for _, t := range a.Took {
		all += t
	}
	for i, bound := range Bounds {
		if n += a.Took[i]; n*100 >= all*percent {
			return bound
		}
	}
	return a.Sum
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

func (s *Stats) finished(name, status, why string, took time.Duration) {
	s.update(name, func(a *AnalyzerStats) {
		switch status {
		case schemas.TaskDone:
			a.Done++
		case schemas.TaskSkipped:
			a.Skipped++
		default:
			a.Failed++
			a.LastError, a.LastAt = why, time.Now()
		}
		i, _ := slices.BinarySearch(Bounds[:], took+1)
		a.Took[i]++
		a.Sum += took
	})
}
