// SPDX-License-Identifier: Apache-2.0

package sandboxd_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
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
		b.analysing = 5 * time.Second
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
		if first, second := <-late, <-late; first == nil || second == nil {
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

// TestLeaseLost has another sandbox take the lease while the sample runs, as it
// does when this one stood still for too long: the guest goes at once, and this
// sandbox writes nothing any more.
func TestLeaseLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.taken = make(chan struct{})
		gone := make(chan struct{})
		b.machine = func(m *fakeMachine) {
			m.onRun = running
			m.onClose = sync.OnceFunc(func() { close(gone) })
		}
		sub := b.submission(t)
		sub.Protocol = "name: x\nsteps:\n  - poweron\n  - run_sample\n  - wait: 1h\n  - start_analysis\n  - wait_analysis\n"
		stop := b.worker(t)
		defer stop()
		b.submit(sub)
		b.reached(t, sub.ID, "sample_started")
		synctest.Wait()
		before := len(b.names(sub.ID))
		begin := time.Now()
		if _, err := b.OpenContext(t.Context(), "default", sub.ID); err != nil { // the other one writes
			t.Fatal(err)
		}
		close(b.taken)
		<-gone
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("the guest went on for %s", took)
		}
		synctest.Wait()
		names := b.names(sub.ID)
		if len(names) > before {
			t.Errorf("it went on writing: %v", names)
		}
	})
}
