// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// ErrAdopted says that a run counts, or has counted, in an analysis.
var ErrAdopted = errors.New("the run is adopted")

// ForgetRun takes away a run that has ended: what it has answered, its list and
// its state. A run that goes on gives an error that wraps [ErrRunning], one that was
// ever adopted an error that wraps [ErrAdopted]: a report rests on it. It may be cut
// off anywhere and repeated.
//
// The log takes messages out of a subject from its beginning only. Findings of
// two runs have one subject, so that those behind an older run's stay until that
// one is forgotten too; without receipts they are nothing that anybody reads.
// What was moved to the archive since the run began stays there.
func (b *Bus) ForgetRun(ctx context.Context, run string) error {
	r, revision, err := b.runState(ctx, run)
	if err != nil {
		return err
	}
	if !r.Ended() {
		return fmt.Errorf("forget run %s: it is %s: %w (end it first: petri runs cancel %s)", run, r.State, ErrRunning, run)
	}
	if r.State != schemas.RunForgotten {
		err := b.RunAnalyses(ctx, run, func(analysis string) error { return b.forgettable(ctx, &r, analysis) })
		if err != nil {
			return fmt.Errorf("forget run %s: %w", run, err)
		}
		// From here on nobody adopts it, and no late answer is taken.
		r.State, r.Waiting, r.Updated = schemas.RunForgotten, "", time.Now().UTC()
		if err := b.writeRun(ctx, r, revision); err != nil {
			return fmt.Errorf("forget run %s: %w", run, err)
		}
	}
	if err := b.eraseRun(ctx, &r); err != nil {
		return fmt.Errorf("forget run %s: %w (the same command again goes on)", run, err)
	}
	return nil
}

func (b *Bus) writeRun(ctx context.Context, r schemas.RunState, revision uint64) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	kv, err := b.js.KeyValue(ctx, kvRuns)
	if err != nil {
		return fmt.Errorf("open the runs: %w", err)
	}
	_, err = kv.Update(ctx, r.Run, body, revision)
	return err
}

// forgettable reports why what a run has answered in an analysis must stay.
func (b *Bus) forgettable(ctx context.Context, r *schemas.RunState, analysis string) error {
	adopted, err := b.adopted(ctx, r, analysis)
	if err != nil {
		return err
	}
	if adopted[r.Run] {
		return fmt.Errorf("%w in analysis %s, whose report rests on it (petri delete %s takes away both)", ErrAdopted, analysis, analysis)
	}
	of := logPrefix + r.Tenant + "." + analysis + "."
	signed, err := b.lastOf(ctx, streamLog, []string{of + "checkpoint.*"})
	if err != nil || signed == 0 {
		return err
	}
	return b.readAll(ctx, []string{of + "refinding.>", of + "receipt." + r.Run + ".>", derivationsIn(r.Tenant, analysis, r.Run)}, 0, signed, func(e Entry) error {
		if runOf(e.Event) == r.Run {
			return fmt.Errorf("analysis %s is signed with what the run has answered (petri delete %s takes away both)", analysis, analysis)
		}
		return nil
	})
}

// adopted returns the runs that were ever adopted in an analysis.
func (b *Bus) adopted(ctx context.Context, r *schemas.RunState, analysis string) (map[string]bool, error) {
	out := map[string]bool{}
	note := func(e Entry) error {
		var a schemas.RunAdopted
		if e.Event.Name() == schemas.EventRunAdopted && e.Event.Decode(&a) == nil {
			out[a.Run] = true
		}
		return nil
	}
	a, _, err := b.standing(ctx, r.Tenant, analysis)
	if err != nil {
		return nil, err
	}
	if a.Archived.After(r.Created) { // it may have the adoption
		entries, err := b.Context(ctx, r.Tenant, analysis)
		for _, e := range entries {
			_ = note(e)
		}
		return out, err
	}
	return out, b.readAll(ctx, []string{contextSubject(r.Tenant, analysis, schemas.EventRunAdopted)}, 0, 0, note)
}

// runOf is the run whose answer an event is part of; empty: of none.
func runOf(e schemas.Event) string {
	switch e.Family() {
	case "finding":
		var f schemas.FindingCommitted
		if e.Decode(&f) == nil {
			return f.Task.Run
		}
	case "derivation":
		var d schemas.Derivation
		if e.Decode(&d) == nil {
			return d.Task.Run
		}
	case "receipt":
		var r schemas.Receipt
		if e.Decode(&r) == nil {
			return r.Task.Run
		}
	}
	return ""
}

// eraseRun takes away what a forgotten run left, its state last.
func (b *Bus) eraseRun(ctx context.Context, r *schemas.RunState) error {
	log, err := b.js.Stream(ctx, streamLog)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	purge := func(st jetstream.Stream, opts ...jetstream.StreamPurgeOpt) error {
		return retry(ctx, func(ctx context.Context) error { return st.Purge(ctx, opts...) })
	}
	known := map[string]bool{r.Run: false} // whether a run is there
	err = b.RunAnalyses(ctx, r.Run, func(analysis string) error {
		ends, err := b.forgotten(ctx, r, analysis, known)
		if err != nil {
			return err
		}
		for subject, last := range ends {
			if err := purge(log, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeSequence(last+1)); err != nil {
				return fmt.Errorf("take its findings out of the log: %w", err)
			}
		}
		receipts := logPrefix + r.Tenant + "." + analysis + ".receipt." + r.Run + ".>"
		for _, subject := range []string{receipts, derivationsIn(r.Tenant, analysis, r.Run)} {
			if err := purge(log, jetstream.WithPurgeSubject(subject)); err != nil {
				return fmt.Errorf("take its receipts out of the log: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, of := range []struct{ stream, subject string }{
		{streamRuns, runPrefix + "*." + r.Run + ".*"},
		{streamRuns, runDrive + r.Run}, // its driver may have died before it took it out
		{"KV_" + kvRuns, "$KV." + kvRuns + "." + r.Run + ".>"},
	} {
		st, err := b.js.Stream(ctx, of.stream)
		if err == nil {
			err = purge(st, jetstream.WithPurgeSubject(of.subject))
		}
		if err != nil {
			return fmt.Errorf("take its list away: %w", err)
		}
	}
	return b.eraseKey(ctx, kvRuns, r.Run)
}

// forgotten returns, by the subjects of an analysis' refindings, up to which
// sequence each begins with those of runs that are forgotten.
func (b *Bus) forgotten(ctx context.Context, r *schemas.RunState, analysis string, known map[string]bool) (map[string]uint64, error) {
	adopted, err := b.adopted(ctx, r, analysis)
	if err != nil {
		return nil, err
	}
	ends, kept := map[string]uint64{}, map[string]bool{}
	err = b.readAll(ctx, []string{logPrefix + r.Tenant + "." + analysis + ".refinding.>"}, 0, 0, func(e Entry) error {
		if kept[e.Subject] {
			return nil
		}
		run := runOf(e.Event)
		there, asked := known[run]
		if !asked {
			_, err := b.Run(ctx, run)
			if err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
			there = err == nil
			known[run] = there
		}
		if run == "" || there || adopted[run] {
			kept[e.Subject] = true
			return nil
		}
		ends[e.Subject] = e.Seq
		return nil
	})
	return ends, err
}
