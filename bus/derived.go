// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"sync"

	"github.com/petri-sandbox/petri/schemas"
)

// deriveLimits bound what all analyzers together derive in one analysis while it
// goes on, and again what they derive in each run over it. What is beyond is left
// out and counted in the receipt; the rest is committed: one file too many does not
// cost the findings.
type deriveLimits struct {
	depth int   // derivations one from the other
	count int   // announcements
	bytes int64 // in all of them
}

var defaultDeriveLimits = deriveLimits{depth: 8, count: 2000, bytes: 2 << 30}

// tallies count what was derived in the analyses that a clerk has lately seen
// some of. They are read from the log, so that a clerk knows of what another
// has committed; two clerks that commit at the same moment do not know of one
// another, and may together exceed a limit by what one of them has in work. What
// is in the archive does not count: nothing but a late answer comes after it. It
// is safe for concurrent use.
type tallies struct {
	mu sync.Mutex
	of map[string]*tally // by the subject of what is counted
}

type tally struct {
	mu    sync.Mutex
	users int    // under the lock of the tallies
	next  uint64 // sequence from which the log is unread
	have  volume // in the log
	held  volume // in work here
}

type volume struct {
	count int
	bytes int64
}

// maxTallies bounds the memory. What is forgotten is read again.
const maxTallies = 256

func newTallies() *tallies { return &tallies{of: map[string]*tally{}} }

func (s *tallies) take(key string) *tally {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.of[key]
	if !ok {
		for k, old := range s.of {
			if len(s.of) < maxTallies {
				break
			}
			if old.users == 0 {
				delete(s.of, k)
			}
		}
		t = new(tally)
		s.of[key] = t
	}
	t.users++
	return t
}

func (s *tallies) leave(t *tally) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.users--
}

// read brings a tally up to what the log has under a subject. Each message is
// read once.
func (t *tally) read(ctx context.Context, b *Bus, subject string) error {
	for {
		m, err := b.lookupIn(ctx, streamLog, lookup{Next: subject, Seq: t.next})
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		a, err := artifactOf(m.Subject, m.Data)
		if err == nil && a.Analyzer != "" {
			t.have.count++
			t.have.bytes += a.Size
		}
		t.next = m.Sequence + 1
	}
}

// artifactOf reads an announcement of the log, or what a run has derived.
func artifactOf(subject string, body []byte) (schemas.Artifact, error) {
	var a schemas.Artifact
	e, err := own(subject, body)
	if err != nil {
		return a, err
	}
	if e.Family() != "derivation" {
		err = e.Decode(&a)
		return a, err
	}
	var d schemas.Derivation
	err = e.Decode(&d)
	return d.Artifact, err
}

// admit leaves out of a finished task what is derived too often, or more than
// its analysis may have. release is called when the task is committed, or is
// not going to be.
func (c *Clerk) admit(ctx context.Context, f *schemas.FinishedTask, parent *schemas.Artifact) (release func(), err error) {
	if len(f.Derived) == 0 {
		return func() {}, nil
	}
	if depth(parent) > c.limits.depth {
		leaveOut(f, nil)
		return func() {}, nil
	}
	subject := artifactsIn(f.Task.Tenant, f.Task.Analysis)
	if f.Task.Run != schemas.LiveRun {
		subject = derivationsIn(f.Task.Tenant, f.Task.Analysis, f.Task.Run)
	}
	t := c.tallies.take(subject)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.read(ctx, c.b, subject); err != nil {
		c.tallies.leave(t)
		return nil, err
	}
	var in []schemas.Derived
	var mine volume
	for _, d := range f.Derived {
		n := t.have.count + t.held.count + mine.count
		left := c.limits.bytes - t.have.bytes - t.held.bytes - mine.bytes
		if n >= c.limits.count || d.Size > left {
			continue
		}
		in = append(in, d)
		mine.count++
		mine.bytes += d.Size
	}
	leaveOut(f, in)
	t.held.count += mine.count
	t.held.bytes += mine.bytes
	return func() {
		t.mu.Lock()
		t.held.count -= mine.count
		t.held.bytes -= mine.bytes
		t.mu.Unlock()
		c.tallies.leave(t)
	}, nil
}

// leaveOut keeps of what a finished task derived no more than in, and adds the
// rest to what the analyzer itself has left out.
func leaveOut(f *schemas.FinishedTask, in []schemas.Derived) {
	n := len(f.Derived) - len(in)
	if n == 0 {
		return
	}
	cut := schemas.TaskCut{Derived: n}
	if f.Cut != nil {
		cut.Findings, cut.Derived = f.Cut.Findings, f.Cut.Derived+n
	}
	f.Derived, f.Cut = in, &cut
}
