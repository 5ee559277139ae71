// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// Jobs is where a [Worker] takes its work from.
type Jobs interface {
	// Claim waits for a job.
	Claim(ctx context.Context) (Job, error)
	// Release gives a job back that a dead sandbox had claimed, by the token
	// that it had noted.
	Release(token string) error
}

// A Job is a claimed submission.
type Job interface {
	Submission() schemas.Submission
	Token() string
	// Keepalive keeps the claim until ctx is done.
	Keepalive(ctx context.Context)
	// Done takes the job out of the queue; Release gives it back.
	Done(ctx context.Context) error
	Release(after time.Duration) error
}

// Endings waits for analyzers and ends analyses.
type Endings interface {
	Wait(ctx context.Context, tenant, analysis string, deadline time.Time, expected []string) ([]schemas.MissingTask, error)
	// End writes an ending unless there is one, and returns the one there is.
	End(ctx context.Context, tenant, analysis string, ending schemas.Typed) (schemas.Event, error)
	// Events returns an analysis' context events so far, oldest first.
	Events(ctx context.Context, tenant, analysis string) ([]schemas.Event, error)
	// Hold keeps the lease of an analysis until ctx is done. If another sandbox
	// has it the error wraps [ErrFenced]. Holder is who has it, empty if nobody.
	Hold(ctx context.Context, analysis, worker string) error
	Holder(ctx context.Context, analysis string) (string, error)
	// OnCancel calls fn when somebody asks for the analysis' end.
	OnCancel(tenant, analysis string, fn func(by string)) (stop func(), err error)
}

// A Signer vouches for an analysis' log.
type Signer interface {
	// Sign puts this sandbox's signature under what the log has by now, behind
	// the context event of that name.
	Sign(ctx context.Context, at string) error
}

// Options are for a [Worker].
type Options struct {
	ID       string // of this sandbox, the same after a restart
	Host     string
	Version  string
	Dir      string // for what analyses have on the disk while they run
	Parallel int    // analyses that have a machine at once; default 1
	Slog     *slog.Logger
	// InstallHooks subscribes the hooks of a configuration, or the default
	// ones if it is empty.
	InstallHooks func(c *Context, text string) error
	// Describe says what a machine of that guest will be.
	Describe func(guest, start string) schemas.MachineSpec
	// Has reports whether there are machines of a guest that has something besides
	// (catalogue.Extra); nil: of none.
	Has func(guest string) bool
	// Signer returns who vouches for an analysis' log; without it nobody does.
	Signer   func(tenant, analysis string) Signer
	Gates    Gates    // services that protocols can ask; nil: none
	Findings Findings // in which analyzers ask for something; nil: nowhere
	// Reap ends every machine that a dead predecessor left running, and
	// returns how many there were.
	Reap func() (int, error)
}

// A Worker takes jobs and runs an analysis for each.
type Worker struct {
	opts     Options
	log      Log
	store    Store
	jobs     Jobs
	endings  Endings
	machines Machines

	mu      sync.Mutex
	running map[string]bool // analyses of this sandbox, by id
	unnoted map[string]int  // how often an analysis could not be noted on the disk
}

// NewWorker returns a worker. Nothing happens until [Worker.Run].
func NewWorker(log Log, store Store, jobs Jobs, endings Endings, machines Machines, o Options) *Worker {
	if o.Parallel <= 0 {
		o.Parallel = 1
	}
	return &Worker{
		opts: o, log: log, store: store, jobs: jobs, endings: endings, machines: machines,
		running: map[string]bool{}, unnoted: map[string]int{},
	}
}

// begin takes an analysis on, unless this sandbox runs it already: the queue
// delivers a job again whose claim it believes to be dead.
func (w *Worker) begin(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running[id] {
		return false
	}
	w.running[id] = true
	return true
}

func (w *Worker) runs(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running[id]
}

func (w *Worker) finish(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.running, id)
}

func (w *Worker) noted(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.unnoted, id)
}

// noteTries is how often a job is given back because there is no room to note
// it, and noteAgain when it comes again.
const (
	noteTries = 3
	noteAgain = 30 * time.Second
)

// unnotable gives back the job of an analysis that could not be noted, for a
// while: then the analysis ends as failed.
func (w *Worker) unnotable(ctx context.Context, j Job, a *analysis, why error) error {
	w.mu.Lock()
	w.unnoted[a.id]++
	again := w.unnoted[a.id] < noteTries
	w.mu.Unlock()
	why = fmt.Errorf("note the job on the disk: %w", why)
	if again {
		return errors.Join(why, j.Release(noteAgain))
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	if err := a.refuse(ctx, failure{reasonStore, why}); err != nil {
		return errors.Join(why, err, j.Release(noteAgain))
	}
	w.noted(a.id)
	return errors.Join(why, j.Done(ctx))
}

// errShutdown is the cause of analyses that are cut short because the sandbox
// is told to stop.
var errShutdown = failure{reasonInterrupted, errors.New("the sandbox was stopped")}

// shutdownTime is how long the analyses have to say how they ended.
const shutdownTime = 15 * time.Second

// Run first ends what a dead predecessor has left, then takes jobs until ctx
// is done, and returns when every analysis has ended.
func (w *Worker) Run(ctx context.Context) error {
	if err := os.MkdirAll(w.opts.Dir, 0o700); err != nil {
		return fmt.Errorf("make the sandbox's directory: %w", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	if err := w.recover(ctx, &wg); err != nil {
		return fmt.Errorf("clean up after the last run: %w", err)
	}
	slots := make(chan struct{}, w.opts.Parallel)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		j, err := w.jobs.Claim(ctx)
		if err != nil {
			<-slots
			if ctx.Err() != nil {
				return ctx.Err()
			}
			w.opts.Slog.Warn("claim a job", "error", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			var once sync.Once
			free := func() { once.Do(func() { <-slots }) }
			defer free()
			w.work(ctx, j, free)
		}()
	}
}

// work runs the attempt that a job is due for. free is called when the machine
// is gone.
func (w *Worker) work(ctx context.Context, j Job, free func()) {
	sub := j.Submission()
	log := w.opts.Slog.With("analysis", sub.ID)
	next, err := w.attempt(ctx, sub)
	switch {
	case errors.Is(err, errBusy):
		_ = j.Release(busyAgain)
		return
	case errors.Is(err, errWaiting):
		// Its sandbox died between start_analysis and the acknowledgement.
		free()
		n := note{Tenant: sub.Tenant, Analysis: schemas.AttemptID(sub.ID, next)}
		if err := w.waitAgain(ctx, n); err != nil {
			log.Warn("wait for the analyzers of an interrupted analysis", "error", err)
			_ = j.Release(5 * time.Second)
			return
		}
		if err := j.Done(ctx); err != nil {
			log.Warn("acknowledge a job", "error", err)
		}
		return
	case err != nil:
		log.Warn("look for the submission's attempts", "error", err)
		_ = j.Release(5 * time.Second)
		return
	case next == 0: // it has been done, or tried often enough
		if err := j.Done(ctx); err != nil {
			log.Warn("acknowledge a job", "error", err)
		}
		return
	}
	if err := w.analyse(ctx, j, sub, next, free); err != nil {
		log.Warn("analyse", "error", err)
	}
}

var (
	// errBusy says that another sandbox, or this one, works on a submission.
	errBusy = errors.New("a sandbox works on it")
	// errWaiting says that an attempt has only its analyzers to wait for.
	errWaiting = errors.New("it has come to its analyzers")
)

// busyAgain is when a job comes again on which somebody works.
const busyAgain = 30 * time.Second

// attempt returns the number of the attempt that a submission is due for, from
// 1, or 0 if it needs none. An attempt that nobody runs any more is ended,
// unless it has come to its analyzers: then it is returned with errWaiting.
func (w *Worker) attempt(ctx context.Context, sub schemas.Submission) (int, error) {
	for n := 1; ; n++ {
		id := schemas.AttemptID(sub.ID, n)
		if w.runs(id) {
			return 0, errBusy
		}
		events, err := w.endings.Events(ctx, sub.Tenant, id)
		if err != nil {
			return 0, err
		}
		if len(events) == 0 {
			return n, nil
		}
		ending := endingOf(events)
		if ending == nil {
			holder, err := w.endings.Holder(ctx, id)
			if err != nil {
				return 0, err
			}
			if holder != "" && holder != w.opts.ID {
				return 0, errBusy
			}
			if find(events, schemas.EventStartAnalysis) != nil {
				return n, errWaiting
			}
			if e, err := w.interrupted(ctx, sub.Tenant, id); err != nil {
				return 0, err
			} else {
				ending = &e
			}
		}
		if !w.again(*ending) || n > sub.Options.Retries {
			return 0, nil
		}
	}
}

func endingOf(events []schemas.Event) *schemas.Event {
	for i := range events {
		if schemas.Ending(events[i].Name()) {
			return &events[i]
		}
	}
	return nil
}

func (w *Worker) interrupted(ctx context.Context, tenant, id string) (schemas.Event, error) {
	e, err := w.endings.End(ctx, tenant, id, schemas.AnalysisFailed{Reason: reasonInterrupted, Error: "the sandbox that ran it died"})
	if err == nil {
		w.sign(ctx, w.signer(tenant, id), id, e.Name())
	}
	return e, err
}

func (w *Worker) signer(tenant, id string) Signer {
	if w.opts.Signer == nil {
		return nil
	}
	return w.opts.Signer(tenant, id)
}

// sign vouches for an analysis' log so far. That it fails costs the signature
// and nothing else.
func (w *Worker) sign(ctx context.Context, s Signer, id, at string) {
	if s == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	if err := s.Sign(ctx, at); err != nil {
		w.opts.Slog.Warn("sign the analysis' log", "analysis", id, "at", at, "error", err)
	}
}

// again reports whether an ending calls for another attempt.
func (w *Worker) again(e schemas.Event) bool {
	var f schemas.AnalysisFailed
	return e.Name() == schemas.EventFailed && e.Decode(&f) == nil && Retryable(f.Reason)
}

// analyse runs one attempt.
func (w *Worker) analyse(ctx context.Context, j Job, sub schemas.Submission, attempt int, free func()) error {
	id := schemas.AttemptID(sub.ID, attempt)
	a := &analysis{w: w, sub: sub, id: id, attempt: attempt, slog: w.opts.Slog, dir: filepath.Join(w.opts.Dir, id), signer: w.signer(sub.Tenant, id)}
	if attempt > 1 {
		a.retryOf = schemas.AttemptID(sub.ID, attempt-1)
	}
	if !w.begin(id) {
		return errors.Join(errBusy, j.Release(busyAgain))
	}
	defer w.finish(id)
	if err := w.note(a, j.Token()); err != nil {
		return w.unnotable(ctx, j, a, err)
	}
	w.noted(id)
	// The analysis is told of a shutdown in its own words, and then has a
	// while to end.
	actx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { cancel(errShutdown) })
	defer stop()
	kctx, release := context.WithCancel(context.WithoutCancel(ctx))
	var keeping sync.WaitGroup
	for _, f := range []func(){func() { j.Keepalive(kctx) }, func() {
		if err := w.endings.Hold(kctx, id, w.opts.ID); errors.Is(err, ErrFenced) {
			w.opts.Slog.Warn("the analysis was taken over by another sandbox", "analysis", id)
			cancel(err)
		}
	}} {
		keeping.Add(1)
		go func() {
			defer keeping.Done()
			f()
		}()
	}
	defer keeping.Wait()
	defer release()
	unsubscribe, err := w.endings.OnCancel(sub.Tenant, id, func(by string) { cancel(errCancelled{by}) })
	if err != nil {
		w.opts.Slog.Warn("listen for cancellation", "analysis", id, "error", err)
	} else {
		defer unsubscribe()
	}

	failed := a.machineTime(actx)
	if cause := context.Cause(actx); errors.Is(cause, ErrFenced) {
		failed = cause
	}
	free()
	a.vouch(actx)
	defer a.vouched()
	settled := w.settle(ctx, j, a, failed)
	a.analysisTime(actx, ctx, failed)
	if a.c != nil {
		a.c.Close()
	}
	if a.sample != nil {
		a.sample.Close()
	}
	if a.ended || a.fenced(failed) {
		if err := os.RemoveAll(a.dir); err != nil {
			w.opts.Slog.Warn("remove the analysis' directory", "analysis", id, "error", err)
		}
	}
	if !settled { // it goes back only now that its attempt has an ending
		w.finish(id)
		return j.Release(0)
	}
	return nil
}

// settle takes the job out of the queue, unless another attempt is due.
func (w *Worker) settle(ctx context.Context, j Job, a *analysis, failed error) bool {
	var f failure
	if a.fenced(failed) { // whose it is takes it out; if it has ended the next claim does
		return false
	}
	if errors.As(failed, &f) && Retryable(f.reason) && a.attempt <= a.sub.Options.Retries {
		return false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	if err := j.Done(ctx); err != nil {
		w.opts.Slog.Warn("acknowledge a job", "analysis", a.id, "error", err)
	}
	return true
}
