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

// Summary is one line about an analysis: a projection of the log, for lists.
// It can be thrown away and is then made again.
type Summary struct {
	Tenant    string          `json:"tenant"`
	Analysis  string          `json:"analysis"`
	Sample    schemas.Sample  `json:"sample"`
	Status    string          `json:"status"` // queued, or the last context event's name
	Attempt   int             `json:"attempt"`
	RetryOf   string          `json:"retry_of,omitempty"`
	Submitted time.Time       `json:"submitted"`
	Updated   time.Time       `json:"updated"`
	Ended     bool            `json:"ended"`
	Outcome   schemas.Outcome `json:"outcome,omitempty"` // once there is a report
	Verdict   schemas.Verdict `json:"verdict,omitempty"`
	Imported  bool            `json:"imported,omitempty"` // from elsewhere
}

// projector is the consumer that keeps the summaries.
const projector = "projector"

// Project keeps the summaries up to date until ctx is done.
func (b *Bus) Project(ctx context.Context, log *slog.Logger) error {
	kv, err := b.js.KeyValue(ctx, kvState)
	if err != nil {
		return fmt.Errorf("open the projection: %w", err)
	}
	cons, err := b.js.CreateOrUpdateConsumer(ctx, streamLog, jetstream.ConsumerConfig{
		Durable: projector, AckPolicy: jetstream.AckExplicitPolicy, AckWait: handlerAckWait, MaxDeliver: -1, MaxAckPending: 1,
		FilterSubjects: []string{logPrefix + "*.*.context.>", logPrefix + "*.*.report.json"},
	})
	if err != nil {
		return fmt.Errorf("follow the log: %w", err)
	}
	err = consume(ctx, cons, func(m jetstream.Msg) {
		if err := b.project(ctx, kv, m); err != nil {
			if ctx.Err() == nil {
				log.Error("project an event", "subject", m.Subject(), "error", err)
			}
			_ = m.NakWithDelay(time.Second)
			return
		}
		_ = m.Ack()
	})
	return fmt.Errorf("follow the log: %w", err)
}

func (b *Bus) project(ctx context.Context, kv jetstream.KeyValue, m jetstream.Msg) error {
	tenant, analysis, _, _, ok := analysisOf(m.Subject())
	if !ok {
		return nil
	}
	e, err := own(m.Subject(), m.Data())
	if err != nil {
		return nil // the analysis' report counts it
	}
	key := tenant + "." + analysis
	s := Summary{Tenant: tenant, Analysis: analysis}
	entry, err := kv.Get(ctx, key)
	fresh := errors.Is(err, jetstream.ErrKeyNotFound)
	if err == nil {
		err = json.Unmarshal(entry.Value(), &s)
	} else if fresh { // the first event, or a late one of a deleted analysis
		var dead *DeletedError
		if dead, err = b.tombstone(ctx, tenant, analysis); dead != nil {
			return nil
		}
	}
	if err != nil {
		return err
	}
	s.apply(e)
	body, err := json.Marshal(s)
	if err != nil {
		return err
	}
	// A summary that was removed meanwhile is not written again.
	if fresh {
		_, err = kv.Create(ctx, key, body)
	} else {
		_, err = kv.Update(ctx, key, body, entry.Revision())
	}
	return err
}

// putSummary writes the summary of an analysis that the log does not tell of.
func (b *Bus) putSummary(ctx context.Context, s Summary) error {
	kv, err := b.js.KeyValue(ctx, kvState)
	if err != nil {
		return fmt.Errorf("open the projection: %w", err)
	}
	body, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return retry(ctx, func(ctx context.Context) error {
		_, err := kv.Put(ctx, s.Tenant+"."+s.Analysis, body)
		return err
	})
}

// follow is apply for whoever reads all events, not only those that the
// projector is given.
func (s *Summary) follow(e schemas.Event) {
	if e.Family() == "context" || e.Type == (schemas.ReportWritten{}).EventType() {
		s.apply(e)
	}
}

func (s *Summary) apply(e schemas.Event) {
	switch {
	case e.Family() == "report":
		var r schemas.ReportWritten
		if e.Decode(&r) == nil {
			s.Outcome, s.Verdict = r.Outcome, r.Verdict
		}
	case e.Name() == schemas.EventSubmitted:
		var sub schemas.AnalysisSubmitted
		if e.Decode(&sub) == nil {
			s.Sample, s.Attempt, s.RetryOf, s.Submitted = sub.Submission.Sample, sub.Attempt, sub.RetryOf, sub.Submission.Submitted
		}
		s.Status = e.Name()
	case e.Name() != schemas.EventAmended && e.Name() != schemas.EventRunAdopted:
		s.Status = e.Name()
		s.Ended = s.Ended || schemas.Ending(e.Name())
	}
	s.Updated = e.Time
}

// StatusQueued is the [Summary]'s status of an analysis that waits.
const StatusQueued = "queued"

// List returns the summaries of a tenant's analyses, the newest first, with
// those that wait in the queue before them. limit 0 is no limit.
func (b *Bus) List(ctx context.Context, tenant string, limit int) ([]Summary, error) {
	if b.tenant == tenant {
		return b.askSummaries(ctx, limit)
	}
	kv, err := b.js.KeyValue(ctx, kvState)
	if err != nil {
		return nil, fmt.Errorf("open the projection: %w", err)
	}
	keys, err := kv.ListKeysFiltered(ctx, tenant+".*")
	if err != nil {
		return nil, fmt.Errorf("list the analyses: %w", err)
	}
	var names []string
	known := map[string]bool{}
	for k := range keys.Keys() {
		names = append(names, k)
		known[k] = true
	}
	slices.SortFunc(names, func(a, b string) int { return strings.Compare(b, a) }) // ULIDs sort by time
	var out []Summary
	err = b.Queued(ctx, func(q QueuedJob) error {
		if s := q.Submission; s.Tenant == tenant && !known[tenant+"."+s.ID] {
			out = append(out, Summary{Tenant: tenant, Analysis: s.ID, Sample: s.Sample, Status: StatusQueued, Attempt: 1, Submitted: s.Submitted, Updated: s.Submitted})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Reverse(out)
	for _, k := range names {
		if limit > 0 && len(out) >= limit {
			break
		}
		e, err := kv.Get(ctx, k)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue // gone meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list the analyses: %w", err)
		}
		var s Summary
		if json.Unmarshal(e.Value(), &s) == nil {
			out = append(out, s)
		}
	}
	return out, nil
}

// Unfinished counts the analyses of a tenant that have no ending yet, by the
// projection.
func (b *Bus) Unfinished(ctx context.Context, tenant string) (int, error) {
	list, err := b.List(ctx, tenant, 0)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, s := range list {
		if !s.Ended {
			n++
		}
	}
	return n, nil
}
