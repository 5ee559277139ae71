// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// A Gap is what a live feed has missed, because it was slow or had no connection,
// or has left out.
type Gap struct {
	// Events of the log did not come. They were read from the log instead, and
	// are given next: nothing is lost.
	Events uint64
	// Foreign messages were in the log, and are no events: they were left out.
	Foreign uint64
	// Behavior events of the analysis did not come, and cannot be had any more.
	// The trace has what they showed.
	Behavior uint64
	Analysis string
}

// A Feed takes what happens. An error of either function ends the feeding.
type Feed struct {
	Event func(schemas.Event) error
	Gap   func(Gap) error // before the event at which it was noticed; nil: nobody wants to know
}

func (f *Feed) gap(g Gap) error {
	if f.Gap == nil {
		return nil
	}
	return f.Gap(g)
}

const (
	liveQueue = 4096        // messages that may wait for whoever takes a feed
	liveIdle  = time.Second // of silence, after which the log is asked whether there was something
)

// Live gives everything of a tenant as it happens, from now on, until ctx is
// done: the log's events, each once and in order, and the behaviour that
// arrives. It listens to live.petri.<tenant>.>, where whoever is slow or loses
// the connection misses messages. Missing events of the log show in the header
// Nats-Sequence and are read from the log; missing behaviour shows in its
// numbers and is counted.
func (b *Bus) Live(ctx context.Context, tenant string, feed Feed) error {
	if err := schemas.CheckTenant(tenant); err != nil {
		return err
	}
	l := &liveFeed{b: b, feed: feed, subject: logPrefix + tenant + ".>", behavior: behaviorCount{}}
	ctx, done := b.denied.watch(ctx, livePrefix+l.subject)
	defer done()
	msgs := make(chan *nats.Msg, liveQueue)
	sub, err := b.nc.ChanSubscribe(livePrefix+l.subject, msgs)
	if err != nil {
		return fmt.Errorf("listen to %s: %w", livePrefix+l.subject, err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := b.nc.FlushTimeout(flushTime); err != nil {
		return fmt.Errorf("listen to %s: %w", livePrefix+l.subject, err)
	}
	// Now is here: from the log's end on everything comes, or is missed.
	last, err := b.endOf(ctx, l.subject)
	if err == nil {
		l.last = last.Sequence
	} else if !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("look at the log's end: %w", err)
	}
	idle := time.NewTimer(liveIdle)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return deniedOr(ctx, ctx.Err())
		case m := <-msgs:
			err = l.take(ctx, m)
		case <-idle.C:
			err = l.tail(ctx)
		}
		if err != nil {
			return deniedOr(ctx, err)
		}
		idle.Reset(liveIdle)
	}
}

// flushTime is how long the server may take to know of a subscription.
const flushTime = 10 * time.Second

// A liveFeed is what [Bus.Live] knows between two messages.
type liveFeed struct {
	b        *Bus
	feed     Feed
	subject  string // of the tenant, in the log
	last     uint64 // sequence up to which everything has been given
	behavior behaviorCount
}

func (l *liveFeed) take(ctx context.Context, m *nats.Msg) error {
	text := m.Header.Get(jetstream.SequenceHeader)
	if text == "" {
		e, err := schemas.ParseEvent(m.Data)
		if err != nil || e.Family() != "behavior" {
			return nil // no event of ours: anybody may publish to a live subject
		}
		return l.behavior.give(e, l.feed)
	}
	e, err := own(strings.TrimPrefix(m.Subject, livePrefix), m.Data)
	if err != nil {
		return nil // if it is in the log, it shows there before what comes next
	}
	seq, err := strconv.ParseUint(text, 10, 64)
	if err != nil || seq <= l.last {
		return nil // it was read from the log
	}
	if seq > l.last+1 {
		// The tenant's own, or somebody else's: only the log knows.
		if err := l.fill(ctx, seq); err != nil {
			return err
		}
		if seq <= l.last {
			return nil
		}
	}
	l.last = seq
	return l.give(e)
}

func (l *liveFeed) give(e schemas.Event) error {
	l.behavior.note(e)
	return l.feed.Event(e)
}

// fill gives what the log has behind the last event up to a sequence, if that
// is more than what has that sequence.
func (l *liveFeed) fill(ctx context.Context, to uint64) error {
	next, err := l.b.lookupIn(ctx, streamLog, lookup{Next: l.subject, Seq: l.last + 1})
	if errors.Is(err, ErrNotFound) {
		return nil // it was deleted meanwhile
	}
	if err != nil {
		return fmt.Errorf("look for what the live feed missed: %w", err)
	}
	if next.Sequence >= to {
		return nil
	}
	return l.catchUp(ctx, to)
}

// catchUp reads the log from behind the last event up to a sequence. The events
// are counted before they are given, so that whoever takes the feed knows what
// they are.
func (l *liveFeed) catchUp(ctx context.Context, to uint64) error {
	err := l.b.batches(ctx, []string{l.subject}, l.last+1, func(batch []Entry, pending uint64) error {
		var missed Gap
		for _, e := range batch {
			switch {
			case e.foreign:
				missed.Foreign++
			case e.Seq < to:
				missed.Events++
			}
		}
		if missed != (Gap{}) {
			if err := l.feed.gap(missed); err != nil {
				return err
			}
		}
		for _, e := range batch {
			l.last = e.Seq
			if e.foreign {
				continue
			}
			if err := l.give(e.Event); err != nil {
				return err
			}
		}
		// Nothing more: what had that sequence is deleted.
		if l.last >= to || pending == 0 || pending == nobodyKnows {
			return ErrStop
		}
		return nil
	})
	if errors.Is(err, ErrStop) {
		return nil
	}
	return err
}

// tail looks in a silence whether the last of what happened did not come. A
// server that does not answer is asked again after the next silence.
func (l *liveFeed) tail(ctx context.Context) error {
	if l.b.Away() > 0 {
		return nil
	}
	last, err := l.b.endOf(ctx, l.subject)
	if err != nil || last.Sequence <= l.last {
		return ctx.Err()
	}
	return l.catchUp(ctx, last.Sequence+1)
}

// behaviorCount is the number of the last behaviour event that was given, by
// analysis.
type behaviorCount map[string]uint64

// maxCounted bounds the analyses whose behaviour is counted at once. What ends
// is forgotten; this is for what never does.
const maxCounted = 10_000

// give passes a behaviour event on, and tells before it how many are missing
// since the last. What came before the first is no gap: nobody listened.
func (c behaviorCount) give(e schemas.Event, feed Feed) error {
	var b schemas.Behavior
	if e.Decode(&b) == nil && b.Number > 0 {
		last, known := c[e.Analysis]
		if known || len(c) < maxCounted {
			c[e.Analysis] = b.Number
		}
		if known && b.Number > last+1 {
			if err := feed.gap(Gap{Behavior: b.Number - last - 1, Analysis: e.Analysis}); err != nil {
				return err
			}
		}
	}
	return feed.Event(e)
}

// note forgets an analysis that has come to its analyzers: it has no behaviour
// any more.
func (c behaviorCount) note(e schemas.Event) {
	if e.Family() == "context" && (schemas.Ending(e.Name()) || e.Name() == schemas.EventStartAnalysis) {
		delete(c, e.Analysis)
	}
}

// Watch gives everything about an analysis: its log from the beginning, and its
// live behaviour from now on. The log is complete and in order; of the behaviour
// only what arrives, and how much did not. It returns after the analysis'
// ending, or when a function of the feed returns an error or ctx is done.
func (b *Bus) Watch(ctx context.Context, tenant, analysis string, feed Feed) error {
	if err := checkTokens(tenant, analysis); err != nil {
		return err
	}
	behavior := strings.TrimSuffix(LiveSubject(tenant, analysis), ">") + "behavior.>"
	ctx, done := b.denied.watch(ctx, behavior)
	defer done()
	// The behaviour comes on a core subject, in the client's own order; a
	// reader that is slow loses some of it, as everybody does.
	live := make(chan *nats.Msg, liveQueue)
	sub, err := b.nc.ChanSubscribe(behavior, live)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }()
	logged := make(chan schemas.Event)
	strange := make(chan Gap)
	end := make(chan error, 1)
	r := &reading{b: b, tenant: tenant, analysis: analysis, follow: true, fn: func(e Entry) error {
		select {
		case logged <- e.Event:
		case <-ctx.Done():
			return ctx.Err()
		}
		if e.Event.Family() == "context" && schemas.Ending(e.Event.Name()) {
			return ErrStop
		}
		return nil
	}, stranger: func() {
		select {
		case strange <- Gap{Foreign: 1}:
		case <-ctx.Done():
		}
	}}
	go func() { end <- r.run(ctx) }()
	count := behaviorCount{}
	for {
		select {
		case e := <-logged:
			if err := feed.Event(e); err != nil {
				return err
			}
		case g := <-strange:
			if err := feed.gap(g); err != nil {
				return err
			}
		case m := <-live:
			e, err := schemas.ParseEvent(m.Data)
			if err != nil {
				continue
			}
			if err := count.give(e, feed); err != nil {
				return err
			}
		case err := <-end:
			if errors.Is(err, ErrStop) {
				err = nil
			}
			return deniedOr(ctx, err)
		}
	}
}
