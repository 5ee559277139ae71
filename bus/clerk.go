// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// Limits of what analyzers derive.
const (
	maxDepth      = 8       // derivations one from the other
	maxResult     = 1 << 30 // bytes of a result document
	clerkParallel = 8       // finished tasks in work at once
)

// A Clerk reads what analyzers hand in, believes none of it, and commits what
// is right to the log: findings, derived artifacts and the receipt as one. It
// is the only writer of these, and any number of clerks may run.
type Clerk struct {
	b   *Bus
	log *slog.Logger
}

// NewClerk returns a clerk that logs to log.
func NewClerk(b *Bus, log *slog.Logger) *Clerk { return &Clerk{b: b, log: log} }

// Run works until ctx is done.
func (c *Clerk) Run(ctx context.Context) error {
	cons, err := c.b.js.CreateOrUpdateConsumer(ctx, streamInbox, jetstream.ConsumerConfig{
		Durable: "clerk", AckPolicy: jetstream.AckExplicitPolicy, AckWait: handlerAckWait, MaxDeliver: -1, MaxAckPending: 1000,
	})
	if err != nil {
		return fmt.Errorf("open the inbox: %w", err)
	}
	slots := make(chan struct{}, clerkParallel)
	err = consume(ctx, cons, func(m jetstream.Msg) {
		stop := keep(m)
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			defer stop()
			c.handle(ctx, m)
		}()
	}, jetstream.PullMaxMessages(2*clerkParallel))
	for range clerkParallel {
		slots <- struct{}{}
	}
	return fmt.Errorf("read the inbox: %w", err)
}

// errRefused says that a finished task is wrong in itself: trying again gives
// the same.
type errRefused struct{ error }

func refuse(format string, args ...any) error { return errRefused{fmt.Errorf(format, args...)} }

func (c *Clerk) handle(ctx context.Context, m jetstream.Msg) {
	f, at, err := readFinished(m)
	if err != nil { // it does not even name its task
		c.log.Warn("finished task refused", "subject", m.Subject(), "error", err)
		c.b.bury(streamInbox, "clerk", m, err)
		return
	}
	err = c.commit(ctx, f, at)
	var refused errRefused
	if errors.As(err, &refused) {
		c.log.Warn("finished task refused", "analyzer", f.Task.Analyzer, "analysis", f.Task.Analysis, "error", err)
		if cerr := c.commitRefusal(ctx, f, at, err); cerr != nil {
			_ = m.NakWithDelay(5 * time.Second)
			return
		}
		c.b.bury(streamInbox, "clerk", m, err)
		return
	}
	if err != nil {
		c.log.Error("commit a finished task", "analyzer", f.Task.Analyzer, "analysis", f.Task.Analysis, "error", err)
		_ = m.NakWithDelay(time.Second)
		return
	}
	if err := m.Ack(); err != nil {
		c.log.Error("acknowledge a finished task", "error", err) // it comes again, and finds its receipt
	}
}

func readFinished(m jetstream.Msg) (schemas.FinishedTask, time.Time, error) {
	var f schemas.FinishedTask
	e, err := schemas.ParseEvent(m.Data())
	if err == nil {
		err = e.Decode(&f)
	}
	if err != nil {
		return f, time.Time{}, err
	}
	t := f.Task
	if err := checkTokens(t.Tenant, t.Analysis); err != nil {
		return f, time.Time{}, err
	}
	if err := schemas.CheckAnalyzer(t.Analyzer); err != nil {
		return f, time.Time{}, err
	}
	if err := schemas.CheckRun(t.Run); err != nil {
		return f, time.Time{}, err
	}
	if t.SHA256 != nil {
		if err := schemas.CheckKind(t.Kind); err != nil {
			return f, time.Time{}, err
		}
	}
	// The subject is what the server lets the analyzer write to; the body is
	// only its word.
	if m.Subject() != inboxSubject(t) {
		return f, time.Time{}, fmt.Errorf("task of %s handed in under %s", t.Analyzer, m.Subject())
	}
	return f, e.Time, nil
}

// commit writes what a finished task gives. A task that has its receipt
// already is done, whoever did it.
func (c *Clerk) commit(ctx context.Context, f schemas.FinishedTask, at time.Time) error {
	if _, err := c.b.lastMsg(ctx, receiptSubject(f.Task)); err == nil {
		return nil
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	parent, err := c.open(ctx, f.Task)
	if errors.Is(err, errAnswered) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := checkFinished(&f); err != nil {
		return err
	}
	if f.Result != nil {
		if err := c.adopt(ctx, f.Task.Analyzer, "result", f.Result.SHA256, f.Result.Size, maxResult); err != nil {
			return err
		}
	}
	for range maxConflicts {
		var msgs []batchMsg
		if msgs, err = c.messages(ctx, &f, parent, at); err != nil {
			return err
		}
		if err = c.write(ctx, f.Task, msgs); !errors.Is(err, errConflict) {
			break
		}
	}
	if err != nil {
		return err
	}
	return c.amend(ctx, f.Task)
}

// maxConflicts is how often one commit may find that somebody else has just
// announced the same bytes. Then it waits its turn again.
const maxConflicts = 10

// errConflict says that an artifact's number was taken meanwhile.
var errConflict = errors.New("the same bytes have been announced meanwhile")

// messages makes what a finished task gives, the receipt last.
func (c *Clerk) messages(ctx context.Context, f *schemas.FinishedTask, parent *schemas.Artifact, at time.Time) ([]batchMsg, error) {
	var msgs []batchMsg
	next := map[string]int{}
	for i := range f.Derived {
		m, err := c.derived(ctx, f, parent, i, at, next)
		if err != nil {
			return nil, err
		}
		msgs = append(msgs, m)
	}
	for n, finding := range f.Findings {
		m, err := findingMsg(f, n, finding, at)
		if err != nil {
			return nil, err
		}
		msgs = append(msgs, m)
	}
	receipt, err := receiptMsg(f, len(f.Findings), len(f.Derived), at)
	return append(msgs, receipt), err
}

// write stores the messages of a task as one. That the receipt is there already
// is no error: then so is the rest. If something else was there it returns
// [errConflict].
func (c *Clerk) write(ctx context.Context, t schemas.TaskRef, msgs []batchMsg) error {
	var err error
	if len(msgs) == 1 {
		_, err = c.b.publish(ctx, msgs[0].subject, msgs[0].event, jetstream.WithExpectLastSequencePerSubject(0))
	} else {
		err = c.b.publishBatch(ctx, msgs)
	}
	if !hasCode(err, codeWrongLastSequence) {
		return err
	}
	_, err = c.b.lastMsg(ctx, receiptSubject(t))
	if errors.Is(err, ErrNotFound) {
		return errConflict
	}
	return err
}

// open checks that the task exists: the log has announced its artifact, or
// started its analysis, and the analyzer is registered. It returns the
// artifact.
func (c *Clerk) open(ctx context.Context, t schemas.TaskRef) (*schemas.Artifact, error) {
	_, err := c.b.lastMsg(ctx, registry+t.Analyzer)
	if errors.Is(err, ErrNotFound) {
		return nil, refuse("analyzer %s is not registered", t.Analyzer)
	}
	if err != nil {
		return nil, err
	}
	if t.SHA256 == nil {
		_, err := c.b.lastMsg(ctx, contextSubject(t.Tenant, t.Analysis, schemas.EventStartAnalysis))
		if errors.Is(err, ErrNotFound) {
			start := contextSubject(t.Tenant, t.Analysis, schemas.EventStartAnalysis)
			if there, err := c.b.archivedHas(ctx, t.Tenant, t.Analysis, start); there || err != nil {
				return nil, errors.Join(err, c.unanswered(ctx, t))
			}
			return nil, refuse("analysis %s has not come to its analyzers", t.Analysis)
		}
		return nil, err
	}
	m, err := c.b.lastMsg(ctx, artifactsOf(t.Tenant, t.Analysis, string(t.Kind), *t.SHA256)+".*")
	if errors.Is(err, ErrNotFound) {
		a, err := c.b.archivedArtifact(ctx, t.Tenant, t.Analysis, t.Kind, *t.SHA256)
		if errors.Is(err, ErrNotFound) {
			return nil, refuse("analysis %s has announced no %s %s", t.Analysis, t.Kind, t.SHA256)
		}
		if err == nil {
			err = c.unanswered(ctx, t)
		}
		return a, err
	}
	if err != nil {
		return nil, err
	}
	a := new(schemas.Artifact)
	e, err := schemas.ParseEvent(m.Data)
	if err == nil {
		err = e.Decode(a)
	}
	if err == nil && a.Occurrence > 0 { // the first may be in the archive, with its receipt
		err = c.unanswered(ctx, t)
	}
	return a, err
}

// errAnswered says that the archive has a task's receipt.
var errAnswered = errors.New("the task has its receipt")

// unanswered returns errAnswered if the archive has the receipt of a task. The
// log's own guard against a second one does not know of it.
func (c *Clerk) unanswered(ctx context.Context, t schemas.TaskRef) error {
	there, err := c.b.archivedHas(ctx, t.Tenant, t.Analysis, receiptSubject(t))
	if there {
		return errAnswered
	}
	return err
}

// checkFinished checks form and limits, and names what is wrong.
func checkFinished(f *schemas.FinishedTask) error {
	switch f.Status {
	case schemas.TaskDone, schemas.TaskFailed, schemas.TaskSkipped:
	default:
		return refuse("status %.40q is none of done, failed, skipped", f.Status)
	}
	if len(f.Findings) > schemas.MaxFindings {
		return refuse("%d findings; %d are allowed", len(f.Findings), schemas.MaxFindings)
	}
	if len(f.Derived) > schemas.MaxDerived {
		return refuse("%d derived artifacts; %d are allowed", len(f.Derived), schemas.MaxDerived)
	}
	for i := range f.Findings {
		if err := f.Findings[i].Check(); err != nil {
			return refuse("finding %d: %w", i, err)
		}
		if len(f.Findings[i].Data) > 0 && !json.Valid(f.Findings[i].Data) {
			return refuse("finding %d: data is not JSON", i)
		}
	}
	for i, d := range f.Derived {
		if err := schemas.CheckKind(d.Kind); err != nil {
			return refuse("derived artifact %d: %w", i, err)
		}
		if len(d.Name) > 4096 || len(d.MediaType) > 128 {
			return refuse("derived artifact %d: name or media type is too long", i)
		}
	}
	if r := f.Result; r != nil && (!strings.HasPrefix(r.Schema, "petri.result.") || len(r.Schema) > 128) {
		return refuse("result: schema %.80q does not begin with petri.result.", r.Schema)
	}
	if len(f.Version) > 64 || len(f.Instance) > 128 {
		return refuse("version or instance is too long")
	}
	f.Error = oneLine(f.Error)
	return nil
}

// adopt brings uploaded bytes into the artifact store, which verifies them.
func (c *Clerk) adopt(ctx context.Context, analyzer string, kind schemas.Kind, d schemas.Digest, size, limit int64) error {
	art := c.b.Artifacts()
	if o, err := art.Stat(ctx, d); err == nil {
		if o.Size != size {
			return refuse("%s %s has %d bytes, not %d", kind, d, o.Size, size)
		}
		return art.touch(ctx, o)
	}
	r, o, err := c.b.uploads(analyzer).Open(ctx, d)
	if errors.Is(err, ErrNotFound) {
		return refuse("%s %s was not uploaded", kind, d)
	}
	if err != nil {
		return err
	}
	defer r.Close()
	if o.Size != size || size > limit {
		return refuse("%s %s has %d bytes; %d were stated and %d are allowed", kind, d, o.Size, size, limit)
	}
	got, _, err := art.Put(ctx, kind, io.LimitReader(r, limit+1))
	if errors.Is(err, ErrCorrupt) || err == nil && got != d {
		return refuse("%s %s: the uploaded bytes have another digest", kind, d)
	}
	if err == nil {
		c.b.uploads(analyzer).discard(o.meta.NUID)
	}
	return err
}

// derived announces one derived artifact. Bytes that the analysis has already
// had are announced again, as another occurrence, but derived no further:
// their task is done or open, whatever they were derived from. next has the
// numbers of this task's own occurrences.
func (c *Clerk) derived(ctx context.Context, f *schemas.FinishedTask, parent *schemas.Artifact, i int, at time.Time, next map[string]int) (batchMsg, error) {
	d := f.Derived[i]
	a := schemas.Artifact{
		Kind: d.Kind, SHA256: d.SHA256, Size: d.Size, MediaType: d.MediaType, Name: d.Name, File: d.File,
		Parent: f.Task.SHA256, Analyzer: f.Task.Analyzer, Depth: 1,
	}
	if parent != nil {
		a.Depth = parent.Depth + 1
	}
	if a.Depth > maxDepth {
		return batchMsg{}, refuse("derived artifact %d is derived %d times; %d are allowed", i, a.Depth, maxDepth)
	}
	if err := c.adopt(ctx, f.Task.Analyzer, d.Kind, d.SHA256, d.Size, defaultCap); err != nil {
		return batchMsg{}, err
	}
	subject := artifactsOf(f.Task.Tenant, f.Task.Analysis, string(d.Kind), d.SHA256)
	if _, ok := next[subject]; !ok {
		var err error
		if next[subject], err = c.b.nextOccurrence(ctx, subject); err != nil {
			return batchMsg{}, err
		}
	}
	a.Occurrence = next[subject]
	next[subject]++
	e, err := schemas.NewEvent(f.Task.Tenant, f.Task.Analysis, a.ID(f.Task.Analysis), at, schemas.OriginHost, a)
	if err != nil {
		return batchMsg{}, err
	}
	return batchMsg{subject: artifactSubject(f.Task.Tenant, f.Task.Analysis, &a), event: e, first: true}, nil
}

func taskID(t schemas.TaskRef, what string) string {
	return strings.Join([]string{t.Analysis, what, t.Run, t.Analyzer, t.Token()}, "/")
}

func findingMsg(f *schemas.FinishedTask, n int, finding schemas.Finding, at time.Time) (batchMsg, error) {
	e, err := schemas.NewEvent(f.Task.Tenant, f.Task.Analysis, taskID(f.Task, "finding")+"/"+strconv.Itoa(n), at, schemas.OriginHost,
		schemas.FindingCommitted{Task: f.Task, Version: f.Version, Rules: f.Rules, N: n, Finding: finding})
	return batchMsg{subject: findingSubject(f.Task, finding.Severity, n), event: e}, err
}

func receiptMsg(f *schemas.FinishedTask, findings, derived int, at time.Time) (batchMsg, error) {
	e, err := schemas.NewEvent(f.Task.Tenant, f.Task.Analysis, taskID(f.Task, "receipt"), at, schemas.OriginHost, schemas.Receipt{
		Task: f.Task, Version: f.Version, Rules: f.Rules, Instance: f.Instance, Status: f.Status, Error: f.Error,
		Findings: findings, Derived: derived, Result: f.Result, Cut: f.Cut, Took: f.Took,
	})
	return batchMsg{subject: receiptSubject(f.Task), event: e, first: true}, err
}

// commitRefusal closes the task of a finished task that was refused, if there
// is such a task: its analysis must not wait for it.
func (c *Clerk) commitRefusal(ctx context.Context, f schemas.FinishedTask, at time.Time, why error) error {
	if _, err := c.open(ctx, f.Task); err != nil {
		var refused errRefused
		if errors.As(err, &refused) || errors.Is(err, errAnswered) {
			return nil
		}
		return err
	}
	failed := schemas.FinishedTask{Task: f.Task, Status: schemas.TaskFailed, Error: oneLine("refused by the clerk: " + why.Error()), Took: f.Took}
	failed.Version, failed.Instance = clipString(f.Version, 64), clipString(f.Instance, 128)
	receipt, err := receiptMsg(&failed, 0, 0, at)
	if err != nil {
		return err
	}
	if err := c.write(ctx, f.Task, []batchMsg{receipt}); err != nil {
		return err
	}
	return c.amend(ctx, f.Task)
}

func clipString(s string, n int) string { return s[:min(len(s), n)] }

// amend notes an answer that came after its analysis had ended.
func (c *Clerk) amend(ctx context.Context, t schemas.TaskRef) error {
	for {
		w, entries, err := c.b.openContext(ctx, t.Tenant, t.Analysis)
		if err != nil {
			return err
		}
		ended := false
		for _, e := range entries {
			ended = ended || schemas.Ending(e.Event.Name())
		}
		if !ended {
			return nil
		}
		e, err := schemas.NewEvent(t.Tenant, t.Analysis, w.NextID(), time.Now(), schemas.OriginHost,
			schemas.AnalysisAmended{Analyzer: t.Analyzer, SHA256: t.SHA256, Run: t.Run})
		if err != nil {
			return err
		}
		if err := w.Write(ctx, e); !errors.Is(err, ErrFenced) {
			return err
		}
	}
}
