// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// credit counts an analysis' tasks over the log's one total order: a task is
// opened by the announcement of an artifact (or by start_analysis) for whoever
// was registered before it, and closed by its receipt. Derived artifacts are in
// the log before the receipt of what they were derived from, so that the count
// cannot touch zero too early (Dijkstra and Scholten, 1980).
//
// It knows nothing but the log's entries: what it says of a log is the same
// whoever asks, and when.
type credit struct {
	tenant, analysis string

	interest  interest
	expected  []string
	started   bool
	ended     bool
	open      map[string]*owed
	withdrawn map[string]*owed // opened, and then given up by who owed them
	done      map[string]bool
	seen      map[string]bool            // analyzers with a task
	passed    map[string]schemas.TaskRef // what expected analyzers could not be given: they were not there
	timeout   time.Duration              // that the analysis gives its analyzers; 0: the log does not say
	waiting   time.Time                  // when that was said
}

// owed is an open task. The same bytes may have been announced as more than one
// kind: the task is one.
type owed struct {
	ref   schemas.TaskRef
	kinds []schemas.Kind // those that it is still owed for
}

func newCredit(tenant, analysis string, expected []string) *credit {
	return &credit{
		tenant: tenant, analysis: analysis, interest: newInterest(), expected: expected,
		open: map[string]*owed{}, withdrawn: map[string]*owed{}, done: map[string]bool{},
		seen: map[string]bool{}, passed: map[string]schemas.TaskRef{},
	}
}

func creditKey(t schemas.TaskRef) string { return t.Analyzer + "/" + t.Token() }

// subjects are what the count needs of the log.
func (c *credit) subjects() []string {
	of := logPrefix + c.tenant + "." + c.analysis + "."
	subjects := []string{registry + "*", unregistry + "*", of + "artifact.>", of + "receipt." + schemas.LiveRun + ".>"}
	for _, name := range []string{
		schemas.EventStartAnalysis, schemas.EventWaitAnalysis, schemas.EventCompleted, schemas.EventFailed, schemas.EventCancelled,
	} {
		subjects = append(subjects, contextSubject(c.tenant, c.analysis, name))
	}
	return subjects
}

// apply takes one entry, in the log's order. One that does not hold what its type
// says opens and closes nothing; the report counts it.
func (c *credit) apply(e Entry) {
	if name, ok := c.interest.apply(e); ok {
		c.withdraw(name)
		return
	}
	switch e.Event.Family() {
	case "artifact":
		var a schemas.Artifact
		if e.Event.Decode(&a) == nil {
			c.opened(a.Kind, &a.SHA256)
		}
	case "context":
		c.context(e.Event)
	case "receipt":
		var r schemas.Receipt
		if e.Event.Decode(&r) == nil && r.Task.Run == schemas.LiveRun {
			key := creditKey(r.Task)
			delete(c.open, key)
			delete(c.withdrawn, key)
			c.done[key] = true
		}
	}
}

func (c *credit) context(e schemas.Event) {
	switch e.Name() {
	case schemas.EventStartAnalysis:
		c.started = true
		c.opened("", nil)
	case schemas.EventWaitAnalysis:
		var w schemas.WaitAnalysis
		if e.Decode(&w) == nil {
			c.timeout, c.waiting = max(0, w.Timeout.D()), e.Time
		}
	case schemas.EventCompleted, schemas.EventFailed, schemas.EventCancelled:
		c.ended = true
	}
}

// withdraw takes from the open tasks those that their analyzer will not be
// given any more: it has unregistered, or registered anew for other kinds. A
// receipt that comes all the same counts; another announcement opens the task
// again.
func (c *credit) withdraw(analyzer string) {
	r, there := c.interest.regs[analyzer]
	for key, o := range c.open {
		if o.ref.Analyzer != analyzer {
			continue
		}
		o.kinds = slices.DeleteFunc(o.kinds, func(k schemas.Kind) bool { return !there || !wants(r, k) })
		if len(o.kinds) == 0 {
			c.withdrawn[key] = o
			delete(c.open, key)
		}
	}
}

func (c *credit) opened(kind schemas.Kind, d *schemas.Digest) {
	t := schemas.TaskRef{Tenant: c.tenant, Analysis: c.analysis, Run: schemas.LiveRun, SHA256: d, Kind: kind}
	for _, t.Analyzer = range c.interest.matches(kind) {
		c.seen[t.Analyzer] = true
		key := creditKey(t)
		if c.done[key] { // a repeated announcement does not open what has been closed
			continue
		}
		o := c.open[key]
		if o == nil {
			o = &owed{ref: t}
			c.open[key] = o
		}
		o.kinds = append(o.kinds, kind)
		delete(c.passed, key)
		delete(c.withdrawn, key)
	}
	for _, t.Analyzer = range c.expected {
		_, there := c.interest.regs[t.Analyzer]
		_, open := c.open[creditKey(t)]
		if !there && !open {
			c.passed[creditKey(t)] = t
		}
	}
}

// complete reports whether nothing is owed any more, except by those who are
// gone.
func (c *credit) complete(gone map[string]bool) bool {
	return c.started && !c.owes(gone, func(schemas.TaskRef) bool { return true })
}

// artifactsClosed reports whether no artifact's task is open any more, except
// of those who are gone: then the analyzers start that come after them.
func (c *credit) artifactsClosed(gone map[string]bool) bool {
	return c.started && !c.owes(gone, func(t schemas.TaskRef) bool { return t.SHA256 != nil })
}

func (c *credit) owes(gone map[string]bool, which func(schemas.TaskRef) bool) bool {
	for _, o := range c.open {
		if !gone[o.ref.Analyzer] && which(o.ref) {
			return true
		}
	}
	return false
}

// owing lists who has open tasks, sorted.
func (c *credit) owing() []string {
	names := map[string]bool{}
	for _, o := range c.open {
		names[o.ref.Analyzer] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// missing lists what is still owed, sorted, and what those of the expected who
// came too late, or never, have not been given.
func (c *credit) missing(alive map[string]int) []schemas.MissingTask {
	out := []schemas.MissingTask{}
	for _, o := range c.open {
		m := schemas.MissingTask{Analyzer: o.ref.Analyzer, SHA256: o.ref.SHA256, Reason: schemas.MissingTimeout}
		if alive[o.ref.Analyzer] == 0 {
			m.Reason = schemas.MissingAbsent
		}
		out = append(out, m)
	}
	for _, o := range c.withdrawn {
		out = append(out, schemas.MissingTask{Analyzer: o.ref.Analyzer, SHA256: o.ref.SHA256, Reason: schemas.MissingWithdrawn})
	}
	for key, t := range c.passed {
		// What it would have wanted is known only of one that came once.
		if r, ok := c.interest.known[t.Analyzer]; ok && wants(r, t.Kind) && !c.done[key] {
			c.seen[t.Analyzer] = true
			out = append(out, schemas.MissingTask{Analyzer: t.Analyzer, SHA256: t.SHA256, Reason: c.away(t.Analyzer)})
		}
	}
	for _, name := range c.expected {
		if _, ok := c.interest.regs[name]; !ok && !c.seen[name] {
			out = append(out, schemas.MissingTask{Analyzer: name, Reason: c.away(name)})
		}
	}
	slices.SortFunc(out, func(a, b schemas.MissingTask) int { return strings.Compare(missingKey(a), missingKey(b)) })
	return out
}

// away says why an analyzer that is expected was given nothing.
func (c *credit) away(analyzer string) string {
	_, there := c.interest.regs[analyzer]
	_, known := c.interest.known[analyzer]
	switch {
	case there: // it came too late
		return schemas.MissingAbsent
	case known:
		return schemas.MissingWithdrawn
	}
	return schemas.MissingUnregistered
}

func missingKey(m schemas.MissingTask) string {
	if m.SHA256 == nil {
		return m.Analyzer + "/"
	}
	return m.Analyzer + "/" + m.SHA256.String()
}

// waitGrace is what a wait that is taken up again gives at least: the time in
// which a task of an analyzer that died is given out again, and some more.
const waitGrace = 2 * TaskAckWait

// left is how long to wait from now on. The deadline is a time of day, and the
// host's clock may have been set since it was written: beside it counts how
// much time the analysis gives its analyzers.
func (c *credit) left(deadline time.Time) time.Duration {
	d := time.Until(deadline)
	if c.timeout > 0 {
		d = min(d, c.timeout)
		d = max(d, min(c.timeout, waitGrace))
	}
	return max(0, d)
}

// absentGrace is how long nothing may be heard of an analyzer before nobody
// waits for it any more. What it owes stays in its consumer, and amends the
// analysis if it comes.
const absentGrace = 60 * time.Second

// absence remembers since when nothing has been heard of analyzers.
type absence struct {
	grace time.Duration
	since map[string]time.Time
}

func newAbsence(grace time.Duration) *absence {
	return &absence{grace: grace, since: map[string]time.Time{}}
}

// look says who of those that owe something has been gone for too long.
func (a *absence) look(owing []string, alive map[string]int, now time.Time) map[string]bool {
	gone := map[string]bool{}
	for name := range a.since {
		if alive[name] > 0 || !slices.Contains(owing, name) {
			delete(a.since, name)
		}
	}
	for _, name := range owing {
		if alive[name] > 0 {
			continue
		}
		since, ok := a.since[name]
		if !ok {
			a.since[name] = now
			since = now
		}
		gone[name] = now.Sub(since) >= a.grace
	}
	return gone
}
