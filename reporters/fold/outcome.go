// SPDX-License-Identifier: Apache-2.0

package fold

import (
	"fmt"
	"slices"

	"github.com/petri-sandbox/petri/schemas"
)

// coverage lists what is missing, and decides whether anything is.
func (f *Fold) coverage(r *schemas.Report, behavior []string) {
	c := &r.Coverage
	var gaps []string
	gap := func(format string, args ...any) { gaps = append(gaps, fmt.Sprintf(format, args...)) }
	if f.ending == "" {
		gap("the analysis has not ended")
	}
	if f.start == nil {
		gap("the analysis never came to its analyzers")
	} else {
		c.Sources, c.Hooks = f.start.Sources, f.start.Hooks
	}
	for _, s := range c.Sources {
		if s.Source == schemas.SourcePcap {
			r.Network.Frames = s.Produced
		}
		switch s.Status {
		case schemas.StatusPartial:
			gap("%s is not whole: %s", s.Source, s.Reason)
		case schemas.StatusMissing:
			reason := s.Reason
			if t := r.Machine.Tracer; s.Source == schemas.SourceTrace && t != nil && t.Error != "" {
				reason += ": " + t.Error
			}
			gap("%s is missing: %s", s.Source, reason)
		}
	}
	for _, h := range c.Hooks {
		switch {
		case h.Failed > 0:
			gap("hook %s failed: %s", h.Name, h.Error)
		case h.Runs == 0:
			gap("hook %s never ran: none of its events came", h.Name)
		}
	}
	for _, s := range c.Steps {
		gap("step %d, %s, failed: %s", s.Step, s.Name, s.Error)
	}
	if off := r.Machine.Off; off != nil {
		gap("the machine went down by itself: %s, %s", off.State, off.Reason)
	}
	for _, a := range c.Analyzers {
		switch {
		case !a.Expected: // nobody counts on it; its coverage says what it did
		case a.Tasks == 0 && f.ending == schemas.EventCompleted:
			gap("analyzer %s had nothing to look at", a.Name)
		case len(a.Missing) > 0:
			gap("analyzer %s did not answer %d of %d tasks: %s", a.Name, len(a.Missing), a.Tasks, a.Missing[0].Reason)
		case a.Failed > 0:
			gap("analyzer %s failed at %d of %d tasks", a.Name, a.Failed, a.Tasks)
		}
	}
	derived := 0
	for _, rc := range f.receipts {
		if rc.Cut != nil {
			derived += min(max(rc.Cut.Derived, 0), 1<<40)
		}
	}
	if derived > 0 {
		gap("%d derived artifacts were left out because of limits", derived)
	}
	if f.started != nil && f.start != nil && !slices.ContainsFunc(c.Sources, func(s schemas.SourceCoverage) bool { return s.Source == schemas.SourceTrace }) {
		gap("nothing says what became of the trace")
	}
	for _, t := range f.missing() {
		gap("%s", t)
	}
	for _, t := range f.gates {
		gap("%s", t)
	}
	if more := f.undecided - len(f.gates); more > 0 {
		gap("%d more gates did not decide", more)
	}
	if f.start != nil && f.start.Unheard > 0 {
		gap("%d requests of analyzers were not looked at: there were too many", f.start.Unheard)
	}
	for _, t := range f.faults {
		gap("%s", t)
	}
	if more := f.nfaults - len(f.faults); more > 0 {
		gap("%d more faults", more)
	}
	for _, b := range behavior {
		gap("%s", b)
	}
	if f.bad > 0 {
		gap("%d events of the log could not be read", f.bad)
	}
	c.Whole = len(gaps) == 0
	if len(gaps) > maxGaps {
		c.Omitted["gaps"] += len(gaps) - maxGaps
		gaps = gaps[:maxGaps]
	}
	c.Gaps = gaps
}

// outcome says how far the analysis got. What did not run is never completed.
func (f *Fold) outcome(r *schemas.Report) schemas.ReportOutcome {
	o := func(v schemas.Outcome, reasons ...string) schemas.ReportOutcome {
		return schemas.ReportOutcome{Value: v, Reasons: some(reasons)}
	}
	switch {
	case f.cancelled != nil:
		return o(schemas.OutcomeCancelled, "cancelled by "+f.cancelled.By)
	case f.failed != nil && (f.failed.Reason == "unsupported" || f.failed.Reason == "unsupported_architecture"):
		return o(schemas.OutcomeUnsupported, f.failed.Error)
	case f.failed != nil:
		return o(schemas.OutcomeFailed, f.failed.Reason+": "+f.failed.Error)
	case f.exited != nil && f.exited.Reason == "not_executed":
		return o(schemas.OutcomeNotExecuted, f.exited.Error)
	case f.started == nil && f.ending != "" && f.stoppedBy != "":
		return o(schemas.OutcomeNotExecuted, f.stoppedBy)
	case f.started == nil && f.ending != "":
		return o(schemas.OutcomeNotExecuted, "there is no proof that the sample ran")
	case !r.Coverage.Whole:
		return o(schemas.OutcomeIncomplete, r.Coverage.Gaps...)
	}
	return o(schemas.OutcomeCompleted)
}
