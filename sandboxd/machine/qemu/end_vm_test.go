// SPDX-License-Identifier: Apache-2.0

//go:build vm

package qemu_test

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/machinetest"
	"github.com/petri-sandbox/petri/sandboxd/machine/qemu"
	"github.com/petri-sandbox/petri/schemas"
)

// TestGuestEnds checks what is told when a machine goes down by itself.
func TestGuestEnds(t *testing.T) {
	tests := map[string]struct {
		arg  string // of the program sysrq
		want schemas.MachineOff
	}{
		"reset":      {"b", schemas.MachineOff{State: "off", Reason: "guest-reset"}},
		"power_down": {"o", schemas.MachineOff{State: "off", Reason: "guest-shutdown"}},
		"panic":      {"c", schemas.MachineOff{State: "crashed", Reason: "guest-panic"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			g := warmGuest(t)
			sample := machinetest.Program(t, "sysrq")
			// The machine may end before it has answered that the sample runs.
			if _, err := g.Run(g.ctx, machinetest.Command(t, sample, test.arg), sample); err != nil {
				t.Logf("run: %v", err)
			}
			if diff := cmp.Diff(test.want, g.rec.AwaitOff(t, patience)); diff != "" {
				t.Errorf("end (-want +got):\n%s", diff)
			}
			g.checkGone(t)
		})
	}
	t.Run("qemu_killed", func(t *testing.T) {
		g := warmGuest(t)
		g.start("ends", "sleep")
		for _, pid := range children(t) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(schemas.MachineOff{State: "crashed", Reason: "qemu ended: signal: killed"}, g.rec.AwaitOff(t, patience)); diff != "" {
			t.Errorf("end (-want +got):\n%s", diff)
		}
		g.checkGone(t)
	})
	// reboot(2) of the sample ends its container and not the machine: the
	// guest stays, and what the sample left can be collected.
	t.Run("reboot_of_the_container", func(t *testing.T) {
		g := warmGuest(t)
		g.start("sysrq", "reboot")
		e := g.rec.AwaitExit(t, patience)
		if e.Reason != "reboot" {
			t.Errorf("exit %+v", e)
		}
		g.rec.AwaitTree(t, patience)
		if _, err := g.Exec(g.ctx, machine.Exec{Command: []string{"true"}, Timeout: time.Second}); err == nil || !strings.Contains(err.Error(), "rebooted") {
			t.Errorf("exec afterwards: %v", err)
		}
		if _, err := g.Collect(g.ctx, machine.Collect{MaxFile: 1 << 20, MaxFiles: 10, MaxTotal: 1 << 20, MaxList: 10}); err != nil {
			t.Errorf("collect afterwards: %v", err)
		}
		g.shutdown()
	})
}

// checkGone checks that nothing works in a machine that has ended, that every
// call says so at once, and that its end was told once.
func (g *guest) checkGone(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(g.ctx, time.Minute)
	defer cancel()
	for what, err := range map[string]error{
		"pause": g.Pause(ctx), "resume": g.Resume(ctx), "flush": g.Flush(ctx), "dump": g.DumpMemory(ctx, os.Stdin),
	} {
		if !errors.Is(err, machine.ErrGone) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := g.Shutdown(ctx); err != nil {
		t.Errorf("shutdown of what is off: %v", err)
	}
	if err := g.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	n := 0
	for _, e := range g.rec.Events() {
		if e.Off != nil {
			n++
		}
	}
	if n != 1 {
		t.Errorf("the end was told %d times", n)
	}
}

// children lists this process' own.
func children(t *testing.T) []int {
	t.Helper()
	var out []int
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				out = append(out, pid)
			}
		}
	}
	return out
}

// TestStray checks that nothing of a sample is taken to have ended because it is
// not where it was put.
func TestStray(t *testing.T) {
	for _, how := range []string{"cgroup", "respawn", "restart", "kernel"} {
		t.Run(how, func(t *testing.T) {
			g := warmGuest(t)
			g.start("stray", how)
			if e := g.rec.AwaitExit(t, patience); how == "cgroup" && (e.ExitCode == nil || *e.ExitCode != 0) {
				t.Errorf("exit %+v", e)
			}
			if how == "respawn" { // it does not end: the init may start something at any time
				g.sh("until [ -s /late ]; do sleep 0.1; done")
				if slices.ContainsFunc(g.rec.Events(), func(e machine.Event) bool { return e.Tree != nil }) {
					t.Error("the tree is said to have ended")
				}
			} else {
				g.rec.AwaitTree(t, patience)
			}
			if _, err := g.Collect(g.ctx, machine.Collect{Final: true, MaxFile: 1 << 20, MaxFiles: 10, MaxTotal: 1 << 20, MaxList: 10}); err != nil {
				t.Error(err)
			}
			if f := g.rec.Files()["/late"]; f == nil || f.Size != 4 {
				t.Errorf("what it did later: %+v", f)
			}
			if f := g.rec.Faults(); len(f) > 0 {
				t.Errorf("faults: %q", f)
			}
		})
	}
}

// TestTeardown checks that a machine leaves no process, descriptor, goroutine
// or file, however it ends.
func TestTeardown(t *testing.T) {
	ends := map[string]func(t *testing.T, g *guest){
		"shutdown": func(_ *testing.T, g *guest) { g.shutdown() },
		"poweroff": func(t *testing.T, g *guest) {
			if err := g.Poweroff(g.ctx); err != nil {
				t.Error(err)
			}
		},
		"close":           func(*testing.T, *guest) {},
		"close_while_run": func(_ *testing.T, g *guest) { g.start("output", "1000") },
		"close_paused": func(t *testing.T, g *guest) {
			if err := g.Pause(g.ctx); err != nil {
				t.Error(err)
			}
		},
		"killed": func(t *testing.T, g *guest) {
			for _, pid := range children(t) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			g.rec.AwaitOff(t, patience)
		},
	}
	cfg := machinetest.WarmConfig(t)
	cfg.Untraced = true
	machinetest.Program(t, "output") // compiled before anything is counted
	cfg.Network = func(ctx context.Context, conn net.Conn) error {
		<-ctx.Done()
		return ctx.Err()
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("TMPDIR", dir)
			fds, goroutines := machinetest.Descriptors(t), runtime.NumGoroutine()
			rec := machinetest.NewRecorder()
			m := qemu.New(cfg, rec)
			g := &guest{Machine: m, t: t, ctx: t.Context(), rec: rec}
			if _, err := m.Poweron(t.Context(), machinetest.Identity(1)); err != nil {
				t.Fatal(err)
			}
			end(t, g)
			for range 2 { // closing twice is allowed
				if err := m.Close(); err != nil {
					t.Error(err)
				}
			}
			if pids := children(t); len(pids) > 0 {
				t.Errorf("processes %v are left", pids)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("files are left: %v, %v", left, err)
			}
			deadline := time.Now().Add(time.Minute)
			for runtime.NumGoroutine() > goroutines && time.Now().Before(deadline) {
				time.Sleep(10 * time.Millisecond) // those that have returned are still being taken down
			}
			if n := runtime.NumGoroutine(); n > goroutines {
				stacks := make([]byte, 64<<10)
				t.Errorf("%d goroutines before, %d after:\n%s", goroutines, n, stacks[:runtime.Stack(stacks, true)])
			}
			// A goroutine that is taken down may have had one.
			if name != "close_while_run" { // the sample is still open
				if diff := cmp.Diff(fds, machinetest.Descriptors(t)); diff != "" {
					t.Errorf("descriptors (-before +after):\n%s", diff)
				}
			}
		})
	}
}
