// SPDX-License-Identifier: Apache-2.0

package analyzers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/petri-sandbox/petri/analyzers/internal/jail"
	"github.com/petri-sandbox/petri/schemas"
)

// task is a delivery that is being worked on.
type task struct {
	Task
	runner   *runner
	info     Info
	gate     *gate
	delivery Delivery
	log      *slog.Logger
}

// heartbeat keeps the task until the returned function is called.
func (t *task) heartbeat(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(t.runner.opts.Heartbeat)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := t.delivery.InProgress(ctx); err != nil && ctx.Err() == nil {
				t.log.Warn("keeping a task failed", "error", err)
			}
		}
	}()
	return func() { cancel(); <-done }
}

// run answers the task, or gives it back.
func (t *task) run(ctx context.Context) {
	log := t.log.With("analysis", t.Ref.Analysis, "run", t.Ref.Run, "kind", t.Ref.Kind, "attempt", t.Attempt)
	if t.Ref.SHA256 != nil {
		log = log.With("artifact", t.Ref.SHA256.String())
	}
	start := time.Now()
	earlier := t.earlier(ctx, log)
	a, err := answer{status: schemas.TaskDone}, error(nil)
	if earlier == nil {
		a, err = t.answer(ctx)
	}
	var input *inputError
	if errors.As(err, &input) {
		a, err = failed("%s", input.msg), nil
	}
	if err != nil {
		log.Warn("task given back", "error", err)
		t.runner.giveBack(ctx, log, t.info.Name, t.delivery, t.delay())
		return
	}
	took := time.Since(start)
	done := schemas.FinishedTask{
		Task: t.Ref, Version: t.info.Version, Rules: t.info.Rules, Config: t.info.Config, Instance: t.runner.opts.Instance,
		Reuse: earlier, Status: a.status, Error: a.err, Findings: a.findings, Derived: a.derived, Result: a.result, Cut: a.cut,
		Took: schemas.Duration(took.Round(time.Microsecond)),
	}
	err = t.insist(ctx, func(ctx context.Context) error {
		// Also when the runner has been told to stop: the work is done.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		return t.runner.services.Inbox.Finish(ctx, done)
	})
	if err != nil {
		log.Warn("task given back", "error", fmt.Errorf("hand in: %w", err))
		t.runner.giveBack(ctx, log, t.info.Name, t.delivery, t.delay())
		return
	}
	t.runner.opts.Stats.finished(t.info.Name, a.status, a.err, took)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	if err := t.delivery.Ack(ctx); err != nil {
		log.Warn("acknowledging a task failed", "error", err) // it comes again and is handed in twice, which the receipt bears
	}
	level := slog.LevelInfo
	if a.status == schemas.TaskFailed {
		level = slog.LevelWarn
	}
	if a.err != "" {
		log = log.With("error", a.err)
	}
	if a.printed != "" {
		log = log.With("stderr", line(a.printed, maxStderr))
	}
	log.Log(ctx, level, "task finished", "status", a.status, "findings", len(a.findings), "derived", len(a.derived), "took", took, "reused", earlier != nil)
}

// earlier returns the task whose answer is this one's too, if there is one.
func (t *task) earlier(ctx context.Context, log *slog.Logger) *schemas.TaskRef {
	memo := t.runner.services.Memo
	if memo == nil || t.Force || t.info.Impure || t.Attempt > 1 || t.Ref.SHA256 == nil || t.check() != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	earlier, err := memo.Earlier(ctx, schemas.FinishedTask{Task: t.Ref, Version: t.info.Version, Rules: t.info.Rules, Config: t.info.Config})
	if err != nil {
		log.Warn("looking for an earlier answer failed", "error", err) // the work is done
		return nil
	}
	return earlier
}

// insist does again what the bus has not answered for as long as a call may take.
// To give the task back would use up one of its attempts, and its work: those are
// for what kills who takes it. Other errors it returns at once.
func (t *task) insist(ctx context.Context, do func(context.Context) error) error {
	for end := time.Now().Add(awayTime); ; {
		begin := time.Now()
		err := do(ctx)
		var input *inputError
		if err == nil || errors.As(err, &input) || ctx.Err() != nil || time.Since(begin) < callTimeout || time.Now().After(end) {
			return err
		}
		t.log.Warn("the bus does not answer, the task waits", "analysis", t.Ref.Analysis, "error", err)
	}
}

// delay is how long to wait before the task is tried again.
func (t *task) delay() time.Duration {
	return []time.Duration{time.Second, 5 * time.Second, 20 * time.Second}[min(max(t.Attempt, 1), 3)-1]
}

// answer does the work. An error that is no inputError says that it should be
// tried again.
func (t *task) answer(ctx context.Context) (answer, error) {
	if t.Attempt > MaxAttempts {
		t.runner.opts.Stats.update(t.info.Name, func(s *AnalyzerStats) { s.Poison++ })
		return failed("poison: %d attempts have ended without an answer", t.Attempt-1), nil
	}
	if err := t.check(); err != nil {
		return answer{}, err
	}
	if err := t.delivery.Begin(ctx); err != nil {
		t.log.Warn("saying that a task begins failed", "error", err) // the work is done; if it is deadly, it is more often
	}
	if err := t.gate.open(ctx); err != nil {
		return answer{status: schemas.TaskSkipped, err: line(err.Error(), maxError)}, nil
	}
	var sp *spool
	var req request
	err := t.insist(ctx, func(ctx context.Context) (err error) {
		if sp != nil {
			sp.close()
		}
		sp = &spool{dir: t.runner.opts.Dir, store: t.runner.services.Store, limit: t.maxInput}
		if req, err = t.request(); err != nil {
			return badInput("%v", err)
		}
		return t.fetch(ctx, sp, &req)
	})
	defer sp.close()
	if err != nil {
		return answer{}, err
	}
	return t.runner.spawner.run(ctx, req, sp.files, func(ctx context.Context, r io.Reader) (schemas.Digest, int64, error) {
		return t.runner.services.Uploads.Put(ctx, t.info.Name, r)
	})
}

// check reports a task that is not this analyzer's.
func (t *task) check() error {
	switch {
	case t.Ref.Analyzer != t.info.Name:
		return badInput("the task is of analyzer %.40q", t.Ref.Analyzer)
	case t.info.Scope == schemas.ScopeAnalysis:
		if t.Ref.SHA256 != nil {
			return badInput("the task is about an artifact, but the analyzer is of scope analysis")
		}
	case t.Ref.SHA256 == nil || *t.Ref.SHA256 != t.Artifact.SHA256 || t.Ref.Kind != t.Artifact.Kind:
		return badInput("the task and the announcement of its artifact differ")
	case !slices.Contains(t.info.Kinds, t.Ref.Kind):
		return badInput("the analyzer does not take artifacts of kind %.40q", t.Ref.Kind)
	}
	return nil
}

func (t *task) maxInput(k schemas.Kind) int64 {
	if t.info.MaxInput > 0 {
		return t.info.MaxInput
	}
	return t.runner.opts.maxInput(k)
}

func (t *task) request() (request, error) {
	req := request{
		Analyzer: t.info.Name, Version: t.info.Version, Threads: t.info.Threads, Deadline: schemas.Duration(t.info.Deadline),
		Task: t.Ref, Events: -1,
		Jail: jail.Limits{
			Memory: t.info.Memory, CPU: (t.info.Deadline+killGrace)*time.Duration(t.info.Threads) + time.Second, Files: 32,
			Exec: t.info.Exec, Network: t.info.Network,
		},
		Limits: t.runner.opts.limits(),
	}
	if t.info.CPU > 0 {
		req.Jail.CPU = t.info.CPU
	}
	if t.info.Exec {
		req.Jail.Files = 256
	}
	if t.info.Processes > 0 {
		// The kernel counts the user's, those of other tasks with them.
		req.Jail.Processes = uint64(t.runner.opts.Concurrency * (t.info.Processes + ownThreads))
	}
	c, ok := t.gate.analyzer.(Configured)
	if !ok {
		return req, nil
	}
	config, err := c.Configuration()
	req.Config = config
	return req, err
}

// ownThreads is how many threads a child of ours has at most, beside the
// programs that it starts.
const ownThreads = 24

// fetch spools what the job is about.
func (t *task) fetch(ctx context.Context, sp *spool, req *request) error {
	ctx, cancel := context.WithTimeout(ctx, max(t.info.Deadline, callTimeout))
	defer cancel()
	if t.info.Scope != schemas.ScopeAnalysis {
		in, err := sp.artifact(ctx, t.Artifact)
		if err != nil {
			return err
		}
		req.Input = &in
		req.Jail.Mapped = in.Size
		return nil
	}
	var total int64
	req.Omitted = t.Omitted
	for _, a := range t.Artifacts {
		if !slices.Contains(t.info.Reads, a.Kind) {
			continue
		}
		if len(req.Others) >= maxOthers {
			req.Omitted++
			continue
		}
		had := len(sp.files)
		in, err := sp.artifact(ctx, a)
		var input *inputError
		if errors.As(err, &input) || err == nil && total+in.Size > t.maxInput(a.Kind) {
			// What the log says stays; the analyzer learns that bytes are missing.
			closeAll(sp.files[had:]...)
			sp.files = slices.Delete(sp.files, had, len(sp.files))
			req.Omitted++
			continue
		}
		if err != nil {
			return err
		}
		total += in.Size
		req.Others = append(req.Others, in)
	}
	req.Jail.Mapped = total
	if t.runner.services.History == nil {
		return badInput("nothing here reads the log for analyzers of scope analysis")
	}
	var err error
	req.Events, err = sp.events(ctx, t.runner.services.History, t.Ref, t.runner.opts.MaxEvents)
	return err
}
