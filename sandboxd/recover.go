// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// note is what lies in an analysis' directory while it runs, for the start
// after a crash.
type note struct {
	Tenant   string `json:"tenant"`
	Analysis string `json:"analysis"`
	Token    string `json:"token"` // of the job
}

const noteFile = "job.json"

// note makes the analysis' directory. It comes before the first event, so that
// no analysis of this sandbox can be forgotten.
func (w *Worker) note(a *analysis, token string) error {
	if err := os.RemoveAll(a.dir); err != nil {
		return err
	}
	if err := os.Mkdir(a.dir, 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(note{Tenant: a.sub.Tenant, Analysis: a.id, Token: token})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(a.dir, noteFile), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// recover ends what a predecessor of the same id left: machines that still
// run, and analyses without an ending. An analysis that had come to its
// analyzers is waited for again; any other is ended as failed, and its job
// given back, to be tried again if it may.
func (w *Worker) recover(ctx context.Context, wg *sync.WaitGroup) error {
	if w.opts.Reap != nil {
		n, err := w.opts.Reap()
		if err != nil {
			return err
		}
		if n > 0 {
			w.opts.Slog.Warn("ended machines that a dead sandbox had left running", "machines", n)
		}
	}
	dirs, err := os.ReadDir(w.opts.Dir)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		dir := filepath.Join(w.opts.Dir, d.Name())
		b, err := os.ReadFile(filepath.Join(dir, noteFile))
		var n note
		if err == nil {
			err = json.Unmarshal(b, &n)
		}
		if err == nil {
			err = errors.Join(schemas.CheckID(n.Analysis), schemas.CheckTenant(n.Tenant))
		}
		if err != nil { // it died before its first event
			_ = os.RemoveAll(dir)
			continue
		}
		if err := w.recoverOne(ctx, wg, n, dir); err != nil {
			return fmt.Errorf("analysis %s: %w", n.Analysis, err)
		}
	}
	return nil
}

func (w *Worker) recoverOne(ctx context.Context, wg *sync.WaitGroup, n note, dir string) error {
	events, err := w.endings.Events(ctx, n.Tenant, n.Analysis)
	if err != nil {
		return err
	}
	if waiting := find(events, schemas.EventStartAnalysis); waiting != nil && endingOf(events) == nil {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := w.waitAgain(ctx, n); err != nil {
				w.opts.Slog.Warn("wait for the analyzers of an interrupted analysis", "analysis", n.Analysis, "error", err)
				return
			}
			w.giveBack(n) // it may have died before it took the job out of the queue
			_ = os.RemoveAll(dir)
		}()
		return nil
	}
	if len(events) > 0 && endingOf(events) == nil {
		if _, err := w.interrupted(ctx, n.Tenant, n.Analysis); err != nil {
			return err
		}
		w.opts.Slog.Warn("ended an interrupted analysis", "analysis", n.Analysis)
	}
	w.giveBack(n)
	return os.RemoveAll(dir)
}

// giveBack gives a dead sandbox's job back, if it still has it. Whoever takes it
// finds what is left to do.
func (w *Worker) giveBack(n note) {
	if err := w.jobs.Release(n.Token); err != nil {
		w.opts.Slog.Debug("give a job back", "analysis", n.Analysis, "error", err)
	}
}

func find(events []schemas.Event, name string) *schemas.Event {
	for i := range events {
		if events[i].Name() == name {
			return &events[i]
		}
	}
	return nil
}

// waitAgain takes up the wait for an analysis' analyzers.
func (w *Worker) waitAgain(ctx context.Context, n note) error {
	events, err := w.endings.Events(ctx, n.Tenant, n.Analysis)
	if err != nil {
		return err
	}
	var submitted schemas.AnalysisSubmitted
	if e := find(events, schemas.EventSubmitted); e == nil || e.Decode(&submitted) != nil {
		return errors.New("its log has no submission")
	}
	deadline := time.Now().Add(waitTimeout)
	var wait schemas.WaitAnalysis
	if e := find(events, schemas.EventWaitAnalysis); e != nil && e.Decode(&wait) == nil {
		if end := e.Time.Add(wait.Timeout.D()); end.Before(deadline) {
			deadline = end
		}
	}
	missing, err := w.endings.Wait(ctx, n.Tenant, n.Analysis, deadline, submitted.Submission.Expected)
	if err != nil {
		return err
	}
	e, err := w.endings.End(ctx, n.Tenant, n.Analysis, schemas.AnalysisCompleted{Missing: missing})
	if err == nil {
		w.sign(ctx, w.signer(n.Tenant, n.Analysis), n.Analysis, e.Name())
	}
	return err
}
