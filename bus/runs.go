// SPDX-License-Identifier: Apache-2.0

package bus

import (
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

// A run lets analyzers loose on artifacts that were announced long ago. What it
// is about is listed once, and never published again: its tasks go to the
// analyzers by a work queue of their own, its findings are refindings, and its
// receipts carry its id, so that nobody who follows analyses notices. What is
// derived in it is listed behind that, and is nobody else's either.

// Subjects of the stream RUNS. The first is the run itself, which is the task
// of whoever drives it.
const (
	runPrefix = "run."
	runDrive  = runPrefix + "_run."
)

// runSubject is where a task of a run waits for its analyzer.
func runSubject(t schemas.TaskRef) string {
	return runPrefix + t.Analyzer + "." + t.Run + "." + taskToken(t)
}

func runControlSubject(run string) string { return "ctl.run." + run }

// Orders that [Bus.OrderRun] takes.
const (
	OrderPause  = "pause"
	OrderResume = "resume"
	OrderCancel = "cancel"
)

// DefaultRunParallel is how many tasks of a run are given out at a time where
// nobody has said it.
const DefaultRunParallel = 64

// StartRun begins a run and returns its first state. The bus' own process
// drives it from there on, whatever becomes of the caller.
func (b *Bus) StartRun(ctx context.Context, r schemas.RunState) (schemas.RunState, error) {
	now := time.Now().UTC()
	r.Run, r.State, r.Created, r.Updated = "r-"+schemas.NewID(now), schemas.RunListing, now, now
	if r.Parallel == 0 {
		r.Parallel = DefaultRunParallel
	}
	r.By = clipString(oneLine(r.By), 128)
	if err := r.Check(); err != nil {
		return r, err
	}
	end, err := b.logEnd(ctx)
	if err != nil {
		return r, err
	}
	r.Until = end
	body, err := json.Marshal(r)
	if err != nil {
		return r, err
	}
	err = retry(ctx, func(ctx context.Context) error {
		_, err := b.js.PublishMsg(ctx, &nats.Msg{Subject: runDrive + r.Run, Data: body}, jetstream.WithMsgID(r.Run), jetstream.WithRetryAttempts(0))
		return err
	})
	if err != nil {
		return r, fmt.Errorf("start run %s: %w", r.Run, err)
	}
	return r, nil
}

// logEnd is the sequence of the log's last event.
func (b *Bus) logEnd(ctx context.Context) (uint64, error) {
	var end uint64
	err := retry(ctx, func(ctx context.Context) error {
		st, err := b.js.Stream(ctx, streamLog)
		if err == nil {
			end = st.CachedInfo().State.LastSeq
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("look at the log: %w", err)
	}
	return end, nil
}

// Run returns the state of a run. If there is no such run the error wraps
// [ErrNotFound].
func (b *Bus) Run(ctx context.Context, run string) (schemas.RunState, error) {
	r, _, err := b.runState(ctx, run)
	return r, err
}

// runState also returns the state's revision.
func (b *Bus) runState(ctx context.Context, run string) (schemas.RunState, uint64, error) {
	var r schemas.RunState
	rev, err := b.runRecord(ctx, run, &r)
	if errors.Is(err, ErrNotFound) {
		// Nobody may have taken it in hand yet.
		m, lerr := b.lookupIn(ctx, streamRuns, lookup{Last: runDrive + run})
		if lerr == nil {
			return r, 0, json.Unmarshal(m.Data, &r)
		}
	}
	return r, rev, err
}

// runRecord reads a value of the bucket RUNS from its leader.
func (b *Bus) runRecord(ctx context.Context, key string, into any) (revision uint64, err error) {
	m, err := b.lookupIn(ctx, "KV_"+kvRuns, lookup{Last: "$KV." + kvRuns + "." + key})
	if err != nil {
		return 0, err
	}
	if len(m.Data) == 0 { // a deletion
		return 0, fmt.Errorf("%s in %s: %w", key, kvRuns, ErrNotFound)
	}
	if err := json.Unmarshal(m.Data, into); err != nil {
		return 0, fmt.Errorf("read %s of %s: %w", key, kvRuns, err)
	}
	return m.Sequence, nil
}

// Runs lists a tenant's runs, the newest first.
func (b *Bus) Runs(ctx context.Context, tenant string) ([]schemas.RunState, error) {
	kv, err := b.js.KeyValue(ctx, kvRuns)
	if errors.Is(err, jetstream.ErrBucketNotFound) { // an older Petri's data
		return []schemas.RunState{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the runs: %w", err)
	}
	w, err := kv.Watch(ctx, "*", jetstream.IgnoreDeletes()) // keys of one token are runs
	if err != nil {
		return nil, fmt.Errorf("list the runs: %w", err)
	}
	defer func() { _ = w.Stop() }()
	out := []schemas.RunState{}
	for {
		select {
		case e := <-w.Updates():
			if e == nil {
				slices.SortFunc(out, func(a, b schemas.RunState) int { return strings.Compare(b.Run, a.Run) })
				return out, nil
			}
			var r schemas.RunState
			if json.Unmarshal(e.Value(), &r) == nil && r.Tenant == tenant {
				out = append(out, r)
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// WatchRun calls fn with a run's state, and with each that follows, until the
// run has ended or fn returns an error.
func (b *Bus) WatchRun(ctx context.Context, run string, fn func(schemas.RunState) error) error {
	if _, err := b.Run(ctx, run); err != nil {
		return err
	}
	kv, err := b.js.KeyValue(ctx, kvRuns)
	if err != nil {
		return fmt.Errorf("open the runs: %w", err)
	}
	w, err := kv.Watch(ctx, run, jetstream.IgnoreDeletes())
	if err != nil {
		return fmt.Errorf("watch run %s: %w", run, err)
	}
	defer func() { _ = w.Stop() }()
	for {
		select {
		case e, ok := <-w.Updates():
			if !ok {
				return fmt.Errorf("watch run %s: %w", run, nats.ErrConnectionClosed)
			}
			if e == nil { // so far
				continue
			}
			var r schemas.RunState
			if err := json.Unmarshal(e.Value(), &r); err != nil {
				return fmt.Errorf("watch run %s: %w", run, err)
			}
			if err := fn(r); err != nil || r.Ended() {
				if errors.Is(err, ErrStop) {
					err = nil
				}
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// OrderRun pauses, resumes or cancels a run, and returns when it is so.
func (b *Bus) OrderRun(ctx context.Context, run, order string) error {
	var err error
	for range 4 {
		ask, cancel := context.WithTimeout(ctx, 3*time.Second)
		var m *nats.Msg
		m, err = b.request(ask, runControlSubject(run), []byte(order))
		cancel()
		if err == nil {
			if text := string(m.Data); text != "ok" {
				return fmt.Errorf("%s run %s: %s", order, run, text)
			}
			return nil
		}
		r, serr := b.Run(ctx, run)
		if serr != nil {
			return fmt.Errorf("%s run %s: %w", order, run, serr)
		}
		if r.Ended() {
			return fmt.Errorf("%s run %s: it has ended already (%s)", order, run, r.State)
		}
		// Whoever drove it may have died; another one takes it up.
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fmt.Errorf("%s run %s: nobody drives it: %w (is the bus' process running? petri doctor)", order, run, err)
}

// RunAnalyses calls fn with every analysis that a run has tasks of, in order.
func (b *Bus) RunAnalyses(ctx context.Context, run string, fn func(analysis string) error) error {
	last := ""
	return b.pieces(ctx, run, func(_ string, p *runPiece) error {
		if p.Analysis == last {
			return nil
		}
		last = p.Analysis
		return fn(p.Analysis)
	})
}

// A runPiece is a part of a run's list: tasks of one analysis. What has come of
// them is written into it when all are answered, so that nobody need count the
// receipts of a large run again. Of a deleted analysis it has no tasks any more.
type runPiece struct {
	Analysis string    `json:"analysis"`
	N        int       `json:"n"`
	Tasks    []runItem `json:"tasks"`
	Ended    bool      `json:"ended,omitempty"`
	Derived  bool      `json:"derived,omitempty"` // in the run, as all behind it of its analysis are
	runCount
}

// A runItem is one task of a piece.
type runItem struct {
	Analyzer string            `json:"analyzer"`
	Artifact *schemas.Artifact `json:"artifact,omitempty"` // none: the analysis as a whole
}

// runCount is what has come of tasks.
type runCount struct {
	Done    int `json:"done,omitempty"`
	Failed  int `json:"failed,omitempty"`
	Skipped int `json:"skipped,omitempty"`
	Reused  int `json:"reused,omitempty"`
	Gone    int `json:"gone,omitempty"`
}

// answers is how many tasks have come to an end.
func (c *runCount) answers() int { return c.Done + c.Failed + c.Skipped + c.Gone }

// tasks is how many the piece has, or had.
func (p *runPiece) tasks() int {
	if p.Ended {
		return p.answers()
	}
	return len(p.Tasks)
}

func (c *runCount) add(o runCount) {
	c.Done += o.Done
	c.Failed += o.Failed
	c.Skipped += o.Skipped
	c.Reused += o.Reused
	c.Gone += o.Gone
}

// answered counts a receipt.
func (c *runCount) answered(r *schemas.Receipt) {
	switch r.Status {
	case schemas.TaskDone:
		c.Done++
		if r.Reused != nil {
			c.Reused++
		}
	case schemas.TaskSkipped:
		c.Skipped++
	default:
		c.Failed++
	}
}

func pieceKey(run, analysis string, n int) string {
	return run + "." + analysis + "." + strconv.Itoa(n)
}

func (i runItem) ref(tenant, analysis, run string) schemas.TaskRef {
	t := schemas.TaskRef{Tenant: tenant, Analysis: analysis, Run: run, Analyzer: i.Analyzer}
	if i.Artifact != nil {
		t.SHA256, t.Kind = &i.Artifact.SHA256, i.Artifact.Kind
	}
	return t
}

// pieceKeys lists the keys of a run's pieces, in their order, as the leader of
// their stream has them: a watch may be at a replica that lacks the last ones.
func (b *Bus) pieceKeys(ctx context.Context, run string) ([]string, error) {
	const prefix = "$KV." + kvRuns + "."
	var keys []string
	err := b.subjects(ctx, "KV_"+kvRuns, prefix+run+".>", func(subject string, _ uint64) error {
		keys = append(keys, strings.TrimPrefix(subject, prefix))
		return nil
	})
	slices.SortFunc(keys, comparePieces)
	return slices.Compact(keys), err // one may be on two pages if others are added meanwhile
}

// pieces calls fn with the pieces of a run's list, in the order of their keys.
func (b *Bus) pieces(ctx context.Context, run string, fn func(key string, p *runPiece) error) error {
	keys, err := b.pieceKeys(ctx, run)
	if err != nil {
		return err
	}
	for _, k := range keys {
		p := new(runPiece)
		if _, err := b.runRecord(ctx, k, p); errors.Is(err, ErrNotFound) {
			continue
		} else if err != nil {
			return err
		}
		if err := fn(k, p); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// comparePieces orders keys by analysis and number.
func comparePieces(a, b string) int {
	i, j := strings.LastIndexByte(a, '.'), strings.LastIndexByte(b, '.')
	if c := strings.Compare(a[:i], b[:j]); c != 0 {
		return c
	}
	n, _ := strconv.Atoi(a[i+1:])
	m, _ := strconv.Atoi(b[j+1:])
	return n - m
}

// listed returns what a run's list has about a task: the artifact as it was
// announced, or derived in the run, nil for the analysis as a whole. A task that
// is not in the list is refused.
func (b *Bus) listed(ctx context.Context, t schemas.TaskRef) (*schemas.Artifact, error) {
	r, _, err := b.runState(ctx, t.Run)
	if errors.Is(err, ErrNotFound) {
		return nil, refuse("there is no run %s", t.Run)
	}
	if err != nil {
		return nil, err
	}
	if r.State == schemas.RunForgotten {
		return nil, refuse("run %s is forgotten", t.Run)
	}
	if r.Tenant != t.Tenant || !slices.Contains(r.Analyzers, t.Analyzer) {
		return nil, refuse("run %s is not of analyzer %s", t.Run, t.Analyzer)
	}
	a, there, err := b.standing(ctx, t.Tenant, t.Analysis)
	if err != nil {
		return nil, err
	}
	if !there {
		return nil, refuse("analysis %s is not there any more", t.Analysis)
	}
	if a.Archived.After(r.Created) { // with what the run has answered so far
		if answered, err := b.archivedHas(ctx, t.Tenant, t.Analysis, receiptSubject(t)); answered || err != nil {
			return nil, errors.Join(err, errAnswered)
		}
	} else {
		a = archived{} // it has nothing of the run
	}
	for n := 0; ; n++ {
		var p runPiece
		_, err := b.runRecord(ctx, pieceKey(t.Run, t.Analysis, n), &p)
		if errors.Is(err, ErrNotFound) {
			return nil, refuse("run %s has no such task of analysis %s", t.Run, t.Analysis)
		}
		if err != nil {
			return nil, err
		}
		if p.Derived { // there may be many such pieces, each with few tasks
			return b.derivation(ctx, t, a)
		}
		for _, item := range p.Tasks {
			if item.Analyzer == t.Analyzer && item.ref(t.Tenant, t.Analysis, t.Run).Token() == t.Token() {
				return item.Artifact, nil
			}
		}
	}
}

// derivation returns the artifact of a task that a run has derived itself, and
// refuses the task if it has not. a is how the archive has the analysis.
func (b *Bus) derivation(ctx context.Context, t schemas.TaskRef, a archived) (*schemas.Artifact, error) {
	none := refuse("run %s has no such task of analysis %s", t.Run, t.Analysis)
	if t.SHA256 == nil {
		return nil, none
	}
	m, err := b.anyMsg(ctx, derivationsOf(t, t.Kind, *t.SHA256)+".*")
	if err == nil {
		d, err := artifactOf(m.Subject, m.Data)
		return &d, err
	}
	if !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	if a.revision == 0 {
		return nil, none
	}
	first := derivationsOf(t, t.Kind, *t.SHA256) + ".0"
	var d schemas.Derivation
	err = b.archivedEvents(ctx, a.ArchiveEntry, func(e Entry) error {
		if e.Subject != first {
			return nil
		}
		if err := e.Event.Decode(&d); err != nil {
			return err
		}
		return ErrStop
	})
	if errors.Is(err, ErrStop) {
		return &d.Artifact, nil
	}
	if err == nil {
		err = none
	}
	return nil, err
}

// standing reports whether an analysis is still there, in the log or in the
// archive, and how the archive has it.
func (b *Bus) standing(ctx context.Context, tenant, analysis string) (a archived, there bool, err error) {
	if dead, err := b.tombstone(ctx, tenant, analysis); dead != nil || err != nil {
		return a, false, err
	}
	if a, err = b.archived(ctx, tenant, analysis); err != nil || a.revision != 0 {
		return a, a.revision != 0, err
	}
	_, err = b.anyMsg(ctx, contextSubject(tenant, analysis, ">"))
	if errors.Is(err, ErrNotFound) {
		return a, false, nil
	}
	return a, err == nil, err
}

// runTaskOf reads what lies in the queue of runs under a subject as an
// analyzer's task.
func runTaskOf(analyzer, subject string, data []byte) (schemas.RunTask, error) {
	var r schemas.RunTask
	e, err := schemas.ParseEvent(data)
	if err == nil {
		err = e.Decode(&r)
	}
	if err == nil && (r.Task.Analyzer != analyzer || runSubject(r.Task) != subject) {
		err = fmt.Errorf("a task of %.40q under %s", r.Task.Analyzer, subject)
	}
	return r, err
}

// runTask reads a message of the queue of runs as a task. nil means that there
// is nothing to do.
func (b *Bus) runTask(ctx context.Context, analyzer string, m jetstream.Msg) *Task {
	r, err := runTaskOf(analyzer, m.Subject(), m.Data())
	if err != nil {
		pass(m, err)
		return nil
	}
	t := &Task{Ref: r.Task, Artifact: r.Artifact, Force: r.Force, b: b, msg: m, delivered: int(deliveries(m))}
	if _, err := b.lastMsg(ctx, receiptSubject(t.Ref)); err == nil {
		_ = m.Ack()
		return nil
	}
	if t.Artifact == nil {
		if t.Artifacts, t.Omitted, err = b.announced(ctx, t.Ref); err != nil {
			_ = m.NakWithDelay(holdAgain)
			return nil
		}
	}
	b.countAttempts(ctx, t)
	return t
}
