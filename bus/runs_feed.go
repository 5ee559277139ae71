// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// fill gives out tasks, as many as may be out at a time.
func (d *runDriver) fill(ctx context.Context) error {
	for d.state.State == schemas.RunRunning && len(d.open)-len(d.queue) < d.state.Parallel {
		if len(d.queue) == 0 {
			if len(d.next) == 0 {
				return nil
			}
			key := d.next[0]
			d.next = d.next[1:]
			if err := d.begin(ctx, key); err != nil {
				return err
			}
			continue
		}
		now := time.Now()
		if d.state.Rate > 0 {
			if now.Before(d.due) {
				return nil
			}
			d.due = now.Add(time.Duration(float64(time.Second) / d.state.Rate))
		}
		t := d.queue[0]
		if err := d.give(ctx, t); err != nil {
			return err
		}
		d.queue = d.queue[1:]
		t.given, t.check = now, now.Add(runCheck)
	}
	return nil
}

// begin takes a piece in work: what has a receipt already is counted, the rest
// waits to be given out.
func (d *runDriver) begin(ctx context.Context, key string) error {
	p := new(runPiece)
	if _, err := d.b.runRecord(ctx, key, p); err != nil {
		return err
	}
	if p.Ended { // its analysis was deleted meanwhile
		d.ended.add(p.runCount)
		d.count()
		return nil
	}
	p.runCount = runCount{}
	d.pieces[key] = p
	a, there, err := d.b.standing(ctx, d.state.Tenant, p.Analysis)
	if err != nil {
		return err
	}
	if !there {
		p.Gone = len(p.Tasks)
		return d.finish(ctx, p)
	}
	mine := map[string]bool{}
	for _, item := range p.Tasks {
		mine[taskToken(item.ref(d.state.Tenant, p.Analysis, d.state.Run))] = true
	}
	done, derived := map[string]bool{}, false
	err = d.receiptsOf(ctx, a, p.Analysis, func(r *schemas.Receipt) {
		derived = derived || r.Derived > 0
		if token := taskToken(r.Task); mine[token] && !done[token] {
			done[token] = true
			p.answered(r)
		}
	})
	if err != nil {
		return err
	}
	for _, item := range p.Tasks {
		t := &openTask{ref: item.ref(d.state.Tenant, p.Analysis, d.state.Run), item: item, piece: p}
		if token := taskToken(t.ref); !done[token] {
			d.open[token] = t
			d.queue = append(d.queue, t)
		}
	}
	d.count()
	if derived { // whoever drove the run may have died over it
		if err := d.derive(ctx, p.Analysis); err != nil {
			return err
		}
	}
	return d.finish(ctx, p)
}

// receiptsOf calls fn with the receipts that the run has of an analysis.
func (d *runDriver) receiptsOf(ctx context.Context, a archived, analysis string, fn func(*schemas.Receipt)) error {
	take := func(e Entry) error {
		var r schemas.Receipt
		if e.Event.Family() == "receipt" && e.Event.Decode(&r) == nil && r.Task.Run == d.state.Run {
			fn(&r)
		}
		return nil
	}
	if a.Archived.After(d.state.Created) { // it may have some of them
		r := &reading{b: d.b, tenant: d.state.Tenant, analysis: analysis, family: "receipt", fn: take}
		return r.run(ctx)
	}
	return d.b.readAll(ctx, []string{logPrefix + d.state.Tenant + "." + analysis + ".receipt." + d.state.Run + ".>"}, 0, 0, take)
}

// give puts a task into the analyzer's queue. It may be there already.
func (d *runDriver) give(ctx context.Context, t *openTask) error {
	id := t.ref.Analysis + "/run/" + t.ref.Run + "/" + t.ref.Analyzer + "/" + t.ref.Token()
	e, err := schemas.NewEvent(t.ref.Tenant, t.ref.Analysis, id, time.Now(), schemas.OriginHost,
		schemas.RunTask{Task: t.ref, Artifact: t.item.Artifact, Force: d.state.Force})
	if err != nil {
		return err
	}
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	err = retry(ctx, func(ctx context.Context) error {
		// No message id: a task that was taken out of the queue must go in again.
		_, err := d.b.js.PublishMsg(ctx, &nats.Msg{Subject: runSubject(t.ref), Data: body},
			jetstream.WithExpectLastSequencePerSubject(0), jetstream.WithRetryAttempts(0))
		return err
	})
	if hasCode(err, codeWrongLastSequence) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("give out a task of %s: %w", d.state.Run, err)
	}
	return nil
}

// receipt counts an answer.
func (d *runDriver) receipt(ctx context.Context, r *schemas.Receipt) error {
	token := taskToken(r.Task)
	t, ok := d.open[token]
	if !ok {
		return nil
	}
	if r.Derived > 0 { // before its task is closed: the run must not end over it
		if err := d.derive(ctx, t.ref.Analysis); err != nil {
			return err
		}
	}
	t.piece.answered(r)
	return d.close(ctx, token)
}

// close ends a task, and its piece with the last one.
func (d *runDriver) close(ctx context.Context, token string) error {
	t := d.open[token]
	delete(d.open, token)
	if t.given.IsZero() {
		d.queue = slices.DeleteFunc(d.queue, func(q *openTask) bool { return q == t })
	}
	d.count()
	return d.finish(ctx, t.piece)
}

// finish ends a piece if all of it is answered.
func (d *runDriver) finish(ctx context.Context, p *runPiece) error {
	if p.answers() < len(p.Tasks) {
		return nil
	}
	if err := d.step("end a piece"); err != nil {
		return err
	}
	if err := d.b.endPiece(ctx, d.kv, d.state.Run, p); err != nil {
		return fmt.Errorf("end a piece of %s: %w", d.state.Run, err)
	}
	p.Ended = true
	d.ended.add(p.runCount)
	delete(d.pieces, pieceKey(d.state.Run, p.Analysis, p.N))
	d.leave(p.Analysis)
	d.count()
	return nil
}

// endPiece writes what has come of a piece. Nothing of a deleted analysis is
// kept, and what was taken out of the piece when it was deleted stays out.
func (b *Bus) endPiece(ctx context.Context, kv jetstream.KeyValue, run string, p *runPiece) error {
	key := pieceKey(run, p.Analysis, p.N)
	return retry(ctx, func(ctx context.Context) error {
		var out runPiece
		revision, err := b.runRecord(ctx, key, &out)
		if err != nil {
			return err
		}
		out.Ended, out.runCount = true, p.runCount
		if p.Gone > 0 {
			out.Tasks = nil
		}
		body, err := json.Marshal(out)
		if err != nil {
			return err
		}
		_, err = kv.Update(ctx, key, body, revision)
		if hasCode(err, codeWrongLastSequence) { // another one was faster, or the leader was cut off
			err = passing{err}
		}
		return err
	})
}

// count sums up.
func (d *runDriver) count() {
	sum := d.ended
	for _, p := range d.pieces {
		sum.add(p.runCount)
	}
	s := &d.state
	if was := (runCount{s.Done, s.Failed, s.Skipped, s.Reused, s.Gone}); was != sum {
		s.Done, s.Failed, s.Skipped, s.Reused, s.Gone = sum.Done, sum.Failed, sum.Skipped, sum.Reused, sum.Gone
		s.Waiting = ""
		d.dirty = true
	}
}

// tick asks after tasks that have been out for long, and writes the state.
func (d *runDriver) tick(ctx context.Context) error {
	now := time.Now()
	there := map[string]standing{}
	late := false
	for token, t := range d.open {
		if t.given.IsZero() || now.Before(t.check) {
			continue
		}
		late = true
		t.check = now.Add(max(runCheck, now.Sub(t.given)/2))
		if err := d.ask(ctx, token, t, there); err != nil {
			return err
		}
	}
	if late {
		d.waiting(ctx)
	}
	if d.dirty {
		return d.save(ctx)
	}
	return nil
}

// standing is what [Bus.standing] says.
type standing struct {
	archived
	there bool
}

// ask looks what has become of a task.
func (d *runDriver) ask(ctx context.Context, token string, t *openTask, there map[string]standing) error {
	m, err := d.b.lastMsg(ctx, receiptSubject(t.ref))
	if err == nil {
		var r schemas.Receipt
		e, err := schemas.ParseEvent(m.Data)
		if err == nil {
			err = e.Decode(&r)
		}
		if err != nil {
			return err
		}
		return d.receipt(ctx, &r)
	}
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	a, known := there[t.ref.Analysis]
	if !known {
		have, is, err := d.b.standing(ctx, t.ref.Tenant, t.ref.Analysis)
		if err != nil {
			return err
		}
		a = standing{have, is}
		there[t.ref.Analysis] = a
	}
	if !a.there {
		if err := d.b.unqueueTask(ctx, t.ref); err != nil { // it may have been given out since
			return err
		}
		t.piece.Gone++
		return d.close(ctx, token)
	}
	if a.Archived.After(d.state.Created) {
		var answer *schemas.Receipt
		err := d.receiptsOf(ctx, a.archived, t.ref.Analysis, func(r *schemas.Receipt) {
			if answer == nil && taskToken(r.Task) == token {
				answer = r
			}
		})
		if err != nil {
			return err
		}
		if answer != nil {
			return d.receipt(ctx, answer)
		}
	}
	if _, err := d.b.lookupIn(ctx, streamRuns, lookup{Last: runSubject(t.ref)}); !errors.Is(err, ErrNotFound) {
		return err // it waits there, if the error is nil
	}
	if waits, err := d.b.mayWait(ctx, t); err != nil || waits {
		return err
	}
	// It left the queues and has no receipt: its answer was no answer.
	if t.again++; t.again > maxRegiven {
		d.log.Warn("a task is handed in again and again, and never accepted", "analyzer", t.ref.Analyzer, "analysis", t.ref.Analysis)
		t.piece.Failed++
		return d.close(ctx, token)
	}
	t.answered = 0
	return d.give(ctx, t)
}

// mayWait reports whether the answer to a task that has left its queue may still
// be in the inbox. There it has no subject of its own: it is not behind what was
// the analyzer's last when this was asked first.
func (b *Bus) mayWait(ctx context.Context, t *openTask) (bool, error) {
	first, err := b.lookupIn(ctx, streamInbox, lookup{Next: inboxOf(t.ref.Analyzer), Seq: 1})
	if err == nil && t.answered == 0 {
		var last *jetstream.RawStreamMsg
		if last, err = b.lookupIn(ctx, streamInbox, lookup{Last: inboxOf(t.ref.Analyzer)}); err == nil {
			t.answered = last.Sequence
		}
	}
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil && first.Sequence <= t.answered, err
}

// waiting says which analyzers there are none of.
func (d *runDriver) waiting(ctx context.Context) {
	alive, err := d.b.Alive(ctx)
	if err != nil {
		return // then nothing is known
	}
	text := ""
	for _, name := range d.state.Analyzers {
		if alive[name] == 0 && slices.ContainsFunc(d.queueOf(), func(a string) bool { return a == name }) {
			text = "analyzer " + name + " is not running"
			break
		}
	}
	if text != d.state.Waiting {
		d.state.Waiting, d.dirty = text, true
	}
}

// queueOf lists the analyzers that have open tasks.
func (d *runDriver) queueOf() []string {
	var out []string
	for _, t := range d.open {
		if !slices.Contains(out, t.ref.Analyzer) {
			out = append(out, t.ref.Analyzer)
		}
	}
	return out
}
