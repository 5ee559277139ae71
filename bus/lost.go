// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/petri-sandbox/petri/schemas"
)

// lostTask is the answer to a task that was given out too often and never
// answered: whoever took it died of it, or forgot it.
func lostTask(stream, analyzer, subject string, data []byte) (schemas.FinishedTask, error) {
	f := schemas.FinishedTask{
		Instance: "bus", Status: schemas.TaskFailed,
		Error: fmt.Sprintf("poison: given out %d times, and never answered", taskMaxDeliver),
	}
	var err error
	if stream == streamRuns {
		var r schemas.RunTask
		r, err = runTaskOf(analyzer, subject, data)
		f.Task = r.Task
	} else {
		f.Task, _, err = taskOf(analyzer, subject, data)
	}
	return f, err
}

// AnswerLost answers as failed, until ctx is done, what was given out too often:
// its analysis, or its run, must not wait for it. The server's advisory of it is
// the dead letter.
func (b *Bus) AnswerLost(ctx context.Context, log *slog.Logger) error {
	cons, err := b.js.CreateOrUpdateConsumer(ctx, streamDead, jetstream.ConsumerConfig{
		Durable: "lost", FilterSubjects: []string{advisoryExceeded + streamLog + ".*", advisoryExceeded + streamRuns + ".*"},
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: handlerAckWait, MaxDeliver: -1, MaxAckPending: 1,
	})
	if err != nil {
		return fmt.Errorf("follow the dead letters: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := consume(ctx, cons, func(m jetstream.Msg) {
			defer keep(m)()
			if err := b.answerLost(ctx, m.Data()); err != nil {
				if ctx.Err() == nil {
					log.Error("answer a lost task", "error", err)
				}
				_ = m.NakWithDelay(2 * time.Second)
				return
			}
			_ = m.Ack() // if that is lost it is answered again, which is one answer
		}, jetstream.PullMaxMessages(1))
		return fmt.Errorf("follow the dead letters: %w", err)
	})
	g.Go(func() error {
		looked := map[string]uint64{}
		t := time.NewTicker(lostEvery)
		defer t.Stop()
		for {
			for _, stream := range []string{streamLog, streamRuns} {
				if err := b.pullLost(ctx, stream, looked); err != nil && ctx.Err() == nil {
					log.Warn("look for lost tasks", "stream", stream, "error", err)
				}
			}
			select {
			case <-t.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	return g.Wait()
}

// answerLost answers the task that an advisory speaks of.
func (b *Bus) answerLost(ctx context.Context, body []byte) error {
	var a advisory
	if json.Unmarshal(body, &a) != nil {
		return nil // not ours to judge
	}
	analyzer, ok := taskAnalyzer(a.Stream, a.Consumer)
	if !ok {
		return nil
	}
	m, err := b.lookupIn(ctx, a.Stream, lookup{Seq: a.StreamSeq})
	if errors.Is(err, ErrNotFound) {
		return nil // answered, archived or deleted meanwhile: nobody waits for it
	}
	if err != nil {
		return err
	}
	f, err := lostTask(a.Stream, analyzer, m.Subject, m.Data)
	if err != nil {
		return nil // no task, or no event at all
	}
	r, err := b.registration(ctx, analyzer)
	switch {
	case errors.Is(err, ErrNotFound): // it has withdrawn: nobody waits for it, and a run gives it out anew
	case err != nil:
		return err
	default:
		f.Version, f.Rules, f.Config = r.Version, r.Rules, r.Config
		if err := b.Finish(ctx, f); err != nil {
			return err
		}
	}
	if a.Stream == streamLog {
		return nil
	}
	st, err := b.js.Stream(ctx, a.Stream)
	if err != nil {
		return err
	}
	// Only now: until it is handed in, the run must find that it waits.
	if err := st.DeleteMsg(ctx, a.StreamSeq); err != nil && !errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return err
	}
	return nil
}

// taskAnalyzer is the analyzer that a stream's consumer gives tasks to.
func taskAnalyzer(stream, consumer string) (analyzer string, ok bool) {
	name, ok := strings.CutPrefix(consumer, "az-")
	switch {
	case ok && stream == streamLog:
		return strings.CutSuffix(name, "-"+schemas.LiveRun)
	case ok && stream == streamRuns:
		return strings.CutSuffix(name, "-run")
	}
	return "", false
}

// lostEvery is how often it is looked for tasks whose takers have all died.
const lostEvery = TaskAckWait

// pullLost asks once in the place of analyzers that are not there to ask: the
// server may tell of what was given out too often only when somebody asks for
// more. looked has where each consumer stood when that was done last: what such a
// question is given goes back, but has been given out once more, so nothing is
// asked twice.
func (b *Bus) pullLost(ctx context.Context, stream string, looked map[string]uint64) error {
	alive, err := b.Alive(ctx)
	if err != nil {
		return err
	}
	st, err := b.js.Stream(ctx, stream)
	if err != nil {
		return err
	}
	list := st.ListConsumers(ctx)
	for info := range list.Info() {
		analyzer, ok := taskAnalyzer(stream, info.Name)
		if !ok || alive[analyzer] > 0 || !forsaken(info, time.Now()) || looked[info.Name] == info.Delivered.Consumer {
			continue
		}
		cons, err := b.js.Consumer(ctx, stream, info.Name)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		// What was given out before comes first, so as many are enough.
		batch, err := cons.FetchNoWait(info.NumRedelivered)
		if err != nil {
			return err
		}
		var back []jetstream.Msg
		for m := range batch.Messages() {
			back = append(back, m)
		}
		for _, m := range back { // only now: none comes twice
			_ = m.Nak()
		}
		if now, err := cons.Info(ctx); err == nil {
			looked[info.Name] = now.Delivered.Consumer
		}
	}
	return list.Err()
}

// forsaken reports whether a consumer has given out again what nobody has
// answered, the time of the last who took it is up, and nobody asks for more.
func forsaken(info *jetstream.ConsumerInfo, now time.Time) bool {
	return info.NumRedelivered > 0 && info.NumWaiting == 0 && info.Delivered.Last != nil && now.Sub(*info.Delivered.Last) > TaskAckWait*3/2
}
