// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/petri-sandbox/petri/schemas"
)

// publish stores one event under a subject of the log and returns its
// sequence. A repetition within the dup window is stored once.
func (b *Bus) publish(ctx context.Context, subject string, e schemas.Event, opts ...jetstream.PublishOpt) (uint64, error) {
	body, err := e.Encode()
	if err != nil {
		return 0, fmt.Errorf("encode event %s: %w", e.ID, err)
	}
	if len(body) > maxBody {
		return 0, fmt.Errorf("event %s has %d bytes, more than %d", e.ID, len(body), maxBody)
	}
	return b.publishBody(ctx, subject, e.ID, body, opts...)
}

// maxBody is what the server takes of an event's body, with room for headers.
const maxBody = MaxEvent - 4<<10

// publishBody is publish for an event that is encoded already.
func (b *Bus) publishBody(ctx context.Context, subject, id string, body []byte, opts ...jetstream.PublishOpt) (uint64, error) {
	var seq uint64
	err := retry(ctx, func(ctx context.Context) (err error) {
		seq, err = b.publishOnce(ctx, subject, id, body, opts...)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("publish %s: %w", id, err)
	}
	return seq, nil
}

// publishOnce is one attempt at publishBody.
func (b *Bus) publishOnce(ctx context.Context, subject, id string, body []byte, opts ...jetstream.PublishOpt) (uint64, error) {
	ack, err := b.js.PublishMsg(ctx, &nats.Msg{Subject: subject, Data: body, Header: nats.Header{}},
		append([]jetstream.PublishOpt{jetstream.WithMsgID(id), jetstream.WithRetryAttempts(0)}, opts...)...)
	if err != nil {
		return 0, ofOne(err)
	}
	return ack.Sequence, nil
}

// A ContextWriter writes an analysis' context events, and is the only one that
// does: each event is stored only if the one before it was this writer's. It
// is for one goroutine at a time.
type ContextWriter struct {
	b                *Bus
	tenant, analysis string
	nonce            string
	last             uint64 // sequence of the last message under its subjects in the log
	n                int    // how many there are
	archive          uint64 // revision of the archive's entry when the writer was opened
}

// OpenContext returns the writer of an analysis, which goes on after what the
// log holds. Whoever had one before finds itself fenced.
func (b *Bus) OpenContext(ctx context.Context, tenant, analysis string) (*ContextWriter, error) {
	w, _, err := b.openContext(ctx, tenant, analysis)
	return w, err
}

// BeginContext returns the writer of a new analysis. If the log has context
// events of it already, whoever wrote them, the error wraps [ErrFenced].
func (b *Bus) BeginContext(ctx context.Context, tenant, analysis string) (*ContextWriter, error) {
	w, err := b.OpenContext(ctx, tenant, analysis)
	if err == nil && w.n > 0 {
		return nil, fmt.Errorf("begin %s: it has %d events: %w", analysis, w.n, ErrFenced)
	}
	return w, err
}

// openContext also returns the context events that there are.
func (b *Bus) openContext(ctx context.Context, tenant, analysis string) (*ContextWriter, []Entry, error) {
	if err := checkTokens(tenant, analysis); err != nil {
		return nil, nil, err
	}
	for {
		w := &ContextWriter{b: b, tenant: tenant, analysis: analysis, nonce: nuid.Next()}
		var entries []Entry
		r := &reading{b: b, tenant: tenant, analysis: analysis, family: "context", fn: func(e Entry) error {
			w.n++
			entries = append(entries, e)
			return nil
		}}
		err := r.run(ctx)
		w.archive = r.archive.revision
		w.last = r.last // foreign messages count here: the server does not tell them apart
		if err != nil || w.last > 0 || r.archive.revision == 0 {
			return w, entries, err
		}
		// What the archive has the log may still have too: the next event
		// must come behind it.
		m, err := b.endOf(ctx, contextSubject(tenant, analysis, ">"))
		switch {
		case errors.Is(err, ErrNotFound):
			return w, entries, nil
		case err != nil:
			return nil, nil, err
		case m.Sequence <= r.archive.Last:
			w.last = m.Sequence
			return w, entries, nil
		}
		// Somebody has written meanwhile.
	}
}

// Count is how many context events the analysis has.
func (w *ContextWriter) Count() int { return w.n }

// NextID is the id of the next event.
func (w *ContextWriter) NextID() string { return w.analysis + "/context/" + strconv.Itoa(w.n) }

// Write stores an event and returns when the log has acknowledged it. e.ID must
// be [ContextWriter.NextID]. An error that wraps [ErrFenced] says that the
// analysis has another writer. After any other error the event may be stored or
// not, and only the same may be written again.
func (w *ContextWriter) Write(ctx context.Context, e schemas.Event) error {
	body, err := e.Encode()
	if err != nil {
		return fmt.Errorf("encode event %s: %w", e.ID, err)
	}
	seq, err := appendLink(ctx, w.b, link{
		subject: contextSubject(w.tenant, w.analysis, e.Name()), id: e.ID + "/" + w.nonce, body: body,
		chain: contextSubject(w.tenant, w.analysis, ">"), last: w.last, strange: w.strange,
	}, w.gone)
	if err != nil {
		return err
	}
	w.last = seq
	w.n++
	return nil
}

// strange reports whether a message behind the writer's last event is foreign, or
// the copy of an earlier event: its number was given before.
func (w *ContextWriter) strange(m *jetstream.RawStreamMsg) bool {
	e := newEntry(m.Sequence, m.Subject, m.Data)
	next := uint64(w.n)
	return e.foreign || again(e.Event.ID, &next)
}

// gone reports whether the writer's last event was taken out of the log: the
// analysis was archived or deleted.
func (w *ContextWriter) gone(ctx context.Context) (bool, error) {
	a, err := w.b.archived(ctx, w.tenant, w.analysis)
	if err != nil || a.revision > w.archive || w.last > 0 && w.last <= a.Last {
		return true, err
	}
	dead, err := w.b.tombstone(ctx, w.tenant, w.analysis)
	return dead != nil, err
}

// PublishArtifact announces an artifact whose bytes the store has. If its
// occurrence was taken meanwhile, by an analyzer that derived the same bytes,
// it is given the next one.
func (b *Bus) PublishArtifact(ctx context.Context, e schemas.Event, a *schemas.Artifact) error {
	art := *a
	for {
		subject, all := artifactSubject(e.Tenant, e.Analysis, &art), artifactsOf(e.Tenant, e.Analysis, string(art.Kind), art.SHA256)
		m, err := checkedMsg("announcement", subject, e, true)
		if err != nil {
			return err
		}
		m.id, m.once = e.ID+"/"+schemas.Sum(m.body).Token(), true
		if err := b.artifacts.publish(ctx, m); !errors.Is(err, errConflict) {
			return err
		}
		_, err = appendLink(ctx, b, link{subject: subject, id: m.id, body: m.body, chain: subject, strange: strange}, func(ctx context.Context) (bool, error) {
			n, err := b.archivedOccurrences(ctx, all)
			return n > art.Occurrence, err
		})
		if !errors.Is(err, ErrFenced) {
			return err
		}
		if art.Occurrence, err = nextOccurrence(ctx, b, all); err != nil {
			return err
		}
		if e, err = schemas.NewEvent(e.Tenant, e.Analysis, art.ID(e.Analysis), e.Time, e.Origin, art); err != nil {
			return err
		}
	}
}

// nextOccurrence is the number of an artifact's next announcement; subject is
// that of all its occurrences.
func nextOccurrence(ctx context.Context, b ledger, subject string) (int, error) {
	m, err := b.lastMsg(ctx, subject+".*")
	if errors.Is(err, ErrNotFound) {
		return b.archivedOccurrences(ctx, subject)
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(m.Subject[len(subject)+1:])
	if err != nil {
		return 0, fmt.Errorf("number the occurrences of %s: %w", subject, err)
	}
	for { // the last one need not have the highest number
		n++
		if _, err := b.lastMsg(ctx, subject+"."+strconv.Itoa(n)); errors.Is(err, ErrNotFound) {
			return n, nil
		} else if err != nil {
			return 0, err
		}
	}
}

// PublishSegment publishes a segment of a source.
func (b *Bus) PublishSegment(ctx context.Context, e schemas.Event, s *schemas.Segment) error {
	_, err := b.publish(ctx, segmentSubject(e.Tenant, e.Analysis, s.Source, s.N), e)
	return err
}

// PublishReport announces a report. A newer one of the same format replaces it
// in the readers' eyes, not in the log.
func (b *Bus) PublishReport(ctx context.Context, e schemas.Event, format string) error {
	_, err := b.publish(ctx, reportSubject(e.Tenant, e.Analysis, format), e)
	return err
}

// PublishBehavior shows a live behaviour event to whoever watches. It is not
// stored, and nobody learns whether it arrived.
func (b *Bus) PublishBehavior(tenant, analysis string, bh *schemas.Behavior, e schemas.Event) error {
	body, err := e.Encode()
	if err != nil {
		return err
	}
	return b.nc.Publish(BehaviorSubject(tenant, analysis, bh), body)
}
