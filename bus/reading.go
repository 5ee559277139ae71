// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A reading gives the events of one analysis: those that the archive has, and
// behind them what the log has. The archiver may move an analysis while it is
// read: it writes the archive's entry before it takes anything out of the log.
// So what came out of the log counts only if the entry is the same afterwards.
// If it is not, the reading goes on in the archive, behind as many events as
// it has given: their order is the same in both.
type reading struct {
	b                *Bus
	tenant, analysis string
	family           string // of the events; empty: all
	from, to         uint64 // sequences to give; to 0: to the end
	caughtUp         func() // what there was has been given; may be nil
	follow           bool   // go on with what comes
	fn               func(Entry) error

	passed  uint64 // events that were given or left out
	last    uint64 // sequence in the log of the last message that was read
	archive archived

	repeats  *repeats // of the events that were passed
	strange  []uint64 // sequences of foreign messages of the log
	stranger func()   // told of each of them; may be nil
}

// foreign is how many foreign messages there were, in the log and before the
// archiver moved what it had.
func (r *reading) foreign() uint64 {
	n := r.archive.Foreign
	for _, seq := range r.strange {
		if seq > r.archive.Last {
			n++
		}
	}
	return n
}

// skip notes a message that is foreign, or repeats an event.
func (r *reading) skip(e Entry) (bool, error) {
	if !e.foreign {
		if was, err := r.repeats.again(e); err != nil || !was {
			return false, err
		}
	}
	r.strange = append(r.strange, e.Seq)
	if r.stranger != nil {
		r.stranger()
	}
	return true, nil
}

// errMoved says that the archiver came between.
var errMoved = errors.New("the analysis was moved to the archive")

// idleCheck is how long the log may give nothing before a reading that expects
// something asks whether it is still there.
const idleCheck = time.Second

func (r *reading) subject() string {
	if r.family == "" {
		return AnalysisSubject(r.tenant, r.analysis)
	}
	return logPrefix + r.tenant + "." + r.analysis + "." + r.family + ".>"
}

func (r *reading) run(ctx context.Context) error {
	if r.repeats == nil {
		r.repeats = newRepeats()
	}
	for {
		var err error
		if r.archive, err = r.b.archived(ctx, r.tenant, r.analysis); err != nil {
			return err
		}
		if r.archive.revision != 0 {
			err = r.readArchive(ctx)
		}
		if err == nil {
			err = r.readLog(ctx)
		}
		if err == nil && r.passed == 0 && r.archive.revision == 0 {
			return r.deleted(ctx)
		}
		if errors.Is(err, ErrStop) {
			return nil
		}
		if !errors.Is(err, errMoved) {
			return err
		}
	}
}

// deleted returns a [DeletedError] if the analysis, of which nothing is there,
// was deleted.
func (r *reading) deleted(ctx context.Context) error {
	dead, err := r.b.tombstone(ctx, r.tenant, r.analysis)
	if dead != nil {
		return dead
	}
	return err
}

// give passes an event on, unless it lies outside of what is wanted.
func (r *reading) give(e Entry) error {
	r.passed++
	if e.Seq < r.from {
		return nil
	}
	return r.fn(e)
}

// readArchive gives what the archive has and has not been given yet.
func (r *reading) readArchive(ctx context.Context) error {
	have := r.archive.Events
	if r.family == "context" {
		have = uint64(r.archive.Context)
	}
	if (r.family == "" || r.family == "context") && r.passed >= have {
		return nil
	}
	n := uint64(0)
	err := r.b.archivedEvents(ctx, r.archive.ArchiveEntry, func(e Entry) error {
		if r.family != "" && e.Event.Family() != r.family {
			return nil
		}
		if n++; n <= r.passed {
			return nil
		}
		if _, err := r.repeats.again(e); err != nil {
			return err
		}
		return r.give(e)
	})
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt) {
		// A later pass of the archiver replaces a file.
		if merr := r.unmoved(ctx); merr != nil {
			return merr
		}
	}
	return err
}

// unmoved reports errMoved if the archive's entry is not the one that this
// reading began with.
func (r *reading) unmoved(ctx context.Context) error {
	now, err := r.b.archived(ctx, r.tenant, r.analysis)
	if err != nil {
		return err
	}
	switch {
	case now.revision == r.archive.revision:
		return nil
	case now.revision == 0:
		return fmt.Errorf("analysis %s was deleted meanwhile: %w", r.analysis, ErrNotFound)
	}
	return errMoved
}

// readLog gives what the log has behind the archive.
func (r *reading) readLog(ctx context.Context) error {
	start := max(r.archive.Last, r.last) + 1
	end := r.to
	if r.follow && start == 1 {
		if err := r.deleted(ctx); err != nil {
			return err
		}
	}
	if !r.follow {
		last, err := r.b.endOf(ctx, r.subject())
		if err != nil && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("read the log: %w", err)
		}
		if err != nil || last.Sequence < start {
			return r.unmoved(ctx)
		}
		// The leader says where the end is: a consumer may live on a replica
		// that has not everything yet, and does not know it.
		if end == 0 || last.Sequence < end {
			end = last.Sequence
		}
		if end < start {
			return r.unmoved(ctx)
		}
	}
	return r.b.batches(ctx, []string{r.subject()}, start, func(batch []Entry, pending uint64) error {
		if err := r.unmoved(ctx); err != nil {
			return err
		}
		if len(batch) == 0 && !r.follow {
			return r.there(ctx, end)
		}
		for _, e := range batch {
			if !r.follow && e.Seq > end {
				return ErrStop
			}
			r.last = e.Seq
			skipped, err := r.skip(e)
			if err == nil && !skipped {
				err = r.give(e)
			}
			if err != nil {
				return err
			}
			if !r.follow && e.Seq == end {
				return ErrStop
			}
		}
		if pending == 0 && r.caughtUp != nil {
			r.caughtUp()
			r.caughtUp = nil
		}
		return nil
	})
}

// there reports an error if the log does not have any more what it had when the
// reading began: the analysis was deleted.
func (r *reading) there(ctx context.Context, end uint64) error {
	last, err := r.b.endOf(ctx, r.subject())
	if err == nil && last.Sequence >= end {
		return nil
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if err := r.unmoved(ctx); err != nil {
		return err
	}
	return fmt.Errorf("analysis %s was deleted meanwhile: %w", r.analysis, ErrNotFound)
}

// nobodyKnows is the number of messages that wait where nothing has come for a
// while: that may be the server's trouble.
const nobodyKnows = math.MaxUint64

// readerIdle is for how long the server remembers who has read the log and asks for
// no more. Who is only cut off for longer begins anew where he stood. Of those that
// it remembers it takes a thousand, with the analyzers'.
const readerIdle = 5 * time.Second

// batches gives fn what an ordered consumer of the log delivers, foreign messages
// too, as much at a time as there is, with the number of messages that wait behind it. If there is
// nothing at first fn is given an empty batch, and again whenever nothing has
// come for a while, with [nobodyKnows]. It ends when fn returns an error, or ctx
// is done.
func (b *Bus) batches(ctx context.Context, subjects []string, from uint64, fn func(batch []Entry, pending uint64) error) error {
	if b.stepwise && len(subjects) == 1 {
		return b.steps(ctx, subjects[0], from, fn)
	}
	const most = 512
	cfg := jetstream.OrderedConsumerConfig{FilterSubjects: subjects, DeliverPolicy: jetstream.DeliverAllPolicy, InactiveThreshold: readerIdle}
	if from > 0 {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, from
	}
	var cons jetstream.Consumer
	err := retry(ctx, func(ctx context.Context) (err error) {
		cons, err = b.js.OrderedConsumer(ctx, streamLog, cfg)
		if hasCode(err, codeMaxConsumers) { // until some are forgotten
			return passing{err}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	if cons.CachedInfo().NumPending == 0 {
		if err := fn(nil, 0); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	msgs := make(chan jetstream.Msg, most)
	// Consume has one lasting heartbeat monitor; Next would make a new one per
	// call and can miss a lost first request for ever.
	cc, err := cons.Consume(func(m jetstream.Msg) {
		select {
		case msgs <- m:
		case <-ctx.Done():
		}
	}, jetstream.PullMaxMessages(most), jetstream.PullExpiry(30*time.Second), jetstream.PullHeartbeat(pullHeartbeat))
	if err != nil {
		cancel()
		return fmt.Errorf("read the log: %w", err)
	}
	defer func() {
		cancel() // frees the handler
		cc.Stop()
		<-cc.Closed()
	}()
	idle := time.NewTimer(idleCheck)
	defer idle.Stop()
	var batch []Entry
	for {
		batch = batch[:0]
		idle.Reset(idleCheck)
		pending := uint64(nobodyKnows)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-cc.Closed():
			return fmt.Errorf("read the log: %w", nats.ErrConnectionClosed)
		case <-idle.C:
		case m := <-msgs:
			for more := true; more; {
				e, left, err := entry(m)
				if err != nil {
					return err
				}
				batch, pending = append(batch, e), left
				if more = len(batch) < most; more {
					select {
					case m = <-msgs:
					default:
						more = false
					}
				}
			}
		}
		if err := fn(batch, pending); err != nil {
			return err
		}
	}
}

// steps is batches for who may not make consumers: who may make one on the log
// may change everybody's. Each page is asked for.
func (b *Bus) steps(ctx context.Context, subject string, from uint64, fn func(batch []Entry, pending uint64) error) error {
	for next := from; ; {
		batch, err := b.page(ctx, subject, next)
		if err != nil {
			return err
		}
		if len(batch) > 0 {
			next = batch[len(batch)-1].Seq + 1
			if err := fn(batch, nobodyKnows); err != nil {
				return err
			}
			continue
		}
		if err := fn(nil, 0); err != nil {
			return err
		}
		select {
		case <-time.After(idleCheck):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// entry reads a message of the log, and how many wait behind it.
func entry(m jetstream.Msg) (e Entry, pending uint64, err error) {
	md, err := m.Metadata()
	if err != nil {
		return Entry{}, 0, err
	}
	return newEntry(md.Sequence.Stream, m.Subject(), m.Data()), md.NumPending, nil
}

func newEntry(seq uint64, subject string, body []byte) Entry {
	e, err := own(subject, body)
	return Entry{Seq: seq, Subject: subject, Event: e, Body: body, foreign: err != nil}
}
