// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"context"
	"errors"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/protocol"
	"github.com/petri-sandbox/petri/schemas"
)

// analysisTime waits for the analyzers and ends the analysis. The machine is
// gone and the job acknowledged by then. stopped is done when the sandbox is told
// to stop.
func (a *analysis) analysisTime(ctx, stopped context.Context, failed error) {
	if a.fenced(failed) {
		return // somebody else ends it, or has
	}
	var missing []schemas.MissingTask
	if a.c != nil && a.c.count(schemas.EventStartAnalysis) > 0 && context.Cause(ctx) == nil {
		var err error
		if missing, err = a.waitForAnalyzers(ctx); err != nil && failed == nil {
			failed = err
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, errShutdown) && failed == nil {
			return // all that is left is to wait, which the next start goes on with
		}
		failed = cause
	}
	if a.fenced(failed) { // it was taken over meanwhile
		return
	}
	ending := endingFor(failed, missing)
	for pause := endPause; ; pause = min(2*pause, maxEndPause) {
		// Whoever asked for the end need not wait for the log, but the log
		// shall have the ending.
		ectx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		a.end(ectx, ending)
		cancel()
		if a.ended {
			return
		}
		select {
		case <-stopped.Done():
			return
		case <-time.After(pause):
		}
	}
}

// fenced reports whether somebody else writes the analysis: it was taken over, or
// had been begun, or cancelled, by another.
func (a *analysis) fenced(failed error) bool {
	return errors.Is(failed, ErrFenced) || a.c != nil && errors.Is(a.c.Err(), ErrFenced)
}

func endingFor(failed error, missing []schemas.MissingTask) schemas.Typed {
	var cancelled errCancelled
	var f failure
	switch {
	case failed == nil:
		return schemas.AnalysisCompleted{Missing: missing}
	case errors.As(failed, &cancelled):
		return schemas.AnalysisCancelled{By: cancelled.by}
	case errors.As(failed, &f):
		return schemas.AnalysisFailed{Reason: f.reason, Error: f.Error()}
	}
	return schemas.AnalysisFailed{Reason: reasonMachine, Error: failed.Error()}
}

// An ending that does not reach the log within endTimeout is tried again, as
// long as the sandbox runs. After that its next start writes it.
const (
	endTimeout  = 30 * time.Second
	endPause    = 5 * time.Second
	maxEndPause = time.Minute
)

// waitTimeout is how long analyzers have where the protocol does not say.
const waitTimeout = 60 * time.Second

func (a *analysis) waitForAnalyzers(ctx context.Context) ([]schemas.MissingTask, error) {
	timeout := waitTimeout
	if _, s := a.lastStep(protocol.WaitAnalysis); s != nil {
		timeout = s.Timeout
	}
	deadline := time.Now().Add(timeout)
	e, err := a.c.publishLast(schemas.WaitAnalysis{Timeout: schemas.Duration(timeout), Expected: a.sub.Expected})
	if err != nil {
		return nil, failure{reasonLog, err}
	}
	if err := a.c.dispatch(e); err != nil {
		return nil, failure{reasonHook, err}
	}
	missing, err := a.w.endings.Wait(ctx, a.sub.Tenant, a.id, deadline, a.sub.Expected)
	if err != nil {
		return nil, failure{reasonLog, err}
	}
	return missing, nil
}

func (a *analysis) end(ctx context.Context, ending schemas.Typed) {
	e, err := a.w.endings.End(ctx, a.sub.Tenant, a.id, ending)
	if err != nil {
		a.slog.Error("end the analysis", "analysis", a.id, "error", err)
		return
	}
	a.slog.Info("analysis ended", "analysis", a.id, "event", e.Name())
	a.ended = true
	a.vouched()
	a.w.sign(context.WithoutCancel(ctx), a.signer, a.id, e.Name())
}

// vouched returns when what came up to start_analysis is signed, if it is to be.
func (a *analysis) vouched() {
	if a.vouching != nil {
		<-a.vouching
	}
}

// vouch signs what came up to start_analysis, while the analyzers work. If the
// analysis is cut short the signature under its ending will do.
func (a *analysis) vouch(ctx context.Context) {
	if a.signer == nil || a.c == nil || a.c.count(schemas.EventStartAnalysis) == 0 {
		return
	}
	a.vouching = make(chan struct{})
	go func() {
		defer close(a.vouching)
		a.w.sign(ctx, a.signer, a.id, schemas.EventStartAnalysis)
	}()
}
