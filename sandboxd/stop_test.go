// SPDX-License-Identifier: Apache-2.0

package sandboxd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// submit gives the worker a job and returns it.
func (b *bench) submit(sub schemas.Submission) *fakeJob {
	j := &fakeJob{sub: sub, b: b, done: make(chan struct{})}
	b.jobs <- j
	return j
}

// reached waits for an event of an analysis.
func (b *bench) reached(t *testing.T, id, name string) {
	t.Helper()
	for range 100_000 {
		if slices.Contains(b.names(id), name) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("no %s: %v", name, b.names(id))
}

// inOrder fails unless the names come in that order, others between them.
func inOrder(t *testing.T, got []string, want ...string) {
	t.Helper()
	rest := got
	for _, w := range want {
		i := slices.Index(rest, w)
		if i < 0 {
			t.Fatalf("no %s in its place: %v", w, got)
		}
		rest = rest[i+1:]
	}
}

// hook subscribes to an event, required or not.
func hook(t *testing.T, c *sandboxd.Context, name string, o sandboxd.SubscribeOptions, h sandboxd.Handler) {
	t.Helper()
	if o.Name == "" {
		o.Name = "test"
	}
	if err := c.SubscribeHook([]string{name}, h, o); err != nil {
		t.Error(err)
	}
}

func TestFrozenGuestGoesOn(t *testing.T) {
	// The guest stands still, but says so too late, or never.
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.machine = func(m *fakeMachine) { m.onRun, m.late = running, true }
		sub := b.submission(t)
		stop := b.worker(t)
		defer stop()
		b.submit(sub)
		b.reached(t, sub.ID, "sample_started")
		back := b.goAway()
		time.Sleep(3 * time.Second)
		if !b.last().isPaused() {
			t.Error("the guest goes on while the log is away")
		}
		back()
		b.reached(t, sub.ID, "log_away")
		if b.last().isPaused() {
			t.Error("the guest still stands still")
		}
		b.ended(t, sub.ID)
	})
}

func TestPausedByTheProtocolStaysSo(t *testing.T) {
	// The log comes back to a protocol that waits for it to pause the guest.
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.machine = func(m *fakeMachine) { m.onRun = running }
		sub := b.submission(t)
		sub.Protocol = "name: x\nsteps:\n  - poweron\n  - run_sample\n  - wait: 2s\n  - pause\n  - wait: 20s\n  - start_analysis\n  - wait_analysis\n"
		stop := b.worker(t)
		defer stop()
		b.submit(sub)
		b.reached(t, sub.ID, "sample_started")
		back := b.goAway()
		time.Sleep(5 * time.Second)
		back()
		b.reached(t, sub.ID, "post_pause")
		for range 10 {
			time.Sleep(time.Second)
			if !b.last().isPaused() {
				t.Fatal("the guest goes on although the protocol has paused it")
			}
		}
		b.ended(t, sub.ID)
	})
}

func TestMachineNeverWaitsForTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.machine = func(m *fakeMachine) { m.onRun = running }
		sub := b.submission(t)
		stop := b.worker(t)
		defer stop()
		b.submit(sub)
		b.reached(t, sub.ID, "sample_started")
		back := b.goAway()
		begin, m := time.Now(), b.last()
		for i := range 10_000 {
			m.o.Event(machine.Event{Time: begin, Behavior: &schemas.Behavior{Record: uint64(i), Category: "file", Action: "open"}})
			m.o.Event(machine.Event{Time: begin, Fault: "something"})
		}
		_, _ = m.exit(0)
		if d := time.Since(begin); d > 0 {
			t.Errorf("the machine was held up for %s", d)
		}
		back()
		b.ended(t, sub.ID)
		inOrder(t, b.names(sub.ID), "fault", "sample_exited", "sample_tree_exited", "analysis_completed")
		var start schemas.StartAnalysis
		b.find(t, sub.ID, "start_analysis", &start)
		var dropped uint64
		for _, s := range start.Sources {
			dropped += s.Suppressed["file.open"]
		}
		if dropped == 0 || int(dropped)+b.shown != 10_000 {
			t.Errorf("%d live events are counted as dropped, %d were shown, of 10000", dropped, b.shown)
		}
	})
}

func TestCancelEndsHooks(t *testing.T) {
	for _, tt := range []struct {
		name string
		hook func(ctx context.Context) error
	}{
		{"polite", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }},
		{"deaf", func(context.Context) error { time.Sleep(20 * time.Second); return nil }},
	} {
		for _, at := range []string{"pre_shutdown", "snapshots_capture", "sample_started"} {
			t.Run(tt.name+"_"+at, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := newBench(t)
					b.machine = func(m *fakeMachine) { m.onRun = running }
					b.install = func(c *sandboxd.Context) {
						hook(t, c, at, sandboxd.SubscribeOptions{}, func(ctx context.Context, _ *sandboxd.Context, _ schemas.Event) error { return tt.hook(ctx) })
					}
					sub := b.submission(t)
					stop := b.worker(t)
					defer stop()
					b.submit(sub)
					b.reached(t, sub.ID, at)
					time.Sleep(time.Second)
					begin := time.Now()
					b.cancel(sub.ID)
					synctest.Wait()
					if !b.last().isClosed() {
						t.Error("the machine was not closed at once")
					}
					b.ended(t, sub.ID)
					if d := time.Since(begin); d > 5*time.Second {
						t.Errorf("it took %s to end", d)
					}
					var f schemas.HookFailed
					b.find(t, sub.ID, "hook_failed", &f)
					if !strings.Contains(f.Error, "cancelled by a test") {
						t.Errorf("hook_failed says %q", f.Error)
					}
					inOrder(t, b.names(sub.ID), at, "hook_failed", "start_analysis", "analysis_cancelled")
					inOrder(t, b.names(sub.ID), at, "pre_poweroff", "post_poweroff", "start_analysis")
					stop()
					time.Sleep(20 * time.Second) // the deaf hook ends
				})
			})
		}
	}
}

func TestCancelWhileTheLogIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.machine = func(m *fakeMachine) { m.onRun = running }
		sub := b.submission(t)
		stop := b.worker(t)
		defer stop()
		b.submit(sub)
		b.reached(t, sub.ID, "sample_started")
		back := b.goAway()
		time.Sleep(time.Second / 2)
		b.cancel(sub.ID)
		synctest.Wait()
		if !b.last().isClosed() {
			t.Error("stopping waits for the log")
		}
		time.Sleep(10 * time.Second)
		back()
		b.ended(t, sub.ID)
		var late schemas.Transition
		for _, e := range b.context[sub.ID] {
			if e.Name() == "post_poweroff" {
				late.Verb = "post_poweroff"
				if err := e.Decode(&late); err != nil {
					t.Fatal(err)
				}
			}
		}
		if late.Late.D() < 9*time.Second {
			t.Errorf("it was told %s late", late.Late)
		}
	})
}

func TestRequiredHooksOnFacts(t *testing.T) {
	for _, event := range []string{"ip_address", "sample_exited", "sample_tree_exited", "machine_off", "fault"} {
		t.Run(event, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.machine = func(m *fakeMachine) {
					m.onRun = func(m *fakeMachine) (machine.Started, error) {
						go func() {
							time.Sleep(time.Second)
							if event == "machine_off" {
								m.o.Event(machine.Event{Time: time.Now(), Off: &schemas.MachineOff{State: "crashed", Reason: "guest-panic"}})
							}
							if event == "fault" {
								m.o.Event(machine.Event{Time: time.Now(), Fault: "something"})
							}
							_, _ = m.exit(0)
						}()
						return running(m)
					}
				}
				var c *sandboxd.Context
				b.install = func(x *sandboxd.Context) {
					c = x
					hook(t, c, event, sandboxd.SubscribeOptions{Required: true}, func(context.Context, *sandboxd.Context, schemas.Event) error {
						time.Sleep(100 * time.Millisecond)
						return errors.New("no luck")
					})
				}
				sub := b.submission(t)
				b.analyse(t, sub)
				var f schemas.StepFailed
				b.find(t, sub.ID, "step_failed", &f)
				if !strings.Contains(f.Error, "required hook test: no luck") {
					t.Errorf("%+v", f)
				}
				inOrder(t, b.names(sub.ID), event, "hook_failed", "step_failed", "start_analysis")
				if c.IP4Address() == "" {
					t.Error("the address is in the log, and not in the state")
				}
			})
		})
	}
}

// TestGatherHasADeadline leaves work behind that never ends.
func TestGatherHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		release := make(chan struct{})
		late := make(chan error, 2)
		b.install = func(c *sandboxd.Context) {
			hook(t, c, "post_shutdown", sandboxd.SubscribeOptions{}, func(_ context.Context, c *sandboxd.Context, e schemas.Event) error {
				return c.Background("test", e, func(context.Context) error { <-release; return errors.New("too late") })
			})
			hook(t, c, "post_shutdown", sandboxd.SubscribeOptions{Name: "slow", Timeout: time.Second}, func(_ context.Context, c *sandboxd.Context, e schemas.Event) error {
				<-release // far behind its own deadline, and start_analysis
				late <- c.Background("slow", e, func(context.Context) error { t.Error("it began"); return nil })
				late <- c.Trigger("late", nil)
				return errors.New("too late")
			})
		}
		sub := b.submission(t)
		sub.Protocol = "name: x\nsteps:\n  - poweron\n  - run_sample\n  - shutdown\n  - start_analysis: {timeout: 5s}\n  - wait_analysis: {timeout: 7s}\n"
		stop := b.worker(t)
		defer stop()
		b.submit(sub)
		b.reached(t, sub.ID, "post_shutdown")
		begin := time.Now()
		b.reached(t, sub.ID, "start_analysis")
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("start_analysis came after %s", d)
		}
		close(release)
		b.ended(t, sub.ID)
		time.Sleep(time.Second)
		names := b.names(sub.ID)
		inOrder(t, names, "post_shutdown", "hook_failed", "hook_failed", "step_failed", "start_analysis", "wait_analysis", "analysis_completed")
		if tail := names[len(names)-3:]; tail[0] != "start_analysis" {
			t.Errorf("something was published behind start_analysis: %v", tail)
		}
		if <-late == nil || <-late == nil {
			t.Error("a hook did something behind start_analysis")
		}
		var start schemas.StartAnalysis
		b.find(t, sub.ID, "start_analysis", &start)
		failed := map[string]int{}
		for _, h := range start.Hooks {
			failed[h.Name] = h.Failed
		}
		if diff := cmp.Diff(map[string]int{"test": 1, "slow": 1, "memory": 0, "dropped": 0, "console": 0}, failed); diff != "" {
			t.Errorf("failed hooks (-want +got):\n%s", diff)
		}
		var f schemas.StepFailed
		b.find(t, sub.ID, "step_failed", &f)
		if f.Name != "start_analysis" || f.Step != 4 {
			t.Errorf("%+v", f)
		}
		for _, e := range b.context[sub.ID] {
			if e.Name() == "wait_analysis" {
				if d := b.waits[0].Sub(e.Time); d != 7*time.Second {
					t.Errorf("the analyzers had %s", d)
				}
			}
		}
	})
}

// TestSaidBeforeDone looks into the log when the machine is told to act.
func TestSaidBeforeDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		sub := b.submission(t)
		sub.Protocol = `
name: x
steps:
  - poweron
  - exec: [uname, -a]
  - dump_memory
  - run_sample
  - wait: {until: tree_exited, limit: 10s}
  - pause
  - resume
  - poweroff
  - start_analysis
  - wait_analysis
`
		before := map[string]string{
			"exec": "pre_exec", "dump": "pre_dump_memory", "pause": "sample_tree_exited", "resume": "pre_resume", "poweroff": "pre_poweroff",
		}
		var calls []string
		b.machine = func(m *fakeMachine) {
			m.fail["exec"] = errors.New("no such command")
			m.onCall = func(name string) {
				calls = append(calls, name)
				if want := before[name]; want != "" && !slices.Contains(b.names(sub.ID), want) {
					t.Errorf("%s came before %s: %v", name, want, b.names(sub.ID))
				}
			}
		}
		got := b.analyse(t, sub)
		inOrder(t, got, "pre_exec", "step_failed", "pre_dump_memory", "sample_exited", "sample_tree_exited", "pre_pause", "post_poweroff")
		var e schemas.PreExec
		b.find(t, sub.ID, "pre_exec", &e)
		if diff := cmp.Diff([]string{"uname", "-a"}, e.Command); diff != "" {
			t.Errorf("command (-want +got):\n%s", diff)
		}
		inOrder(t, calls, "flush", "pause", "resume", "flush", "poweroff")
	})
}

func TestTeardownFlushesTheTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		var calls []string
		b.machine = func(m *fakeMachine) {
			m.onRun = running
			m.onCall = func(name string) { calls = append(calls, name) }
		}
		sub := b.submission(t)
		sub.Protocol = "name: x\nsteps:\n  - poweron\n  - run_sample\n  - start_analysis\n  - wait_analysis\n"
		b.analyse(t, sub)
		if n := len(calls); n == 0 || calls[n-1] != "flush" {
			t.Errorf("calls: %v", calls)
		}
	})
}

// TestTraceOfPoweredOff gives the trace the end that it has when the power is
// taken.
func TestTraceOfPoweredOff(t *testing.T) {
	for _, tt := range []struct {
		name   string
		flush  error
		reason string
		counts []schemas.CPUCoverage
		want   string
	}{
		{"flushed", nil, "the link ended: EOF", []schemas.CPUCoverage{{}}, schemas.StatusWhole},
		{"not flushed", errors.New("hangs"), "the link ended: EOF", []schemas.CPUCoverage{{}}, schemas.StatusPartial},
		{"without counts", nil, "the link ended: EOF", nil, schemas.StatusPartial},
		{"broken", nil, "malformed: x", []schemas.CPUCoverage{{}}, schemas.StatusPartial},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.machine = func(m *fakeMachine) {
					m.fail["flush"] = tt.flush
					m.onClose = func() {
						m.o.End(schemas.SourceTrace, schemas.SourceCoverage{Status: schemas.StatusPartial, Reason: tt.reason, PerCPU: tt.counts})
					}
				}
				sub := b.submission(t)
				sub.Protocol = "name: x\nsteps:\n  - poweron\n  - run_sample\n  - poweroff\n  - start_analysis\n  - wait_analysis\n"
				b.analyse(t, sub)
				var start schemas.StartAnalysis
				b.find(t, sub.ID, "start_analysis", &start)
				for _, s := range start.Sources {
					if s.Source == schemas.SourceTrace && s.Status != tt.want {
						t.Errorf("the trace is %s (%s), not %s", s.Status, s.Reason, tt.want)
					}
				}
			})
		})
	}
}

// TestBeginFails leaves no goroutine behind: synctest would find it.
func TestBeginFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		sub := b.submission(t)
		b.store.objs = map[schemas.Digest][]byte{}
		b.analyse(t, sub)
		var f schemas.AnalysisFailed
		b.find(t, sub.ID, "analysis_failed", &f)
		if f.Reason != "store" {
			t.Errorf("%+v", f)
		}
	})
}

func TestStepFailureIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.machine = func(m *fakeMachine) { m.fail["pause"] = errors.New("stuck") }
		b.install = func(c *sandboxd.Context) {
			hook(t, c, "step_failed", sandboxd.SubscribeOptions{Required: true}, func(context.Context, *sandboxd.Context, schemas.Event) error { return errors.New("no luck") })
		}
		sub := b.submission(t)
		b.analyse(t, sub)
		var f schemas.AnalysisFailed
		b.find(t, sub.ID, "analysis_failed", &f)
		if f.Reason != "hook" {
			t.Errorf("%+v", f)
		}
	})
}

func TestNoRoomForTheNote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		sub := b.submission(t)
		stop := b.worker(t)
		defer stop()
		synctest.Wait()
		if err := os.RemoveAll(b.dir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(b.dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		j := b.submit(sub)
		<-j.done
		if diff := cmp.Diff([]string{"analysis_submitted", "analysis_failed"}, b.names(sub.ID)); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		var f schemas.AnalysisFailed
		b.find(t, sub.ID, "analysis_failed", &f)
		if f.Reason != "store" || b.givenBack != 2 {
			t.Errorf("%+v, given back %d times", f, b.givenBack)
		}
	})
}

func TestRedeliveredWhileItRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.parallel = 2
		b.machine = func(m *fakeMachine) { m.onRun = running }
		sub := b.submission(t)
		stop := b.worker(t)
		defer stop()
		first := b.submit(sub)
		again := b.submit(sub) // at the same moment
		b.reached(t, sub.ID, "sample_started")
		third := b.submit(sub) // in the middle
		for _, j := range []*fakeJob{first, again, third} {
			<-j.done
		}
		b.ended(t, sub.ID)
		names := b.names(sub.ID)
		if last := names[len(names)-1]; last != "analysis_completed" || len(b.machines) != 1 {
			t.Errorf("%d machines, ended with %s: %v", len(b.machines), last, names)
		}
		if b.givenBack == 0 {
			t.Error("no job was given back")
		}
	})
}

// TestLogsDiskIsFull has the log refuse everything at once.
func TestLogsDiskIsFull(t *testing.T) {
	full := errors.New("insufficient resources")
	for _, tt := range []struct {
		name string
		d    time.Duration
		want string
	}{{"for a while", 20 * time.Second, "analysis_completed"}, {"for long", 10 * time.Minute, "analysis_failed"}} {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.machine = func(m *fakeMachine) { m.onRun = running }
				sub := b.submission(t)
				stop := b.worker(t)
				defer stop()
				b.submit(sub)
				b.reached(t, sub.ID, "sample_started")
				b.breakDown(full)
				m := b.last()
				m.o.Event(machine.Event{Time: time.Now(), Fault: "something to tell"})
				time.Sleep(3 * time.Second)
				if !m.isPaused() || m.isClosed() {
					t.Error("the guest goes on although the log takes nothing")
				}
				time.Sleep(tt.d - 3*time.Second)
				if tt.d > time.Minute && !m.isClosed() {
					t.Error("the guest was not killed")
				}
				b.breakDown(nil)
				b.ended(t, sub.ID)
				names := b.names(sub.ID)
				if last := names[len(names)-1]; last != tt.want {
					t.Errorf("ended with %s: %v", last, names)
				}
				if tt.d < time.Minute {
					inOrder(t, names, "fault", "log_away", "analysis_completed")
				}
			})
		})
	}
}

// TestClockIsStepped has the host's clock jump during a wait: what the machine
// tells carries the new time, and the wait takes as long as it should.
func TestClockIsStepped(t *testing.T) {
	for _, step := range []time.Duration{time.Hour, -time.Hour} {
		t.Run(step.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.machine = func(m *fakeMachine) {
					m.onRun = func(m *fakeMachine) (machine.Started, error) {
						go func() {
							time.Sleep(3 * time.Second)
							m.o.Event(machine.Event{Time: time.Now().Add(step).Round(0), Fault: "the clock"})
						}()
						return running(m)
					}
				}
				sub := b.submission(t)
				stop := b.worker(t)
				defer stop()
				b.submit(sub)
				b.reached(t, sub.ID, "sample_started")
				begin := time.Now()
				b.reached(t, sub.ID, "pre_pause")
				if d := time.Since(begin).Round(time.Second); d != 13*time.Second {
					t.Errorf("it was quiet for 10 s after %s, not 13 s", d)
				}
				b.ended(t, sub.ID)
			})
		})
	}
}

// TestIdentity checks that nothing in a guest's Ethernet address tells of its
// machine id, which looks like one that systemd made.
func TestIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		sub := b.submission(t)
		b.analyse(t, sub)
		var r schemas.GuestReady
		b.find(t, sub.ID, "guest_ready", &r)
		id := r.Identity.MachineID
		if len(id) != 32 || id[12] != '4' || !strings.ContainsRune("89ab", rune(id[16])) {
			t.Errorf("machine id %s is no random UUID", id)
		}
		if mac := strings.ReplaceAll(r.Identity.MAC, ":", ""); strings.Contains(id, mac[6:]) {
			t.Errorf("the address %s is made of the machine id %s", r.Identity.MAC, id)
		}
	})
}

// TestSEEMethods calls every method of SEE's context on a running machine.
func TestSEEMethods(t *testing.T) {
	const limit = time.Second
	var spec schemas.MachineSpec
	ignore := func(context.Context, *sandboxd.Context, schemas.Event) error { return nil }
	var count atomic.Int32
	counted := func(context.Context, *sandboxd.Context, schemas.Event) error { count.Add(1); return nil }
	expect := func(want int32) error {
		if n := count.Load(); n != want {
			return fmt.Errorf("%d events were seen, not %d", n, want)
		}
		return nil
	}
	var sub *sandboxd.Subscription
	tests := []struct {
		name string
		call func(ctx context.Context, c *sandboxd.Context) error
		want []string // events
		err  string
	}{
		{"poweron of a running machine", func(ctx context.Context, c *sandboxd.Context) error { return c.Poweron(ctx, limit, spec) }, nil, "illegal transition"},
		{"resume of a running machine", func(ctx context.Context, c *sandboxd.Context) error { return c.Resume(ctx, limit) }, nil, "illegal transition"},
		{"pause", func(ctx context.Context, c *sandboxd.Context) error { return c.Pause(ctx, limit) }, []string{"pre_pause", "post_pause"}, ""},
		{"shutdown of a paused machine", func(ctx context.Context, c *sandboxd.Context) error { return c.Shutdown(ctx, limit) }, nil, "illegal transition"},
		{"resume", func(ctx context.Context, c *sandboxd.Context) error { return c.Resume(ctx, limit) }, []string{"pre_resume", "post_resume"}, ""},
		{"restart", func(ctx context.Context, c *sandboxd.Context) error { return c.Restart(ctx, limit) }, []string{"pre_restart", "post_restart", "guest_ready"}, ""},
		{"exec", func(ctx context.Context, c *sandboxd.Context) error {
			_, err := c.Exec(ctx, limit, []string{"id"})
			return err
		}, []string{"pre_exec", "exec"}, ""},
		{"trigger", func(_ context.Context, c *sandboxd.Context) error { return c.Trigger("mine", nil) }, []string{"mine"}, ""},
		{"trigger of no name", func(_ context.Context, c *sandboxd.Context) error { return c.Trigger("No name", nil) }, nil, "name"},
		{"subscribe", func(_ context.Context, c *sandboxd.Context) (err error) {
			if sub, err = c.Subscribe("mine*", counted); err != nil {
				return err
			}
			return errors.Join(c.Trigger("mine_too", nil), c.Trigger("other", nil), expect(1))
		}, []string{"mine_too", "other"}, ""},
		{"unsubscribe", func(_ context.Context, c *sandboxd.Context) error {
			c.Unsubscribe(sub)
			return errors.Join(c.Trigger("mine", nil), expect(1))
		}, []string{"mine"}, ""},
		{"subscribe to no pattern", func(_ context.Context, c *sandboxd.Context) error {
			_, err := c.Subscribe("[", ignore)
			return err
		}, nil, "pattern"},
		{"subscribe_async", func(_ context.Context, c *sandboxd.Context) error {
			begin := time.Now()
			s, err := c.SubscribeAsync("slow", func(context.Context, *sandboxd.Context, schemas.Event) error {
				time.Sleep(time.Second)
				count.Add(1)
				return nil
			})
			if err != nil {
				return err
			}
			defer c.Unsubscribe(s)
			if err := errors.Join(c.Trigger("slow", nil), expect(1)); err != nil || time.Since(begin) > 0 {
				return fmt.Errorf("it was waited for: %w", err)
			}
			time.Sleep(2 * time.Second)
			return expect(2)
		}, []string{"slow"}, ""},
		{"unsubscribe in a handler", func(_ context.Context, c *sandboxd.Context) error {
			var s *sandboxd.Subscription
			s, err := c.Subscribe("once", func(_ context.Context, c *sandboxd.Context, _ schemas.Event) error {
				count.Add(1)
				c.Unsubscribe(s)
				return c.Trigger("once", nil) // which nobody sees
			})
			if err != nil {
				return err
			}
			return errors.Join(c.Trigger("once", nil), expect(3))
		}, []string{"once", "once"}, ""},
		{"ip4_address", func(_ context.Context, c *sandboxd.Context) error {
			if a := c.IP4Address(); a != "10.0.2.15" {
				return errors.New(a)
			}
			return nil
		}, nil, ""},
		{"mac_address", func(_ context.Context, c *sandboxd.Context) error {
			if a := c.MACAddress(); !strings.HasPrefix(a, "00:e0:4c:") || len(a) != 17 {
				return errors.New(a)
			}
			return nil
		}, nil, ""},
		{"ip6_address", func(_ context.Context, c *sandboxd.Context) error {
			_, err := c.IP6Address()
			return err
		}, nil, "no IPv6"},
		{"shutdown", func(ctx context.Context, c *sandboxd.Context) error { return c.Shutdown(ctx, limit) }, []string{"pre_shutdown", "post_shutdown"}, ""},
		{"poweron", func(ctx context.Context, c *sandboxd.Context) error { return c.Poweron(ctx, limit, spec) }, []string{"pre_poweron", "post_poweron", "guest_ready"}, ""},
		{"poweroff", func(ctx context.Context, c *sandboxd.Context) error { return c.Poweroff(ctx, limit) }, []string{"pre_poweroff", "post_poweroff"}, ""},
		{"exec without a guest", func(ctx context.Context, c *sandboxd.Context) error {
			_, err := c.Exec(ctx, limit, []string{"id"})
			return err
		}, nil, "the machine is off"},
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		var c *sandboxd.Context
		b.install = func(x *sandboxd.Context) { c = x }
		sub := b.submission(t)
		sub.Protocol = "name: x\nsteps:\n  - poweron\n  - wait_ip\n  - wait: 1h\n  - start_analysis\n  - wait_analysis\n"
		sub.Hooks = "hooks: []\n"
		stop := b.worker(t)
		defer stop()
		b.submit(sub)
		b.reached(t, sub.ID, "ip_address")
		synctest.Wait()
		for _, tt := range tests {
			n := len(b.names(sub.ID))
			err := tt.call(t.Context(), c)
			synctest.Wait()
			switch {
			case tt.err == "" && err != nil, tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("%s: error %v, want %q", tt.name, err, tt.err)
			}
			got := slices.DeleteFunc(slices.Clone(b.names(sub.ID)[n:]), func(n string) bool { return n == "ip_address" })
			if diff := cmp.Diff(tt.want, got, cmp.Transformer("", func(s []string) string { return strings.Join(s, " ") })); diff != "" {
				t.Errorf("%s: events (-want +got):\n%s", tt.name, diff)
			}
		}
		b.cancel(sub.ID)
		b.ended(t, sub.ID)
	})
}
