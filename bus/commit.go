// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// messages makes what a finished task gives, the receipt last.
func (c *Clerk) messages(ctx context.Context, f *schemas.FinishedTask, parent *schemas.Artifact, at time.Time) ([]batchMsg, error) {
	var msgs []batchMsg
	next := map[string]int{}
	for i := range f.Derived {
		m, err := c.derived(ctx, f, parent, i, at, next)
		if err != nil {
			return nil, err
		}
		msgs = append(msgs, m)
	}
	for n, finding := range f.Findings {
		m, err := findingMsg(f, n, finding, at)
		if err != nil {
			return nil, err
		}
		msgs = append(msgs, m)
	}
	receipt, err := receiptMsg(f, len(f.Findings), len(f.Derived), at)
	return append(msgs, receipt), err
}

// depth is how often what is derived from parent was derived; nil stands for the
// analysis.
func depth(parent *schemas.Artifact) int {
	if parent == nil {
		return 1
	}
	return parent.Depth + 1
}

// derived announces one derived artifact. Bytes that the analysis has already
// had are announced again, as another occurrence, but derived no further:
// their task is done or open, whatever they were derived from. next has the
// numbers of this task's own occurrences.
//
// An announcement would give every analyzer that follows analyses a task. What
// a run derives is no announcement: only its driver makes tasks of it.
func (c *Clerk) derived(ctx context.Context, f *schemas.FinishedTask, parent *schemas.Artifact, i int, at time.Time, next map[string]int) (batchMsg, error) {
	d := f.Derived[i]
	a := schemas.Artifact{
		Kind: d.Kind, SHA256: d.SHA256, Size: d.Size, MediaType: d.MediaType, Name: d.Name, File: d.File,
		Parent: f.Task.SHA256, Analyzer: f.Task.Analyzer, Depth: depth(parent),
	}
	subject := artifactsOf(f.Task.Tenant, f.Task.Analysis, string(d.Kind), d.SHA256)
	if f.Task.Run != schemas.LiveRun {
		subject, a.Run = derivationsOf(f.Task, d.Kind, d.SHA256), f.Task.Run
	}
	if _, ok := next[subject]; !ok {
		var err error
		if next[subject], err = nextOccurrence(ctx, c.ledger, subject); err != nil {
			return batchMsg{}, err
		}
	}
	a.Occurrence = next[subject]
	next[subject]++
	id, data := a.ID(f.Task.Analysis), schemas.Typed(a)
	if a.Run != "" {
		x := schemas.Derivation{Task: f.Task, Artifact: a}
		id, data = x.ID(), x
	}
	e, err := schemas.NewEvent(f.Task.Tenant, f.Task.Analysis, id, at, schemas.OriginHost, data)
	if err != nil {
		return batchMsg{}, err
	}
	return checkedMsg("derived artifact "+strconv.Itoa(i), subject+"."+strconv.Itoa(a.Occurrence), e, true)
}

func taskID(t schemas.TaskRef, what string) string {
	return strings.Join([]string{t.Analysis, what, t.Run, t.Analyzer, t.Token()}, "/")
}

func findingMsg(f *schemas.FinishedTask, n int, finding schemas.Finding, at time.Time) (batchMsg, error) {
	e, err := schemas.NewEvent(f.Task.Tenant, f.Task.Analysis, taskID(f.Task, "finding")+"/"+strconv.Itoa(n), at, schemas.OriginHost,
		schemas.FindingCommitted{Task: f.Task, Version: f.Version, Rules: f.Rules, Config: f.Config, Reused: f.Reuse, N: n, Finding: finding})
	if err != nil {
		return batchMsg{}, err
	}
	return checkedMsg("finding "+strconv.Itoa(n), findingSubject(f.Task, finding.Severity, n), e, false)
}

func receiptMsg(f *schemas.FinishedTask, findings, derived int, at time.Time) (batchMsg, error) {
	e, err := schemas.NewEvent(f.Task.Tenant, f.Task.Analysis, taskID(f.Task, "receipt"), at, schemas.OriginHost, schemas.Receipt{
		Task: f.Task, Version: f.Version, Rules: f.Rules, Config: f.Config, Reused: f.Reuse, Instance: f.Instance, Status: f.Status, Error: f.Error,
		Findings: findings, Derived: derived, Result: f.Result, Cut: f.Cut, Took: f.Took,
	})
	if err != nil {
		return batchMsg{}, err
	}
	return checkedMsg("receipt", receiptSubject(f.Task), e, true)
}

// checkedMsg encodes an event and refuses what the log does not take: one that
// is too large would hold up those that are committed with it.
func checkedMsg(what, subject string, e schemas.Event, first bool) (batchMsg, error) {
	m, err := newBatchMsg(subject, e, first)
	if err == nil && len(m.body) > maxBody {
		err = refuse("%s has %d bytes; %d are allowed", what, len(m.body), maxBody)
	}
	return m, err
}
