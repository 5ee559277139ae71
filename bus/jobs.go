// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// Submit puts a submission into the queue. The store must have its sample. A
// full queue gives a [BusyError], a full server an error that wraps [ErrFull].
func (b *Bus) Submit(ctx context.Context, s schemas.Submission) error {
	if err := checkSubmission(&s); err != nil {
		return err
	}
	if room, err := b.Room(ctx); err == nil { // else the queue itself will have an answer, or none
		if err := room.Err(); err != nil {
			return err
		}
	}
	e, err := schemas.NewEvent(s.Tenant, s.ID, s.ID+"/job", s.Submitted, schemas.OriginHost, s)
	if err != nil {
		return err
	}
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	subject := jobSubject(s.Tenant, s.Profile, priority(&s))
	err = retry(ctx, func(ctx context.Context) error {
		_, err := b.js.PublishMsg(ctx, &nats.Msg{Subject: subject, Data: body},
			jetstream.WithMsgID("job:"+s.ID), jetstream.WithRetryAttempts(0))
		return err
	})
	if hasCode(err, codeMaxMessages) {
		return b.busy(ctx)
	}
	if err != nil {
		return fmt.Errorf("submit: %w", err)
	}
	return nil
}

// checkSubmission reports why a submission cannot be queued.
func checkSubmission(s *schemas.Submission) error {
	if err := checkTokens(s.Tenant, s.ID); err != nil {
		return err
	}
	if err := schemas.CheckProfile(s.Profile); err != nil {
		return err
	}
	if p := priority(s); !slices.Contains(priorities, p) {
		return fmt.Errorf("priority %q is none of %s", p, strings.Join(priorities, ", "))
	}
	return nil
}

func priority(s *schemas.Submission) string { return cmp.Or(s.Options.Priority, "normal") }

// Bounds of when to come again. The least is what a machine takes at best.
const (
	minRetry = time.Second
	maxRetry = 5 * time.Minute
)

// busy says when there should be room in the full queue. The oldest job tells
// how fast jobs go: as many as there are came after it, and since the queue is
// full as many went meanwhile.
func (b *Bus) busy(ctx context.Context) error {
	e := &BusyError{Retry: minRetry}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	st, err := b.js.Stream(ctx, streamJobs)
	if err != nil { // not everybody who may submit may ask
		return e
	}
	s := st.CachedInfo().State
	if e.Waiting = s.Msgs; s.Msgs > 0 {
		each := max(0, time.Since(s.FirstTime)) / time.Duration(s.Msgs)
		e.Retry = min(max(each, minRetry), maxRetry).Round(time.Second)
	}
	return e
}

// A Job is a submission that this sandbox has claimed. The claim lasts as long
// as [Job.Keep] is called often enough.
type Job struct {
	Submission schemas.Submission
	msg        jetstream.Msg
}

// jobAckWait is how long a claim lasts without a sign of life.
const jobAckWait = 60 * time.Second

// Keep extends the claim.
func (j *Job) Keep() error { return j.msg.InProgress() }

// Done takes the job out of the queue for good. It waits until the server has
// said so.
func (j *Job) Done(ctx context.Context) error {
	return retry(ctx, func(ctx context.Context) error { return j.msg.DoubleAck(ctx) })
}

// Release gives the job back, to be claimed again after a while.
func (j *Job) Release(after time.Duration) error { return j.msg.NakWithDelay(after) }

// ReleaseToken lets a later process give the job back, if this one dies.
func (j *Job) ReleaseToken() string { return j.msg.Reply() }

// ReleaseByToken gives a dead process' job back at once.
func (b *Bus) ReleaseByToken(token string) error {
	if !strings.HasPrefix(token, "$JS.ACK."+streamJobs+".") {
		return fmt.Errorf("%q is no job's token", token)
	}
	return b.nc.Publish(token, []byte("-NAK"))
}

// A Queue gives out the jobs of some profiles.
type Queue struct {
	b         *Bus
	consumers []jetstream.Consumer // in the order of service
}

// Queue opens the queue of the profiles that a sandbox can run.
func (b *Bus) Queue(ctx context.Context, profiles []string) (*Queue, error) {
	q := &Queue{b: b}
	for _, prio := range priorities {
		for _, p := range profiles {
			if err := schemas.CheckProfile(p); err != nil {
				return nil, err
			}
			// A job that kills its sandbox comes back for ever; the number of
			// its attempts in the log ends that, not the server's count.
			c, err := b.js.CreateOrUpdateConsumer(ctx, streamJobs, jetstream.ConsumerConfig{
				Durable: "sbx-" + p + "-" + prio, FilterSubject: jobSubject("*", p, prio),
				AckPolicy: jetstream.AckExplicitPolicy, AckWait: jobAckWait, MaxDeliver: -1, MaxAckPending: 10_000,
			})
			if err != nil {
				return nil, fmt.Errorf("open the queue %s: %w", jobSubject("*", p, prio), err)
			}
			q.consumers = append(q.consumers, c)
		}
	}
	return q, nil
}

// Claim waits for the next job, the most urgent first.
func (q *Queue) Claim(ctx context.Context) (*Job, error) {
	for {
		for _, c := range q.consumers {
			batch, err := c.FetchNoWait(1)
			if err != nil {
				return nil, fmt.Errorf("claim a job: %w", err)
			}
			for m := range batch.Messages() {
				if j := q.take(m); j != nil {
					return j, nil
				}
			}
		}
		if err := q.idle(ctx); err != nil {
			return nil, err
		}
	}
}

// idle waits until a queue may have something. The server has no way to say
// "one job from any of these": each queue is asked, and whatever comes is given
// back to be claimed in the right order.
func (q *Queue) idle(parent context.Context) error {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	woken := make(chan error, len(q.consumers))
	for _, c := range q.consumers {
		go func() { woken <- wake(ctx, c) }()
	}
	first := <-woken
	cancel()
	for range len(q.consumers) - 1 {
		<-woken
	}
	if parent.Err() != nil {
		return parent.Err()
	}
	return first
}

// wake returns when a queue has something, or ctx is done. Until then it listens
// to the last: what the server has sent already, and nobody takes, nobody else
// would be given for [jobAckWait].
func wake(ctx context.Context, c jetstream.Consumer) error {
	it, err := c.Messages(jetstream.PullMaxMessages(1), jetstream.PullHeartbeat(pullHeartbeat))
	if err != nil {
		return fmt.Errorf("wait for a job: %w", err)
	}
	defer it.Stop()
	defer context.AfterFunc(ctx, it.Drain)()
	for {
		m, err := it.Next()
		switch {
		case errors.Is(err, jetstream.ErrMsgIteratorClosed), errors.Is(err, jetstream.ErrNoHeartbeat):
			return nil // who waits asks again, and hears then what is wrong
		case err != nil:
			return fmt.Errorf("wait for a job: %w", err)
		}
		it.Drain() // before it is given out again, and comes here
		_ = m.Nak()
	}
}

// take reads a job; one that cannot be read is dead.
func (q *Queue) take(m jetstream.Msg) *Job {
	e, err := schemas.ParseEvent(m.Data())
	j := &Job{msg: m}
	if err == nil {
		err = e.Decode(&j.Submission)
	}
	if err == nil {
		err = checkTokens(j.Submission.Tenant, j.Submission.ID)
	}
	// The server has checked the subject, and nobody the body.
	if err == nil && strings.SplitN(m.Subject(), ".", 3)[1] != j.Submission.Tenant {
		err = fmt.Errorf("a submission for tenant %s on %s", j.Submission.Tenant, m.Subject())
	}
	if err != nil {
		q.b.bury(streamJobs, "jobs", m, err)
		return nil
	}
	return j
}

// buried is what the server says of a message that [Bus.bury] has ended: its
// letter is there already.
const buried = "moved to the dead letters: "

// bury moves a message that nobody can use to the dead letters.
func (b *Bus) bury(stream, consumer string, m jetstream.Msg, why error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	dead := &nats.Msg{Subject: deadSubject(stream, consumer), Data: m.Data(), Header: nats.Header{
		"Petri-Subject": []string{m.Subject()}, "Petri-Error": []string{oneLine(why.Error())},
	}}
	if n := len(dead.Data); n > maxLetter {
		dead.Data = dead.Data[:maxLetter]
		dead.Header["Petri-Size"] = []string{strconv.Itoa(n)}
	}
	opts := []jetstream.PublishOpt{jetstream.WithRetryAttempts(0)}
	if md, err := m.Metadata(); err == nil { // it may come again with what it shares a message with
		opts = append(opts, jetstream.WithMsgID(fmt.Sprintf("%s/%d/%s", stream, md.Sequence.Stream, schemas.Sum(m.Data()).Token())))
	}
	err := retry(ctx, func(ctx context.Context) error {
		_, err := b.js.PublishMsg(ctx, dead, opts...)
		return err
	})
	if err != nil {
		_ = m.NakWithDelay(5 * time.Second)
		return
	}
	_ = m.TermWithReason(oneLine(buried + why.Error()))
}

// pass ends the delivery of a message of the log, or of the queue of runs, that
// is not what its subject says. The server's advisory of it is the dead letter:
// not everybody who is given such messages may write one.
func pass(m jetstream.Msg, why error) { _ = m.TermWithReason(oneLine(why.Error())) }

// oneLine makes an error fit for a header.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, s)
	return clipString(s, 500)
}

// A QueuedJob is a submission that nobody has claimed, or that is in work.
type QueuedJob struct {
	Submission schemas.Submission
	seq        uint64
}

// Queued calls fn with the submissions in the queue, also those in work, in
// the order in which they came.
func (b *Bus) Queued(ctx context.Context, fn func(QueuedJob) error) error {
	st, err := b.js.Stream(ctx, streamJobs)
	if err != nil {
		return err
	}
	for next := uint64(1); ; {
		m, err := st.GetMsg(ctx, next, jetstream.WithGetMsgSubject("job.>"))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the queue: %w", err)
		}
		next = m.Sequence + 1
		e, err := schemas.ParseEvent(m.Data)
		q := QueuedJob{seq: m.Sequence}
		if err != nil || e.Decode(&q.Submission) != nil {
			continue
		}
		if err := fn(q); err != nil {
			if errors.Is(err, ErrStop) {
				return nil
			}
			return err
		}
	}
}

// Unqueue takes a submission out of the queue. A sandbox that works on it
// notices when it next keeps its claim.
func (b *Bus) Unqueue(ctx context.Context, q QueuedJob) error {
	st, err := b.js.Stream(ctx, streamJobs)
	if err != nil {
		return err
	}
	return st.DeleteMsg(ctx, q.seq)
}

// Keepalive calls Keep until ctx is done.
func (j *Job) Keepalive(ctx context.Context) {
	t := time.NewTicker(jobAckWait / 4)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			_ = j.Keep() // a lost one is made good by the next
		}
	}
}
