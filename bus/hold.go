// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// afterArtifacts is the [schemas.Registration].After of analyzers whose task
// over an analysis begins when every artifact's task of it is closed.
const afterArtifacts = "artifacts"

// holds are the tasks that this process was given and that may not begin yet.
// Each is kept, as one in work is, while the log is followed until it may
// begin; then it is given back, to be given out at once to whoever asks. So a
// task that waits keeps nobody from taking another one, and if this process
// dies another one takes the waiting over.
type holds struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	room     chan struct{} // one element per held task
	mu       sync.Mutex
	released map[string]time.Time // when this process gave a task back that it has waited for, by the task's token
}

// maxHolds bounds how many tasks a process holds: then it takes no more.
const maxHolds = 64

// holdAgain is when a task comes again about which the log could not be asked.
const holdAgain = 5 * time.Second

func newHolds() *holds {
	h := &holds{room: make(chan struct{}, maxHolds), released: map[string]time.Time{}}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

// close gives back everything that is held.
func (h *holds) close() {
	h.mu.Lock() // nobody begins meanwhile
	h.cancel()
	h.mu.Unlock()
	h.wg.Wait()
}

// begin waits for room for another one, and reports whether there is.
func (h *holds) begin(ctx context.Context) bool {
	select {
	case h.room <- struct{}{}:
	case <-ctx.Done():
		return false
	case <-h.ctx.Done():
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx.Err() != nil {
		<-h.room
		return false
	}
	h.wg.Add(1)
	return true
}

func (h *holds) end() {
	<-h.room
	h.wg.Done()
}

// release marks a task for which this process has waited. Another process may
// take it, and then the mark is of no use any more.
func (h *holds) release(token string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(h.released, func(_ string, at time.Time) bool { return now.Sub(at) > 2*TaskAckWait })
	h.released[token] = now
}

// taken reports, once, that this process has waited for a task.
func (h *holds) taken(token string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, was := h.released[token]
	delete(h.released, token)
	return was
}

// holdLimit is how long a task is held where the log does not say how long
// analyzers have.
const holdLimit = 60 * time.Second

// holdTime is how long a task that comes after the artifacts' may be held from
// now on: until as much time is left as it may take itself, though never for
// less than half of what analyzers have. What is late then is late; it shall
// not make this one late too.
func (c *credit) holdTime(deadline time.Duration, now time.Time) time.Duration {
	if c.timeout == 0 {
		return holdLimit
	}
	limit := max(c.timeout-deadline, c.timeout/2)
	// The clock that wrote the time may not be this one.
	return max(0, min(limit, c.waiting.Add(limit).Sub(now)))
}

// begins reports whether a task that comes after the artifacts' may begin.
func (c *credit) begins(gone map[string]bool) bool { return c.ended || c.artifactsClosed(gone) }

// hold keeps a task over an analysis until it may begin. It reports whether
// that is now.
func (b *Bus) hold(ctx context.Context, t *Task, deadline time.Duration) bool {
	token := taskToken(t.Ref)
	if b.holds.taken(token) {
		return true
	}
	// What the log has now decides whether there is anything to wait for.
	c := newCredit(t.Ref.Tenant, t.Ref.Analysis, nil)
	err := b.count(ctx, c, patience, func() time.Duration { return 0 }, func(map[string]bool) bool { return true })
	if err == nil && (c.begins(nil) || c.timeout > 0 && c.holdTime(deadline, time.Now()) == 0) {
		return true
	}
	if err != nil {
		_ = t.msg.NakWithDelay(holdAgain)
		return false
	}
	stop := keep(t.msg)
	if !b.holds.begin(ctx) {
		stop()
		_ = t.msg.Nak()
		return false
	}
	go func() {
		c := newCredit(t.Ref.Tenant, t.Ref.Analysis, nil)
		err := b.count(b.holds.ctx, c, 0, func() time.Duration { return c.holdTime(deadline, time.Now()) }, c.begins)
		stop()
		// The mark must be there before the task comes again, and the task be
		// given back before the connection ends.
		defer b.holds.end()
		if err != nil && b.holds.ctx.Err() == nil {
			_ = t.msg.NakWithDelay(holdAgain)
			return
		}
		if err == nil {
			b.holds.release(token)
		}
		_ = t.msg.Nak()
	}()
	return false
}

// registration is what an analyzer registered last. If it has not, or has
// withdrawn, the error wraps [ErrNotFound].
func (b *Bus) registration(ctx context.Context, analyzer string) (schemas.Registration, error) {
	var r schemas.Registration
	m, err := b.lastMsg(ctx, registry+analyzer)
	if err != nil {
		return r, err
	}
	gone, err := b.lastMsg(ctx, unregistry+analyzer)
	if err == nil && gone.Sequence > m.Sequence {
		return r, ErrNotFound
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return r, err
	}
	e, err := schemas.ParseEvent(m.Data)
	if err == nil {
		err = e.Decode(&r)
	}
	return r, err
}

// ready completes a task over an analysis, and reports whether it may begin. One
// that may not has been given back, or will be.
func (b *Bus) ready(ctx context.Context, t *Task) bool {
	r, err := b.registration(ctx, t.Ref.Analyzer)
	if err == nil && r.After == afterArtifacts && !b.hold(ctx, t, r.Deadline.D()) {
		return false
	}
	if err == nil || errors.Is(err, ErrNotFound) {
		t.Artifacts, t.Omitted, err = b.announced(ctx, t.Ref)
	}
	if err != nil {
		_ = t.msg.NakWithDelay(holdAgain)
		return false
	}
	return true
}

// maxAnnounced bounds the announcements that go with a task.
const maxAnnounced = 20_000

// announced lists the artifacts of a task over an analysis, each once, as they
// were first announced, and counts those that are too many. What the task's run
// has derived by now comes behind them.
func (b *Bus) announced(ctx context.Context, t schemas.TaskRef) (out []schemas.Artifact, omitted int, err error) {
	type bytes struct {
		kind   schemas.Kind
		digest schemas.Digest
	}
	have := map[bytes]bool{}
	add := func(a schemas.Artifact) {
		switch k := (bytes{a.Kind, a.SHA256}); {
		case a.Occurrence > 0 || have[k]:
		case len(out) < maxAnnounced:
			out = append(out, a)
			have[k] = true
		default:
			omitted++
		}
	}
	r := &reading{b: b, tenant: t.Tenant, analysis: t.Analysis, family: "artifact", fn: func(e Entry) error {
		var a schemas.Artifact
		if e.Event.Decode(&a) == nil {
			add(a)
		}
		return nil
	}}
	if err = r.run(ctx); err != nil || t.Run == schemas.LiveRun {
		return out, omitted, err
	}
	r = &reading{b: b, tenant: t.Tenant, analysis: t.Analysis, family: "derivation", fn: func(e Entry) error {
		var d schemas.Derivation
		if e.Event.Decode(&d) == nil && d.Task.Run == t.Run {
			add(d.Artifact)
		}
		return nil
	}}
	err = r.run(ctx)
	return out, omitted, err
}
