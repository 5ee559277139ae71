// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

const (
	clerkParallel = 256      // finished tasks in work at once
	clerkMessages = 16       // messages of up to maxTogether finished tasks that wait in the clerk
	clerkAhead    = 64 << 20 // bytes of these
	clerkHeavy    = 8        // of those in work, how many may move bytes
)

// A Clerk reads what analyzers hand in, believes none of it, and commits what
// is right to the log: findings, derived artifacts and the receipt as one. It
// is the only writer of these, and any number of clerks may run.
//
// Finished tasks are checked side by side and committed in groups (group.go).
// A clerk may die anywhere: what it has not acknowledged comes again, and finds
// its receipt or does not.
type Clerk struct {
	b       *Bus
	ledger  ledger
	log     *slog.Logger
	group   *group
	endings *asks
	heavy   chan struct{} // one element per task that moves bytes
	tallies *tallies
	letters *letters
	limits  deriveLimits
	known   sync.Map           // registrations, by the analyzer's name
	step    func(string) error // of tests: called between two steps; an error is a crash there

	orphans atomic.Uint64 // answers about deleted analyses
	surplus atomic.Uint64 // wrong answers to tasks that were done already
}

// NewClerk returns a clerk that logs to log.
func NewClerk(b *Bus, log *slog.Logger) *Clerk {
	return &Clerk{
		b: b, ledger: b, log: log, group: newGroup(b), endings: newAsks(), heavy: make(chan struct{}, clerkHeavy), step: func(string) error { return nil },
		tallies: newTallies(), letters: newLetters(), limits: defaultDeriveLimits,
	}
}

// clerkName names the consumer that all clerks share.
const clerkName = "clerk"

// openInbox makes that consumer: a clerk may make none.
func (b *Bus) openInbox(ctx context.Context) error {
	_, err := b.js.CreateOrUpdateConsumer(ctx, streamInbox, jetstream.ConsumerConfig{
		Durable: clerkName, AckPolicy: jetstream.AckExplicitPolicy, AckWait: handlerAckWait, MaxDeliver: -1, MaxAckPending: 1000,
	})
	if err != nil {
		return fmt.Errorf("open the inbox: %w", err)
	}
	return nil
}

// Run works until ctx is done.
func (c *Clerk) Run(ctx context.Context) error {
	cons, err := c.b.js.Consumer(ctx, streamInbox, clerkName)
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrConsumerNotFound) {
		err = fmt.Errorf("%w: nothing has made it on this server yet (start petri bus run first, with the credentials of bus)", err)
	}
	if err != nil {
		return fmt.Errorf("open the inbox: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { c.group.run(ctx) })
	slots := make(chan struct{}, clerkParallel)
	err = consume(ctx, cons, func(m jetstream.Msg) {
		stop, tasks := keep(m), handedIn(m)
		var left atomic.Int32
		left.Store(int32(len(tasks)))
		for _, m := range tasks {
			slots <- struct{}{}
			running.Go(func() {
				defer func() { <-slots }()
				defer func() {
					if left.Add(-1) == 0 {
						stop()
					}
				}()
				c.handle(ctx, m)
			})
		}
	}, jetstream.PullMaxMessagesWithBytesLimit(clerkMessages, clerkAhead))
	cancel()
	running.Wait()
	return fmt.Errorf("read the inbox: %w", err)
}

func (c *Clerk) handle(ctx context.Context, m jetstream.Msg) {
	f, at, err := readFinished(m)
	var refused errRefused
	if err != nil && !errors.As(err, &refused) { // it does not even name its task
		c.log.Debug("finished task refused", "subject", m.Subject(), "error", err)
		c.bury(m, err)
		return
	}
	if err == nil {
		err = c.commit(ctx, f, at, deliveries(m) > 1)
	}
	if errors.Is(err, errDied) {
		return
	}
	if errors.As(err, &refused) {
		c.refused(ctx, m, f, at, err)
		return
	}
	var dead *DeletedError
	if errors.As(err, &dead) { // an answer that nobody waits for any more
		c.log.Info("finished task of a deleted analysis", "analyzer", f.Task.Analyzer, "analysis", f.Task.Analysis, "dropped", c.orphans.Add(1))
		err = nil
	}
	if err != nil {
		if ctx.Err() == nil {
			c.log.Error("commit a finished task", "analyzer", f.Task.Analyzer, "analysis", f.Task.Analysis, "error", err)
		}
		_ = m.NakWithDelay(time.Second)
		return
	}
	if c.step("acknowledge") != nil {
		return
	}
	if err := m.Ack(); err != nil {
		c.log.Error("acknowledge a finished task", "error", err) // it comes again, and finds its receipt
	}
}

// deliveries is how often a message was given out.
func deliveries(m jetstream.Msg) uint64 {
	md, err := m.Metadata()
	if err != nil {
		return 1
	}
	return md.NumDelivered
}

// examine decides on a finished task. A task that has its receipt already is
// done, whoever did it: the log's guard says so at the end, and only where there
// is much to do before it, or reason to expect it, it is asked first. Then that
// receipt is returned, or [errAnswered] where only the archive has it.
func (c *Clerk) examine(ctx context.Context, f *schemas.FinishedTask, again bool) (parent *schemas.Artifact, receipt *jetstream.RawStreamMsg, err error) {
	if again || heavy(f) {
		m, err := c.ledger.lastMsg(ctx, receiptSubject(f.Task))
		if err == nil {
			return nil, m, refusedBefore(m, *f)
		}
		if !errors.Is(err, ErrNotFound) {
			return nil, nil, err
		}
	}
	if parent, err = c.open(ctx, f.Task); err != nil {
		return nil, nil, err
	}
	return parent, nil, checkFinished(f)
}

// heavy reports whether a finished task has bytes in the store.
func heavy(f *schemas.FinishedTask) bool { return f.Result != nil || len(f.Derived) > 0 }

// commit writes what a finished task gives.
func (c *Clerk) commit(ctx context.Context, f schemas.FinishedTask, at time.Time, again bool) error {
	parent, receipt, err := c.examine(ctx, &f, again)
	switch {
	case errors.Is(err, errAnswered):
		return nil
	case err != nil:
		return err
	case receipt != nil:
		return c.amend(ctx, f.Task, receipt.Sequence)
	}
	if f.Reuse != nil {
		err := c.reuse(ctx, &f)
		var gone errGone
		if errors.As(err, &gone) {
			return c.anew(ctx, f.Task, parent, again, gone)
		}
		if err != nil {
			return err
		}
	}
	release, err := c.admit(ctx, &f, parent)
	if err != nil {
		return err
	}
	defer release()
	if heavy(&f) {
		select {
		case c.heavy <- struct{}{}:
			defer func() { <-c.heavy }()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if f.Result != nil {
		if err := c.adopt(ctx, f.Task.Analyzer, "result", f.Result.SHA256, f.Result.Size, maxResult); err != nil {
			return err
		}
	}
	for _, d := range f.Derived {
		if err := c.adopt(ctx, f.Task.Analyzer, d.Kind, d.SHA256, d.Size, defaultCap); err != nil {
			return err
		}
	}
	var seq uint64
	for range maxConflicts {
		var msgs []batchMsg
		if msgs, err = c.messages(ctx, &f, parent, at); err != nil {
			return err
		}
		if seq, err = c.group.commit(ctx, f.Task, msgs); !errors.Is(err, errConflict) {
			break
		}
	}
	if err != nil {
		return err
	}
	c.b.remember(&f)
	if c.step("amend") != nil {
		return errDied
	}
	return c.amend(ctx, f.Task, seq)
}

// errDied stands for a crash of the clerk in tests.
var errDied = errors.New("the clerk has died")

// ledger is what the clerk's decisions need of the log, and nothing else: they
// are checked over a log in memory too.
type ledger interface {
	groupLog
	anyMsg(ctx context.Context, subject string) (*jetstream.RawStreamMsg, error)
	archivedHas(ctx context.Context, tenant, analysis, subject string) (bool, error)
	archivedArtifact(ctx context.Context, tenant, analysis string, kind schemas.Kind, d schemas.Digest) (*schemas.Artifact, error)
	archivedOccurrences(ctx context.Context, subject string) (int, error)
	tombstone(ctx context.Context, tenant, analysis string) (*DeletedError, error)
}

// refusedBefore returns why a clerk has refused a finished task and died before
// it was buried.
func refusedBefore(m *jetstream.RawStreamMsg, f schemas.FinishedTask) error {
	var r schemas.Receipt
	e, err := schemas.ParseEvent(m.Data)
	if err == nil {
		err = e.Decode(&r)
	}
	if err != nil || r.Instance != clipString(f.Instance, 128) || r.Version != clipString(f.Version, 64) {
		return nil
	}
	if why, ok := strings.CutPrefix(r.Error, refusal); ok {
		return errRefused{errors.New(why)}
	}
	return nil
}

// maxConflicts is how often one commit may find that somebody else has just
// announced the same bytes. Then it waits its turn again.
const maxConflicts = 10

// refused buries a finished task that is wrong, and closes its task. Wrong
// words about a task that is done already are counted and dropped: they change
// nothing, and an analyzer can say as many as it likes.
func (c *Clerk) refused(ctx context.Context, m jetstream.Msg, f schemas.FinishedTask, at time.Time, why error) {
	if _, err := c.b.lastMsg(ctx, receiptSubject(f.Task)); err == nil && deliveries(m) == 1 {
		c.log.Info("finished task refused that was done already", "analyzer", f.Task.Analyzer, "analysis", f.Task.Analysis, "error", why, "dropped", c.surplus.Add(1))
		_ = m.Ack()
		return
	}
	c.log.Warn("finished task refused", "analyzer", f.Task.Analyzer, "analysis", f.Task.Analysis, "error", why)
	if err := c.commitRefusal(ctx, f, at, why); err != nil {
		_ = m.NakWithDelay(5 * time.Second)
		return
	}
	if c.step("bury") != nil {
		return
	}
	c.bury(m, why)
}

// refusal is what the error of a receipt begins with whose analyzer was not
// believed.
const refusal = "refused by the clerk: "

// commitRefusal closes the task of a finished task that was refused, if there
// is such a task: its analysis must not wait for it.
func (c *Clerk) commitRefusal(ctx context.Context, f schemas.FinishedTask, at time.Time, why error) error {
	if _, err := c.open(ctx, f.Task); err != nil {
		var refused errRefused
		var dead *DeletedError
		if errors.As(err, &refused) || errors.Is(err, errAnswered) || errors.As(err, &dead) {
			return nil
		}
		return err
	}
	failed := schemas.FinishedTask{Task: f.Task, Status: schemas.TaskFailed, Error: oneLine(refusal + why.Error()), Took: f.Took}
	failed.Version, failed.Instance = clipString(f.Version, 64), clipString(f.Instance, 128)
	receipt, err := receiptMsg(&failed, 0, 0, at)
	if err != nil {
		return err
	}
	seq, err := c.group.commit(ctx, f.Task, []batchMsg{receipt})
	if err != nil {
		return err
	}
	return c.amend(ctx, f.Task, seq)
}

// clipString cuts a text to n bytes, not inside of a rune: what JSON makes of
// half a rune is another text.
func clipString(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
