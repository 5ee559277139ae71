// SPDX-License-Identifier: Apache-2.0

package fold_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/reporters/fold"
	"github.com/petri-sandbox/petri/schemas"
)

// Gates and requests of analyzers show in the timeline; a gate that did not
// decide is a gap, and one that stopped the analysis before the sample ran is
// why it did not.
func TestGatesAndControl(t *testing.T) {
	sec := schemas.Duration(time.Second)
	for _, tt := range []struct {
		name   string
		event  schemas.Typed
		detail string
		gap    string // empty: none about it
		reason string // of the outcome
	}{
		{"go", schemas.GateAnswered{Gate: "approve", Answer: "go", Effect: "go", Waited: sec},
			"approve: go (after 1s)", "", "there is no proof that the sample ran"},
		{"stop", schemas.GateAnswered{Gate: "approve", Answer: "stop", Effect: "stop", Reason: "known", Waited: sec},
			"approve: stop: known (after 1s)", "", "gate approve stopped it: known"},
		{"absent", schemas.GateAnswered{Gate: "approve", Answer: "absent", Effect: "go"},
			"approve: absent, counts as go (after 0s)", "gate approve did not decide: absent, counted as go", "there is no proof that the sample ran"},
		{"timeout", schemas.GateAnswered{Gate: "approve", Answer: "timeout", Effect: "stop", Waited: sec},
			"approve: timeout, counts as stop (after 1s)", "gate approve did not decide: timeout, counted as stop", "gate approve stopped it: timeout"},
		{"granted", schemas.ControlDecided{Analyzer: "rules", Action: "extend", Granted: true, Effect: "the wait may take 5s longer", Reason: "cut from 10s"},
			"extend of rules: granted, the wait may take 5s longer, cut from 10s", "", "there is no proof that the sample ran"},
		{"denied", schemas.ControlDecided{Analyzer: "rules", Action: "stop", Reason: "not allowed by the protocol"},
			"stop of rules: denied, not allowed by the protocol", "", "there is no proof that the sample ran"},
		{"unheard", schemas.StartAnalysis{Unheard: 3}, "0 artifacts", "3 requests of analyzers were not looked at: there were too many", "there is no proof that the sample ran"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := fold.New()
			id := schemas.NewID(time.Unix(1, 0))
			for i, d := range []schemas.Typed{schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: id}, Attempt: 1}, tt.event, schemas.AnalysisCompleted{}} {
				e, err := schemas.NewEvent("default", id, id+"/context/"+string(rune('0'+i)), time.Unix(int64(i), 0), schemas.OriginHost, d)
				if err != nil {
					t.Fatal(err)
				}
				f.Add(e)
			}
			r, err := f.Report(nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := r.Timeline[1].Detail; got != tt.detail {
				t.Errorf("the timeline has %q, not %q", got, tt.detail)
			}
			about := slices.DeleteFunc(slices.Clone(r.Coverage.Gaps), func(g string) bool { return !strings.Contains(g, "gate") && !strings.Contains(g, "requests") })
			if got := strings.Join(about, "; "); got != tt.gap {
				t.Errorf("the gap is %q, not %q", got, tt.gap)
			}
			if got := strings.Join(r.Outcome.Reasons, "; "); r.Outcome.Value != schemas.OutcomeNotExecuted || got != tt.reason {
				t.Errorf("the outcome is %s: %q, not %q", r.Outcome.Value, got, tt.reason)
			}
		})
	}
}
