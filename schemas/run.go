// SPDX-License-Identifier: Apache-2.0

package schemas

import (
	"fmt"
	"slices"
	"time"
)

// RunTask gives one task of a run to its analyzer. It is a message of a work
// queue, not of the log: what a run is about was announced long ago, or derived in it.
type RunTask struct {
	Task     TaskRef   `json:"task"`
	Artifact *Artifact `json:"artifact,omitempty"` // as it was announced, or derived in the run; none for a task over the analysis
	Force    bool      `json:"force,omitempty"`    // do the work, whatever earlier receipts answer
}

// EventType implements [Typed].
func (RunTask) EventType() string { return "petri.run.task.v1" }

// States of a run.
const (
	RunListing   = "listing"   // its tasks are being listed
	RunRunning   = "running"   // its tasks are being given out
	RunPaused    = "paused"    // no more are given out until it is resumed
	RunCancelled = "cancelled" // ended before its time
	RunDone      = "done"      // every task is answered, or its analysis gone
	RunFailed    = "failed"    // it could not be begun
	RunForgotten = "forgotten" // it had ended, and is being taken away
)

// RunState says how far a run of analyzers over past artifacts has come. It
// can be made again from the run's list and the log.
type RunState struct {
	Run       string    `json:"run"` // r-<id>
	Tenant    string    `json:"tenant"`
	Analyzers []string  `json:"analyzers"`
	Analysis  string    `json:"analysis,omitempty"` // of a replay
	Kinds     []Kind    `json:"kinds,omitempty"`    // none: those that the analyzers take
	Since     time.Time `json:"since,omitzero"`     // of a hunt: analyses submitted from then on
	From      uint64    `json:"from,omitempty"`     // of a replay: artifacts announced from this sequence of the log on
	Imported  bool      `json:"imported,omitempty"` // of a hunt: only imported analyses
	Force     bool      `json:"force,omitempty"`    // do not answer from earlier receipts
	Parallel  int       `json:"parallel,omitempty"` // tasks given out at a time
	Rate      float64   `json:"rate,omitempty"`     // tasks given out in a second; 0: no limit
	Until     uint64    `json:"until,omitempty"`    // the log's last sequence when it was begun: what came later is not listed
	By        string    `json:"by,omitempty"`       // who asked for it; untrusted text
	State     string    `json:"state"`
	Error     string    `json:"error,omitempty"`   // of a failed one
	Waiting   string    `json:"waiting,omitempty"` // for what it waits, if it cannot go on now
	Hold      bool      `json:"hold,omitempty"`    // of one that is being listed: it is paused when that is done
	Total     int       `json:"total"`             // tasks; once State is not listing it grows by what is derived
	Derived   int       `json:"derived,omitempty"` // of those, over artifacts that were derived in the run
	Analyses  int       `json:"analyses"`          // that they are of
	Done      int       `json:"done"`
	Failed    int       `json:"failed"`
	Skipped   int       `json:"skipped"`
	Reused    int       `json:"reused"` // of those done, answered from an earlier receipt
	Gone      int       `json:"gone"`   // whose analysis was deleted meanwhile
	Created   time.Time `json:"created"`
	Updated   time.Time `json:"updated"`
}

// Ended reports whether nothing more comes of the run.
func (r *RunState) Ended() bool {
	return r.State == RunDone || r.State == RunCancelled || r.State == RunFailed || r.State == RunForgotten
}

// Answered is how many tasks nothing is owed for any more.
func (r *RunState) Answered() int { return r.Done + r.Failed + r.Skipped + r.Gone }

// MaxRunParallel bounds how many tasks of a run are given out at a time.
const MaxRunParallel = 10_000

// Check reports what is wrong with a run that somebody asks for.
func (r *RunState) Check() error {
	if err := CheckRun(r.Run); err != nil || r.Run == LiveRun {
		return fmt.Errorf("%.80q is no run's id (r- and 26 characters)", r.Run)
	}
	if err := CheckTenant(r.Tenant); err != nil {
		return err
	}
	if len(r.Analyzers) == 0 || len(r.Analyzers) > 256 {
		return fmt.Errorf("%d analyzers; 1 to 256 are allowed", len(r.Analyzers))
	}
	for i, name := range r.Analyzers {
		if err := CheckAnalyzer(name); err != nil {
			return err
		}
		if slices.Contains(r.Analyzers[:i], name) {
			return fmt.Errorf("analyzer %s is named twice", name)
		}
	}
	if len(r.Kinds) > 32 {
		return fmt.Errorf("%d kinds; 32 are allowed", len(r.Kinds))
	}
	for _, k := range r.Kinds {
		if err := CheckKind(k); err != nil {
			return err
		}
	}
	if r.Analysis != "" {
		if err := CheckID(r.Analysis); err != nil {
			return err
		}
	}
	if r.Parallel < 0 || r.Parallel > MaxRunParallel {
		return fmt.Errorf("%d tasks at a time; 1 to %d are allowed", r.Parallel, MaxRunParallel)
	}
	if r.Rate < 0 || r.Rate != 0 && (r.Rate < 1e-4 || r.Rate > 1e6) {
		return fmt.Errorf("%g tasks a second; 0.0001 to 1000000 are allowed", r.Rate)
	}
	return nil
}
