// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus/petrifile"
	"github.com/petri-sandbox/petri/schemas"
)

// An Archiver moves ended analyses out of the log: it writes an analysis' events
// to a file, reads the file back, enters it into the archive, and only then
// takes the events out of the log. Wherever it dies between two of these, the
// analysis is whole, and the next pass goes on. Nothing else is taken out of the log
// but what somebody deletes, and what a power cut has torn.
type Archiver struct {
	b    *Bus
	o    ArchiverOptions
	late time.Duration      // see lateQuiet
	step func(string) error // of tests: called behind each step
}

// ArchiverOptions are for an [Archiver].
type ArchiverOptions struct {
	// After is how long nothing must have happened in an analysis before a pass
	// moves it; 0 is never.
	After time.Duration
	Log   *slog.Logger
}

// NewArchiver returns an archiver. It may run in several programs at once.
func NewArchiver(b *Bus, o ArchiverOptions) *Archiver {
	return &Archiver{b: b, o: o, late: lateQuiet, step: func(string) error { return nil }}
}

// lateQuiet is how old what came behind an archived analysis must be before it
// is moved too. A writer of context events that has read the analysis, and finds
// the log as empty of it as before, must not have overlooked what was written
// and moved in between: none takes so long from the one to the other.
const lateQuiet = time.Hour

// ErrNotYet says that an analysis cannot be archived now, and why.
var ErrNotYet = errors.New("not to be archived yet")

func notYet(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrNotYet, fmt.Sprintf(format, args...))
}

// Run archives what has been quiet for long enough, again and again, until ctx
// is done.
func (x *Archiver) Run(ctx context.Context) error {
	if x.o.After <= 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	t := time.NewTicker(min(max(x.o.After/20, time.Second), 10*time.Minute))
	defer t.Stop()
	for {
		n, err := x.Pass(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			x.o.Log.Error("archive ended analyses", "error", err)
		}
		if n > 0 {
			x.o.Log.Info("archived analyses", "analyses", n)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// Pass looks at every analysis once and returns how many it has moved. What
// cannot be moved does not hold up the others.
func (x *Archiver) Pass(ctx context.Context) (int, error) {
	hot, err := x.hot(ctx)
	if err != nil {
		return 0, err
	}
	moved := 0
	var errs []error
	try := func(tenant, analysis string) {
		ok, err := x.move(ctx, tenant, analysis, x.o.After)
		switch {
		case errors.Is(err, ErrNotYet):
			x.o.Log.Debug("leave an analysis in the log", "analysis", analysis, "reason", err)
		case err != nil && ctx.Err() == nil:
			errs = append(errs, fmt.Errorf("analysis %s: %w", analysis, err))
		case ok:
			moved++
		}
	}
	for _, a := range hot {
		if ctx.Err() != nil {
			return moved, ctx.Err()
		}
		try(a[0], a[1])
	}
	known, err := x.summaries(ctx)
	if err != nil {
		return moved, errors.Join(append(errs, err)...)
	}
	err = x.b.ArchiveEntries(ctx, "*", func(e schemas.ArchiveEntry) error {
		try(e.Tenant, e.Analysis)
		if !known[archiveKey(e.Tenant, e.Analysis)] {
			errs = append(errs, x.summarize(ctx, e))
		}
		return ctx.Err()
	})
	return moved, errors.Join(append(errs, err, x.sweep(ctx))...)
}

// hot lists the analyses that the log has from their beginning and that are old
// enough by their ids, which begin with a time.
func (x *Archiver) hot(ctx context.Context) ([][2]string, error) {
	s, err := x.b.js.Stream(ctx, streamLog)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(contextSubject("*", "*", schemas.EventSubmitted)))
	if err != nil {
		return nil, fmt.Errorf("list the log's subjects: %w", err)
	}
	const timeDigits = 10
	newest := schemas.NewID(time.Now().Add(-x.o.After))[:timeDigits]
	var out [][2]string
	for _, subject := range slices.Sorted(maps.Keys(info.State.Subjects)) {
		tenant, analysis, _, _, ok := analysisOf(subject)
		if ok && len(analysis) > timeDigits && analysis[:timeDigits] <= newest {
			out = append(out, [2]string{tenant, analysis})
		}
	}
	return out, nil
}

// Archive moves one analysis now, however young it is. An error that wraps
// [ErrNotYet] says what stands against it.
func (x *Archiver) Archive(ctx context.Context, tenant, analysis string) error {
	if err := checkTokens(tenant, analysis); err != nil {
		return err
	}
	moved, err := x.move(ctx, tenant, analysis, 0)
	if err != nil || moved {
		return err
	}
	_, err = x.b.ArchiveEntry(ctx, tenant, analysis)
	return err
}

// move archives one analysis in which nothing has happened for that long, and
// reports whether there was anything to move.
func (x *Archiver) move(ctx context.Context, tenant, analysis string, quiet time.Duration) (bool, error) {
	last, err := x.b.endOf(ctx, AnalysisSubject(tenant, analysis))
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	old, err := x.b.archived(ctx, tenant, analysis)
	if err != nil {
		return false, err
	}
	if last.Sequence <= old.Last { // a move that was cut short
		return true, x.purge(ctx, tenant, analysis, old.Last)
	}
	if old.revision != 0 {
		quiet = max(quiet, x.late)
	}
	if age := time.Since(last.Time); age < quiet {
		return false, notYet("its newest event is %s old, and %s are wanted", age.Round(time.Second), quiet)
	}
	if err := x.settled(ctx, tenant, analysis, old, last.Sequence); err != nil {
		return false, err
	}
	e, err := x.write(ctx, tenant, analysis, old, last.Sequence)
	if err != nil {
		return false, err
	}
	if err := x.b.putEntry(ctx, e, old.revision); err != nil {
		return false, err
	}
	if err := x.step("entered"); err != nil {
		return false, err
	}
	if dead, err := x.b.tombstone(ctx, tenant, analysis); err != nil {
		return false, err
	} else if dead != nil { // meanwhile: nobody else may know of this entry
		if err := untilStill(func() error { return x.b.eraseArchived(ctx, tenant, analysis) }); err != nil {
			return false, err
		}
	}
	return true, x.purge(ctx, tenant, analysis, last.Sequence)
}

// settled returns an error that wraps [ErrNotYet] if somebody still has
// something to do with what the log has of an analysis.
func (x *Archiver) settled(ctx context.Context, tenant, analysis string, old archived, last uint64) error {
	if old.revision == 0 {
		if ended, err := x.b.ended(ctx, tenant, analysis); err != nil {
			return err
		} else if !ended {
			return notYet("it has not ended")
		}
	}
	if err := x.tasks(ctx, tenant, analysis); err != nil {
		return err
	}
	if err := x.runs(ctx, tenant, analysis); err != nil {
		return err
	}
	// What is taken out of the log these would never see.
	for _, name := range []string{projector, "reporter"} {
		cons, err := x.b.js.Consumer(ctx, streamLog, name)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if i := cons.CachedInfo(); i.AckFloor.Stream < last && (i.NumPending > 0 || i.NumAckPending > 0) {
			return notYet("the %s has not read it to its end", name)
		}
	}
	return nil
}

// ended reports whether the log has an analysis' ending.
func (b *Bus) ended(ctx context.Context, tenant, analysis string) (bool, error) {
	for _, name := range []string{schemas.EventCompleted, schemas.EventFailed, schemas.EventCancelled} {
		_, err := b.lastMsg(ctx, contextSubject(tenant, analysis, name))
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, ErrNotFound) {
			return false, err
		}
	}
	return false, nil
}

// tasks looks for tasks of registered analyzers without a receipt.
func (x *Archiver) tasks(ctx context.Context, tenant, analysis string) error {
	c := newCredit(tenant, analysis, nil)
	read, cancel := context.WithCancel(ctx)
	defer cancel()
	caughtUp := false
	err := x.b.follow(read, c.subjects(), 0, func() { caughtUp = true; cancel() }, func(e Entry) error {
		c.apply(e)
		return nil
	})
	if !caughtUp {
		return err
	}
	if owing := c.owing(); len(owing) > 0 {
		return notYet("analyzer %s owes an answer", owing[0])
	}
	return nil
}

// runs looks for runs that may come to the analysis.
func (x *Archiver) runs(ctx context.Context, tenant, analysis string) error {
	list, err := x.b.Runs(ctx, tenant)
	if err != nil {
		return err
	}
	for _, r := range list {
		if !r.Ended() && (r.Analysis == "" && !r.Imported || r.Analysis == analysis) {
			return notYet("run %s is %s", r.Run, r.State)
		}
	}
	return nil
}

// write makes the file of an analysis up to a sequence and reads it back.
func (x *Archiver) write(ctx context.Context, tenant, analysis string, old archived, last uint64) (schemas.ArchiveEntry, error) {
	list, submitted := newIndex(), time.Time{}
	t, d, size, err := x.b.writeThin(ctx, tenant, analysis, func(w *petrifile.Writer) error {
		r := &reading{b: x.b, tenant: tenant, analysis: analysis, to: last, fn: func(e Entry) error {
			if e.Event.Name() == schemas.EventSubmitted {
				var s schemas.AnalysisSubmitted
				if e.Event.Decode(&s) == nil {
					submitted = s.Submission.Submitted
				}
			}
			if _, err := w.Event(petrifile.Entry{Seq: e.Seq, Subject: e.Subject, Body: e.Body}); err != nil {
				return err
			}
			return list.add(e.Event)
		}}
		if err := r.run(ctx); err != nil {
			return err
		}
		w.Log().SetForeign(r.foreign())
		return nil
	})
	if err != nil {
		return schemas.ArchiveEntry{}, fmt.Errorf("write its file: %w", err)
	}
	if err := x.step("written"); err != nil {
		return schemas.ArchiveEntry{}, err
	}
	got, err := x.readBack(ctx, d)
	if err != nil {
		return schemas.ArchiveEntry{}, fmt.Errorf("read its file back: %w", err)
	}
	if got != t {
		return schemas.ArchiveEntry{}, fmt.Errorf("read its file back: %w: it has other events", ErrCorrupt)
	}
	e := list.entry(petrifile.Header{Tenant: tenant, Analysis: analysis}, t, d, size)
	e.Imported, e.Archived, e.Last, e.Submitted = old.Imported, time.Now().UTC(), last, submitted
	return e, x.step("verified")
}

// readBack reads a file of the archive as if it were a stranger's.
func (x *Archiver) readBack(ctx context.Context, d schemas.Digest) (petrifile.Trailer, error) {
	r, _, err := x.b.archive().Open(ctx, d)
	if err != nil {
		return petrifile.Trailer{}, err
	}
	defer r.Close()
	_, t, _, err := petrifile.Verify(r, "")
	return t, err
}

// purge takes an analysis' events out of the log, up to a sequence: what came
// behind it stays.
func (x *Archiver) purge(ctx context.Context, tenant, analysis string, last uint64) error {
	s, err := x.b.js.Stream(ctx, streamLog)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	err = retry(ctx, func(ctx context.Context) error {
		return s.Purge(ctx, jetstream.WithPurgeSubject(AnalysisSubject(tenant, analysis)), jetstream.WithPurgeSequence(last+1))
	})
	if err != nil {
		return fmt.Errorf("take %s out of the log: %w", analysis, err)
	}
	return x.step("purged")
}

// summaries says which analyses the projection has.
func (x *Archiver) summaries(ctx context.Context) (map[string]bool, error) {
	kv, err := x.b.js.KeyValue(ctx, kvState)
	if err != nil {
		return nil, fmt.Errorf("open the projection: %w", err)
	}
	keys, err := kv.ListKeys(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the projection: %w", err)
	}
	known := map[string]bool{}
	for k := range keys.Keys() {
		known[k] = true
	}
	return known, nil
}

// summarize makes the summary of an archived analysis again: the projection was
// thrown away, or an import cut short before it.
func (x *Archiver) summarize(ctx context.Context, e schemas.ArchiveEntry) error {
	s := Summary{Tenant: e.Tenant, Analysis: e.Analysis, Imported: e.Imported}
	err := x.b.Read(ctx, e.Tenant, e.Analysis, 0, func(en Entry) error {
		s.follow(en.Event)
		return nil
	})
	if err != nil {
		return err
	}
	return x.b.putSummary(ctx, s)
}

// sweepAge is how old a file must be before one that no entry names is removed:
// older than whoever may just be about to enter it, or to read it.
const sweepAge = 24 * time.Hour

// sweep removes the files that no entry names: those of moves that were cut
// short, and those that a later move has replaced.
func (x *Archiver) sweep(ctx context.Context) error {
	store := x.b.archive()
	s, err := x.b.js.Stream(ctx, store.stream())
	if err != nil {
		return fmt.Errorf("open the archive: %w", err)
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter("$O."+store.bucket+".M.>"))
	if err != nil {
		return fmt.Errorf("list the archive's files: %w", err)
	}
	named := map[string]bool{}
	err = x.b.ArchiveEntries(ctx, "*", func(e schemas.ArchiveEntry) error {
		named[store.metaSubject(e.File.String())] = true
		return nil
	})
	if err != nil {
		return err
	}
	for subject := range info.State.Subjects {
		if named[subject] {
			continue
		}
		m, err := x.b.lookupIn(ctx, store.stream(), lookup{Last: subject})
		if errors.Is(err, ErrNotFound) || err == nil && time.Since(m.Time) < sweepAge {
			continue
		}
		if err != nil {
			return err
		}
		// Only what was looked at is removed: a file that is written again
		// meanwhile has a new record and new chunks.
		if err := s.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeSequence(m.Sequence+1)); err != nil {
			return fmt.Errorf("remove a file of the archive: %w", err)
		}
		var o jetstream.ObjectInfo
		if _, err := x.b.lookupIn(ctx, store.stream(), lookup{Last: subject}); errors.Is(err, ErrNotFound) && json.Unmarshal(m.Data, &o) == nil && validNUID(o.NUID) {
			store.discard(o.NUID)
		}
	}
	return nil
}
