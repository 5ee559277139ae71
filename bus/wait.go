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
	started  bool
	open     map[string]schemas.TaskRef
	done     map[string]bool
	seen     map[string]bool // analyzers with a task
}

func newCredit() *credit {
	return &credit{interest: interest{regs: map[string]schemas.Registration{}}, open: map[string]schemas.TaskRef{}, done: map[string]bool{}, seen: map[string]bool{}}
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
		if e.Event.Name() == schemas.EventStartAnalysis {
			c.started = true
			c.opened(tenant, analysis, "", nil)
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
	for _, name := range c.interest.matches(kind) {
		t := schemas.TaskRef{Tenant: tenant, Analysis: analysis, Run: schemas.LiveRun, Analyzer: name, SHA256: d, Kind: kind}
		c.seen[name] = true
		// A repeated announcement does not open what has been closed.
		if key := creditKey(t); !c.done[key] {
			c.open[key] = t
		}
	}
}

// complete reports whether nothing is owed any more.
func (c *credit) complete() bool { return c.started && len(c.open) == 0 }

// missing lists what is still owed, sorted, and who of the expected never
// registered.
func (c *credit) missing(expected []string, alive map[string]int) []schemas.MissingTask {
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
	for _, name := range expected {
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

// Wait waits until every task of an analysis has its receipt, or until the
// deadline, and returns what is missing. It keeps nothing: any number may wait
// for the same analysis, and one that died can be replaced.
func (b *Bus) Wait(ctx context.Context, tenant, analysis string, deadline time.Time, expected []string) ([]schemas.MissingTask, error) {
	if err := checkTokens(tenant, analysis); err != nil {
		return nil, err
	}
	c := newCredit()
	caughtUp := false
	wait, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	subjects := []string{
		registry + "*", unregistry + "*",
		contextSubject(tenant, analysis, schemas.EventStartAnalysis),
		logPrefix + tenant + "." + analysis + ".artifact.>",
		logPrefix + tenant + "." + analysis + ".receipt." + schemas.LiveRun + ".>",
	}
	done := errors.New("done")
	err := b.follow(wait, subjects, 0, func() { caughtUp = true; cancelIf(c.complete(), cancel) }, func(e Entry) error {
		if err := c.apply(tenant, analysis, e); err != nil {
			return err
		}
		if caughtUp && c.complete() {
			return done
		}
		return nil
	})
	switch {
	case errors.Is(err, done), caughtUp && c.complete():
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case wait.Err() != nil: // the deadline
	default:
		return nil, fmt.Errorf("wait for the analyzers: %w", err)
	}
	alive, err := b.Alive(ctx)
	if err != nil {
		alive = nil // then nobody counts as alive, which is only a word
	}
	return c.missing(expected, alive), nil
}

func cancelIf(ok bool, cancel func()) {
	if ok {
		cancel()
	}
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
