// SPDX-License-Identifier: Apache-2.0

package sandboxd_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

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
		b.install = func(c *sandboxd.Context) {
			hook(t, c, "halfway", sandboxd.SubscribeOptions{}, func(context.Context, *sandboxd.Context, schemas.Event) error {
				time.Sleep(3 * time.Second)
				return nil
			})
		}
		sub := b.submission(t)
		sub.Protocol = "name: x\nsteps:\n  - poweron\n  - run_sample\n  - trigger: halfway\n  - pause\n  - wait: 20s\n  - start_analysis\n  - wait_analysis\n"
		stop := b.worker(t)
		defer stop()
		b.submit(sub)
		b.reached(t, sub.ID, "halfway")
		back := b.goAway()
		time.Sleep(5050 * time.Millisecond)
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
				sub.Protocol = untilQuiet
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
