// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// An analysis is deleted by its tombstone: once that is in the log there is no
// way back. Taking away what the analysis left comes after it, is the same
// whoever does it how often, and is done again by the bus process, at its next
// start if it must be, and once more when everybody who may have been writing
// at that moment has come to an end.

// A DeletedError says that an analysis was deleted, and is an [ErrNotFound].
type DeletedError struct {
	schemas.Tombstone
	At  time.Time // by the server's clock
	seq uint64
}

// Error says when and by whom.
func (e *DeletedError) Error() string {
	s := fmt.Sprintf("analysis %s was deleted on %s by %q", e.Analysis, e.At.UTC().Format("2006-01-02 15:04:05 UTC"), e.By)
	if e.Reason != "" {
		s += fmt.Sprintf(": %q", e.Reason)
	}
	return s
}

// Is makes it an [ErrNotFound].
func (e *DeletedError) Is(target error) bool { return target == ErrNotFound }

// DeleteOptions say who deletes an analysis and why.
type DeleteOptions struct {
	By     string // at most 128 bytes are kept
	Reason string // at most 500 bytes are kept
}

// Tombstone returns a [DeletedError] if an analysis was deleted, nil if it was
// not. One that was imported again afterwards is there.
func (b *Bus) Tombstone(ctx context.Context, tenant, analysis string) (*DeletedError, error) {
	if err := checkTokens(tenant, analysis); err != nil {
		return nil, err
	}
	return b.tombstone(ctx, tenant, analysis)
}

func (b *Bus) tombstone(ctx context.Context, tenant, analysis string) (*DeletedError, error) {
	m, err := b.lastMsg(ctx, tombstoneSubject(tenant, analysis))
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for the tombstone of %s: %w", analysis, err)
	}
	dead, err := readTombstone(m.Sequence, m.Time, m.Data)
	if err != nil {
		return nil, err
	}
	a, err := b.archived(ctx, tenant, analysis)
	if err != nil {
		return nil, err
	}
	if a.revision != 0 && a.Imported && a.written.After(m.Time) {
		return nil, nil
	}
	return dead, nil
}

func readTombstone(seq uint64, at time.Time, body []byte) (*DeletedError, error) {
	dead := &DeletedError{At: at, seq: seq}
	e, err := schemas.ParseEvent(body)
	if err == nil {
		err = e.Decode(&dead.Tombstone)
	}
	if err == nil {
		err = checkTokens(dead.Tenant, dead.Analysis)
	}
	if err != nil {
		return nil, fmt.Errorf("read the tombstone at %d: %w", seq, err)
	}
	return dead, nil
}

// FindTombstones returns the ids, sorted, of a tenant's deleted analyses that
// begin so.
func (b *Bus) FindTombstones(ctx context.Context, tenant, prefix string) ([]string, error) {
	if err := schemas.CheckTenant(tenant); err != nil {
		return nil, err
	}
	var out []string
	if b.tenant == tenant {
		err := b.ask(ctx, askTombstone, deskAsk{Prefix: prefix}, &out)
		return out, err
	}
	err := b.subjects(ctx, streamLog, tombstones+tenant+".*", func(subject string, _ uint64) error {
		if id := subject[strings.LastIndexByte(subject, '.')+1:]; strings.HasPrefix(id, prefix) {
			out = append(out, id)
		}
		return nil
	})
	slices.Sort(out)
	return out, err
}

// Delete takes an ended analysis away, wherever it lies, for good: its events,
// its reports, its file in the archive, its artifacts' announcements in the lists
// of runs, its dead letters. Its artifacts go with the next garbage collection,
// unless another analysis has them too. What is left is a tombstone, and its id
// where runs count their tasks.
//
// One that has not ended gives an error that wraps [ErrRunning]. If it was deleted
// before, what that may have left is taken away, and the error is a
// [DeletedError].
func (b *Bus) Delete(ctx context.Context, tenant, analysis string, o DeleteOptions) (schemas.Tombstone, error) {
	if err := checkTokens(tenant, analysis); err != nil {
		return schemas.Tombstone{}, err
	}
	for {
		dead, err := b.tombstone(ctx, tenant, analysis)
		if err != nil {
			return schemas.Tombstone{}, err
		}
		if dead != nil {
			if err := b.erase(ctx, dead); err != nil {
				return dead.Tombstone, err
			}
			return dead.Tombstone, dead
		}
		t, err := b.deletable(ctx, tenant, analysis)
		if err != nil {
			return schemas.Tombstone{}, err
		}
		t.By, t.Reason = clipString(oneLine(o.By), 128), oneLine(o.Reason)
		dead, err = b.entomb(ctx, t)
		if errors.Is(err, ErrFenced) {
			continue // somebody else has just deleted it
		}
		if err != nil {
			return schemas.Tombstone{}, err
		}
		return t, b.erase(ctx, dead)
	}
}

// deletable checks that an analysis may be deleted, and counts its events.
func (b *Bus) deletable(ctx context.Context, tenant, analysis string) (schemas.Tombstone, error) {
	t := schemas.Tombstone{Tenant: tenant, Analysis: analysis}
	a, err := b.archived(ctx, tenant, analysis)
	if err != nil {
		return t, err
	}
	ended := a.revision != 0 // nothing else is archived
	if !ended {
		if ended, err = b.ended(ctx, tenant, analysis); err != nil {
			return t, err
		}
	}
	job, _, err := b.queuedAs(ctx, tenant, analysis)
	if err != nil {
		return t, err
	}
	if job != nil {
		return t, fmt.Errorf("delete %s: %w: its submission is still in the queue (end it first: petri cancel %s; or wait: petri watch %s)", analysis, ErrRunning, analysis, analysis)
	}
	hot, err := b.countEvents(ctx, AnalysisSubject(tenant, analysis), a.Last+1)
	if err != nil {
		return t, err
	}
	switch t.Events = a.Events + hot; {
	case t.Events == 0:
		return t, fmt.Errorf("analysis %s: %w (petri list shows those there are)", analysis, ErrNotFound)
	case !ended:
		return t, fmt.Errorf("delete %s: %w (end it first: petri cancel %s; or wait: petri watch %s)", analysis, ErrRunning, analysis, analysis)
	}
	return t, nil
}

// countEvents is how many messages the log has under a subject from a sequence on.
func (b *Bus) countEvents(ctx context.Context, subject string, from uint64) (uint64, error) {
	cons, err := b.js.OrderedConsumer(ctx, streamLog, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{subject}, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from, InactiveThreshold: time.Second,
	})
	if err != nil {
		return 0, fmt.Errorf("count the events: %w", err)
	}
	return cons.CachedInfo().NumPending, nil
}

// entomb writes a tombstone, unless somebody else has just done it: then the
// error wraps [ErrFenced].
func (b *Bus) entomb(ctx context.Context, t schemas.Tombstone) (*DeletedError, error) {
	subject, before := tombstoneSubject(t.Tenant, t.Analysis), uint64(0)
	m, err := b.endOf(ctx, subject) // of a deletion before the analysis was imported again
	if err == nil {
		before = m.Sequence
	} else if !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	now := time.Now()
	e, err := schemas.NewEvent(t.Tenant, t.Analysis, t.Analysis+"/tombstone/"+schemas.NewID(now), now, schemas.OriginHost, t)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode event %s: %w", e.ID, err)
	}
	never := func(context.Context) (bool, error) { return false, nil } // nobody takes a tombstone away
	seq, err := appendLink(ctx, b, link{subject: subject, id: e.ID, body: body, chain: subject, last: before, strange: strange}, never)
	if err != nil {
		return nil, fmt.Errorf("delete %s: %w", t.Analysis, err)
	}
	err = retry(ctx, func(ctx context.Context) (err error) {
		if m, err = b.lookupIn(ctx, streamLog, lookup{Seq: seq}); errors.Is(err, ErrNotFound) {
			return passing{err} // a leader that is cut off has not heard of it
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return readTombstone(m.Sequence, m.Time, m.Data)
}

// erase takes away what a deleted analysis left. It is the same however often
// it is done.
func (b *Bus) erase(ctx context.Context, dead *DeletedError) error {
	if err := untilStill(func() error { return b.eraseOnce(ctx, dead) }); err != nil {
		return fmt.Errorf("delete %s: %w (what is left goes when Petri next runs)", dead.Analysis, err)
	}
	return nil
}

// untilStill does something again while others change the entries that it is about.
func untilStill(do func() error) error {
	err := do()
	for try := 1; errors.Is(err, errEntryMoved) && try < 10; try++ {
		err = do()
	}
	return err
}

func (b *Bus) eraseOnce(ctx context.Context, dead *DeletedError) error {
	// The letters before the log: the server's name its events by number.
	if err := b.eraseDead(ctx, dead.Tenant, dead.Analysis); err != nil {
		return err
	}
	if err := b.eraseListed(ctx, dead.Tenant, dead.Analysis); err != nil {
		return err
	}
	// The reports before the events that name them.
	if err := b.eraseReports(ctx, dead.Tenant, dead.Analysis); err != nil {
		return err
	}
	if err := b.eraseArchived(ctx, dead.Tenant, dead.Analysis); err != nil {
		return err
	}
	log, err := b.js.Stream(ctx, streamLog)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	if _, err := b.endOf(ctx, AnalysisSubject(dead.Tenant, dead.Analysis)); err == nil {
		err = retry(ctx, func(ctx context.Context) error {
			return log.Purge(ctx, jetstream.WithPurgeSubject(AnalysisSubject(dead.Tenant, dead.Analysis)))
		})
		if err != nil {
			return fmt.Errorf("take the events out of the log: %w", err)
		}
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	if err := b.eraseKey(ctx, kvState, dead.Tenant+"."+dead.Analysis); err != nil {
		return err
	}
	return b.eraseKey(ctx, kvLease, dead.Analysis)
}

// eraseReports removes the reports that an analysis' events name.
func (b *Bus) eraseReports(ctx context.Context, tenant, analysis string) error {
	var reports []schemas.Digest
	r := &reading{b: b, tenant: tenant, analysis: analysis, family: "report", fn: func(e Entry) error {
		var w schemas.ReportWritten
		if e.Event.Decode(&w) == nil {
			reports = append(reports, w.SHA256)
		}
		return nil
	}}
	// A file that is gone or damaged names none.
	if err := r.run(ctx); err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrCorrupt) {
		return err
	}
	for _, d := range reports {
		if err := b.Reports().erase(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// eraseArchived removes an analysis' file from the archive, and then its entry,
// without which nothing would be looked for here again.
func (b *Bus) eraseArchived(ctx context.Context, tenant, analysis string) error {
	a, err := b.archived(ctx, tenant, analysis)
	if err != nil || a.revision == 0 {
		return err
	}
	if err := b.archive().erase(ctx, a.File); err != nil {
		return err
	}
	kv, err := b.js.KeyValue(ctx, kvArchive)
	if err != nil {
		return fmt.Errorf("open the archive: %w", err)
	}
	err = retry(ctx, func(ctx context.Context) error {
		return kv.Purge(ctx, archiveKey(tenant, analysis), jetstream.LastRevision(a.revision))
	})
	if hasCode(err, codeWrongLastSequence) {
		return errEntryMoved
	}
	return err
}

// erase removes an object, whoever uses it.
func (s *Store) erase(ctx context.Context, d schemas.Digest) error {
	for {
		o, err := s.Stat(ctx, d)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if errors.Is(err, ErrCorrupt) { // its record cannot be read; the collector finds the chunks
			st, err := s.b.js.Stream(ctx, s.stream())
			if err != nil {
				return err
			}
			return st.Purge(ctx, jetstream.WithPurgeSubject(s.metaSubject(d.String())))
		}
		if err != nil {
			return err
		}
		if gone, err := s.remove(ctx, o); gone || err != nil {
			return err
		}
	}
}

// eraseKey removes a key, if it is there.
func (b *Bus) eraseKey(ctx context.Context, bucket, key string) error {
	kv, err := b.js.KeyValue(ctx, bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", bucket, err)
	}
	_, err = kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil
	}
	return retry(ctx, func(ctx context.Context) error { return kv.Purge(ctx, key) })
}

// settle is how long after a deletion somebody may still be writing about the
// analysis who did not know of it: longer than a publication is tried.
const settle = 2 * patience

// Undertake finishes deletions until ctx is done: those that were cut short,
// and, once more, what late writers have left of a deleted analysis.
func (b *Bus) Undertake(ctx context.Context, log *slog.Logger) error {
	return b.undertake(ctx, log, settle)
}

func (b *Bus) undertake(ctx context.Context, log *slog.Logger, settle time.Duration) error {
	cons, err := b.js.CreateOrUpdateConsumer(ctx, streamLog, jetstream.ConsumerConfig{
		Durable: "undertaker", FilterSubject: tombstones + "*.*",
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: handlerAckWait, MaxDeliver: -1, MaxAckPending: 10_000,
	})
	if err != nil {
		return fmt.Errorf("follow the tombstones: %w", err)
	}
	err = consume(ctx, cons, func(m jetstream.Msg) {
		defer keep(m)()
		left, err := b.finishDeletion(ctx, m, settle)
		switch {
		case err != nil:
			if ctx.Err() == nil {
				log.Error("finish a deletion", "subject", m.Subject(), "error", err)
			}
			_ = m.NakWithDelay(5 * time.Second)
		case left > 0:
			_ = m.NakWithDelay(left)
		default:
			_ = m.Ack()
		}
	}, jetstream.PullMaxMessages(16))
	return fmt.Errorf("follow the tombstones: %w", err)
}

// finishDeletion erases once, and returns after what time it must be done once
// more.
func (b *Bus) finishDeletion(ctx context.Context, m jetstream.Msg, settle time.Duration) (time.Duration, error) {
	md, err := m.Metadata()
	if err != nil {
		return 0, err
	}
	dead, err := readTombstone(md.Sequence.Stream, md.Timestamp, m.Data())
	if err == nil {
		_, err = own(m.Subject(), m.Data())
	}
	if err != nil {
		pass(m, err)
		return 0, nil // that it is acknowledged too is of no consequence
	}
	now, err := b.tombstone(ctx, dead.Tenant, dead.Analysis)
	if err != nil || now == nil || now.seq != dead.seq { // it was imported again
		return 0, err
	}
	left := settle - time.Since(dead.At)
	return left, b.erase(ctx, dead)
}
