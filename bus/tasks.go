// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// A Task is what an analyzer owes, as it was given out to this process.
type Task struct {
	Ref      schemas.TaskRef
	Artifact *schemas.Artifact // none for a task over the analysis
	Attempt  int               // this is the n-th, from 1, of those that were begun and not given back

	Force     bool               // do the work, whatever earlier receipts answer
	Artifacts []schemas.Artifact // of a task over the analysis: what it has announced so far, each once
	Omitted   int                // artifacts that are not among these, because they are too many
	b         *Bus
	msg       jetstream.Msg
	delivered int // so often was it given out
}

// Keep says that the task is in work. It must be called every few seconds.
func (t *Task) Keep() error { return t.msg.InProgress() }

// Done says that the task has been handed in. If that is lost the task is given
// out again, and found to be answered.
func (t *Task) Done() error { return t.msg.Ack() }

// Retry gives the task back, to be tried again: this has been an attempt.
func (t *Task) Retry(after time.Duration) error { return t.msg.NakWithDelay(after) }

// NextTask waits for a task of a registered analyzer: one of an analysis that
// goes on, or, if there is none, one of a run. A task whose receipt the log has
// already is not given out. Nothing is fetched ahead: what waits in a client is
// given to somebody else when its time is up.
func (b *Bus) NextTask(ctx context.Context, analyzer string) (*Task, error) {
	tasks, err := b.NextTasks(ctx, analyzer, 1)
	if err != nil {
		return nil, err
	}
	return tasks[0], nil
}

// Idle times of an analyzer that waits for a live task, after which it looks
// for one of a run: the longer when there has been none lately.
const (
	idleRun  = 100 * time.Millisecond
	idleLive = time.Second
)

// NextTasks is NextTask for whoever can work on several tasks at once: it waits
// for one and returns at most n, those that are there.
func (b *Bus) NextTasks(ctx context.Context, analyzer string, n int) ([]*Task, error) {
	if err := schemas.CheckAnalyzer(analyzer); err != nil {
		return nil, err
	}
	live, err := b.consumer(ctx, streamLog, liveConsumerName(analyzer))
	if err != nil {
		return nil, fmt.Errorf("take a task of %s: %w", analyzer, err)
	}
	runs, err := b.consumer(ctx, streamRuns, runConsumerName(analyzer))
	if err != nil {
		return nil, fmt.Errorf("take a task of %s: %w", analyzer, err)
	}
	liveTask := func(m jetstream.Msg) *Task { return b.task(ctx, analyzer, m) }
	runTask := func(m jetstream.Msg) *Task { return b.runTask(ctx, analyzer, m) }
	for idle := idleRun; ; idle = min(2*idle, idleLive) {
		// First what is there, of analyses before runs, then what comes.
		tasks, err := fetchTasks(liveTask)(live.FetchNoWait(n))
		if len(tasks) == 0 && err == nil {
			tasks, err = fetchTasks(runTask)(runs.FetchNoWait(n))
		}
		if len(tasks) == 0 && err == nil && ctx.Err() == nil {
			tasks, err = fetchTasks(liveTask)(live.Fetch(1, jetstream.FetchContext(expiring{ctx, time.Now().Add(idle)})))
		}
		if len(tasks) > 0 {
			return tasks, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			b.forget(streamLog, liveConsumerName(analyzer)) // it may have been made anew
			b.forget(streamRuns, runConsumerName(analyzer))
			return nil, fmt.Errorf("take a task of %s: %w", analyzer, err)
		}
	}
}

// expiring is a context for a fetch that the server ends, a tenth of the time
// before the deadline. With a deadline of its own the client would be gone by
// then if the server is slow, and the message that it had been sent would wait
// for [TaskAckWait] until it is given out again. As it is it hears the server out,
// for another second.
type expiring struct {
	context.Context
	at time.Time
}

// Deadline implements [context.Context].
func (e expiring) Deadline() (time.Time, bool) { return e.at, true }

// fetchTasks reads the messages of a batch as tasks.
func fetchTasks(read func(jetstream.Msg) *Task) func(jetstream.MessageBatch, error) ([]*Task, error) {
	return func(batch jetstream.MessageBatch, err error) ([]*Task, error) {
		var tasks []*Task
		if err == nil {
			for m := range batch.Messages() {
				if t := read(m); t != nil {
					tasks = append(tasks, t)
				}
			}
			err = batch.Error()
		}
		if errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			err = nil // there was nothing
		}
		return tasks, err
	}
}

// taskOf reads an event of the log as what an analyzer owes for it.
func taskOf(analyzer, subject string, data []byte) (schemas.TaskRef, *schemas.Artifact, error) {
	tenant, analysis, family, _, ok := analysisOf(subject)
	t := schemas.TaskRef{Tenant: tenant, Analysis: analysis, Run: schemas.LiveRun, Analyzer: analyzer}
	e, err := own(subject, data)
	if err == nil && !ok {
		err = fmt.Errorf("subject %q is no analysis'", subject)
	}
	if err != nil || family != "artifact" {
		return t, nil, err
	}
	a := new(schemas.Artifact)
	if err := e.Decode(a); err != nil {
		return t, nil, err
	}
	t.SHA256, t.Kind = &a.SHA256, a.Kind
	return t, a, nil
}

// task reads a message as a task. nil means that there is nothing to do.
func (b *Bus) task(ctx context.Context, analyzer string, m jetstream.Msg) *Task {
	ref, a, err := taskOf(analyzer, m.Subject(), m.Data())
	if err != nil {
		pass(m, err)
		return nil
	}
	t := &Task{Ref: ref, Artifact: a, b: b, msg: m, delivered: int(deliveries(m))}
	// Only another occurrence of the same bytes, or a repetition, may have been
	// answered; and if a first one has, the clerk's guard bears a second answer.
	if t.delivered > 1 || t.Artifact != nil && t.Artifact.Occurrence > 0 {
		if _, err := b.lastMsg(ctx, receiptSubject(t.Ref)); err == nil {
			_ = m.Ack()
			return nil
		}
	}
	if t.Ref.SHA256 == nil && !b.ready(ctx, t) {
		return nil
	}
	b.countAttempts(ctx, t)
	return t
}

// Upload stores bytes for the clerk to verify.
func (b *Bus) Upload(ctx context.Context, analyzer string, kind schemas.Kind, r io.Reader) (schemas.Digest, int64, error) {
	if err := schemas.CheckAnalyzer(analyzer); err != nil {
		return schemas.Digest{}, 0, err
	}
	return b.uploads(analyzer).Put(ctx, kind, r)
}

// maxFinished is what the server takes of a finished task, with room for headers.
const maxFinished = MaxPayload - 4<<10

// finishedMsg is what is handed in as a finished task.
func finishedMsg(f schemas.FinishedTask) (batchMsg, error) {
	id := taskToken(f.Task) + "/" + f.Instance
	if f.Reuse != nil { // the same instance may have to do the work after all
		id += "/reuse"
	}
	e, err := schemas.NewEvent(f.Task.Tenant, f.Task.Analysis, id, time.Now(), schemas.OriginHost, f)
	if err != nil {
		return batchMsg{}, err
	}
	m, err := newBatchMsg(inboxSubject(f.Task), e, false)
	if err == nil && len(m.body) > maxFinished {
		err = fmt.Errorf("%d bytes, more than %d", len(m.body), maxFinished)
	}
	m.once = true
	return m, err
}

// Finish hands a finished task in. It is safe to repeat.
func (b *Bus) Finish(ctx context.Context, f schemas.FinishedTask) error {
	m, err := finishedMsg(f)
	if err == nil {
		err = retryFor(ctx, patience, func(ctx context.Context) error {
			err := b.answers.publish(ctx, m)
			if overshare(err) {
				err = fmt.Errorf("%d answers of %s wait for the clerk already (is petri bus run up, and not busy with others?): %w", maxAnswers, f.Task.Analyzer, err)
			}
			if hasCode(err, codeMaxMessages) { // the clerk empties the inbox
				return passing{err}
			}
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("hand in %s: %w", f.Task.Analyzer, err)
	}
	return nil
}
