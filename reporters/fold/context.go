// SPDX-License-Identifier: Apache-2.0

package fold

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/petri-sandbox/petri/schemas"
)

// contextData takes what a context event says over into the report, and
// returns the line that the timeline has about it.
func (f *Fold) contextData(e schemas.Event) (detail string, err error) {
	switch e.Name() {
	case schemas.EventPreShutdown, schemas.EventPrePoweroff:
		f.goingDown = true
	case schemas.EventPostPoweron, schemas.EventPostRestart:
		f.goingDown = false
	}
	switch name := e.Name(); name {
	case schemas.EventSubmitted:
		if f.submitted {
			return "", errTwoHeads
		}
		return read(e, f.submittedEvent)
	case schemas.EventClaimed:
		return read(e, func(d schemas.AnalysisClaimed) string {
			at := e.Time
			f.r.Analysis.Claimed, f.r.Analysis.Worker, f.r.Analysis.Version = &at, d.Worker, d.Version
			return "by " + d.Host
		})
	case schemas.EventPrePoweron:
		return read(e, func(d schemas.PrePoweron) string {
			f.r.Machine.Spec = &d.Machine
			// One that replays has less to say.
			m := []string{d.Machine.Guest(), string(d.Machine.Start), string(d.Machine.Accel)}
			return strings.Join(slices.DeleteFunc(m, func(s string) bool { return s == "" }), ", ")
		})
	case schemas.EventPostPoweron:
		return read(e, f.poweredOn)
	case schemas.EventGuestReady:
		return read(e, func(d schemas.GuestReady) string {
			f.r.Machine.Identity, f.r.Machine.Tracer = &d.Identity, &d.Tracer
			f.r.Network.MAC = d.Identity.MAC
			return fmt.Sprintf("%s, tracer %s", d.Identity.Hostname, d.Tracer.Backend)
		})
	case schemas.EventIPAddress:
		return read(e, func(d schemas.IPAddress) string {
			f.r.Machine.Address, f.r.Network.Address = d.Address, d.Address
			return d.Address
		})
	case schemas.EventRunSample:
		return read(e, func(d schemas.RunSample) string { return strings.Join(d.Command, " ") })
	case schemas.EventSampleStarted:
		return read(e, func(d schemas.SampleStarted) string {
			f.started, f.exited = &d, nil
			return fmt.Sprintf("pid %d", d.PID)
		})
	case schemas.EventSampleExited:
		return read(e, func(d schemas.SampleExited) string {
			if f.goingDown && d.Signal == "SIGKILL" {
				d.Reason = schemas.ReasonStopped
			}
			f.exited = &d
			return exitText(&d)
		})
	case schemas.EventTreeExited:
		return read(e, func(schemas.TreeExited) string { return "no process of the sample is left" })
	case schemas.EventMachineOff:
		return read(e, func(d schemas.MachineOff) string {
			f.r.Machine.Off = &d
			return d.State + ": " + d.Reason
		})
	case schemas.EventFault:
		return read(e, func(d schemas.Fault) string {
			f.nfaults++
			if len(f.faults) < maxGaps {
				f.faults = append(f.faults, d.Text)
			}
			return d.Text
		})
	case schemas.EventTampering:
		return read(e, func(d schemas.PossibleTampering) string { return f.possibleTampering(e.Time, d) })
	case schemas.EventLogAway:
		return read(e, func(d schemas.LogAway) string { return "the guest stood still for " + d.For.String() })
	case schemas.EventHookFailed:
		return read(e, func(d schemas.HookFailed) string { return d.Hook + ": " + d.Error })
	case schemas.EventStepFailed:
		return read(e, func(d schemas.StepFailed) string {
			f.r.Coverage.Steps = add(f, "failed_steps", f.r.Coverage.Steps, d)
			return fmt.Sprintf("step %d, %s: %s", d.Step, d.Name, d.Error)
		})
	case schemas.EventGateAnswered:
		return read(e, f.gateAnswered)
	case schemas.EventControlDecided:
		return read(e, controlDetail)
	case schemas.EventPreExec:
		return read(e, func(d schemas.PreExec) string { return strings.Join(d.Command, " ") })
	case schemas.EventPreDumpMemory:
		return read(e, func(d schemas.PreDumpMemory) string { return fmt.Sprintf("%d MiB of RAM", d.Bytes>>20) })
	case schemas.EventExec:
		return read(e, func(d schemas.Exec) string {
			return fmt.Sprintf("%s: exit code %d", strings.Join(d.Command, " "), d.ExitCode)
		})
	case schemas.EventStartAnalysis:
		return read(e, func(d schemas.StartAnalysis) string {
			f.start = &d
			return fmt.Sprintf("%d artifacts", len(d.Artifacts))
		})
	case schemas.EventWaitAnalysis:
		return read(e, func(d schemas.WaitAnalysis) string { return "expected: " + strings.Join(d.Expected, ", ") })
	case schemas.EventCompleted, schemas.EventFailed, schemas.EventCancelled:
		return f.end(e)
	case schemas.EventAmended:
		f.r.Analysis.Amended++
		return read(e, func(d schemas.AnalysisAmended) string { return d.Analyzer + " answered late" })
	case schemas.EventRunAdopted:
		if len(f.adopted) >= maxAdoptions {
			return "", errAdoptions
		}
		return f.runAdopted(e)
	default:
		return f.other(e, name)
	}
}

// Detail is the line that a timeline has about a context event.
func Detail(e schemas.Event) string {
	detail, err := New().contextData(e)
	if err != nil {
		return "(unreadable)"
	}
	return detail
}

// read decodes an event's data and hands it to f.
func read[T schemas.Typed](e schemas.Event, f func(T) string) (string, error) {
	var d T
	if err := e.Decode(any(&d).(schemas.Typed)); err != nil {
		return "", err
	}
	return f(d), nil
}

func (f *Fold) submittedEvent(d schemas.AnalysisSubmitted) string {
	f.submitted = true
	s := d.Submission
	f.expected = s.Expected
	f.r.Sample = s.Sample
	f.r.Analysis.ID = schemas.AttemptID(s.ID, d.Attempt)
	f.r.Analysis.Tenant, f.r.Analysis.Submission, f.r.Analysis.Attempt, f.r.Analysis.RetryOf = s.Tenant, s.ID, d.Attempt, d.RetryOf
	f.r.Analysis.Submitted, f.r.Analysis.Options = s.Submitted, s.Options
	f.r.Analysis.Protocol = schemas.Sum([]byte(s.Protocol))
	return s.Sample.Name
}

func (f *Fold) poweredOn(d schemas.PostPoweron) string {
	m := &f.r.Machine
	m.Spec, m.Version, m.Kernel, m.Image, m.Template, m.Fallback = &d.Machine, d.Version, d.Kernel, d.Image, d.Template, d.Fallback
	m.Isolation = d.Isolation
	s := fmt.Sprintf("%s in %s", d.Machine.Start, d.Took)
	if d.Fallback != "" {
		s += " (" + d.Fallback + ")"
	}
	return s
}

// gateAnswered notes a gate that did not decide, and one that stopped.
func (f *Fold) gateAnswered(d schemas.GateAnswered) string {
	s := d.Gate + ": " + d.Answer
	switch d.Answer {
	case schemas.GateGo, schemas.GateStop:
	default:
		s += ", counts as " + d.Effect
		f.undecided++
		if len(f.gates) < maxGaps {
			f.gates = append(f.gates, fmt.Sprintf("gate %s did not decide: %s, counted as %s", d.Gate, d.Answer, d.Effect))
		}
	}
	if d.Reason != "" {
		s += ": " + d.Reason
	}
	if d.Effect == schemas.GateStop && f.stoppedBy == "" {
		f.stoppedBy = fmt.Sprintf("gate %s stopped it: %s", d.Gate, cmp.Or(d.Reason, d.Answer))
	}
	return fmt.Sprintf("%s (after %s)", s, d.Waited)
}

func controlDetail(d schemas.ControlDecided) string {
	s := "denied"
	if d.Granted {
		s = "granted"
	}
	s = fmt.Sprintf("%s of %s: %s", d.Action, d.Analyzer, s)
	for _, more := range []string{d.Effect, d.Reason} {
		if more != "" {
			s += ", " + more
		}
	}
	return s
}

func exitText(d *schemas.SampleExited) string {
	switch {
	case d.Reason == "not_executed":
		return "not executed: " + d.Error
	case d.Reason == schemas.ReasonStopped:
		return "it still ran, and was stopped"
	case d.Signal != "":
		return d.Reason + " by " + d.Signal
	case d.ExitCode != nil:
		return fmt.Sprintf("exit code %d", *d.ExitCode)
	}
	return d.Reason
}

func (f *Fold) end(e schemas.Event) (detail string, err error) {
	if f.ending != "" {
		return "", errTwoEnds
	}
	at := e.Time
	f.ending, f.r.Analysis.Ended = e.Name(), &at
	// One whose data cannot be read is an ending of its kind all the same.
	switch e.Name() {
	case schemas.EventCompleted:
		return read(e, func(d schemas.AnalysisCompleted) string {
			f.completed = &d
			if n := len(d.Missing); n > 0 {
				return fmt.Sprintf("%d answers are missing", n)
			}
			return ""
		})
	case schemas.EventFailed:
		f.failed = &schemas.AnalysisFailed{Reason: "unknown"}
		return read(e, func(d schemas.AnalysisFailed) string {
			f.failed = &d
			return d.Reason + ": " + d.Error
		})
	default:
		f.cancelled = &schemas.AnalysisCancelled{By: "unknown"}
		return read(e, func(d schemas.AnalysisCancelled) string {
			f.cancelled = &d
			return "by " + d.By
		})
	}
}

// other is for the verbs' events and the protocol's own.
func (f *Fold) other(e schemas.Event, name string) (detail string, err error) {
	switch {
	case strings.HasPrefix(name, "failed_"):
		return read(e, func(d schemas.FailedTransition) string { return d.Error })
	case strings.HasPrefix(name, "pre_"), strings.HasPrefix(name, "post_"):
		return read(e, func(d schemas.Transition) string {
			s := d.Reason
			if d.Late > 0 {
				s = strings.TrimPrefix(s+fmt.Sprintf(", told %s late", d.Late), ", ")
			}
			return s
		})
	}
	return "", nil
}
