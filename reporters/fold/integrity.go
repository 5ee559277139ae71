// SPDX-License-Identifier: Apache-2.0

package fold

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/petri-sandbox/petri/schemas"
)

// integrity notices what a log lacks, and what it holds twice. The ids of
// events, the numbers of segments and the counts in receipts say what ought to
// be there; nothing of it needs the stream's own sequence. Its memory is
// bounded as the report's is.
type integrity struct {
	analysis string
	events   numbered // of the context
	segments map[schemas.Source]*numbered
	seen     map[announced]bool
	findings map[string]*numbered // by task
	unseen   int                  // receipts beyond those that are kept
}

// numbered counts what has numbers from 0.
type numbered struct{ next, lost int }

// take reports whether number n is new.
func (c *numbered) take(n int) bool {
	if n < c.next || n > maxNumber {
		return false
	}
	c.lost += n - c.next
	c.next = n + 1
	return true
}

type announced struct {
	kind       schemas.Kind
	digest     schemas.Digest
	occurrence int
}

func newIntegrity() integrity {
	return integrity{segments: map[schemas.Source]*numbered{}, seen: map[announced]bool{}, findings: map[string]*numbered{}}
}

var (
	errForeign  = errors.New("the event is another analysis'")
	errNumber   = errors.New("the event's id has no number")
	errTwoEnds  = errors.New("the analysis has ended before")
	errTwoHeads = errors.New("the analysis was submitted before")
)

// belongs pins the log to the analysis of its first event.
func (g *integrity) belongs(e schemas.Event) error {
	if g.analysis == "" {
		g.analysis = e.Analysis
	}
	if e.Analysis != g.analysis {
		return errForeign
	}
	return nil
}

// maxNumber is more than any log holds.
const maxNumber = 1 << 40

// context takes a context event's number, and reports whether it is new. The
// writer numbers them without a hole: a number that is left out is a fact that
// is lost, one that comes again was delivered twice.
func (g *integrity) context(e schemas.Event) (fresh bool, err error) {
	text, ok := strings.CutPrefix(e.ID, e.Analysis+"/context/")
	n, err := strconv.Atoi(text)
	if !ok || err != nil || n < 0 || n > maxNumber {
		return false, errNumber
	}
	return g.events.take(n), nil
}

// maxSources is more than there are.
const maxSources = 32

func (g *integrity) segment(s *schemas.Segment) (fresh bool) {
	c := g.segments[s.Source]
	if c == nil {
		if len(g.segments) >= maxSources {
			return false
		}
		c = &numbered{}
		g.segments[s.Source] = c
	}
	return c.take(s.N)
}

// artifact reports whether an announcement is new, and whether the report has
// no room for it. Those beyond its limit are all taken for new.
func (g *integrity) artifact(a *schemas.Artifact) (fresh, full bool) {
	k := announced{a.Kind, a.SHA256, a.Occurrence}
	if g.seen[k] {
		return false, false
	}
	if len(g.seen) >= schemas.MaxReportList {
		return true, true
	}
	g.seen[k] = true
	return true, false
}

// task is the count of a task's findings, or nil if there are too many tasks.
func (g *integrity) task(t schemas.TaskRef) *numbered {
	k := taskKey(t)
	c := g.findings[k]
	if c == nil && len(g.findings) < schemas.MaxReportList {
		c = &numbered{}
		g.findings[k] = c
	}
	return c
}

func taskKey(t schemas.TaskRef) string { return t.Analyzer + "/" + t.Token() }

// finding reports whether a finding is new.
func (g *integrity) finding(f *schemas.FindingCommitted) (fresh bool) {
	c := g.task(f.Task)
	if c == nil {
		return true
	}
	return c.take(f.N)
}

// missing lists what the log lacks.
func (f *Fold) missing() []string {
	g := &f.whole
	var out []string
	gap := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if g.events.lost > 0 {
		gap("%d events of the analysis are not in the log", g.events.lost)
	}
	if f.start != nil {
		for _, s := range f.start.Sources {
			c := g.segments[s.Source]
			switch {
			case s.Source == schemas.SourceDropped: // counts files
			case c == nil && s.Segments > 0:
				gap("%s: none of %d segments is in the log", s.Source, s.Segments)
			case c != nil && (c.lost > 0 || c.next < s.Segments):
				gap("%s: %d of %d segments are not in the log", s.Source, c.lost+max(0, s.Segments-c.next), max(s.Segments, c.next))
			}
		}
		lost := 0
		for _, a := range f.start.Artifacts {
			for n := 0; n < a.Occurrences && lost <= len(g.seen); n++ {
				if !g.seen[announced{a.Kind, a.SHA256, n}] {
					lost++
				}
			}
		}
		// Beyond what the report lists nobody knows what was announced.
		if lost > 0 && len(g.seen) < schemas.MaxReportList {
			gap("%d artifacts that were announced are not in the log", lost)
		}
	}
	lost, open := 0, 0
	for k, c := range g.findings {
		r, ok := f.receipts[k]
		switch {
		case !ok:
			open++
		default:
			lost += c.lost + max(0, r.Findings-c.next)
		}
	}
	for k, r := range f.receipts {
		if _, ok := g.findings[k]; !ok && len(g.findings) < schemas.MaxReportList {
			lost += max(0, r.Findings)
		}
	}
	if lost > 0 {
		gap("%d findings that receipts count are not in the log", lost)
	}
	if open > 0 {
		gap("the receipts of %d tasks that have findings are not in the log", open)
	}
	if g.unseen > 0 {
		gap("%d receipts beyond the first %d were not looked at", g.unseen, schemas.MaxReportList)
	}
	return append(out, f.runGaps...)
}
