// SPDX-License-Identifier: Apache-2.0

package sandboxd_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/schemas"
)

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
