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

// Lease is who runs an analysis. It lives as long as it is renewed.
type Lease struct {
	Worker string `json:"worker"`
}

// HoldLease says that worker runs an analysis, again and again until ctx is
// done, and then no more. If another worker has the lease meanwhile, because
// this one stood still for longer than a lease lives, the error wraps
// [ErrFenced].
func (b *Bus) HoldLease(ctx context.Context, analysis, worker string) error {
	body, err := json.Marshal(Lease{Worker: worker})
	if err != nil {
		return err
	}
	t := time.NewTicker(b.leaseEvery)
	defer t.Stop()
	for revision := uint64(0); ; {
		kv, err := b.js.KeyValue(ctx, kvLease)
		if err == nil {
			revision, err = renew(ctx, kv, analysis, worker, body, revision)
		}
		if errors.Is(err, ErrFenced) {
			return err
		}
		// Any other error is made good by the next try.
		select {
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			if kv, err := b.js.KeyValue(end, kvLease); err == nil {
				giveUp(end, kv, analysis, worker) // else it runs out
			}
			return nil
		case <-t.C:
		}
	}
}

// giveUp ends a lease if it is this worker's.
func giveUp(ctx context.Context, kv jetstream.KeyValue, analysis, worker string) {
	e, err := kv.Get(ctx, analysis)
	var l Lease
	if err == nil && json.Unmarshal(e.Value(), &l) == nil && l.Worker == worker {
		_ = kv.Purge(ctx, analysis, jetstream.LastRevision(e.Revision()))
	}
}

// renew writes a lease in the place of the one that was this worker's, at
// revision, and returns the new one's revision; 0 is none.
func renew(ctx context.Context, kv jetstream.KeyValue, analysis, worker string, body []byte, revision uint64) (uint64, error) {
	var next uint64
	var err error
	if revision == 0 {
		next, err = kv.Create(ctx, analysis, body)
	} else {
		next, err = kv.Update(ctx, analysis, body, revision)
	}
	if err == nil || !errors.Is(err, jetstream.ErrKeyExists) && !hasCode(err, codeWrongLastSequence) {
		return max(next, revision), err
	}
	// It ran out, it is somebody else's, or an acknowledgement was lost.
	e, err := kv.Get(ctx, analysis)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return kv.Create(ctx, analysis, body)
	}
	if err != nil {
		return revision, err
	}
	var l Lease
	if err := json.Unmarshal(e.Value(), &l); err != nil || l.Worker != worker {
		return 0, fmt.Errorf("lease of %s: %w", analysis, ErrFenced)
	}
	return e.Revision(), nil
}

// Leased returns who runs an analysis, or an error that wraps [ErrNotFound].
func (b *Bus) Leased(ctx context.Context, analysis string) (Lease, error) {
	kv, err := b.js.KeyValue(ctx, kvLease)
	if err != nil {
		return Lease{}, err
	}
	e, err := kv.Get(ctx, analysis)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return Lease{}, fmt.Errorf("lease of %s: %w", analysis, ErrNotFound)
	}
	if err != nil {
		return Lease{}, err
	}
	var l Lease
	return l, json.Unmarshal(e.Value(), &l)
}

// OnCancel calls fn when somebody asks for the end of an analysis, until the
// returned function is called. fn's answer goes back to the asker.
func (b *Bus) OnCancel(tenant, analysis string, fn func(by string)) (stop func(), err error) {
	sub, err := b.nc.Subscribe(cancelSubject(tenant, analysis), func(m *nats.Msg) {
		fn(clipString(oneLine(string(m.Data)), 128))
		_ = m.Respond([]byte("ok"))
	})
	if err != nil {
		return nil, err
	}
	return func() { _ = sub.Unsubscribe() }, nil
}

// Cancel ends an analysis: whoever runs it is asked to stop; one that nobody
// runs yet is taken out of the queue and ended here. It returns when the
// request has been taken, which can be before the ending is in the log.
func (b *Bus) Cancel(ctx context.Context, tenant, analysis, by string) error {
	if err := checkTokens(tenant, analysis); err != nil {
		return err
	}
	if b.tenant == tenant {
		return b.ask(ctx, askCancel, deskAsk{Analysis: analysis, By: by}, new(struct{}))
	}
	for try := 0; ; try++ {
		ask, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := b.request(ask, cancelSubject(tenant, analysis), []byte(by))
		cancel()
		if err == nil {
			return nil
		}
		if !errors.Is(err, nats.ErrNoResponders) && !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("cancel %s: %w", analysis, err)
		}
		done, err := b.cancelQueued(ctx, tenant, analysis, by)
		if done || err != nil || try == 3 {
			return err
		}
		// A sandbox took the job between the two questions.
	}
}

// cancelQueued ends an analysis that has no runner, or the next attempt of its
// submission, if that is still in the queue.
func (b *Bus) cancelQueued(ctx context.Context, tenant, analysis, by string) (done bool, err error) {
	job, attempt, err := b.queuedAs(ctx, tenant, analysis)
	if err != nil {
		return false, err
	}
	id, first := analysis, ""
	var entries []Entry
	for {
		if entries, err = b.Context(ctx, tenant, id); err != nil {
			return false, err
		}
		ended := endingIn(entries)
		if ended == "" {
			break
		}
		if first == "" {
			first = ended
		}
		if job == nil || attempt > job.Submission.Options.Retries {
			return false, fmt.Errorf("analysis %s has ended already (%s)", analysis, first)
		}
		attempt++
		id = schemas.AttemptID(job.Submission.ID, attempt)
	}
	if len(entries) > 0 && id != analysis {
		return false, fmt.Errorf("analysis %s has ended already (%s), and its sample is being run again as %s (petri cancel %s)", analysis, first, id, id)
	}
	if len(entries) > 0 {
		// It was running, and whoever ran it does not answer.
		_, err := b.End(ctx, tenant, analysis, schemas.AnalysisCancelled{By: by})
		return err == nil, err
	}
	if job == nil {
		return false, fmt.Errorf("analysis %s: %w", analysis, ErrNotFound)
	}
	w, err := b.BeginContext(ctx, tenant, id)
	if errors.Is(err, ErrFenced) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	e, err := schemas.NewEvent(tenant, id, w.NextID(), time.Now(), schemas.OriginHost,
		schemas.AnalysisSubmitted{Submission: job.Submission, Attempt: attempt})
	if err != nil {
		return false, err
	}
	if err := w.Write(ctx, e); err != nil {
		if errors.Is(err, ErrFenced) {
			return false, nil
		}
		return false, err
	}
	if e, err = schemas.NewEvent(tenant, id, w.NextID(), time.Now(), schemas.OriginHost, schemas.AnalysisCancelled{By: by}); err != nil {
		return false, err
	}
	if err := w.Write(ctx, e); err != nil {
		return false, err
	}
	return true, b.Unqueue(ctx, *job)
}

// queuedAs looks in the queue for the job one of whose attempts an analysis is,
// and says which; nil: there is none.
func (b *Bus) queuedAs(ctx context.Context, tenant, analysis string) (job *QueuedJob, attempt int, err error) {
	err = b.Queued(ctx, func(q QueuedJob) error {
		for n := 1; n <= q.Submission.Options.Retries+1; n++ {
			if q.Submission.Tenant == tenant && schemas.AttemptID(q.Submission.ID, n) == analysis {
				job, attempt = &q, n
				return ErrStop
			}
		}
		return nil
	})
	return job, attempt, err
}

// endingIn names the event with which an analysis has ended; empty: it has not.
func endingIn(entries []Entry) string {
	for _, e := range entries {
		if schemas.Ending(e.Event.Name()) {
			return e.Event.Name()
		}
	}
	return ""
}
