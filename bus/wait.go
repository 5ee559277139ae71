// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
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
type credit struct {
	interest interest
	expected []string
	started  bool
	open     map[string]schemas.TaskRef
	done     map[string]bool
	seen     map[string]bool            // analyzers with a task
	passed   map[string]schemas.TaskRef // what expected analyzers could not be given: they were not there
	timeout  time.Duration              // that the analysis gives its analyzers; 0: the log does not say
}

func newCredit(expected []string) *credit {
	return &credit{
		interest: newInterest(), expected: expected, open: map[string]schemas.TaskRef{}, done: map[string]bool{},
		seen: map[string]bool{}, passed: map[string]schemas.TaskRef{},
	}
}

func creditKey(t schemas.TaskRef) string { return t.Analyzer + "/" + t.Token() }

// apply takes one entry, in the log's order.
func (c *credit) apply(tenant, analysis string, e Entry) error {
	if c.interest.apply(e) {
		return nil
	}
	switch e.Event.Family() {
	case "artifact":
		var a schemas.Artifact
		if err := e.Event.Decode(&a); err != nil {
			return err
		}
		c.opened(tenant, analysis, a.Kind, &a.SHA256)
	case "context":
		switch e.Event.Name() {
		case schemas.EventStartAnalysis:
			c.started = true
			c.opened(tenant, analysis, "", nil)
		case schemas.EventWaitAnalysis:
			var w schemas.WaitAnalysis
			if err := e.Event.Decode(&w); err != nil {
				return err
			}
			c.timeout = max(0, w.Timeout.D())
		}
	case "receipt":
		var r schemas.Receipt
		if err := e.Event.Decode(&r); err != nil {
			return err
		}
		if r.Task.Run == schemas.LiveRun {
			key := creditKey(r.Task)
			delete(c.open, key)
			c.done[key] = true
		}
	}
	return nil
}

func (c *credit) opened(tenant, analysis string, kind schemas.Kind, d *schemas.Digest) {
	t := schemas.TaskRef{Tenant: tenant, Analysis: analysis, Run: schemas.LiveRun, SHA256: d, Kind: kind}
	for _, t.Analyzer = range c.interest.matches(kind) {
		c.seen[t.Analyzer] = true
		// A repeated announcement does not open what has been closed.
		if key := creditKey(t); !c.done[key] {
			c.open[key] = t
			delete(c.passed, key)
		}
	}
	for _, t.Analyzer = range c.expected {
		_, there := c.interest.regs[t.Analyzer]
		_, open := c.open[creditKey(t)]
		if !there && !open {
			c.passed[creditKey(t)] = t
		}
	}
}

// complete reports whether nothing is owed any more.
func (c *credit) complete() bool { return c.started && len(c.open) == 0 }

// missing lists what is still owed, sorted, and what those of the expected who
// came too late, or never, have not been given.
func (c *credit) missing(alive map[string]int) []schemas.MissingTask {
	out := []schemas.MissingTask{}
	for _, t := range c.open {
		m := schemas.MissingTask{Analyzer: t.Analyzer, SHA256: t.SHA256, Reason: "timeout"}
		if _, ok := c.interest.regs[t.Analyzer]; !ok {
			m.Reason = "withdrawn"
		} else if alive[t.Analyzer] == 0 {
			m.Reason = "absent"
		}
		out = append(out, m)
	}
	for key, t := range c.passed {
		// What it would have wanted is known only of one that came once.
		if r, ok := c.interest.known[t.Analyzer]; ok && wants(r, t.Kind) && !c.done[key] {
			c.seen[t.Analyzer] = true
			out = append(out, schemas.MissingTask{Analyzer: t.Analyzer, SHA256: t.SHA256, Reason: "absent"})
		}
	}
	for _, name := range c.expected {
		if _, ok := c.interest.regs[name]; !ok && !c.seen[name] {
			out = append(out, schemas.MissingTask{Analyzer: name, Reason: "absent"})
		}
	}
	slices.SortFunc(out, func(a, b schemas.MissingTask) int { return strings.Compare(missingKey(a), missingKey(b)) })
	return out
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

// Wait waits until every task of an analysis has its receipt, or until the
// deadline, and returns what is missing. Past the deadline it still reads what
// the log has. It keeps nothing: any number may wait for the same analysis, and
// one that died can be replaced.
func (b *Bus) Wait(ctx context.Context, tenant, analysis string, deadline time.Time, expected []string) ([]schemas.MissingTask, error) {
	if err := checkTokens(tenant, analysis); err != nil {
		return nil, err
	}
	c := newCredit(expected)
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	// A log that cannot be read tells of no open tasks, which is not that
	// there are none.
	unread := time.AfterFunc(max(0, time.Until(deadline))+patience, cancel)
	defer unread.Stop()
	subjects := []string{
		registry + "*", unregistry + "*",
		contextSubject(tenant, analysis, schemas.EventStartAnalysis),
		contextSubject(tenant, analysis, schemas.EventWaitAnalysis),
		logPrefix + tenant + "." + analysis + ".artifact.>",
		logPrefix + tenant + "." + analysis + ".receipt." + schemas.LiveRun + ".>",
	}
	caughtUp := false
	err := b.follow(wait, subjects, 0, func() {
		caughtUp = true
		unread.Stop()
		if c.complete() {
			cancel()
			return
		}
		time.AfterFunc(c.left(deadline), cancel)
	}, func(e Entry) error {
		if err := c.apply(tenant, analysis, e); err != nil {
			return err
		}
		if caughtUp && c.complete() {
			return ErrStop
		}
		return nil
	})
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err == nil: // complete
	case caughtUp && wait.Err() != nil: // complete, or the deadline
	default:
		return nil, fmt.Errorf("wait for the analyzers: %w", err)
	}
	alive, err := b.Alive(ctx)
	if err != nil {
		alive = nil // then nobody counts as alive, which is only a word
	}
	return c.missing(alive), nil
}

// End writes an analysis' ending unless it has one. Anybody may: of several
// only one is stored. It returns the ending that the log has now.
func (b *Bus) End(ctx context.Context, tenant, analysis string, ending schemas.Typed) (schemas.Event, error) {
	for {
		w, entries, err := b.openContext(ctx, tenant, analysis)
		if err != nil {
			return schemas.Event{}, err
		}
		for _, e := range entries {
			if schemas.Ending(e.Event.Name()) {
				return e.Event, nil
			}
		}
		e, err := schemas.NewEvent(tenant, analysis, w.NextID(), time.Now(), schemas.OriginHost, ending)
		if err != nil {
			return schemas.Event{}, err
		}
		err = w.Write(ctx, e)
		if err == nil {
			return e, nil
		}
		if !errors.Is(err, ErrFenced) {
			return schemas.Event{}, err
		}
	}
}
