// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// What an analyzer derives in a run lies in the log right before its receipt. The
// driver lists the tasks that it means, as pieces behind those that the run began
// with, before it counts that receipt: a piece whose tasks are all answered is
// marked as such only when what they derived is listed. So whoever takes the run
// up finds either the new piece, or one that has not ended and whose receipts say
// that something was derived.

// runDerived is what a driver knows of what the run has derived in an analysis.
type runDerived struct {
	known map[string]bool // tasks of the run's list, by token
	n     int             // number of the next piece
	next  uint64          // sequence from which the log is unread
}

// derive lists what the run has derived in an analysis and has not been listed,
// for each of the run's analyzers that takes it, and queues it. Each task is
// listed once, whatever its bytes were derived from.
func (d *runDriver) derive(ctx context.Context, analysis string) error {
	s, err := d.derivedIn(ctx, analysis)
	if err != nil {
		return err
	}
	var items []runItem
	take := func(a schemas.Artifact) {
		for _, name := range d.state.Analyzers {
			if !wants(d.regs[name], a.Kind) {
				continue
			}
			item := runItem{Analyzer: name, Artifact: &a}
			if token := taskToken(item.ref(d.state.Tenant, analysis, d.state.Run)); !s.known[token] {
				s.known[token] = true
				items = append(items, item)
			}
		}
	}
	if err := d.readDerived(ctx, analysis, s, take); err != nil {
		return fmt.Errorf("read what %s has derived: %w", d.state.Run, err)
	}
	for _, tasks := range split(items) {
		p := &runPiece{Analysis: analysis, N: s.n, Derived: true, Tasks: tasks}
		if err := d.step("list what is derived"); err != nil {
			return err
		}
		if err := d.b.addPiece(ctx, d.kv, d.state.Run, p); err != nil {
			return fmt.Errorf("list what %s has derived: %w", d.state.Run, err)
		}
		if err := d.step("queue what is listed"); err != nil {
			return err
		}
		s.n++
		d.pieces[pieceKey(d.state.Run, analysis, p.N)] = p
		for _, item := range tasks {
			t := &openTask{ref: item.ref(d.state.Tenant, analysis, d.state.Run), item: item, piece: p}
			d.open[taskToken(t.ref)] = t
			d.queue = append(d.queue, t)
		}
		d.state.Total += len(tasks)
		d.state.Derived += len(tasks)
		d.dirty = true
	}
	return nil
}

// derivedIn returns what the driver knows of an analysis. The first time it
// reads what is listed.
func (d *runDriver) derivedIn(ctx context.Context, analysis string) (*runDerived, error) {
	if s := d.derived[analysis]; s != nil {
		return s, nil
	}
	if d.regs == nil {
		regs := map[string]schemas.Registration{}
		for _, name := range d.state.Analyzers {
			r, err := d.b.Registered(ctx, name)
			if err != nil && !errors.Is(err, ErrNotFound) { // one that has withdrawn wants nothing more
				return nil, err
			}
			regs[name] = r
		}
		d.regs = regs
	}
	s := &runDerived{known: map[string]bool{}}
	for ; ; s.n++ {
		var p runPiece
		_, err := d.b.runRecord(ctx, pieceKey(d.state.Run, analysis, s.n), &p)
		if errors.Is(err, ErrNotFound) {
			break
		}
		if err != nil {
			return nil, err
		}
		for _, item := range p.Tasks {
			s.known[taskToken(item.ref(d.state.Tenant, analysis, d.state.Run))] = true
		}
	}
	d.derived[analysis] = s
	return s, nil
}

// readDerived calls fn with what the run has derived in an analysis, and has not
// been read yet.
func (d *runDriver) readDerived(ctx context.Context, analysis string, s *runDerived, fn func(schemas.Artifact)) error {
	for {
		m, err := d.b.lookupIn(ctx, streamLog, lookup{Next: derivationsIn(d.state.Tenant, analysis, d.state.Run), Seq: s.next})
		if errors.Is(err, ErrNotFound) {
			break
		}
		if err != nil {
			return err
		}
		if a, err := artifactOf(m.Subject, m.Data); err == nil {
			fn(a)
		}
		s.next = m.Sequence + 1
	}
	// In this order: the archive has an analysis before the log has it no more.
	a, err := d.b.archived(ctx, d.state.Tenant, analysis)
	if err != nil || !a.Archived.After(d.state.Created) {
		return err
	}
	r := &reading{b: d.b, tenant: d.state.Tenant, analysis: analysis, family: "derivation", fn: func(e Entry) error {
		var x schemas.Derivation
		if e.Event.Decode(&x) == nil && x.Task.Run == d.state.Run {
			fn(x.Artifact)
		}
		return nil
	}}
	return r.run(ctx)
}

// leave forgets an analysis of which nothing is in work, or will be.
func (d *runDriver) leave(analysis string) {
	if len(d.next) > 0 && strings.HasPrefix(d.next[0], d.state.Run+"."+analysis+".") {
		return
	}
	for _, p := range d.pieces {
		if p.Analysis == analysis {
			return
		}
	}
	delete(d.derived, analysis)
}

// addPiece adds a piece to the list of a run. If another one has its number the
// error wraps [ErrFenced]: then the run has another driver.
func (b *Bus) addPiece(ctx context.Context, kv jetstream.KeyValue, run string, p *runPiece) error {
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	key := pieceKey(run, p.Analysis, p.N)
	return retry(ctx, func(ctx context.Context) error {
		_, err := kv.Create(ctx, key, body)
		if !errors.Is(err, jetstream.ErrKeyExists) {
			return err
		}
		// Its acknowledgement may have been lost.
		m, err := b.lookupIn(ctx, "KV_"+kvRuns, lookup{Last: "$KV." + kvRuns + "." + key})
		if err == nil && !bytes.Equal(m.Data, body) {
			err = ErrFenced
		}
		if errors.Is(err, ErrNotFound) { // a leader that was cut off refuses too
			err = passing{err}
		}
		return err
	})
}
