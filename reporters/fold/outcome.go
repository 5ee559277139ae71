// SPDX-License-Identifier: Apache-2.0

package fold

import (
	"fmt"
	"slices"

	"github.com/petri-sandbox/petri/schemas"
)

// gaps is what is missing, a line each.
type gaps []string

func (g *gaps) add(format string, args ...any) { *g = append(*g, fmt.Sprintf(format, args...)) }

// coverage lists what is missing, and decides whether anything is.
func (f *Fold) coverage(r *schemas.Report, behavior []string) {
	c := &r.Coverage
	var g gaps
	if f.ending == "" {
		g.add("the analysis has not ended")
	}
	if f.start == nil {
		g.add("the analysis never came to its analyzers")
	} else {
		c.Sources, c.Hooks = f.start.Sources, f.start.Hooks
	}
	f.sourceGaps(&g, r)
	machineGaps(&g, r)
	f.analyzerGaps(&g, c.Analyzers)
	if f.started != nil && f.start != nil && !slices.ContainsFunc(c.Sources, func(s schemas.SourceCoverage) bool { return s.Source == schemas.SourceTrace }) {
		g.add("nothing says what became of the trace")
	}
	g = append(g, f.missing()...)
	f.requestGaps(&g)
	g = append(g, f.after(r)...)
	g = append(g, f.faults...)
	if more := f.nfaults - len(f.faults); more > 0 {
		g.add("%d more faults", more)
	}
	g = append(g, behavior...)
	if f.bad > 0 {
		g.add("%d events of the log could not be read", f.bad)
	}
	c.Whole = len(g) == 0
	if len(g) > maxGaps {
		c.Omitted["gaps"] += len(g) - maxGaps
		g = g[:maxGaps]
	}
	c.Gaps = g
}

func (f *Fold) sourceGaps(g *gaps, r *schemas.Report) {
	for _, s := range r.Coverage.Sources {
		if s.Source == schemas.SourcePcap {
			r.Network.Frames = s.Produced
		}
		switch s.Status {
		case schemas.StatusPartial:
			g.add("%s is not whole: %s", s.Source, s.Reason)
		case schemas.StatusMissing:
			reason := s.Reason
			if t := r.Machine.Tracer; s.Source == schemas.SourceTrace && t != nil && t.Error != "" {
				reason += ": " + t.Error
			}
			g.add("%s is missing: %s", s.Source, reason)
		}
	}
}

// machineGaps are those of what ran beside the sample: hooks, steps, the machine.
func machineGaps(g *gaps, r *schemas.Report) {
	for _, h := range r.Coverage.Hooks {
		switch {
		case h.Failed > 0:
			g.add("hook %s failed: %s", h.Name, h.Error)
		case h.Runs == 0:
			g.add("hook %s never ran: none of its events came", h.Name)
		}
	}
	for _, s := range r.Coverage.Steps {
		g.add("step %d, %s, failed: %s", s.Step, s.Name, s.Error)
	}
	if off := r.Machine.Off; off != nil {
		g.add("the machine went down by itself: %s, %s", off.State, off.Reason)
	}
}

func (f *Fold) analyzerGaps(g *gaps, analyzers []schemas.AnalyzerCoverage) {
	for _, a := range analyzers {
		switch {
		case !a.Expected: // nobody counts on it; its coverage says what it did
		case a.Tasks == 0 && f.ending == schemas.EventCompleted:
			g.add("analyzer %s had nothing to look at", a.Name)
		case len(a.Missing) > 0:
			g.add("analyzer %s did not answer %d of %d tasks: %s", a.Name, len(a.Missing), a.Tasks, a.Missing[0].Reason)
		case a.Failed > 0:
			g.add("analyzer %s failed at %d of %d tasks", a.Name, a.Failed, a.Tasks)
		}
	}
	derived := 0
	for _, rc := range f.receipts {
		if rc.Cut != nil {
			derived += min(max(rc.Cut.Derived, 0), 1<<40)
		}
	}
	if derived > 0 {
		g.add("%d derived artifacts were left out because of limits", derived)
	}
}

// requestGaps are those of gates and of analyzers' requests to the sandbox.
func (f *Fold) requestGaps(g *gaps) {
	*g = append(*g, f.gates...)
	if more := f.undecided - len(f.gates); more > 0 {
		g.add("%d more gates did not decide", more)
	}
	if f.start != nil && f.start.Unheard > 0 {
		g.add("%d requests of analyzers were not looked at: there were too many", f.start.Unheard)
	}
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
