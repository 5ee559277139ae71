// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// eraseListed takes away what runs have of a deleted analysis: its announcements,
// with names that the sample chose, in their lists and in the queue. How many
// tasks there were of it stays, for the run's own count.
func (b *Bus) eraseListed(ctx context.Context, tenant, analysis string) error {
	kv, err := b.js.KeyValue(ctx, kvRuns)
	if errors.Is(err, jetstream.ErrBucketNotFound) { // an older Petri's data
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the runs: %w", err)
	}
	prefix := "$KV." + kvRuns + "."
	var keys []string
	err = b.subjects(ctx, "KV_"+kvRuns, prefix+"*."+analysis+".*", func(subject string, _ uint64) error {
		keys = append(keys, strings.TrimPrefix(subject, prefix))
		return nil
	})
	if err != nil {
		return err
	}
	queued := map[string]map[string]bool{} // by run, what waits in the queue; nil: it is another tenant's
	for _, key := range keys {
		run, _, _ := strings.Cut(key, ".")
		waits, known := queued[run]
		if !known {
			if waits, err = b.queuedOf(ctx, tenant, run); err != nil {
				return err
			}
			queued[run] = waits
		}
		if waits == nil {
			continue
		}
		if err := b.erasePiece(ctx, kv, tenant, run, key, waits); err != nil {
			return err
		}
	}
	return nil
}

// queuedOf returns the subjects of a run's tasks that are in the queue, nil if
// the run is not the tenant's.
func (b *Bus) queuedOf(ctx context.Context, tenant, run string) (map[string]bool, error) {
	r, err := b.Run(ctx, run)
	if errors.Is(err, ErrNotFound) || err == nil && r.Tenant != tenant {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	waits := map[string]bool{}
	err = b.subjects(ctx, streamRuns, runPrefix+"*."+run+".*", func(subject string, _ uint64) error {
		waits[subject] = true
		return nil
	})
	return waits, err
}

// erasePiece takes the tasks out of a piece, and those that wait out of the queue.
func (b *Bus) erasePiece(ctx context.Context, kv jetstream.KeyValue, tenant, run, key string, waits map[string]bool) error {
	var p runPiece
	revision, err := b.runRecord(ctx, key, &p)
	if errors.Is(err, ErrNotFound) || err == nil && len(p.Tasks) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	// The queue first: afterwards nothing names what is in it.
	for _, item := range p.Tasks {
		t := item.ref(tenant, p.Analysis, run)
		if !waits[runSubject(t)] {
			continue
		}
		if err := b.unqueueTask(ctx, t); err != nil {
			return err
		}
	}
	if !p.Ended {
		p.Ended, p.runCount = true, runCount{Gone: len(p.Tasks)}
	}
	p.Tasks = nil
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	err = retry(ctx, func(ctx context.Context) error {
		_, err := kv.Update(ctx, key, body, revision)
		return err
	})
	if hasCode(err, codeWrongLastSequence) {
		return errEntryMoved
	}
	if err != nil {
		return fmt.Errorf("take tasks off the list of %s: %w", run, err)
	}
	return nil
}

// unqueueTask takes a task of a run out of its analyzer's queue.
func (b *Bus) unqueueTask(ctx context.Context, t schemas.TaskRef) error {
	err := retry(ctx, func(ctx context.Context) error {
		st, err := b.js.Stream(ctx, streamRuns)
		if err != nil {
			return err
		}
		return st.Purge(ctx, jetstream.WithPurgeSubject(runSubject(t)))
	})
	if err != nil {
		return fmt.Errorf("take a task of %s out of the queue: %w", t.Run, err)
	}
	return nil
}

// eraseDead drops the dead letters that are a deleted analysis', and what the
// server has said of any that were moved: that may quote them, and nobody reads
// it. A letter that names no analysis stays until it is too old. Nothing but the
// limit of the stream bounds the walk.
func (b *Bus) eraseDead(ctx context.Context, tenant, analysis string) error {
	var drop []uint64
	err := b.scan(ctx, streamDead, []string{">"}, func(m message) error {
		its, err := b.letterOf(ctx, m, tenant, analysis)
		if its || ofBuried(m.subject, m.data) {
			drop = append(drop, m.seq)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, id := range drop {
		if err := b.DropDead(ctx, id); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return nil
}

// letterOf reports whether a dead letter is an analysis': one of its events, an
// answer to one of its tasks, such a task, its submission, or the server's word
// about any that is still there.
func (b *Bus) letterOf(ctx context.Context, m message, tenant, analysis string) (bool, error) {
	body := m.data
	if strings.HasPrefix(m.subject, advisoryTerminated) || strings.HasPrefix(m.subject, advisoryExceeded) {
		var a advisory
		if json.Unmarshal(m.data, &a) != nil || a.StreamSeq == 0 {
			return false, nil
		}
		was, err := b.lookupIn(ctx, a.Stream, lookup{Seq: a.StreamSeq})
		if errors.Is(err, ErrNotFound) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if t, id, _, _, ok := analysisOf(was.Subject); ok && t == tenant && id == analysis {
			return true, nil
		}
		body = was.Data
	}
	e, err := schemas.ParseEvent(body)
	if err != nil {
		return false, nil
	}
	var about struct {
		Task schemas.TaskRef `json:"task"`
	}
	_ = json.Unmarshal(e.Data, &about) // what is no answer has no task
	return e.Tenant == tenant && e.Analysis == analysis || about.Task.Tenant == tenant && about.Task.Analysis == analysis, nil
}
