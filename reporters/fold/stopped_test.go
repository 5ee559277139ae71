// SPDX-License-Identifier: Apache-2.0

package fold_test

import (
	"testing"
	"time"

	"github.com/petri-sandbox/petri/reporters/fold"
	"github.com/petri-sandbox/petri/schemas"
)

// A sample that the sandbox ends was not killed by its own doing.
func TestStopped(t *testing.T) {
	exited := schemas.SampleExited{Reason: "killed", Signal: "SIGKILL"}
	for _, tt := range []struct {
		name   string
		events []schemas.Typed
		want   string
	}{
		{"before the shutdown", []schemas.Typed{exited, schemas.Transition{Verb: schemas.EventPreShutdown}}, "killed"},
		{"during the shutdown", []schemas.Typed{schemas.Transition{Verb: schemas.EventPreShutdown}, exited}, schemas.ReasonStopped},
		{"during the poweroff", []schemas.Typed{schemas.Transition{Verb: schemas.EventPrePoweroff}, exited}, schemas.ReasonStopped},
		{"by another signal", []schemas.Typed{schemas.Transition{Verb: schemas.EventPreShutdown}, schemas.SampleExited{Reason: "killed", Signal: "SIGSEGV"}}, "killed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := fold.New()
			id := schemas.NewID(time.Unix(1, 0))
			events := append([]schemas.Typed{schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: id}, Attempt: 1}, schemas.SampleStarted{PID: 7}}, tt.events...)
			for i, d := range events {
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
			if r.Console.Reason != tt.want {
				t.Errorf("the reason is %q, want %q", r.Console.Reason, tt.want)
			}
		})
	}
}
