// SPDX-License-Identifier: Apache-2.0

//go:build vm

package app_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/faults"
	"github.com/petri-sandbox/petri/schemas"
)

// sleeper prints, and then waits for longer than any of these tests.
const sleeper = `#include <stdio.h>
#include <unistd.h>
int main(void)
{
	puts("started");
	fflush(stdout);
	for (;;)
		sleep(1);
}
`

// A process of the tree below a petri.
type process struct {
	pid, parent int
	args        []string
}

// role is what a process does: the word after daemon, or its own name.
func (p process) role() string {
	switch {
	case len(p.args) > 2 && p.args[1] == "daemon":
		return p.args[2]
	case len(p.args) > 1 && p.args[1] == "supervisor":
		return "supervisor"
	case strings.HasPrefix(filepath.Base(p.args[0]), "qemu-system-"):
		return "qemu"
	}
	return filepath.Base(p.args[0])
}

// processes are all processes of this machine that match.
func processes(match func(process) bool) []process {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var out []process
	for _, d := range dirs {
		cmdline, err1 := os.ReadFile(d + "/cmdline")
		stat, err2 := os.ReadFile(d + "/stat")
		if err1 != nil || err2 != nil || len(cmdline) == 0 {
			continue
		}
		p := process{args: strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")}
		p.pid, _ = strconv.Atoi(filepath.Base(d))
		var state string
		fmt.Sscanf(string(stat[bytes.LastIndexByte(stat, ')')+1:]), "%s %d", &state, &p.parent)
		if state != "Z" && match(p) {
			out = append(out, p)
		}
	}
	return out
}

// tree is a process with all that descend from it.
func tree(pid int) []process {
	all := processes(func(process) bool { return true })
	in := map[int]bool{pid: true}
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if in[p.parent] && !in[p.pid] {
				in[p.pid], grown = true, true
			}
		}
	}
	return slices.DeleteFunc(all, func(p process) bool { return !in[p.pid] })
}

// A session is a petri that runs one sample.
type session struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    bytes.Buffer
	stderr bytes.Buffer
	gone   chan struct{}
}

func start(t *testing.T, bin, data string, args ...string) *session {
	t.Helper()
	s := &session{t: t, gone: make(chan struct{})}
	s.cmd = exec.Command(bin+"/petri", append([]string{"--data", data, "--cache", cache()}, args...)...)
	s.cmd.Stdout, s.cmd.Stderr = &s.out, &s.stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.gone)
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.gone
	})
	return s
}

// wait returns the exit code.
func (s *session) wait(limit time.Duration) int {
	s.t.Helper()
	select {
	case <-s.gone:
		return s.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		s.t.Fatalf("petri did not end within %s:\n%s", limit, s.stderr.Bytes())
		return -1
	}
}

// awaitEvent waits until the newest analysis of a session has had an event, and
// returns the analysis.
func (s *session) awaitEvent(data, name string) string {
	s.t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		select {
		case <-s.gone:
			s.t.Fatalf("petri ended before %s:\n%s", name, s.stderr.Bytes())
		default:
		}
		addr, err := bus.ReadAddress(data)
		if err != nil {
			continue
		}
		if id := look(s.t, addr, name); id != "" {
			return id
		}
	}
	s.t.Fatalf("no analysis came to %s:\n%s", name, s.stderr.Bytes())
	return ""
}

// hold lets a process of the session stand still until the returned function is
// called.
func (s *session) hold(t *testing.T, role string) (goOn func()) {
	t.Helper()
	var held []process
	for _, p := range tree(s.cmd.Process.Pid) {
		if p.role() == role {
			held = append(held, p)
			if err := syscall.Kill(p.pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(held) == 0 {
		t.Fatalf("there is no %s", role)
	}
	return func() {
		for _, p := range held {
			_ = syscall.Kill(p.pid, syscall.SIGCONT)
		}
	}
}

// look returns the unended analysis that has had an event, if there is one.
func look(t *testing.T, addr bus.Address, name string) string {
	b, err := bus.Connect(t.Context(), addr, "test")
	if err != nil {
		return ""
	}
	defer b.Close()
	list, err := b.List(t.Context(), schemas.DefaultTenant, 1)
	if err != nil || len(list) == 0 {
		return ""
	}
	entries, err := b.Context(t.Context(), schemas.DefaultTenant, list[0].Analysis)
	if err != nil {
		return ""
	}
	found := ""
	for _, e := range entries {
		if e.Event.Name() == name {
			found = list[0].Analysis
		}
		if schemas.Ending(e.Event.Name()) {
			return ""
		}
	}
	return found
}

// nothingLeft fails if a program of bin, or one of a session's processes, still
// runs. What is left has the death of its parent to hear of first.
func nothingLeft(t *testing.T, bin string, procs []process) {
	t.Helper()
	var left []process
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		left = processes(func(p process) bool {
			return strings.HasPrefix(p.args[0], bin) || slices.ContainsFunc(procs, func(q process) bool { return q.pid == p.pid && slices.Equal(p.args, q.args) })
		})
		if len(left) == 0 || time.Now().After(end) {
			break
		}
	}
	for _, p := range left {
		t.Errorf("%s, process %d, is left", p.role(), p.pid)
	}
}

// allEnded fails if an analysis in a data directory has no ending, and returns
// them all.
func allEnded(t *testing.T, bin, data string) []bus.Summary {
	t.Helper()
	var list []bus.Summary
	if err := json.Unmarshal([]byte(run(t, bin+"/petri", "--data", data, "--json", "list")), &list); err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.Outcome == "" {
			t.Errorf("analysis %s has not ended: %+v", s.Analysis, s)
		}
	}
	return list
}

// TestInterrupt interrupts a run at every step, as Ctrl-C does. It ends soon,
// with the exit code of an interrupted program, the analysis ended in the log,
// and nothing left.
func TestInterrupt(t *testing.T) {
	bin := build(t)
	sleep := program(t, sleeper)
	data := filepath.Join(t.TempDir(), "data")
	want := 0
	interrupt := func(t *testing.T, s *session, goOn func()) {
		procs := tree(s.cmd.Process.Pid)
		if err := s.cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		goOn()
		code := s.wait(3 * time.Minute)
		if st, ok := s.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && st.Signaled() && st.Signal() == syscall.SIGINT {
			code = 130 // as a shell says, of a program that had not come to its handler
		}
		if code != 130 {
			t.Errorf("exit code %d, want 130\n%s", code, s.stderr.Bytes())
		}
		nothingLeft(t, bin, procs)
		if dirs, _ := filepath.Glob(filepath.Join(data, "run", "*")); len(dirs) > 0 {
			t.Errorf("left behind: %v", dirs)
		}
	}
	for _, event := range []string{
		schemas.EventSubmitted, schemas.EventClaimed, schemas.EventPrePoweron, schemas.EventGuestReady, schemas.EventRunSample, schemas.EventSampleStarted,
		schemas.EventSnapshotsCapture, schemas.EventPreShutdown, schemas.EventStartAnalysis,
	} {
		t.Run(event, func(t *testing.T) {
			s := start(t, bin, data, "run", "--runtime", "2s", sleep)
			goOn := func() {}
			switch event {
			case schemas.EventSnapshotsCapture, schemas.EventPreShutdown, schemas.EventStartAnalysis: // it would soon be over
				s.awaitEvent(data, schemas.EventClaimed)
				goOn = s.hold(t, "analyzer")
			}
			s.awaitEvent(data, event)
			want++
			interrupt(t, s, goOn)
		})
	}
	for _, d := range []time.Duration{0, 30 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond} {
		t.Run(d.String(), func(t *testing.T) {
			s := start(t, bin, data, "run", "--runtime", "2s", sleep)
			time.Sleep(d) // no event tells how far a start has come
			interrupt(t, s, func() {})
		})
	}
	if got := len(allEnded(t, bin, data)); got < want {
		t.Errorf("%d analyses are listed, there were at least %d", got, want)
	}
}

// written notes what the log has of an analysis that goes on.
func written(t *testing.T, data, id string, books *faults.Books) {
	t.Helper()
	addr, err := bus.ReadAddress(data)
	if err != nil {
		t.Fatal(err)
	}
	b, err := bus.Connect(t.Context(), addr, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	err = b.Read(t.Context(), schemas.DefaultTenant, id, 0, func(e bus.Entry) error {
		books.Ack(e.Event.ID)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestKill kills every process of a running petri in turn, and all of them at
// once. Whatever it was, nothing stays behind, the analysis is ended in the
// log, and the next run works.
func TestKill(t *testing.T) {
	bin := build(t)
	sleep, quick := program(t, sleeper), program(t, sampleSource)
	data := filepath.Join(t.TempDir(), "data")
	victims := []struct {
		role string
		// outcomes that the killed run may have: what was killed is started
		// again, or what it did is lost and said to be.
		outcomes []schemas.Outcome
	}{
		{"bus", []schemas.Outcome{schemas.OutcomeCompleted, schemas.OutcomeIncomplete}},
		{"sandboxd", []schemas.Outcome{schemas.OutcomeFailed}},
		{"analyzer", []schemas.Outcome{schemas.OutcomeCompleted}},
		{"reporter", []schemas.Outcome{schemas.OutcomeCompleted}},
		{"supervisor", []schemas.Outcome{schemas.OutcomeFailed, schemas.OutcomeIncomplete}},
		{"qemu", []schemas.Outcome{schemas.OutcomeFailed, schemas.OutcomeIncomplete}},
		{"petri", []schemas.Outcome{schemas.OutcomeFailed}},
		{"all", []schemas.Outcome{schemas.OutcomeFailed}},
	}
	var analyses []string
	var books faults.Books
	wrong := 0
	for _, v := range victims {
		t.Run(v.role, func(t *testing.T) {
			s := start(t, bin, data, "--json", "run", "--runtime", "8s", sleep)
			id := s.awaitEvent(data, schemas.EventSampleStarted)
			analyses = append(analyses, id)
			written(t, data, id, &books)
			procs := tree(s.cmd.Process.Pid)
			killed := 0
			for _, p := range procs {
				if v.role == "all" || p.role() == v.role && (v.role != "petri" || p.pid == s.cmd.Process.Pid) {
					if err := syscall.Kill(p.pid, syscall.SIGKILL); err == nil {
						killed++
					}
				}
			}
			if killed == 0 {
				t.Fatalf("there is no %s in %v", v.role, procs)
			}
			code := s.wait(5 * time.Minute)
			t.Logf("killed %d, exit code %d; %s", killed, code, s.stderr.Bytes())

			nothingLeft(t, bin, procs)
			next := start(t, bin, data, "--json", "run", quick)
			if code := next.wait(5 * time.Minute); code != 0 {
				t.Fatalf("the next run: exit code %d\n%s%s", code, next.out.Bytes(), next.stderr.Bytes())
			}
			t.Logf("the next run: %s", next.stderr.Bytes())
			var report schemas.Report
			text := run(t, bin+"/petri", "--data", data, "--json", "report", id)
			if err := json.Unmarshal([]byte(text), &report); err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(v.outcomes, report.Outcome.Value) {
				t.Errorf("the outcome is %s %v, not one of %v", report.Outcome.Value, report.Outcome.Reasons, v.outcomes)
				wrong++
			}
			if report.Verdict.Value == schemas.VerdictNoFindings {
				t.Error("an interrupted run was called clean")
				wrong++
			}
		})
	}
	list := allEnded(t, bin, data)
	if len(list) < 2*len(analyses) {
		t.Errorf("%d analyses are listed, there were %d", len(list), 2*len(analyses))
	}
	s, err := bus.StartServer(data, bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := s.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	figures, err := faults.Audit(t.Context(), b.JetStream(), &books)
	if err != nil {
		t.Fatal(err)
	}
	figures.Wrong += wrong
	figures.Note = fmt.Sprint(len(analyses), " runs")
	figures.Report(t)
}
