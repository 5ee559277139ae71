// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
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
		pass(m, err)
		return
	}
	log = log.With("run", r.Run)
	err = newRunDriver(b, log).run(ctx, r)
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

	answered uint64 // the sequence in the inbox that its answer is not behind; 0: that was not asked yet
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

	regs    map[string]schemas.Registration // of the run's analyzers, when something was first derived
	derived map[string]*runDerived          // by analysis, of those in work
	step    func(string) error              // of tests: called between two steps; an error is a crash there

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

func newRunDriver(b *Bus, log *slog.Logger) *runDriver {
	return &runDriver{
		b: b, log: log, derived: map[string]*runDerived{}, step: func(string) error { return nil },
		pieces: map[string]*runPiece{}, open: map[string]*openTask{},
	}
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

// listResult is what has come of making the list.
type listResult struct {
	tasks, analyses int
	err             error
}

// list makes the list. An order that comes meanwhile is heard.
func (d *runDriver) list(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	stop := func() {
		cancel()
		wg.Wait()
	}
	defer stop()
	done := make(chan listResult, 1)
	run, revision := d.state, d.rev
	wg.Go(func() {
		tasks, analyses, err := d.b.list(ctx, &run, revision, d.step)
		done <- listResult{tasks, analyses, err}
	})
	return d.whileListing(ctx, done, stop)
}

// whileListing obeys orders until the list is made. stop ends the making of it.
func (d *runDriver) whileListing(ctx context.Context, done <-chan listResult, stop func()) error {
	for {
		select {
		case m := <-d.orders:
			switch string(m.Data) {
			case OrderCancel:
				stop()
				d.state.State = schemas.RunCancelled
				return d.answer(m, d.save(context.WithoutCancel(ctx)))
			case OrderPause, OrderResume:
				// Stored before it is answered: whoever takes the run up if this
				// driver dies must know of it.
				d.state.Hold = string(m.Data) == OrderPause
				if err := d.answer(m, d.save(ctx)); err != nil {
					return err
				}
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
				if d.state.Hold {
					d.state.State = schemas.RunPaused
				}
			}
			d.state.Hold = false
			d.log.Info("run listed", "tasks", r.tasks, "analyses", r.analyses)
			return d.save(ctx)
		}
	}
}

// resume takes up the list where it stands.
func (d *runDriver) resume(ctx context.Context) error {
	d.ended, d.next = runCount{}, nil
	d.state.Total, d.state.Derived = 0, 0 // whoever drove it may have died over what was derived
	err := d.b.pieces(ctx, d.state.Run, func(key string, p *runPiece) error {
		d.state.Total += p.tasks()
		if p.Derived {
			d.state.Derived += p.tasks()
		}
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

// rest takes up what another driver, which was taken for dead and was not, has
// listed meanwhile, and reports whether there is something: it lists what was
// derived before it ends a piece, so that if all are ended and none was added
// while they were read, nothing is left.
func (d *runDriver) rest(ctx context.Context) (bool, error) {
	for {
		before, err := d.b.pieceKeys(ctx, d.state.Run)
		if err != nil {
			return false, err
		}
		clear(d.derived)
		if err := d.resume(ctx); err != nil || len(d.next) > 0 {
			return len(d.next) > 0, err
		}
		after, err := d.b.pieceKeys(ctx, d.state.Run)
		if err != nil || len(after) == len(before) {
			return false, err
		}
	}
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
			if more, err := d.rest(ctx); err != nil {
				return err
			} else if more {
				continue
			}
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

// order obeys somebody.
func (d *runDriver) order(ctx context.Context, m *nats.Msg) (ended bool, err error) {
	switch string(m.Data) {
	case OrderPause:
		d.state.State, d.state.Waiting = schemas.RunPaused, ""
		if err := d.drain(ctx); err != nil {
			return false, d.answer(m, err)
		}
		// Whatever is not in work now is given out again when it goes on. What is
		// in work may be answered meanwhile.
		d.queue = d.queue[:0]
		for _, t := range d.open {
			t.given = time.Time{}
			d.queue = append(d.queue, t)
		}
		return false, d.answer(m, d.save(ctx))
	case OrderResume:
		d.state.State = schemas.RunRunning
		return false, d.answer(m, d.save(ctx))
	case OrderCancel:
		return true, d.answer(m, d.end(ctx, schemas.RunCancelled))
	}
	_ = m.Respond([]byte("no such order"))
	return false, nil
}

// answer tells whoever gave an order how it went.
func (d *runDriver) answer(m *nats.Msg, err error) error {
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
		if !hasCode(err, codeWrongLastSequence) {
			if err == nil {
				d.rev = rev
			}
			return err
		}
		// An acknowledgement may have been lost, and a leader that was cut off
		// refuses too: see [appendLink].
		var have schemas.RunState
		rev, rerr := d.b.runRecord(ctx, d.state.Run, &have)
		switch {
		case rerr != nil && !errors.Is(rerr, ErrNotFound):
			return rerr
		case rerr != nil || rev <= d.rev:
			return passing{err}
		case !have.Updated.Equal(d.state.Updated):
			return ErrFenced
		}
		d.rev = rev
		return nil
	})
	if err != nil {
		return fmt.Errorf("write the state of %s: %w", d.state.Run, err)
	}
	d.dirty = false
	return nil
}
