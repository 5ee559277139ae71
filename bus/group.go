// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// A group stores what many have to write as few batches: whatever has come
// while a batch was on its way goes into the next one, so that whoever comes
// alone waits for nobody and a flood shares what a batch costs. It is safe for
// concurrent use while its run runs.
type group struct {
	b     groupLog
	work  chan *groupTask
	ended chan struct{} // closed when run has ended
}

// groupLog is what a group needs of the log.
type groupLog interface {
	lastMsg(ctx context.Context, subject string) (*jetstream.RawStreamMsg, error)
	// foreignAt is where the last message of a subject lies that has only foreign
	// ones, or 0.
	foreignAt(ctx context.Context, subject string) (seq uint64, err error)
	publishOne(ctx context.Context, m batchMsg) (seq uint64, err error)
	publishBatch(ctx context.Context, msgs []batchMsg) (seq uint64, err error)
}

// groupBytes bounds a batch of more than one task.
const groupBytes = 8 << 20

// groupTask is what is to be stored together.
type groupTask struct {
	receipt string // subject of the last message, if that it is there says that all are
	msgs    []batchMsg
	size    int
	done    chan groupResult // has room for the result
}

type groupResult struct {
	seq uint64 // of the last message, or of something right behind it
	err error
}

func newGroup(b groupLog) *group {
	return &group{b: b, work: make(chan *groupTask, clerkParallel), ended: make(chan struct{})}
}

// errConflict says that a subject that was to be new was taken meanwhile.
var errConflict = errors.New("the same has been stored meanwhile")

// commit stores the messages of a task, all or none, and returns where its
// receipt lies. That the receipt is there already is no error: then so is the
// rest. If something else was there it returns [errConflict].
func (g *group) commit(ctx context.Context, t schemas.TaskRef, msgs []batchMsg) (uint64, error) {
	return g.put(ctx, &groupTask{receipt: receiptSubject(t), msgs: msgs})
}

// publish stores one message. If it was to be its subject's first, and was not,
// it returns [errConflict].
func (g *group) publish(ctx context.Context, m batchMsg) error {
	_, err := g.put(ctx, &groupTask{msgs: []batchMsg{m}})
	return err
}

func (g *group) put(ctx context.Context, w *groupTask) (uint64, error) {
	w.done = make(chan groupResult, 1)
	for _, m := range w.msgs {
		w.size += len(m.body)
	}
	select {
	case g.work <- w:
	case <-g.ended:
		return 0, nats.ErrConnectionClosed
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	select {
	case r := <-w.done:
		return r.seq, r.err
	case <-g.ended:
		return 0, nats.ErrConnectionClosed
	case <-ctx.Done(): // it may be stored or not: who comes after finds out
		return 0, ctx.Err()
	}
}

// run commits until ctx is done. It is called once.
func (g *group) run(ctx context.Context) {
	defer close(g.ended)
	var next *groupTask // did not fit into the last batch
	for {
		if next == nil {
			select {
			case next = <-g.work:
			case <-ctx.Done():
				return
			}
		}
		tasks, msgs, size := []*groupTask{next}, len(next.msgs), next.size
		next = nil
		for more := true; more && next == nil; {
			select {
			case w := <-g.work:
				if msgs+len(w.msgs) > maxBatch || size+w.size > groupBytes {
					next = w
					break
				}
				tasks, msgs, size = append(tasks, w), msgs+len(w.msgs), size+w.size
			default:
				more = false
			}
		}
		g.write(ctx, tasks)
	}
}

// write stores tasks as one. If the server refuses that, it looks for those to
// blame: no task is held up by another.
func (g *group) write(ctx context.Context, tasks []*groupTask) {
	seq, err := g.store(ctx, tasks)
	switch {
	case err == nil:
		finishAll(tasks, groupResult{seq: seq})
	case hasCode(err, codeWrongLastSequence):
		rest := g.receipts(ctx, tasks)
		switch {
		case len(rest) == 0:
		case len(rest) < len(tasks):
			g.write(ctx, rest)
		case len(tasks) > 1:
			g.halves(ctx, tasks)
		default:
			passed, err := g.pass(ctx, tasks[0])
			switch {
			case err != nil:
				finishAll(tasks, groupResult{err: err})
			case passed:
				g.write(ctx, tasks)
			default:
				finishAll(tasks, groupResult{err: errConflict})
			}
		}
	case len(tasks) > 1 && blames(err):
		g.halves(ctx, tasks)
	default:
		finishAll(tasks, groupResult{err: err})
	}
}

// pass puts the messages of a task behind foreign ones that hold their places,
// and reports whether there were any that it had not seen.
func (g *group) pass(ctx context.Context, w *groupTask) (passed bool, err error) {
	for i := range w.msgs {
		m := &w.msgs[i]
		if !m.first {
			continue
		}
		seq, err := g.b.foreignAt(ctx, m.subject)
		if err != nil {
			return false, err
		}
		passed = passed || seq > m.foreign
		m.foreign = seq
	}
	return passed, nil
}

func finishAll(tasks []*groupTask, r groupResult) {
	for _, w := range tasks {
		w.done <- r
	}
}

func (g *group) halves(ctx context.Context, tasks []*groupTask) {
	g.write(ctx, tasks[:len(tasks)/2])
	g.write(ctx, tasks[len(tasks)/2:])
}

// blames reports whether an error may be the fault of one message among many:
// not that the log is full, or away.
func blames(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, ErrDenied) || overshare(err) || errors.As(err, &api) && !transient(err) && api.ErrorCode != codeMaxMessages && api.Code != 503
}

// store is one attempt at a batch.
func (g *group) store(ctx context.Context, tasks []*groupTask) (seq uint64, err error) {
	var msgs []batchMsg
	for _, w := range tasks {
		msgs = append(msgs, w.msgs...)
	}
	if len(msgs) == 1 { // a batch of one costs several times as much
		return g.b.publishOne(ctx, msgs[0])
	}
	if len(tasks) > 1 {
		return g.b.publishBatch(ctx, msgs)
	}
	// No message of one task is in another's way: if one is in flight, that is
	// somebody else's.
	err = retry(ctx, func(ctx context.Context) error {
		seq, err = g.b.publishBatch(ctx, msgs)
		return ofOne(err)
	})
	return seq, err
}

// receipts finishes the tasks that have their receipt and returns the others.
func (g *group) receipts(ctx context.Context, tasks []*groupTask) []*groupTask {
	results := make([]groupResult, len(tasks))
	var wg sync.WaitGroup
	for i, w := range tasks {
		if w.receipt == "" {
			results[i].err = ErrNotFound
			continue
		}
		wg.Go(func() {
			m, err := g.b.lastMsg(ctx, w.receipt)
			if err != nil {
				results[i].err = err
				return
			}
			results[i].seq = m.Sequence
		})
	}
	wg.Wait()
	var rest []*groupTask
	for i, w := range tasks {
		if errors.Is(results[i].err, ErrNotFound) {
			rest = append(rest, w)
			continue
		}
		w.done <- results[i]
	}
	return rest
}
