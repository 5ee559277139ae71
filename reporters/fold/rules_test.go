// SPDX-License-Identifier: Apache-2.0

package fold_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// edit decodes the data of every event of v's type, hands it to f and encodes
// it again.
func edit[T schemas.Typed](t testing.TB, list []schemas.Event, f func(*T)) []schemas.Event {
	t.Helper()
	out, n := slices.Clone(list), 0
	for i, e := range out {
		var v T
		if e.Type != v.EventType() {
			continue
		}
		if err := json.Unmarshal(e.Data, &v); err != nil {
			t.Fatal(err)
		}
		f(&v)
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out[i].Data = b
		n++
	}
	if n == 0 {
		t.Fatalf("there is no such event in the log")
	}
	return out
}

// contextEvent makes the context event of that number in the log's analysis.
func contextEvent(t testing.TB, list []schemas.Event, n int, data schemas.Typed) schemas.Event {
	t.Helper()
	e, err := schemas.NewEvent(list[0].Tenant, list[0].Analysis, fmt.Sprintf("%s/context/%d", list[0].Analysis, n), time.Unix(1e9, 0), schemas.OriginHost, data)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// number is that of the context event of that name.
func number(t testing.TB, list []schemas.Event, name string) int {
	t.Helper()
	n := 0
	for _, e := range list {
		if e.Family() == "context" {
			if e.Name() == name {
				return n
			}
			n++
		}
	}
	t.Fatalf("the log has no %s", name)
	return 0
}

// instead puts another event into the place of the context event of that name.
func instead(t testing.TB, list []schemas.Event, name string, data schemas.Typed) []schemas.Event {
	t.Helper()
	out := slices.Clone(list)
	i := slices.IndexFunc(out, func(e schemas.Event) bool { return e.Family() == "context" && e.Name() == name })
	out[i] = contextEvent(t, list, number(t, list, name), data)
	return out
}

func without(list []schemas.Event, drop func(schemas.Event) bool) []schemas.Event {
	return slices.DeleteFunc(slices.Clone(list), drop)
}

func named(name string) func(schemas.Event) bool {
	return func(e schemas.Event) bool { return e.Family() == "context" && e.Name() == name }
}

// TestRules is the table of what an analysis may claim. Each row is the log of
// a whole run with one thing amiss: what did not run, or is not there, is never
// called completed.
func TestRules(t *testing.T) {
	whole := events(t, "completed")
	source := func(name schemas.Source, f func(*schemas.SourceCoverage)) func(testing.TB, []schemas.Event) []schemas.Event {
		return func(t testing.TB, list []schemas.Event) []schemas.Event {
			return edit(t, list, func(d *schemas.StartAnalysis) {
				for i := range d.Sources {
					if d.Sources[i].Source == name {
						f(&d.Sources[i])
					}
				}
			})
		}
	}
	type log = []schemas.Event
	for _, row := range []struct {
		name   string
		change func(testing.TB, log) log
		want   schemas.Outcome
		reason string // a part of one of the outcome's
	}{
		{"nothing amiss", func(_ testing.TB, l log) log { return l }, schemas.OutcomeCompleted, ""},
		{"the sample crashed", func(t testing.TB, l log) log {
			return edit(t, l, func(d *schemas.SampleExited) { *d = schemas.SampleExited{Reason: "killed", Signal: "SIGSEGV"} })
		}, schemas.OutcomeCompleted, ""},
		{"the sample ran to its limit", func(t testing.TB, l log) log {
			return instead(t, l, schemas.EventSampleExited, schemas.Custom{Name: "time_is_up"})
		}, schemas.OutcomeCompleted, ""},

		{"not executed", func(t testing.TB, l log) log {
			return edit(t, l, func(d *schemas.SampleExited) {
				*d = schemas.SampleExited{Reason: "not_executed", Error: "exec format error"}
			})
		}, schemas.OutcomeNotExecuted, "exec format error"},
		{"no proof of execution", func(t testing.TB, l log) log {
			return instead(t, l, schemas.EventSampleStarted, schemas.Custom{Name: "something_else"})
		}, schemas.OutcomeNotExecuted, "no proof"},
		{"unsupported", func(t testing.TB, l log) log {
			return instead(t, l, schemas.EventCompleted, schemas.AnalysisFailed{Reason: "unsupported", Error: "no guest runs it"})
		}, schemas.OutcomeUnsupported, "no guest runs it"},
		{"failed", func(t testing.TB, l log) log {
			return instead(t, l, schemas.EventCompleted, schemas.AnalysisFailed{Reason: "machine", Error: "it broke"})
		}, schemas.OutcomeFailed, "machine: it broke"},
		{"cancelled", func(t testing.TB, l log) log {
			return instead(t, l, schemas.EventCompleted, schemas.AnalysisCancelled{By: "somebody"})
		}, schemas.OutcomeCancelled, "somebody"},
		{"failed, but nobody can read why", func(t testing.TB, l log) log {
			l = instead(t, l, schemas.EventCompleted, schemas.AnalysisFailed{})
			l[slices.IndexFunc(l, named(schemas.EventFailed))].Data = json.RawMessage(`"?"`)
			return l
		}, schemas.OutcomeFailed, "unknown"},

		{"no ending", func(_ testing.TB, l log) log { return without(l, named(schemas.EventCompleted)) }, schemas.OutcomeIncomplete, "has not ended"},
		{"a second ending", func(t testing.TB, l log) log {
			return append(slices.Clone(l), contextEvent(t, l, number(t, l, schemas.EventCompleted)+1, schemas.AnalysisCancelled{By: "a forger"}))
		}, schemas.OutcomeIncomplete, "could not be read"},
		{"a second beginning", func(t testing.TB, l log) log {
			return append(slices.Clone(l), contextEvent(t, l, number(t, l, schemas.EventCompleted)+1, schemas.AnalysisSubmitted{}))
		}, schemas.OutcomeIncomplete, "could not be read"},
		{"never analysed", func(t testing.TB, l log) log {
			return instead(t, l, schemas.EventStartAnalysis, schemas.Custom{Name: "something_else"})
		}, schemas.OutcomeIncomplete, "never came to its analyzers"},
		{"a lost context event", func(_ testing.TB, l log) log { return without(l, named(schemas.EventIPAddress)) }, schemas.OutcomeIncomplete, "1 events of the analysis are not in the log"},
		{"an event of a newer version", func(_ testing.TB, l log) log {
			l = slices.Clone(l)
			l[slices.IndexFunc(l, named(schemas.EventGuestReady))].Type = "petri.context.guest_ready.v2"
			return l
		}, schemas.OutcomeIncomplete, "1 events of the log could not be read"},
		{"another analysis' event", func(_ testing.TB, l log) log {
			l = slices.Clone(l)
			l[slices.IndexFunc(l, named(schemas.EventIPAddress))].Analysis = "01M7WZ1D1Z355ZTRN273E7VM5P"
			return l
		}, schemas.OutcomeIncomplete, "could not be read"},

		{"a trace with losses", source(schemas.SourceTrace, func(s *schemas.SourceCoverage) {
			s.Status, s.Reason, s.Lost = schemas.StatusPartial, "7 of 138 records lost", 7
		}), schemas.OutcomeIncomplete, "trace is not whole: 7 of 138"},
		{"no trace", source(schemas.SourceTrace, func(s *schemas.SourceCoverage) { s.Status, s.Reason = schemas.StatusMissing, "no tracer" }), schemas.OutcomeIncomplete, "trace is missing: no tracer"},
		{"nothing said of the trace", func(t testing.TB, l log) log {
			return edit(t, l, func(d *schemas.StartAnalysis) { d.Sources = nil })
		}, schemas.OutcomeIncomplete, "what became of the trace"},
		{"output that is cut", source(schemas.SourceStdout, func(s *schemas.SourceCoverage) {
			s.Status, s.Reason, s.Cut = schemas.StatusPartial, "more than 4194304 bytes", 1
		}), schemas.OutcomeIncomplete, "stdout is not whole"},
		{"a lost segment", func(_ testing.TB, l log) log {
			return without(l, func(e schemas.Event) bool { return strings.HasSuffix(e.ID, "/segment/stdout/0") })
		}, schemas.OutcomeIncomplete, "stdout: 1 of 2 segments"},
		{"all segments lost", func(_ testing.TB, l log) log {
			return without(l, func(e schemas.Event) bool { return strings.Contains(e.ID, "/segment/trace/") })
		}, schemas.OutcomeIncomplete, "trace: none of 1 segments"},
		{"a lost announcement", func(_ testing.TB, l log) log {
			return without(l, func(e schemas.Event) bool { return strings.Contains(e.ID, "/artifact/pcap/") })
		}, schemas.OutcomeIncomplete, "1 artifacts that were announced"},
		{"a hook that failed", func(t testing.TB, l log) log {
			return edit(t, l, func(d *schemas.StartAnalysis) { d.Hooks[0].Failed, d.Hooks[0].Error = 1, "no room" })
		}, schemas.OutcomeIncomplete, "hook console failed: no room"},
		{"a hook that never ran", func(t testing.TB, l log) log {
			return edit(t, l, func(d *schemas.StartAnalysis) { d.Hooks[0].Runs = 0 })
		}, schemas.OutcomeIncomplete, "hook console never ran"},
		{"a step that failed", func(t testing.TB, l log) log {
			return instead(t, l, schemas.EventIPAddress, schemas.StepFailed{Step: 2, Name: "wait_ip", Error: "no lease", OnFailure: "continue"})
		}, schemas.OutcomeIncomplete, "step 2, wait_ip, failed: no lease"},
		{"a machine that went down", func(t testing.TB, l log) log {
			return instead(t, l, schemas.EventIPAddress, schemas.MachineOff{State: "crashed", Reason: "guest-panic"})
		}, schemas.OutcomeIncomplete, "crashed, guest-panic"},
		{"a fault", func(t testing.TB, l log) log {
			return instead(t, l, schemas.EventIPAddress, schemas.Fault{Text: "the disk is full"})
		}, schemas.OutcomeIncomplete, "the disk is full"},
		{"possible tampering", func(t testing.TB, l log) log {
			return instead(t, l, schemas.EventIPAddress, schemas.PossibleTampering{Call: "bpf", PID: 7, Comm: "evil", Records: 3})
		}, schemas.OutcomeIncomplete, "from record 3 of its trace on comes after possible tampering: process 7 (evil) called bpf"},
		{"possible tampering, with something left behind", func(t testing.TB, l log) log {
			return instead(t, l, schemas.EventIPAddress, schemas.PossibleTampering{Call: "ptrace", Behind: "it took too long"})
		}, schemas.OutcomeIncomplete, "at 1 calls of possible tampering not all had left the guest that was recorded before: it took too long"},

		{"an answer that did not come", func(t testing.TB, l log) log {
			l = without(l, func(e schemas.Event) bool { return e.Family() == "receipt" && strings.Contains(e.ID, "/behavior/") })
			return edit(t, l, func(d *schemas.AnalysisCompleted) {
				d.Missing = []schemas.MissingTask{{Analyzer: "behavior", Reason: "timeout"}}
			})
		}, schemas.OutcomeIncomplete, "behavior did not answer 1 of 1 tasks: timeout"},
		{"an analyzer that failed", func(t testing.TB, l log) log {
			return edit(t, l, func(d *schemas.Receipt) {
				if d.Task.Analyzer == "behavior" {
					d.Status, d.Error = schemas.TaskFailed, "killed"
				}
			})
		}, schemas.OutcomeIncomplete, "behavior failed at 1 of 1 tasks"},
		{"an expected analyzer that is not there", func(t testing.TB, l log) log {
			return edit(t, l, func(d *schemas.AnalysisSubmitted) { d.Submission.Expected = append(d.Submission.Expected, "yara") })
		}, schemas.OutcomeIncomplete, "yara had nothing to look at"},
		{"an analyzer that nobody counts on failed", func(t testing.TB, l log) log {
			l = edit(t, l, func(d *schemas.AnalysisSubmitted) { d.Submission.Expected = []string{"behavior"} })
			return edit(t, l, func(d *schemas.Receipt) {
				if d.Task.Analyzer == "static" {
					d.Status = schemas.TaskFailed
				}
			})
		}, schemas.OutcomeCompleted, ""},
		{"a result document of no kind", func(t testing.TB, l log) log {
			return edit(t, l, func(d *schemas.Receipt) { d.Result = nil })
		}, schemas.OutcomeIncomplete, "the result of behavior cannot be read: no such document: the receipt names none"},
		{"findings that are not there", func(_ testing.TB, l log) log {
			return without(l, func(e schemas.Event) bool { return e.Family() == "finding" && strings.Contains(e.ID, "/behavior/") })
		}, schemas.OutcomeIncomplete, "4 findings that receipts count"},
		{"derived too much", func(t testing.TB, l log) log {
			return edit(t, l, func(d *schemas.Receipt) {
				if d.Task.Analyzer == "behavior" {
					d.Cut = &schemas.TaskCut{Derived: 3}
				}
			})
		}, schemas.OutcomeIncomplete, "3 derived artifacts were left out because of limits"},
	} {
		t.Run(strings.ReplaceAll(row.name, " ", "_"), func(t *testing.T) {
			r := folded(t, row.change(t, whole))
			if r.Outcome.Value != row.want {
				t.Errorf("the outcome is %s (%q), not %s", r.Outcome.Value, r.Outcome.Reasons, row.want)
			}
			if row.reason == "" && len(r.Outcome.Reasons) > 0 || !slices.ContainsFunc(r.Outcome.Reasons, func(s string) bool { return strings.Contains(s, row.reason) }) && row.reason != "" {
				t.Errorf("the reasons are %q; one should hold %q", r.Outcome.Reasons, row.reason)
			}
			sound(t, r)
		})
	}
}

// TestOneEventLess takes each event away in turn. Nothing but the report's own
// announcement may go unnoticed.
func TestOneEventLess(t *testing.T) {
	whole := events(t, "completed")
	for i, e := range whole[1:] {
		less := slices.Delete(slices.Clone(whole), i+1, i+2)
		r := folded(t, less)
		if done := r.Outcome.Value == schemas.OutcomeCompleted; done != (e.Family() == "report") {
			t.Errorf("without %s the outcome is %s", e.ID, r.Outcome.Value)
		}
		sound(t, r)
	}
}

// TestPrefixes folds what a crash would leave of each log.
func TestPrefixes(t *testing.T) {
	for name := range logs {
		t.Run(name, func(t *testing.T) {
			list := events(t, name)
			for n := 1; n < len(list); n++ {
				r := folded(t, list[:n])
				sound(t, r)
				if r.Outcome.Value == schemas.OutcomeCompleted && !slices.ContainsFunc(list[:n], named(schemas.EventCompleted)) {
					t.Errorf("completed after %d of %d events", n, len(list))
				}
			}
		})
	}
}

// TestOtherAnalyzersDocument has a stranger hand in a document of the
// behaviour's schema: the report is not his to fill.
func TestOtherAnalyzersDocument(t *testing.T) {
	list := edit(t, events(t, "completed"), func(d *schemas.Receipt) {
		if d.Task.Analyzer == "behavior" {
			d.Task.Analyzer = "a-stranger"
		}
	})
	r := folded(t, list)
	if len(r.Processes) > 0 || r.Outcome.Value != schemas.OutcomeIncomplete {
		t.Errorf("outcome %s with %d processes", r.Outcome.Value, len(r.Processes))
	}
}

// TestBlinded folds the log of a run whose trace lacks what was made, or the
// end of the sample's first process, as when the sample has overwritten the
// tracer's maps.
func TestBlinded(t *testing.T) {
	list := events(t, "completed")
	var d schemas.Digest
	for _, run := range folded(t, list).Analyzers {
		if run.Analyzer == "behavior" {
			d = run.Result.SHA256
		}
	}
	whole, err := documents{}.Document(d, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for reason, change := range map[string]func(*schemas.BehaviorResult){
		"the trace stops before process":                 func(r *schemas.BehaviorResult) { r.Processes[0].End, r.Processes[0].ExitCode = nil, nil },
		"38 records of the trace that the guest counted": func(r *schemas.BehaviorResult) { r.Records = 100 },
	} {
		var doc schemas.BehaviorResult
		if err := json.Unmarshal(whole, &doc); err != nil {
			t.Fatal(err)
		}
		change(&doc)
		b, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		r, err := foldAll(list).Report(document(b))
		if err != nil {
			t.Fatal(err)
		}
		if r.Outcome.Value != schemas.OutcomeIncomplete || len(r.Outcome.Reasons) != 1 || !strings.Contains(r.Outcome.Reasons[0], reason) {
			t.Errorf("the outcome is %s (%q); the reason should be %q", r.Outcome.Value, r.Outcome.Reasons, reason)
		}
	}
}

// sound checks what holds for every report, whatever the log was.
func sound(t testing.TB, r *schemas.Report) {
	t.Helper()
	outcomes := []schemas.Outcome{
		schemas.OutcomeCompleted, schemas.OutcomeIncomplete, schemas.OutcomeNotExecuted, schemas.OutcomeUnsupported, schemas.OutcomeFailed, schemas.OutcomeCancelled,
	}
	if !slices.Contains(outcomes, r.Outcome.Value) {
		t.Errorf("the outcome is %q", r.Outcome.Value)
	}
	if r.Outcome.Value == schemas.OutcomeCompleted && !r.Coverage.Whole {
		t.Errorf("completed without whole coverage: %q", r.Coverage.Gaps)
	}
	if r.Outcome.Value != schemas.OutcomeCompleted && len(r.Outcome.Reasons) == 0 {
		t.Errorf("%s without a reason", r.Outcome.Value)
	}
	if r.Verdict.Value == schemas.VerdictNoFindings && (r.Outcome.Value != schemas.OutcomeCompleted || !r.Coverage.Whole) {
		t.Errorf("no_findings of an analysis that is %s", r.Outcome.Value)
	}
	if r.Coverage.Whole != (len(r.Coverage.Gaps) == 0) {
		t.Errorf("whole is %v with the gaps %q", r.Coverage.Whole, r.Coverage.Gaps)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var doc any
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	bounded(t, "report", doc)
}

// bounded walks a JSON document: no list is longer than a report's may be.
func bounded(t testing.TB, path string, v any) {
	switch v := v.(type) {
	case []any:
		if len(v) > schemas.MaxReportList {
			t.Errorf("%s has %d entries", path, len(v))
		}
		for _, x := range v {
			bounded(t, path+"[]", x)
		}
	case map[string]any:
		for k, x := range v {
			bounded(t, path+"."+k, x)
		}
	}
}
