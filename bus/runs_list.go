// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// Limits of a piece of a run's list, and of what is held before it is written.
const (
	maxPieceTasks = 500
	maxPieceBytes = 256 << 10
	maxListHeld   = 50_000
)

// A runLister makes the list of a run's tasks: what was announced in the log
// until the run was begun, each task once.
type runLister struct {
	b     *Bus
	kv    jetstream.KeyValue
	run   *schemas.RunState
	regs  map[string]schemas.Registration
	since string                  // the first characters of an analysis' id
	seen  map[schemas.Digest]bool // tasks
	held  map[string][]runItem    // by analysis
	n     map[string]int          // pieces written, by analysis
	items int                     // held
	total int
	step  func(string) error // see [runDriver]
}

// list writes the list of a run anew and returns how many tasks and analyses
// it has. Whoever does so has taken the run in hand with that revision of its
// state. If another driver lists it too the error may wrap [ErrFenced].
func (b *Bus) list(ctx context.Context, run *schemas.RunState, revision uint64, step func(string) error) (tasks, analyses int, err error) {
	l := &runLister{
		b: b, run: run, step: step, regs: map[string]schemas.Registration{},
		seen: map[schemas.Digest]bool{}, held: map[string][]runItem{}, n: map[string]int{},
	}
	if !run.Since.IsZero() {
		l.since = schemas.NewID(run.Since)[:10]
	}
	for _, name := range run.Analyzers {
		r, err := b.Registered(ctx, name)
		if errors.Is(err, ErrNotFound) {
			return 0, 0, refuse("analyzer %s is not registered", name)
		}
		if err != nil {
			return 0, 0, err
		}
		l.regs[name] = r
	}
	if l.kv, err = b.js.KeyValue(ctx, kvRuns); err != nil {
		return 0, 0, fmt.Errorf("open the runs: %w", err)
	}
	if err := step("clear the list"); err != nil {
		return 0, 0, err
	}
	// Whoever began to list it before has died over it. What lies behind the
	// revision may be the list of one that took this driver for dead.
	st, err := b.js.Stream(ctx, "KV_"+kvRuns)
	if err == nil {
		err = st.Purge(ctx, jetstream.WithPurgeSubject("$KV."+kvRuns+"."+run.Run+".>"), jetstream.WithPurgeSequence(revision))
	}
	if err != nil {
		return 0, 0, fmt.Errorf("list run %s: %w", run.Run, err)
	}
	if err := b.past(ctx, run, l.kinds(), l.whole(), l.take); err != nil {
		return 0, 0, fmt.Errorf("list run %s: %w", run.Run, err)
	}
	if err := l.flush(ctx); err != nil {
		return 0, 0, fmt.Errorf("list run %s: %w", run.Run, err)
	}
	return l.total, len(l.n), nil
}

// kinds are those of the artifacts that the run is about.
func (l *runLister) kinds() []schemas.Kind {
	var out []schemas.Kind
	for _, r := range l.regs {
		for _, k := range r.Kinds {
			if !slices.Contains(out, k) && (len(l.run.Kinds) == 0 || slices.Contains(l.run.Kinds, k)) {
				out = append(out, k)
			}
		}
	}
	slices.Sort(out)
	return out
}

// whole reports whether the run has tasks over whole analyses.
func (l *runLister) whole() bool {
	for _, r := range l.regs {
		if r.Scope == schemas.ScopeAnalysis && len(l.run.Kinds) == 0 {
			return true
		}
	}
	return false
}

// take lists the tasks that an announcement means; none means the analysis as
// a whole.
func (l *runLister) take(ctx context.Context, analysis string, a *schemas.Artifact) error {
	if analysis[:len(l.since)] < l.since {
		return nil
	}
	kind := schemas.Kind("")
	if a != nil {
		kind = a.Kind
	}
	for _, name := range l.run.Analyzers {
		if !wants(l.regs[name], kind) {
			continue
		}
		item := runItem{Analyzer: name, Artifact: a}
		key := taskSum(item.ref(l.run.Tenant, analysis, l.run.Run))
		if l.seen[key] {
			continue
		}
		l.seen[key] = true
		l.held[analysis] = append(l.held[analysis], item)
		l.items++
	}
	if l.items < maxListHeld {
		return nil
	}
	return l.flush(ctx)
}

// flush writes what is held.
func (l *runLister) flush(ctx context.Context) error {
	for analysis, items := range l.held {
		for _, tasks := range split(items) {
			if err := l.step("list a piece"); err != nil {
				return err
			}
			if err := l.b.addPiece(ctx, l.kv, l.run.Run, &runPiece{Analysis: analysis, N: l.n[analysis], Tasks: tasks}); err != nil {
				return err
			}
			l.n[analysis]++
			l.total += len(tasks)
		}
	}
	clear(l.held)
	l.items = 0
	return nil
}

// split divides tasks of an analysis among pieces.
func split(items []runItem) [][]runItem {
	var out [][]runItem
	for len(items) > 0 {
		n := 1
		for size := 0; n < min(len(items), maxPieceTasks); n++ {
			if size += itemSize(items[n]); size > maxPieceBytes {
				break
			}
		}
		out, items = append(out, items[:n]), items[n:]
	}
	return out
}

// itemSize is about how long an item is as JSON.
func itemSize(i runItem) int {
	if i.Artifact == nil {
		return 64
	}
	n := 512 + 2*len(i.Artifact.Name)
	if f := i.Artifact.File; f != nil {
		n += 2 * (len(f.Path) + len(f.Target))
	}
	return n
}

// past calls fn with every artifact of the kinds that a run's analyses have
// announced, and, if whole is set, with a nil one for every analysis that has
// come to its analyzers. The same may come more than once. The log comes first
// and the archive second: what is moved meanwhile is seen twice, and not never.
func (b *Bus) past(ctx context.Context, run *schemas.RunState, kinds []schemas.Kind, whole bool, fn func(ctx context.Context, analysis string, a *schemas.Artifact) error) error {
	take := func(e Entry) error {
		if e.Event.Family() == "context" {
			if !whole || e.Event.Name() != schemas.EventStartAnalysis {
				return nil
			}
			return fn(ctx, e.Event.Analysis, nil)
		}
		a := new(schemas.Artifact)
		if e.Event.Family() != "artifact" || e.Event.Decode(a) != nil || !slices.Contains(kinds, a.Kind) || !schemas.ValidID(e.Event.Analysis) {
			return nil // what cannot be read is not ours to judge; the analysis' report says so
		}
		return fn(ctx, e.Event.Analysis, a)
	}
	one := func(analysis string) error {
		r := &reading{b: b, tenant: run.Tenant, analysis: analysis, from: run.From, to: run.Until, fn: take}
		return r.run(ctx)
	}
	if run.Analysis != "" {
		_, there, err := b.standing(ctx, run.Tenant, run.Analysis)
		if err == nil && !there {
			return refuse("analysis %s is not there", run.Analysis)
		}
		if err != nil {
			return err
		}
		return one(run.Analysis)
	}
	if !run.Imported {
		var subjects []string
		for _, k := range kinds {
			subjects = append(subjects, logPrefix+run.Tenant+".*.artifact."+string(k)+".>")
		}
		if whole {
			subjects = append(subjects, contextSubject(run.Tenant, "*", schemas.EventStartAnalysis))
		}
		if err := b.readAll(ctx, subjects, run.From, run.Until, take); err != nil {
			return err
		}
	}
	return b.ArchiveEntries(ctx, run.Tenant, func(e schemas.ArchiveEntry) error {
		if e.Imported != run.Imported || e.Submitted.Before(run.Since) {
			return nil
		}
		// The list is enough to leave a file unread, not to do without it.
		if !whole && e.More == 0 && !slices.ContainsFunc(e.Artifacts, func(a schemas.ArchivedArtifact) bool { return slices.Contains(kinds, a.Kind) }) {
			return nil
		}
		err := one(e.Analysis)
		if errors.Is(err, ErrNotFound) { // deleted meanwhile
			return nil
		}
		return err
	})
}

// readAll reads several subjects of the log, in its order, within sequences
// (until 0: to the end that it has now).
func (b *Bus) readAll(ctx context.Context, subjects []string, from, until uint64, fn func(Entry) error) error {
	end, err := b.lastOf(ctx, streamLog, subjects)
	if err != nil {
		return err
	}
	if end == 0 || end < from {
		return nil
	}
	err = b.batches(ctx, subjects, from, func(batch []Entry, _ uint64) error {
		if len(batch) == 0 {
			// What is to come may have been archived or deleted meanwhile.
			now, err := b.lastOf(ctx, streamLog, subjects)
			if err == nil && now < end {
				if end = now; now < max(from, 1) {
					return ErrStop
				}
			}
			return err
		}
		for _, e := range batch {
			if until > 0 && e.Seq > until {
				return ErrStop
			}
			if !e.foreign {
				if err := fn(e); err != nil {
					return err
				}
			}
			if from = e.Seq + 1; e.Seq >= end {
				return ErrStop
			}
		}
		return nil
	})
	if errors.Is(err, ErrStop) {
		return nil
	}
	return err
}

// fewAnalyses is up to how many analyses are read one by one, rather than with
// one pass over the log.
const fewAnalyses = 8

// Answers calls fn with the findings, receipts and adoptions of analyses, each
// analysis' in its order: of those analyzers, of all runs. Of an analysis in which
// a run has derived something it gives that, too, what was announced, and the
// answers of all analyzers: others may have looked at what was derived. The same
// may come more than once.
func (b *Bus) Answers(ctx context.Context, tenant string, analyzers, analyses []string, fn func(schemas.Event)) error {
	want := map[string]bool{}
	for _, a := range analyses {
		want[a] = true
	}
	derived := map[string]bool{} // analyses in which something is
	take := func(e Entry) error {
		if !want[e.Event.Analysis] {
			return nil
		}
		switch f := e.Event.Family(); {
		case f == "derivation":
			derived[e.Event.Analysis] = true
		case f == "finding" || f == "receipt" || e.Event.Name() == schemas.EventRunAdopted:
			fn(e.Event)
		}
		return nil
	}
	whole := func(e Entry) error {
		switch f := e.Event.Family(); {
		case f == "finding" || f == "receipt" || f == "derivation" || f == "artifact" || e.Event.Name() == schemas.EventRunAdopted:
			fn(e.Event)
		}
		return nil
	}
	each := func(analyses []string, fn func(Entry) error) error {
		for _, a := range analyses {
			if err := b.Read(ctx, tenant, a, 0, fn); err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
		}
		return nil
	}
	if len(analyses) <= fewAnalyses {
		return each(analyses, whole)
	}
	// The archive has what came first. What is moved there while the log is read
	// is read afterwards.
	seen := map[string]bool{}
	archive := func() error {
		return b.ArchiveEntries(ctx, tenant, func(e schemas.ArchiveEntry) error {
			if !want[e.Analysis] || seen[e.Analysis] {
				return nil
			}
			seen[e.Analysis] = true
			err := b.archivedEvents(ctx, e, take)
			if errors.Is(err, ErrNotFound) { // deleted meanwhile
				return nil
			}
			return err
		})
	}
	if err := archive(); err != nil {
		return err
	}
	subjects := []string{contextSubject(tenant, "*", schemas.EventRunAdopted), logPrefix + tenant + ".*.derivation.>"}
	for _, a := range analyzers {
		subjects = append(subjects,
			logPrefix+tenant+".*.finding.*."+a+".>", logPrefix+tenant+".*.refinding.*."+a+".>", logPrefix+tenant+".*.receipt.*."+a+".*")
	}
	if err := b.readAll(ctx, subjects, 0, 0, take); err != nil {
		return err
	}
	if err := archive(); err != nil {
		return err
	}
	return each(slices.Sorted(maps.Keys(derived)), whole)
}

// Registered returns the last registration of an analyzer that has not
// withdrawn. If there is none the error wraps [ErrNotFound].
func (b *Bus) Registered(ctx context.Context, name string) (schemas.Registration, error) {
	if err := schemas.CheckAnalyzer(name); err != nil {
		return schemas.Registration{}, err
	}
	r, err := b.registration(ctx, name)
	if err == nil {
		err = r.Check()
	}
	if err != nil {
		return r, fmt.Errorf("analyzer %s: %w", name, err)
	}
	return r, nil
}

// Registrations returns the analyzers that are registered now, by name.
func (b *Bus) Registrations(ctx context.Context) (map[string]schemas.Registration, error) {
	in := newInterest()
	err := b.readAll(ctx, []string{registry + "*", unregistry + "*"}, 0, 0, func(e Entry) error {
		in.apply(e)
		return nil
	})
	return in.regs, err
}
