// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// The bucket MEMO says which task had the same work to do: the same bytes for
// the same analyzer, version, rules and configuration of the same tenant. It is
// a hint that anybody may lose: who follows it looks into the log before it
// believes, and a key that is not there costs no more than the work.

// memoKey names the work of a task. Runs have keys of their own: what is live
// takes no answer of theirs. An older Petri, which kept nothing of what a run
// derived, said false for them.
func memoKey(t schemas.TaskRef, live bool, version string, rules, config *schemas.Digest) string {
	whose := "runs"
	if live {
		whose = "true"
	}
	return schemas.Sum(fmt.Appendf(nil, "%s/%s/%s/%q/%v/%v/%s/%s", t.Tenant, whose, t.Analyzer, version, rules, config, t.Kind, t.Token())).Token()
}

// remember notes a task that was done, for who has the same to do. Nobody waits
// for it.
func (b *Bus) remember(f *schemas.FinishedTask) {
	if f.Task.SHA256 == nil || f.Status != schemas.TaskDone || f.Reuse != nil {
		return
	}
	if f.Cut != nil && f.Cut.Derived > 0 { // another analysis may have room for them
		return
	}
	body, err := json.Marshal(f.Task)
	if err != nil {
		return
	}
	key := memoKey(f.Task, f.Task.Run == schemas.LiveRun, f.Version, f.Rules, f.Config)
	_ = b.nc.Publish("$KV."+kvMemo+"."+key, body) // lost, the work is done once more
}

// Earlier returns an earlier task with the same work as f, which needs no more
// than its task, version, rules and configuration. nil says that there is none,
// or that f's submission wants the work done.
func (b *Bus) Earlier(ctx context.Context, f schemas.FinishedTask) (*schemas.TaskRef, error) {
	if f.Task.SHA256 == nil {
		return nil, nil
	}
	keys := []string{memoKey(f.Task, true, f.Version, f.Rules, f.Config)}
	if f.Task.Run != schemas.LiveRun {
		keys = append(keys, memoKey(f.Task, false, f.Version, f.Rules, f.Config))
	}
	for _, key := range keys {
		m, err := b.request(ctx, jetstream.DefaultAPIPrefix+"DIRECT.GET.KV_"+kvMemo+".$KV."+kvMemo+"."+key, nil)
		if errors.Is(err, nats.ErrNoResponders) { // an older Petri's server
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("look for an earlier answer: %w", err)
		}
		var t schemas.TaskRef
		if m.Header.Get("Status") != "" || json.Unmarshal(m.Data, &t) != nil {
			continue
		}
		r, err := b.receiptOf(ctx, t)
		if errors.Is(err, ErrNotFound) || err == nil && sameWork(&f, &r.Receipt) != nil {
			continue
		}
		if err != nil {
			return nil, err
		}
		if anew, err := b.wantsWork(ctx, f.Task); anew || err != nil {
			return nil, err
		}
		return &t, nil
	}
	return nil, nil
}

// wantsWork reports whether a task's submission takes no earlier answers. A run
// says it of its own ([Task].Force).
func (b *Bus) wantsWork(ctx context.Context, t schemas.TaskRef) (bool, error) {
	if t.Run != schemas.LiveRun {
		return false, nil
	}
	m, err := b.anyMsg(ctx, contextSubject(t.Tenant, t.Analysis, schemas.EventSubmitted))
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var s schemas.AnalysisSubmitted
	e, err := schemas.ParseEvent(m.Data)
	if err == nil {
		err = e.Decode(&s)
	}
	return s.Submission.Options.NoReuse, err
}

// sameWork reports why a receipt is no answer to f.
func sameWork(f *schemas.FinishedTask, r *schemas.Receipt) error {
	t := r.Task
	switch {
	case t.Tenant != f.Task.Tenant || t.Analyzer != f.Task.Analyzer:
		return errors.New("it is another's")
	case t.SHA256 == nil || f.Task.SHA256 == nil || *t.SHA256 != *f.Task.SHA256 || t.Kind != f.Task.Kind:
		return errors.New("it is about other bytes")
	case t.Analysis == f.Task.Analysis && t.Run == f.Task.Run:
		return errors.New("it is the task itself")
	case t.Run != schemas.LiveRun && f.Task.Run == schemas.LiveRun:
		return errors.New("it is of a run, which counts only where it is adopted")
	case r.Version != f.Version || !sameDigest(r.Rules, f.Rules) || !sameDigest(r.Config, f.Config):
		return errors.New("it is of another version, other rules or another configuration")
	case r.Status != schemas.TaskDone:
		return fmt.Errorf("it is %s", r.Status)
	case r.Reused != nil:
		return errors.New("it was itself taken from an earlier one")
	}
	return nil
}

func sameDigest(a, b *schemas.Digest) bool { return a == b || a != nil && b != nil && *a == *b }

// receipt is a task's receipt where it lies.
type receipt struct {
	schemas.Receipt
	seq uint64
	arc *archived // that has it, if the log has not
}

// receiptOf reads the receipt of a task. If there is none the error wraps
// [ErrNotFound].
func (b *Bus) receiptOf(ctx context.Context, t schemas.TaskRef) (receipt, error) {
	var r receipt
	if err := checkTokens(t.Tenant, t.Analysis); err != nil {
		return r, err
	}
	subject := receiptSubject(t)
	if m, err := b.lastMsg(ctx, subject); err == nil {
		e, err := schemas.ParseEvent(m.Data)
		if err == nil {
			err = e.Decode(&r.Receipt)
		}
		r.seq = m.Sequence
		return r, err
	} else if !errors.Is(err, ErrNotFound) {
		return r, err
	}
	a, err := b.archived(ctx, t.Tenant, t.Analysis)
	if err != nil {
		return r, err
	}
	none := fmt.Errorf("receipt of %s in analysis %s: %w", t.Analyzer, t.Analysis, ErrNotFound)
	if a.revision == 0 || a.Imported { // a stranger's answers are not this clerk's
		return r, none
	}
	r.arc = &a
	err = b.archivedEvents(ctx, a.ArchiveEntry, func(e Entry) error {
		if e.Subject != subject {
			return nil
		}
		if err := e.Event.Decode(&r.Receipt); err != nil {
			return err
		}
		r.seq = e.Seq
		return ErrStop
	})
	if errors.Is(err, ErrStop) {
		return r, nil
	}
	if err == nil {
		err = none
	}
	return r, err
}

// reuse fills a finished task in with the answer of the earlier one that it
// names. The analyzer is believed nothing: what does not fit is refused.
func (c *Clerk) reuse(ctx context.Context, f *schemas.FinishedTask) error {
	t := *f.Reuse
	if len(f.Findings)+len(f.Derived) > 0 || f.Result != nil || f.Cut != nil || f.Status != schemas.TaskDone {
		return refuse("reuse: an answer that is taken from an earlier task has nothing of its own")
	}
	if t.Tenant != f.Task.Tenant || t.Analyzer != f.Task.Analyzer || t.SHA256 == nil {
		return refuse("reuse: the earlier answer is another's")
	}
	if err := errors.Join(schemas.CheckID(t.Analysis), schemas.CheckRun(t.Run)); err != nil {
		return refuse("reuse: %w", err)
	}
	r, err := c.b.receiptOf(ctx, t)
	if errors.Is(err, ErrNotFound) {
		return errGone{refuse("reuse: analysis %s has no such answer", t.Analysis)}
	}
	if err != nil {
		return err
	}
	if err := sameWork(f, &r.Receipt); err != nil {
		return refuse("reuse: the answer in analysis %s does not fit: %w", t.Analysis, err)
	}
	f.Result, f.Cut = r.Result, r.Cut
	add := func(e schemas.Event) error { return addEarlier(f, t, e) }
	if r.arc != nil {
		err = c.b.archivedEvents(ctx, r.arc.ArchiveEntry, func(e Entry) error {
			if e.Seq > r.seq {
				return ErrStop
			}
			return add(e.Event)
		})
		if errors.Is(err, ErrStop) {
			err = nil
		}
	} else {
		// What a task gave lies right before its receipt: they were one batch.
		for seq := r.seq - uint64(r.Findings+r.Derived); seq < r.seq && err == nil; seq++ {
			var m *jetstream.RawStreamMsg
			if m, err = c.b.lookupIn(ctx, streamLog, lookup{Seq: seq}); err != nil {
				break
			}
			var e schemas.Event
			if e, err = schemas.ParseEvent(m.Data); err == nil {
				err = add(e)
			}
		}
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if err != nil || len(f.Findings) != r.Findings || len(f.Derived) != r.Derived {
		return errGone{refuse("reuse: the answer in analysis %s is not whole", t.Analysis)}
	}
	return nil
}

// errGone says that an earlier answer is not there, or not any more.
type errGone struct{ error }

func (e errGone) Unwrap() error { return e.error }

// anew gives a task out once more, to be worked on: the earlier answer that it
// was to have is gone. It goes the way of the tasks of runs, which are given out
// one by one. An analyzer that comes with such an answer again is refused why.
func (c *Clerk) anew(ctx context.Context, t schemas.TaskRef, parent *schemas.Artifact, again bool, why error) error {
	e, err := schemas.NewEvent(t.Tenant, t.Analysis, taskID(t, "anew"), time.Now(), schemas.OriginHost, schemas.RunTask{Task: t, Artifact: parent, Force: true})
	if err != nil {
		return err
	}
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	var ack *jetstream.PubAck
	err = retry(ctx, func(ctx context.Context) error {
		ack, err = c.b.js.PublishMsg(ctx, &nats.Msg{Subject: runSubject(t), Data: body}, jetstream.WithMsgID(e.ID), jetstream.WithRetryAttempts(0))
		return err
	})
	if err != nil {
		return fmt.Errorf("give out a task whose earlier answer is gone: %w", err)
	}
	if !ack.Duplicate || again {
		return nil
	}
	_, err = c.b.lookupIn(ctx, streamRuns, lookup{Last: runSubject(t)})
	if errors.Is(err, ErrNotFound) { // it was given out, and this is what came of it
		return why
	}
	return err
}

// addEarlier takes an event over if it is part of what the task t gave.
func addEarlier(f *schemas.FinishedTask, t schemas.TaskRef, e schemas.Event) error {
	switch e.Family() {
	case "finding":
		var x schemas.FindingCommitted
		if err := e.Decode(&x); err != nil {
			return err
		}
		if taskSum(x.Task) == taskSum(t) {
			f.Findings = append(f.Findings, x.Finding)
		}
	case "artifact":
		var a schemas.Artifact
		if err := e.Decode(&a); err != nil {
			return err
		}
		// Runs announce nothing, so that these are the live task's.
		if e.Tenant == t.Tenant && e.Analysis == t.Analysis && t.Run == schemas.LiveRun &&
			a.Analyzer == t.Analyzer && sameDigest(a.Parent, t.SHA256) {
			f.Derived = append(f.Derived, derivedAs(&a))
		}
	case "derivation":
		var d schemas.Derivation
		if err := e.Decode(&d); err != nil {
			return err
		}
		if taskSum(d.Task) == taskSum(t) {
			f.Derived = append(f.Derived, derivedAs(&d.Artifact))
		}
	}
	return nil
}

// derivedAs is what an analyzer handed in for an artifact that it derived.
func derivedAs(a *schemas.Artifact) schemas.Derived {
	return schemas.Derived{Kind: a.Kind, SHA256: a.SHA256, Size: a.Size, MediaType: a.MediaType, Name: a.Name, File: a.File}
}
