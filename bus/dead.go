// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// A DeadLetter is a message that nobody could process: one that was moved out
// of its stream with the reason, or the server's word that it was given out too
// often.
type DeadLetter struct {
	ID       uint64    `json:"id"`       // names it to [Bus.RetryDead] and [Bus.DropDead]
	Stream   string    `json:"stream"`   // where it was
	Consumer string    `json:"consumer"` // who could not process it
	Subject  string    `json:"subject"`  // that it had; empty if it is gone
	Reason   string    `json:"reason"`
	Time     time.Time `json:"time"`
	Size     int       `json:"size"` // bytes of the message
	Body     []byte    `json:"-"`    // of a large one only the beginning

	seq uint64 // of the message, where it still lies in its stream
}

// Prefixes of the server's advisories that the stream DEAD keeps: a message was
// given out too often, or whoever took it has ended it. Stream and consumer follow.
// https://docs.nats.io/running-a-nats-service/nats_admin/monitoring/monitoring_jetstream
const (
	advisoryExceeded   = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES."
	advisoryTerminated = "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED."
)

// advisory is what an advisory says of a message.
// https://github.com/nats-io/nats-server/blob/main/server/jetstream_events.go
type advisory struct {
	Stream     string `json:"stream"`
	Consumer   string `json:"consumer"`
	StreamSeq  uint64 `json:"stream_seq"`
	Deliveries int    `json:"deliveries"`
	Reason     string `json:"reason"` // whoever ended it has given
}

// DeadLetters calls fn with every dead letter, the oldest first.
func (b *Bus) DeadLetters(ctx context.Context, fn func(DeadLetter) error) error {
	st, err := b.js.Stream(ctx, streamDead)
	if err != nil {
		return fmt.Errorf("open the dead letters: %w", err)
	}
	for next := uint64(1); ; {
		m, err := st.GetMsg(ctx, next, jetstream.WithGetMsgSubject(">"))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the dead letters: %w", err)
		}
		next = m.Sequence + 1
		if ofBuried(m.Subject, m.Data) {
			continue
		}
		d, err := b.deadLetter(ctx, m)
		if err == nil {
			err = fn(d)
		}
		if errors.Is(err, ErrStop) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// ofBuried reports whether the server says only that it was told to end a
// message that was moved here.
func ofBuried(subject string, data []byte) bool {
	var a advisory
	return strings.HasPrefix(subject, advisoryTerminated) && json.Unmarshal(data, &a) == nil && strings.HasPrefix(a.Reason, buried)
}

// DeadLetter returns one. If there is none of that id the error wraps
// [ErrNotFound].
func (b *Bus) DeadLetter(ctx context.Context, id uint64) (DeadLetter, error) {
	st, err := b.js.Stream(ctx, streamDead)
	if err != nil {
		return DeadLetter{}, fmt.Errorf("open the dead letters: %w", err)
	}
	m, err := st.GetMsg(ctx, id)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return DeadLetter{}, fmt.Errorf("dead letter %d: %w (petri dead list shows those there are)", id, ErrNotFound)
	}
	if err != nil {
		return DeadLetter{}, fmt.Errorf("read the dead letters: %w", err)
	}
	return b.deadLetter(ctx, m)
}

func (b *Bus) deadLetter(ctx context.Context, m *jetstream.RawStreamMsg) (DeadLetter, error) {
	d := DeadLetter{ID: m.Sequence, Time: m.Time.UTC()}
	terminated := strings.HasPrefix(m.Subject, advisoryTerminated)
	if !terminated && !strings.HasPrefix(m.Subject, advisoryExceeded) {
		rest := strings.Split(m.Subject, ".") // dead.<stream>.<consumer>, and of the inbox .<analyzer>
		d.Stream, d.Consumer = rest[1], rest[2]
		d.Subject, d.Reason, d.Body, d.Size = m.Header.Get("Petri-Subject"), m.Header.Get("Petri-Error"), m.Data, len(m.Data)
		if n, err := strconv.Atoi(m.Header.Get("Petri-Size")); err == nil && n > d.Size {
			d.Size = n
		}
		return d, nil
	}
	var a advisory
	if err := json.Unmarshal(m.Data, &a); err != nil {
		d.Reason = "an advisory of the server that cannot be read"
		return d, nil
	}
	d.Stream, d.Consumer, d.seq = a.Stream, a.Consumer, a.StreamSeq
	d.Reason = fmt.Sprintf("given out %d times, and never answered", a.Deliveries)
	if terminated {
		d.Reason = "ended, unanswered, by whoever took it"
		if a.Reason != "" {
			d.Reason += ": " + oneLine(a.Reason)
		}
	}
	was, err := b.lookupIn(ctx, a.Stream, lookup{Seq: a.StreamSeq})
	if errors.Is(err, ErrNotFound) {
		d.Reason += "; it is gone"
		return d, nil
	}
	if err != nil {
		return d, err
	}
	d.Subject, d.Body, d.Size = was.Subject, was.Data, len(was.Data)
	return d, nil
}

// queues are the streams into which a dead letter can be put back, with what
// their subjects begin with.
var queues = map[string]string{streamInbox: "in.", streamJobs: "job.", streamRuns: runPrefix}

// RetryDead puts a dead letter back where it was, to be processed again, and
// forgets it when the server has it.
func (b *Bus) RetryDead(ctx context.Context, id uint64) error {
	d, err := b.DeadLetter(ctx, id)
	if err != nil {
		return err
	}
	prefix, ok := queues[d.Stream]
	if analyzer, own := strings.CutPrefix(d.Consumer, "az-"); own && d.Stream == streamRuns {
		// An analyzer writes such a letter itself, and the subject in it.
		prefix += strings.TrimSuffix(analyzer, "-run") + "."
	}
	switch {
	case d.seq == 0 && d.Size > len(d.Body):
		return fmt.Errorf("dead letter %d: of %d bytes only %d were kept (have it sent again by who has sent it, of an analyzer's answer: petri replay, then petri dead drop %d)", id, d.Size, len(d.Body), id)
	case d.Stream == streamLog:
		return fmt.Errorf("dead letter %d is a fact of the log, which stays there: %s, then drop the letter (petri dead drop %d)", id, remedy(d), id)
	case d.Stream == streamRuns && d.seq != 0 && d.Subject == "":
		return fmt.Errorf("dead letter %d: the run has gone on without it: one that was given out too often has a receipt that says failed (have the work done anew: petri replay or petri hunt, then petri dead drop %d)", id, id)
	case !ok || !strings.HasPrefix(d.Subject, prefix):
		return fmt.Errorf("dead letter %d: nothing can be put back into %.40q under %.80q (drop it: petri dead drop %d)", id, d.Stream, d.Subject, id)
	}
	if d.Stream == streamInbox {
		if err := b.answerable(ctx, d); err != nil {
			return err
		}
	}
	// An id of its own: the server may remember the first one. The same for
	// every try, so that one that was cut short puts nothing back twice.
	msgID := fmt.Sprintf("retry/%d", id)
	err = retry(ctx, func(ctx context.Context) error {
		_, err := b.js.PublishMsg(ctx, &nats.Msg{Subject: d.Subject, Data: d.Body}, jetstream.WithMsgID(msgID), jetstream.WithRetryAttempts(0))
		return err
	})
	if err != nil {
		return fmt.Errorf("put dead letter %d back: %w", id, err)
	}
	if d.seq != 0 { // it lies in its queue, and nobody is given it any more
		if st, err := b.js.Stream(ctx, d.Stream); err == nil {
			_ = st.DeleteMsg(ctx, d.seq) // two of it are harmless: receipts are written once, jobs' attempts are counted
		}
	}
	return b.DropDead(ctx, id)
}

// remedy says what to do about a fact of the log that nobody could process.
func remedy(d DeadLetter) string {
	tenant, analysis, _, _, ok := analysisOf(d.Subject)
	analyzer, live := taskAnalyzer(d.Stream, d.Consumer)
	switch {
	case d.Subject == "":
		return "its analysis was archived or deleted meanwhile, and nobody waits"
	case live && ok:
		return fmt.Sprintf("let the analyzer loose on it again (petri replay %s --analyzer %s; tenant %s)", analysis, analyzer, tenant)
	}
	return fmt.Sprintf("consumer %.80q is no analyzer's, so mend whoever reads by it", d.Consumer)
}

// answerable reports why an answer that was refused cannot be handed in again: a
// task that has its receipt takes no other, and the letter would be gone.
func (b *Bus) answerable(ctx context.Context, d DeadLetter) error {
	var f schemas.FinishedTask
	e, err := schemas.ParseEvent(d.Body)
	if err == nil {
		err = e.Decode(&f)
	}
	if err != nil {
		return fmt.Errorf("dead letter %d: no answer can be read in it: %w (drop it: petri dead drop %d)", d.ID, err, d.ID)
	}
	if err := checkTokens(f.Task.Tenant, f.Task.Analysis); err != nil {
		return fmt.Errorf("dead letter %d: %w (drop it: petri dead drop %d)", d.ID, err, d.ID)
	}
	_, err = b.lastMsg(ctx, receiptSubject(f.Task))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("dead letter %d: its task has its receipt, which says that the answer was refused (have the work done anew: petri replay %s --analyzer %s, then petri dead drop %d)", d.ID, f.Task.Analysis, f.Task.Analyzer, d.ID)
}

// DropDead forgets a dead letter.
func (b *Bus) DropDead(ctx context.Context, id uint64) error {
	st, err := b.js.Stream(ctx, streamDead)
	if err != nil {
		return fmt.Errorf("open the dead letters: %w", err)
	}
	err = st.DeleteMsg(ctx, id)
	if errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) || errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("dead letter %d: %w (petri dead list shows those there are)", id, ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("drop dead letter %d: %w", id, err)
	}
	return nil
}
