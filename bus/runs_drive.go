// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// DriveRuns drives runs until ctx is done: it lists their tasks, gives them
// out and counts what comes back. Each run is a message of a work queue, so
// that of several drivers one has it, and another one takes it up where it
// stood when that one dies.
func (b *Bus) DriveRuns(ctx context.Context, log *slog.Logger) error {
	cons, err := b.js.CreateOrUpdateConsumer(ctx, streamRuns, jetstream.ConsumerConfig{
		Durable: "runs", FilterSubject: runDrive + "*", AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: handlerAckWait, MaxDeliver: -1, MaxAckPending: 1000,
	})
	if err != nil {
		return fmt.Errorf("open the runs: %w", err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	mine := map[string]bool{}
	err = consume(ctx, cons, func(m jetstream.Msg) {
		mu.Lock()
		defer mu.Unlock()
		// One that comes again although it is in hand was only late with its
		// sign of life; that goes on.
		if mine[m.Subject()] {
			return
		}
		mine[m.Subject()] = true
		wg.Go(func() {
			b.driveRun(ctx, log, m)
			mu.Lock()
			defer mu.Unlock()
			delete(mine, m.Subject())
		})
	})
	wg.Wait()
	return fmt.Errorf("read the runs: %w", err)
}

// driveRun drives one run to its end, or until ctx is done.
func (b *Bus) driveRun(ctx context.Context, log *slog.Logger, m jetstream.Msg) {
	defer keep(m)()
	var r schemas.RunState
	err := json.Unmarshal(m.Data(), &r)
	if err == nil {
		err = r.Check()
	}
	if err == nil && runDrive+r.Run != m.Subject() {
		err = fmt.Errorf("run %s under %s", r.Run, m.Subject())
	}
	if err != nil {
		log.Warn("run refused", "subject", m.Subject(), "error", err)
		b.bury(streamRuns, "runs", m, err)
		return
	}
	log = log.With("run", r.Run)
	d := &runDriver{b: b, log: log, pieces: map[string]*runPiece{}, open: map[string]*openTask{}}
	err = d.run(ctx, r)
	switch {
	case err == nil:
		_ = m.Ack()
	case ctx.Err() != nil:
		_ = m.Nak() // another one may begin at once
	case errors.Is(err, ErrFenced):
		log.Warn("another driver has the run", "error", err)
	default:
		log.Error("drive a run", "error", err)
		_ = m.NakWithDelay(2 * time.Second)
	}
}

// Times of a driver.
const (
	runTick    = 250 * time.Millisecond // between two looks at what is open
	runCheck   = 3 * time.Second        // after which an open task is asked after
	maxRegiven = 3                      // how often a task that was lost is given out again
)

// An openTask is a task of a piece in work that has no answer yet.
type openTask struct {
	ref   schemas.TaskRef
	item  runItem
	piece *runPiece
	given time.Time // zero: waits to be given out
	check time.Time // when to ask after it
	again int
}

// runDriver drives one run. All of it is of one goroutine; what comes from
// others comes by channels.
type runDriver struct {
	b     *Bus
	log   *slog.Logger
	kv    jetstream.KeyValue
	state schemas.RunState
	rev   uint64
	dirty bool

	ended  runCount             // of pieces that have ended
	next   []string             // keys of pieces that are not in work yet
	pieces map[string]*runPiece // in work, by key
	open   map[string]*openTask // by task token
	queue  []*openTask          // of those, what waits to be given out
	due    time.Time            // when the rate permits the next task

	receipts chan schemas.Receipt
	orders   chan *nats.Msg
	broken   chan error
}

func (d *runDriver) run(ctx context.Context, r schemas.RunState) error {
	var err error
	if d.kv, err = d.b.js.KeyValue(ctx, kvRuns); err != nil {
		return fmt.Errorf("open the runs: %w", err)
	}
	if d.rev, err = d.b.runRecord(ctx, r.Run, &d.state); errors.Is(err, ErrNotFound) {
		d.state, err = r, nil
	}
	if err != nil {
		return err
	}
	if d.state.Ended() {
		return nil
	}
	// The answer to an order must not wait for the list.
	d.orders = make(chan *nats.Msg, 16)
	sub, err := d.b.nc.ChanSubscribe(runControlSubject(r.Run), d.orders)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := d.save(ctx); err != nil { // whoever drove it before notices
		return err
	}
	if d.state.State == schemas.RunListing {
		if err := d.list(ctx); err != nil || d.state.Ended() {
			return err
		}
	}
	if err := d.resume(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := d.listen(ctx); err != nil {
		return err
	}
	return d.loop(ctx)
}

// list makes the list. An order that comes meanwhile is heard.
func (d *runDriver) list(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		tasks, analyses int
		err             error
	}
	done := make(chan result, 1)
	run := d.state
	go func() {
		tasks, analyses, err := d.b.list(ctx, &run)
		done <- result{tasks, analyses, err}
	}()
	paused := false
	for {
		select {
		case m := <-d.orders:
			switch string(m.Data) {
			case OrderCancel:
				cancel()
				<-done
				d.state.State = schemas.RunCancelled
				return d.answer(ctx, m, d.save(context.WithoutCancel(ctx)))
			case OrderPause, OrderResume:
				paused = string(m.Data) == OrderPause
				_ = m.Respond([]byte("ok"))
			default:
				_ = m.Respond([]byte("no such order"))
			}
		case r := <-done:
			var refused errRefused
			switch {
			case errors.As(r.err, &refused):
				d.state.State, d.state.Error = schemas.RunFailed, oneLine(r.err.Error())
			case r.err != nil:
				return r.err
			default:
				d.state.State, d.state.Total, d.state.Analyses = schemas.RunRunning, r.tasks, r.analyses
				if paused {
					d.state.State = schemas.RunPaused
				}
			}
			d.log.Info("run listed", "tasks", r.tasks, "analyses", r.analyses)
			return d.save(ctx)
		}
	}
}

// resume takes up the list where it stands.
func (d *runDriver) resume(ctx context.Context) error {
	d.ended, d.next = runCount{}, nil
	err := d.b.pieces(ctx, d.state.Run, func(key string, p *runPiece) error {
		if p.Ended {
			d.ended.add(p.runCount)
		} else {
			d.next = append(d.next, key)
		}
		return nil
	})
	d.count()
	return err
}

// listen follows the run's receipts from now on, and the deletions.
func (d *runDriver) listen(ctx context.Context) error {
	end, err := d.b.logEnd(ctx)
	if err != nil {
		return err
	}
	d.receipts, d.broken = make(chan schemas.Receipt, 256), make(chan error, 1)
	subject := logPrefix + d.state.Tenant + ".*.receipt." + d.state.Run + ".>"
	go func() {
		d.broken <- d.b.follow(ctx, []string{subject}, end+1, nil, func(e Entry) error {
			var r schemas.Receipt
			if e.Event.Decode(&r) != nil {
				return nil
			}
			select {
			case d.receipts <- r:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	return nil
}

func (d *runDriver) loop(ctx context.Context) error {
	tick := time.NewTicker(runTick)
	defer tick.Stop()
	for {
		if err := d.fill(ctx); err != nil {
			return err
		}
		if len(d.open) == 0 && len(d.next) == 0 {
			return d.end(ctx, schemas.RunDone)
		}
		var due <-chan time.Time
		if wait := time.Until(d.due); len(d.queue) > 0 && wait > 0 && d.state.State == schemas.RunRunning {
			due = time.After(wait)
		}
		select {
		case <-ctx.Done():
			_ = d.save(context.WithoutCancel(ctx))
			return ctx.Err()
		case err := <-d.broken:
			return fmt.Errorf("follow the receipts of %s: %w", d.state.Run, err)
		case r := <-d.receipts:
			if err := d.receipt(ctx, &r); err != nil {
				return err
			}
		case m := <-d.orders:
			if ended, err := d.order(ctx, m); ended || err != nil {
				return err
			}
		case <-due:
		case <-tick.C:
			if err := d.tick(ctx); err != nil {
				return err
			}
		}
	}
}

// fill gives out tasks, as many as may be out at a time.
func (d *runDriver) fill(ctx context.Context) error {
	for d.state.State == schemas.RunRunning && len(d.open)-len(d.queue) < d.state.Parallel {
		if len(d.queue) == 0 {
			if len(d.next) == 0 {
				return nil
			}
			key := d.next[0]
			d.next = d.next[1:]
			if err := d.begin(ctx, key); err != nil {
				return err
			}
			continue
		}
		now := time.Now()
		if d.state.Rate > 0 {
			if now.Before(d.due) {
				return nil
			}
			d.due = now.Add(time.Duration(float64(time.Second) / d.state.Rate))
		}
		t := d.queue[0]
		if err := d.give(ctx, t); err != nil {
			return err
		}
		d.queue = d.queue[1:]
		t.given, t.check = now, now.Add(runCheck)
	}
	return nil
}

// begin takes a piece in work: what has a receipt already is counted, the rest
// waits to be given out.
func (d *runDriver) begin(ctx context.Context, key string) error {
	p := new(runPiece)
	if _, err := d.b.runRecord(ctx, key, p); err != nil {
		return err
	}
	p.runCount = runCount{}
	d.pieces[key] = p
	a, there, err := d.b.standing(ctx, d.state.Tenant, p.Analysis)
	if err != nil {
		return err
	}
	if !there {
		p.Gone = len(p.Tasks)
		return d.finish(ctx, p)
	}
	mine := map[string]bool{}
	for _, item := range p.Tasks {
		mine[taskToken(item.ref(d.state.Tenant, p.Analysis, d.state.Run))] = true
	}
	done := map[string]bool{}
	err = d.receiptsOf(ctx, a, p.Analysis, func(r *schemas.Receipt) {
		if token := taskToken(r.Task); mine[token] && !done[token] {
			done[token] = true
			p.answered(r)
		}
	})
	if err != nil {
		return err
	}
	for _, item := range p.Tasks {
		t := &openTask{ref: item.ref(d.state.Tenant, p.Analysis, d.state.Run), item: item, piece: p}
		if token := taskToken(t.ref); !done[token] {
			d.open[token] = t
			d.queue = append(d.queue, t)
		}
	}
	d.count()
	return d.finish(ctx, p)
}

// receiptsOf calls fn with the receipts that the run has of an analysis.
func (d *runDriver) receiptsOf(ctx context.Context, a archived, analysis string, fn func(*schemas.Receipt)) error {
	take := func(e Entry) error {
		var r schemas.Receipt
		if e.Event.Family() == "receipt" && e.Event.Decode(&r) == nil && r.Task.Run == d.state.Run {
			fn(&r)
		}
		return nil
	}
	if a.Archived.After(d.state.Created) { // it may have some of them
		r := &reading{b: d.b, tenant: d.state.Tenant, analysis: analysis, family: "receipt", fn: take}
		return r.run(ctx)
	}
	return d.b.readAll(ctx, []string{logPrefix + d.state.Tenant + "." + analysis + ".receipt." + d.state.Run + ".>"}, 0, 0, take)
}

// give puts a task into the analyzer's queue. It may be there already.
func (d *runDriver) give(ctx context.Context, t *openTask) error {
	id := t.ref.Analysis + "/run/" + t.ref.Run + "/" + t.ref.Analyzer + "/" + t.ref.Token()
	e, err := schemas.NewEvent(t.ref.Tenant, t.ref.Analysis, id, time.Now(), schemas.OriginHost,
		schemas.RunTask{Task: t.ref, Artifact: t.item.Artifact, Force: d.state.Force})
	if err != nil {
		return err
	}
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	err = retry(ctx, func(ctx context.Context) error {
		// No message id: a task that was taken out of the queue must go in again.
		_, err := d.b.js.PublishMsg(ctx, &nats.Msg{Subject: runSubject(t.ref), Data: body},
			jetstream.WithExpectLastSequencePerSubject(0), jetstream.WithRetryAttempts(0))
		return err
	})
	if hasCode(err, codeWrongLastSequence) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("give out a task of %s: %w", d.state.Run, err)
	}
	return nil
}

// receipt counts an answer.
func (d *runDriver) receipt(ctx context.Context, r *schemas.Receipt) error {
	token := taskToken(r.Task)
	t, ok := d.open[token]
	if !ok {
		return nil
	}
	t.piece.answered(r)
	return d.close(ctx, token)
}

// close ends a task, and its piece with the last one.
func (d *runDriver) close(ctx context.Context, token string) error {
	t := d.open[token]
	delete(d.open, token)
	if t.given.IsZero() {
		d.queue = slices.DeleteFunc(d.queue, func(q *openTask) bool { return q == t })
	}
	d.count()
	return d.finish(ctx, t.piece)
}

// finish ends a piece if all of it is answered.
func (d *runDriver) finish(ctx context.Context, p *runPiece) error {
	if p.Done+p.Failed+p.Skipped+p.Gone < len(p.Tasks) {
		return nil
	}
	p.Ended = true
	if err := d.b.writePiece(ctx, d.kv, d.state.Run, p); err != nil {
		return err
	}
	d.ended.add(p.runCount)
	delete(d.pieces, pieceKey(d.state.Run, p.Analysis, p.N))
	d.count()
	return nil
}

// count sums up.
func (d *runDriver) count() {
	sum := d.ended
	for _, p := range d.pieces {
		sum.add(p.runCount)
	}
	s := &d.state
	if was := (runCount{s.Done, s.Failed, s.Skipped, s.Reused, s.Gone}); was != sum {
		s.Done, s.Failed, s.Skipped, s.Reused, s.Gone = sum.Done, sum.Failed, sum.Skipped, sum.Reused, sum.Gone
		s.Waiting = ""
		d.dirty = true
	}
}

// order obeys somebody.
func (d *runDriver) order(ctx context.Context, m *nats.Msg) (ended bool, err error) {
	switch string(m.Data) {
	case OrderPause:
		d.state.State, d.state.Waiting = schemas.RunPaused, ""
		if err := d.drain(ctx); err != nil {
			return false, d.answer(ctx, m, err)
		}
		// Whatever is not in work now is given out again when it goes on. What is
		// in work may be answered meanwhile.
		d.queue = d.queue[:0]
		for _, t := range d.open {
			t.given = time.Time{}
			d.queue = append(d.queue, t)
		}
		return false, d.answer(ctx, m, d.save(ctx))
	case OrderResume:
		d.state.State = schemas.RunRunning
		return false, d.answer(ctx, m, d.save(ctx))
	case OrderCancel:
		return true, d.answer(ctx, m, d.end(ctx, schemas.RunCancelled))
	}
	_ = m.Respond([]byte("no such order"))
	return false, nil
}

// answer tells whoever gave an order how it went.
func (d *runDriver) answer(_ context.Context, m *nats.Msg, err error) error {
	text := "ok"
	if err != nil {
		text = oneLine(err.Error())
	}
	_ = m.Respond([]byte(text))
	return err
}

// drain takes out of the queue what no analyzer has taken.
func (d *runDriver) drain(ctx context.Context) error {
	return retry(ctx, func(ctx context.Context) error {
		st, err := d.b.js.Stream(ctx, streamRuns)
		if err != nil {
			return err
		}
		return st.Purge(ctx, jetstream.WithPurgeSubject(runPrefix+"*."+d.state.Run+".*"))
	})
}

// end ends the run.
func (d *runDriver) end(ctx context.Context, state string) error {
	if err := d.drain(ctx); err != nil {
		return err
	}
	d.state.State, d.state.Waiting = state, ""
	d.log.Info("run ended", "state", state, "total", d.state.Total, "done", d.state.Done, "failed", d.state.Failed, "skipped", d.state.Skipped, "gone", d.state.Gone)
	return d.save(ctx)
}

// save writes the state, unless another driver has written it.
func (d *runDriver) save(ctx context.Context) error {
	d.state.Updated = time.Now().UTC()
	body, err := json.Marshal(d.state)
	if err != nil {
		return err
	}
	err = retry(ctx, func(ctx context.Context) error {
		rev, err := d.kv.Update(ctx, d.state.Run, body, d.rev)
		if err == nil {
			d.rev = rev
		}
		return err
	})
	if hasCode(err, codeWrongLastSequence) {
		// An acknowledgement may have been lost.
		var have schemas.RunState
		rev, rerr := d.b.runRecord(ctx, d.state.Run, &have)
		if rerr == nil && have.Updated.Equal(d.state.Updated) {
			d.rev, err = rev, nil
		} else {
			err = fmt.Errorf("%w: %w", ErrFenced, err)
		}
	}
	if err != nil {
		return fmt.Errorf("write the state of %s: %w", d.state.Run, err)
	}
	d.dirty = false
	return nil
}

// tick asks after tasks that have been out for long, and writes the state.
func (d *runDriver) tick(ctx context.Context) error {
	now := time.Now()
	there := map[string]standing{}
	late := false
	for token, t := range d.open {
		if t.given.IsZero() || now.Before(t.check) {
			continue
		}
		late = true
		t.check = now.Add(max(runCheck, now.Sub(t.given)/2))
		if err := d.ask(ctx, token, t, there); err != nil {
			return err
		}
	}
	if late {
		d.waiting(ctx)
	}
	if d.dirty {
		return d.save(ctx)
	}
	return nil
}

// standing is what [Bus.standing] says.
type standing struct {
	archived
	there bool
}

// ask looks what has become of a task.
func (d *runDriver) ask(ctx context.Context, token string, t *openTask, there map[string]standing) error {
	m, err := d.b.lastMsg(ctx, receiptSubject(t.ref))
	if err == nil {
		var r schemas.Receipt
		e, err := schemas.ParseEvent(m.Data)
		if err == nil {
			err = e.Decode(&r)
		}
		if err != nil {
			return err
		}
		return d.receipt(ctx, &r)
	}
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	a, known := there[t.ref.Analysis]
	if !known {
		have, is, err := d.b.standing(ctx, t.ref.Tenant, t.ref.Analysis)
		if err != nil {
			return err
		}
		a = standing{have, is}
		there[t.ref.Analysis] = a
	}
	if !a.there {
		t.piece.Gone++
		return d.close(ctx, token)
	}
	if a.Archived.After(d.state.Created) {
		var answer *schemas.Receipt
		err := d.receiptsOf(ctx, a.archived, t.ref.Analysis, func(r *schemas.Receipt) {
			if answer == nil && taskToken(r.Task) == token {
				answer = r
			}
		})
		if err != nil {
			return err
		}
		if answer != nil {
			return d.receipt(ctx, answer)
		}
	}
	for stream, subject := range map[string]string{streamRuns: runSubject(t.ref), streamInbox: inboxSubject(t.ref)} {
		if _, err := d.b.lookupIn(ctx, stream, lookup{Last: subject}); err == nil {
			return nil // it waits there
		} else if !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	// It left the queues and has no receipt: its answer was no answer.
	if t.again++; t.again > maxRegiven {
		d.log.Warn("a task is handed in again and again, and never accepted", "analyzer", t.ref.Analyzer, "analysis", t.ref.Analysis)
		t.piece.Failed++
		return d.close(ctx, token)
	}
	return d.give(ctx, t)
}

// waiting says which analyzers there are none of.
func (d *runDriver) waiting(ctx context.Context) {
	alive, err := d.b.Alive(ctx)
	if err != nil {
		return // then nothing is known
	}
	text := ""
	for _, name := range d.state.Analyzers {
		if alive[name] == 0 && slices.ContainsFunc(d.queueOf(), func(a string) bool { return a == name }) {
			text = "analyzer " + name + " is not running"
			break
		}
	}
	if text != d.state.Waiting {
		d.state.Waiting, d.dirty = text, true
	}
}

// queueOf lists the analyzers that have open tasks.
func (d *runDriver) queueOf() []string {
	var out []string
	for _, t := range d.open {
		if !slices.Contains(out, t.ref.Analyzer) {
			out = append(out, t.ref.Analyzer)
		}
	}
	return out
}
