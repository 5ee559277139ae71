// SPDX-License-Identifier: Apache-2.0

package sandboxd_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// gateFunc is a service behind every gate.
type gateFunc func(ctx context.Context, gate string, e schemas.Event) ([]byte, error)

func (f gateFunc) Ask(ctx context.Context, _, gate string, e schemas.Event) ([]byte, error) {
	return f(ctx, gate, e)
}

func says(answer string) gateFunc {
	return func(context.Context, string, schemas.Event) ([]byte, error) { return []byte(answer), nil }
}

const gated = `
name: x
steps:
  - poweron
  - run_sample
  - wait: {until: tree_exited, limit: 10s, on_failure: continue}
  - exec: [id]
  - start_analysis
  - wait_analysis
gates:
  - {on: %s, name: approve, timeout: 5s, otherwise: %s}
`

// TestGates asks a gate at run_sample.
func TestGates(t *testing.T) {
	silent := func(ctx context.Context, _ string, _ schemas.Event) ([]byte, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	nobody := func(context.Context, string, schemas.Event) ([]byte, error) {
		return nil, fmt.Errorf("approve: %w", sandboxd.ErrNoGate)
	}
	tries := 0
	unreachable := func(context.Context, string, schemas.Event) ([]byte, error) {
		if tries++; tries < 5 {
			return nil, errors.New("no connection")
		}
		return []byte(`{"decision":"go"}`), nil
	}
	long := strings.Repeat("x", 513)
	for _, tt := range []struct {
		name, otherwise string
		gate            gateFunc
		want            schemas.GateAnswered
	}{
		{"go", "stop", says(`{"decision":"go","reason":"looks good"}`), schemas.GateAnswered{Answer: "go", Effect: "go", Reason: "looks good"}},
		{"stop", "go", says(`{"decision":"stop","reason":"known"}`), schemas.GateAnswered{Answer: "stop", Effect: "stop", Reason: "known"}},
		{"nobody, go", "go", nobody, schemas.GateAnswered{Answer: "absent", Effect: "go"}},
		{"nobody, stop", "stop", nobody, schemas.GateAnswered{Answer: "absent", Effect: "stop"}},
		{"silent, go", "go", silent, schemas.GateAnswered{Answer: "timeout", Effect: "go", Waited: schemas.Duration(5 * time.Second)}},
		{"silent, stop", "stop", silent, schemas.GateAnswered{Answer: "timeout", Effect: "stop", Waited: schemas.Duration(5 * time.Second)}},
		{"unreachable at first", "stop", unreachable, schemas.GateAnswered{Answer: "go", Effect: "go", Waited: schemas.Duration(time.Second)}},
		{"no gates at all", "stop", nil, schemas.GateAnswered{Answer: "absent", Effect: "stop", Reason: "this sandbox reaches no gates"}},
		{"maybe", "go", says(`{"decision":"maybe"}`), schemas.GateAnswered{Answer: "invalid", Effect: "go", Reason: `the answer's decision "maybe" is neither go nor stop`}},
		{"no JSON", "stop", says(`stop`), schemas.GateAnswered{Answer: "invalid", Effect: "stop", Reason: "the answer is no JSON of a gate's: invalid character 's' looking for beginning of value"}},
		{"wordy", "stop", says(`{"decision":"go","reason":"` + long + `"}`), schemas.GateAnswered{Answer: "invalid", Effect: "stop", Reason: "the answer's reason has 513 bytes; 512 are allowed"}},
		{"large", "stop", says(strings.Repeat(" ", 5000) + `{"decision":"go"}`), schemas.GateAnswered{Answer: "invalid", Effect: "stop", Reason: "the answer has 5017 bytes; 4096 are allowed"}},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				sub := b.submission(t)
				if tt.gate != nil {
					b.gates = gateFunc(func(ctx context.Context, gate string, e schemas.Event) ([]byte, error) {
						names := b.names(sub.ID)
						if gate != "approve" || e.Name() != "run_sample" || !slices.Contains(names, "run_sample") {
							t.Errorf("gate %s was asked about %s when the log had %v", gate, e.Name(), names)
						}
						return tt.gate(ctx, gate, e)
					})
				}
				sub.Protocol = fmt.Sprintf(gated, "run_sample", tt.otherwise)
				names := b.analyse(t, sub)
				var got schemas.GateAnswered
				b.find(t, sub.ID, "gate_answered", &got)
				tt.want.Gate = "approve"
				for _, e := range b.context[sub.ID] {
					if e.Name() == "run_sample" {
						tt.want.Event = e.ID
					}
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("gate_answered (-want +got):\n%s", diff)
				}
				if names[len(names)-1] != "analysis_completed" {
					t.Errorf("the analysis ended with %s", names[len(names)-1])
				}
				ran := slices.ContainsFunc(b.last().calls, func(c string) bool { return strings.HasPrefix(c, "run ") })
				if goes := tt.want.Effect == "go"; goes != ran || goes != slices.Contains(names, "exec") || goes == slices.Contains(names, "step_failed") {
					t.Errorf("effect %s: it ran: %t, events %v", tt.want.Effect, ran, names)
				}
			})
		})
	}
}

// TestGateAfterHooks asks the gate when the hooks are done, and not at all if
// one without which nothing goes on has failed.
func TestGateAfterHooks(t *testing.T) {
	for _, fails := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			hooked, asked := false, false
			b.gates = gateFunc(func(context.Context, string, schemas.Event) ([]byte, error) {
				asked = true
				if !hooked {
					t.Error("the gate was asked before the hook was done")
				}
				return []byte(`{"decision":"go"}`), nil
			})
			b.install = func(c *sandboxd.Context) {
				hook(t, c, "run_sample", sandboxd.SubscribeOptions{Required: true}, func(context.Context, *sandboxd.Context, schemas.Event) error {
					time.Sleep(time.Second)
					hooked = true
					if fails {
						return errors.New("no")
					}
					return nil
				})
			}
			sub := b.submission(t)
			sub.Protocol = fmt.Sprintf(gated, "run_sample", "stop")
			b.analyse(t, sub)
			if asked == fails {
				t.Errorf("the hook failed: %t; the gate was asked: %t", fails, asked)
			}
		})
	}
}

// TestGateAtFact stops an analysis at something that the guest did, although
// the step that runs says to continue.
func TestGateAtFact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.gates = says(`{"decision":"stop","reason":"enough"}`)
		sub := b.submission(t)
		sub.Protocol = fmt.Sprintf(gated, "sample_exited", "go")
		names := b.analyse(t, sub)
		inOrder(t, names, "sample_exited", "gate_answered", "step_failed", "start_analysis", "analysis_completed")
		if slices.Contains(names, "exec") {
			t.Errorf("the protocol went on: %v", names)
		}
		var f schemas.StepFailed
		b.find(t, sub.ID, "step_failed", &f)
		if f.Error != "gate approve: stop: enough" {
			t.Errorf("%+v", f)
		}
	})
}

// TestGateWaitsForNothing ends the machine while a gate is silent.
func TestGateWaitsForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		asked := make(chan struct{})
		b.gates = gateFunc(func(ctx context.Context, _ string, _ schemas.Event) ([]byte, error) {
			close(asked)
			<-ctx.Done()
			return nil, ctx.Err()
		})
		sub := b.submission(t)
		sub.Protocol = strings.Replace(fmt.Sprintf(gated, "run_sample", "go"), "5s", "1h", 1)
		stop := b.worker(t)
		defer stop()
		b.submit(sub)
		<-asked
		begin := time.Now()
		b.cancel(sub.ID)
		b.ended(t, sub.ID)
		if d := time.Since(begin); d > 5*time.Second || !b.last().isClosed() {
			t.Errorf("it ended after %s", d)
		}
		var a schemas.GateAnswered
		b.find(t, sub.ID, "gate_answered", &a)
		if a.Answer != "moot" || a.Effect != "stop" {
			t.Errorf("%+v", a)
		}
	})
	// A fact's gate does not hold the end of the protocol up.
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.machine = func(m *fakeMachine) { m.onRun = running }
		b.gates = gateFunc(func(ctx context.Context, _ string, _ schemas.Event) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		sub := b.submission(t)
		sub.Protocol = strings.Replace(fmt.Sprintf(gated, "ip_address", "go"), "5s", "1h", 1)
		begin := time.Now()
		b.analyse(t, sub)
		if d := time.Since(begin); d > time.Minute {
			t.Errorf("it took %s", d)
		}
	})
}

// findings are what analyzers say of a running analysis.
type findings chan schemas.Event

func (f findings) FollowFindings(ctx context.Context, _, _ string, fn func(schemas.Event)) error {
	for {
		select {
		case e := <-f:
			fn(e)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ask says that an analyzer asks for something.
func (f findings) ask(t *testing.T, n int, r schemas.ControlRequest) {
	t.Helper()
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	f.say(t, n, schemas.ControlKind, data)
}

func (f findings) say(t *testing.T, n int, kind string, data json.RawMessage) {
	t.Helper()
	c := schemas.FindingCommitted{
		Task:    schemas.TaskRef{Run: schemas.LiveRun, Analyzer: "rules"},
		Finding: schemas.Finding{Kind: kind, Title: "x", Data: data},
	}
	e, err := schemas.NewEvent("default", "", fmt.Sprintf("finding/%d", n), time.Now(), schemas.OriginHost, c)
	if err != nil {
		t.Fatal(err)
	}
	f <- e
}

// decisions lists what became of the requests.
func (b *bench) decisions(t *testing.T, id string) []schemas.ControlDecided {
	t.Helper()
	b.memLog.mu.Lock()
	defer b.memLog.mu.Unlock()
	var out []schemas.ControlDecided
	for _, e := range b.context[id] {
		var d schemas.ControlDecided
		if e.Name() == "control_decided" {
			if err := e.Decode(&d); err != nil {
				t.Fatal(err)
			}
			out = append(out, d)
		}
	}
	return out
}

// at is when an event was published.
func (b *bench) at(t *testing.T, id, name string) time.Time {
	t.Helper()
	events, _ := b.Events(t.Context(), "default", id)
	i := slices.IndexFunc(events, func(e schemas.Event) bool { return e.Name() == name })
	if i < 0 {
		t.Fatalf("no %s", name)
	}
	return events[i].Time
}

const controlled = `
name: x
steps:
  - poweron
  - run_sample
  - wait: {until: tree_exited, limit: runtime}
  - wait: 30s
  - exec: [id]
  - start_analysis
  - wait_analysis
`

// screen is a machine with a display.
type screen struct{ *fakeMachine }

func (s screen) Screenshot(_ context.Context, f *os.File) error {
	if err := s.call("screenshot"); err != nil {
		return err
	}
	_, err := f.WriteString("PNG")
	return err
}

func TestControl(t *testing.T) {
	s := func(n int) schemas.Duration { return schemas.Duration(n) * schemas.Duration(time.Second) }
	type decision struct {
		granted bool
		reason  string
	}
	for _, tt := range []struct {
		name, control string
		display       bool
		ask           []schemas.ControlRequest
		want          []decision
		took          time.Duration // both waits
		calls         []string
	}{
		{"nothing allowed", "", true, []schemas.ControlRequest{{Action: "extend", Duration: s(5)}, {Action: "stop"}, {Action: "dump_memory"}, {Action: "screenshot"}},
			[]decision{{false, "not allowed by the protocol"}, {false, "not allowed by the protocol"}, {false, "not allowed by the protocol"}, {false, "not allowed by the protocol"}}, 51 * time.Second, nil},
		{"extended", "extend: 60s", false, []schemas.ControlRequest{{Action: "extend", Duration: s(50)}, {Action: "extend", Duration: s(50)}, {Action: "extend", Duration: s(1)}, {Action: "extend"}},
			[]decision{{true, ""}, {true, "cut from 50s to what the budget has left"}, {false, "the budget is used up"}, {false, "it does not say by how much"}}, 111 * time.Second, nil},
		{"stopped", "stop: true, extend: 5s", false, []schemas.ControlRequest{{Action: "stop"}, {Action: "stop"}, {Action: "extend", Duration: s(1)}},
			[]decision{{true, ""}, {false, "it is stopped already"}, {false, "too late: the protocol has no wait left"}}, 6 * time.Second, nil},
		{"dumped", "dump_memory: 1", false, []schemas.ControlRequest{{Action: "dump_memory"}, {Action: "dump_memory"}},
			[]decision{{true, ""}, {false, "the budget is used up"}}, 51 * time.Second, []string{"dump"}},
		{"no display", "screenshot: 1", false, []schemas.ControlRequest{{Action: "screenshot"}}, []decision{{false, "the machine has no display"}}, 51 * time.Second, nil},
		{"pictures", "screenshot: 2", true, []schemas.ControlRequest{{Action: "screenshot"}, {Action: "screenshot"}}, []decision{{true, ""}, {true, ""}}, 51 * time.Second, []string{"screenshot", "screenshot"}},
		{"unknown", "stop: true", false, []schemas.ControlRequest{{Action: "explode"}}, []decision{{false, "there is no such action"}}, 51 * time.Second, nil},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.machine = func(m *fakeMachine) {
					m.onRun = running
					m.onCall = func(name string) {
						if name == "exec" {
							time.Sleep(time.Second)
						}
					}
				}
				b.display = tt.display
				asked := make(findings)
				b.findings = asked
				sub := b.submission(t)
				sub.Protocol = controlled
				if tt.control != "" {
					sub.Protocol += "control: {" + tt.control + "}\n"
				}
				stop := b.worker(t)
				defer stop()
				b.submit(sub)
				b.reached(t, sub.ID, "sample_started")
				begin := time.Now()
				time.Sleep(5 * time.Second)
				asked.say(t, 99, "elf_identity", nil) // no request
				for i, r := range tt.ask {
					asked.ask(t, i, r)
					synctest.Wait()
				}
				time.Sleep(30 * time.Second) // reached has not that much patience
				b.reached(t, sub.ID, "start_analysis")
				if d := b.at(t, sub.ID, "start_analysis").Sub(begin).Round(time.Second); d != tt.took {
					t.Errorf("the waits took %s, not %s", d, tt.took)
				}
				b.ended(t, sub.ID)
				var got []decision
				for i, d := range b.decisions(t, sub.ID) {
					got = append(got, decision{d.Granted, d.Reason})
					if d.Analyzer != "rules" || d.Finding != fmt.Sprintf("finding/%d", i) || d.Granted != (d.Effect != "") {
						t.Errorf("%+v", d)
					}
				}
				if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(decision{})); diff != "" {
					t.Errorf("decisions (-want +got):\n%s", diff)
				}
				var calls []string
				for _, c := range b.last().calls {
					if c == "dump" || c == "screenshot" {
						calls = append(calls, c)
					}
				}
				if diff := cmp.Diff(tt.calls, calls); diff != "" {
					t.Errorf("calls (-want +got):\n%s", diff)
				}
				var start schemas.StartAnalysis
				b.find(t, sub.ID, "start_analysis", &start)
				n := 0
				for _, a := range start.Artifacts {
					if a.Kind == schemas.KindMemory || a.Kind == schemas.KindScreenshot {
						n += a.Occurrences
					}
				}
				if n != len(tt.calls) {
					t.Errorf("%d of %d are announced: %+v", n, len(tt.calls), start.Artifacts)
				}
			})
		})
	}
}

// TestControlEarly asks before there is a guest: what needs the sample waits
// for it.
func TestControlEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.machine = func(m *fakeMachine) {
			m.onRun = running
			m.slow = 10 * time.Second
		}
		asked := make(findings)
		b.findings = asked
		sub := b.submission(t)
		sub.Protocol = controlled + "control: {dump_memory: 1, extend: 10s}\n"
		stop := b.worker(t)
		defer stop()
		b.submit(sub)
		b.reached(t, sub.ID, "pre_poweron")
		asked.ask(t, 0, schemas.ControlRequest{Action: "dump_memory"})
		asked.ask(t, 1, schemas.ControlRequest{Action: "extend", Duration: schemas.Duration(10 * time.Second)})
		b.reached(t, sub.ID, "sample_started")
		begin := time.Now()
		b.reached(t, sub.ID, "start_analysis")
		if d := time.Since(begin).Round(time.Second); d < 60*time.Second {
			t.Errorf("the waits took %s", d)
		}
		b.ended(t, sub.ID)
		inOrder(t, b.names(sub.ID), "control_decided", "sample_started", "control_decided", "pre_dump_memory")
		for _, d := range b.decisions(t, sub.ID) {
			if !d.Granted {
				t.Errorf("%+v", d)
			}
		}
	})
}

// TestControlLate asks when the machine is gone, and too often.
func TestControlLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.machine = func(m *fakeMachine) { m.onRun = running }
		asked := make(findings)
		b.findings = asked
		release := make(chan struct{})
		b.install = func(c *sandboxd.Context) {
			hook(t, c, "sample_started", sandboxd.SubscribeOptions{}, func(_ context.Context, c *sandboxd.Context, e schemas.Event) error {
				return c.Background("test", e, func(context.Context) error { <-release; return nil })
			})
		}
		sub := b.submission(t)
		sub.Protocol = controlled + "control: {dump_memory: 1, extend: 10s, stop: true, screenshot: 1}\n"
		stop := b.worker(t)
		defer stop()
		b.submit(sub)
		b.reached(t, sub.ID, "post_poweroff")
		for i, action := range schemas.ControlActions {
			asked.ask(t, i, schemas.ControlRequest{Action: action, Duration: 1})
			synctest.Wait()
		}
		for i := range 40 {
			asked.ask(t, 10+i, schemas.ControlRequest{Action: "stop"})
		}
		synctest.Wait()
		close(release)
		b.ended(t, sub.ID)
		got := b.decisions(t, sub.ID)
		for _, d := range got {
			if d.Granted || d.Reason != "too late: the machine is off" {
				t.Errorf("%+v", d)
			}
		}
		var start schemas.StartAnalysis
		b.find(t, sub.ID, "start_analysis", &start)
		if len(got) != 32 || start.Unheard != 12 {
			t.Errorf("%d decisions, %d requests were not looked at", len(got), start.Unheard)
		}
	})
}

// TestControlWhileLogAway grants nothing before the log has it, and a wait does
// not end while an extension is on its way.
func TestControlWhileLogAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.machine = func(m *fakeMachine) { m.onRun = running }
		asked := make(findings)
		b.findings = asked
		sub := b.submission(t)
		sub.Protocol = strings.Replace(controlled, "  - wait: 30s\n", "", 1) + "control: {extend: 10s}\n"
		stop := b.worker(t)
		defer stop()
		b.submit(sub)
		b.reached(t, sub.ID, "sample_started")
		begin := time.Now()
		time.Sleep(19*time.Second + 500*time.Millisecond)
		back := b.goAway()
		asked.ask(t, 0, schemas.ControlRequest{Action: "extend", Duration: schemas.Duration(10 * time.Second)})
		time.Sleep(900 * time.Millisecond) // the guest is not yet frozen, and the wait's limit is past
		back()
		b.reached(t, sub.ID, "start_analysis")
		if d := time.Since(begin).Round(time.Second); d != 30*time.Second {
			t.Errorf("the wait took %s", d)
		}
		b.ended(t, sub.ID)
	})
}

var _ machine.Screenshotter = screen{}

// TestBehaviorNumbers has a machine that counts from 1 again after a restart, and
// that left some out: the numbers of an analysis go on, with holes.
func TestBehaviorNumbers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		show := func(m *fakeMachine, numbers ...uint64) {
			for _, n := range numbers {
				m.o.Event(machine.Event{Time: time.Now(), Behavior: &schemas.Behavior{Category: "file", Action: "open", Number: n}})
			}
		}
		b.machine = func(m *fakeMachine) {
			m.onRun = func(m *fakeMachine) (machine.Started, error) {
				show(m, 1, 2, 5)
				return running(m)
			}
			m.onCall = func(name string) {
				if name == "restart" {
					show(m, 6)
				}
				if name == "exec" {
					show(m, 1, 4, 5)
				}
			}
		}
		sub := b.submission(t)
		sub.Protocol = "name: x\nsteps:\n  - poweron\n  - run_sample\n  - restart\n  - exec: [id]\n  - start_analysis\n  - wait_analysis\n"
		b.analyse(t, sub)
		if diff := cmp.Diff([]uint64{1, 2, 5, 6, 7, 10, 11}, b.numbers); diff != "" {
			t.Errorf("numbers (-want +got):\n%s", diff)
		}
	})
}
