// SPDX-License-Identifier: Apache-2.0

//go:build vm

package app_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// example runs one of the JavaScript examples until the test's end, and returns
// its lines of output behind the first, which says that it is ready.
func example(t *testing.T, addr bus.Address, name string, args ...string) (<-chan string, *os.Process) {
	t.Helper()
	needClient(t)
	// It finds its packages where the independent client has them.
	dir := t.TempDir()
	script, err := os.ReadFile(filepath.Join(root, "deploy/examples", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), script, 0o600); err != nil {
		t.Fatal(err)
	}
	modules, err := filepath.Abs(filepath.Join(root, "bus/testdata/js/node_modules"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "node", append([]string{name}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "NATS_URL="+addr.URL, "NATS_CREDS="+addr.Creds)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 10_000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("%s: %s", name, stderr.Bytes())
		}
	})
	if first := line(t, lines); first != "ready" {
		t.Fatalf("%s says %q", name, first)
	}
	return lines, cmd.Process
}

func line(t *testing.T, lines <-chan string) string {
	t.Helper()
	select {
	case l, ok := <-lines:
		if !ok {
			t.Fatal("the example has ended")
		}
		return l
	case <-time.After(5 * time.Minute):
		t.Fatal("the example says nothing")
	}
	return ""
}

// TestExamplesWait starts the examples before their server: somebody else is at its
// address, and hangs up.
func TestExamplesWait(t *testing.T) {
	for name, args := range map[string][]string{
		"gate.mjs": {schemas.DefaultTenant, "approve", "forbidden"}, "live.mjs": {schemas.DefaultTenant},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, err := bus.StartServer(dir, bus.ServerOptions{})
			if err != nil {
				t.Fatal(err)
			}
			addr := s.Address()
			b, err := s.Connect(t.Context(), "test")
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Reconcile(t.Context(), bus.Limits{Log: 64 << 20, Store: 64 << 20}); err != nil {
				t.Fatal(err)
			}
			b.Close()
			s.Close()
			listen := strings.TrimPrefix(addr.URL, "nats://")
			other, err := net.Listen("tcp", listen)
			if err != nil {
				t.Fatal(err)
			}
			served := make(chan error, 1)
			go func() {
				c, err := other.Accept()
				if err == nil {
					c.Close()
				}
				other.Close()
				s, err := bus.StartServer(dir, bus.ServerOptions{Listen: listen})
				if err == nil {
					t.Cleanup(s.Close)
				}
				served <- err
			}()
			example(t, addr, name, args...)
			if err := <-served; err != nil {
				t.Fatal(err)
			}
		})
	}
}

// asking is an analyzer that asks for something when it sees a sample and a
// memory image.
func asking(ctx context.Context, b *bus.Bus, requests map[schemas.Kind][]schemas.ControlRequest) error {
	for {
		task, err := b.NextTask(ctx, "asking")
		if err != nil {
			return err
		}
		f := schemas.FinishedTask{Task: task.Ref, Version: "1.0.0", Instance: "test", Status: schemas.TaskDone}
		for _, r := range requests[task.Ref.Kind] {
			data, err := json.Marshal(r)
			if err != nil {
				return err
			}
			f.Findings = append(f.Findings, schemas.Finding{Kind: schemas.ControlKind, Title: "asks for " + r.Action, Data: data})
		}
		if err := b.Finish(ctx, f); err != nil {
			return err
		}
		if err := task.Done(); err != nil {
			return err
		}
	}
}

const outsideProtocol = `name: outside
steps:
  - poweron
  - wait_ip
  - run_sample
  - wait: {until: [tree_exited], limit: 5m}
  - shutdown: {timeout: 10s, on_failure: poweroff}
  - start_analysis
  - wait_analysis
gates:
  - {on: run_sample, name: approve, timeout: 2m, otherwise: stop}
control: {extend: 5s, stop: true, dump_memory: 1, screenshot: 1}
`

// TestOutside lets others have a say in real analyses: a gate in JavaScript, and
// an analyzer that asks for a memory image, a picture and more time when it sees
// the sample, and for the end when it has the memory image.
func TestOutside(t *testing.T) {
	bin := build(t)
	addr, data := up(t, bin)
	b, err := bus.Connect(t.Context(), addr, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	kinds := []schemas.Kind{schemas.KindSample, schemas.KindMemory}
	if err := b.Register(t.Context(), schemas.Registration{Name: "asking", Version: "1.0.0", Scope: schemas.ScopeArtifact, Kinds: kinds, Deadline: schemas.Duration(time.Minute)}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan error, 1)
	go func() {
		asked <- asking(ctx, b, map[schemas.Kind][]schemas.ControlRequest{
			schemas.KindSample: {{Action: "dump_memory"}, {Action: "screenshot"}, {Action: "extend", Duration: schemas.Duration(time.Hour)}},
			schemas.KindMemory: {{Action: "stop"}},
		})
	}()
	defer func() {
		cancel()
		<-asked
	}()
	decisions, _ := example(t, addr, "gate.mjs", schemas.DefaultTenant, "approve", "forbidden")
	protocol := filepath.Join(t.TempDir(), "protocol.yaml")
	if err := os.WriteFile(protocol, []byte(outsideProtocol), 0o600); err != nil {
		t.Fatal(err)
	}
	sleeper := program(t, "#include <unistd.h>\nint main(void) { for (;;) sleep(60); }\n")
	analyse := func(path string) (string, *schemas.Report) {
		t.Helper()
		id := strings.TrimSpace(run(t, bin+"/petri", "--data", data, "submit", "--protocol", protocol, "--hooks", noHooks(t), path))
		waitForEnding(t, b, id)
		var r schemas.Report
		if err := json.Unmarshal([]byte(run(t, bin+"/petri", "--data", data, "--json", "report", id)), &r); err != nil {
			t.Fatal(err)
		}
		return id, &r
	}
	detail := func(r *schemas.Report, event, has string) {
		t.Helper()
		if !slices.ContainsFunc(r.Timeline, func(e schemas.TimelineEntry) bool {
			return e.Event == event && strings.Contains(e.Detail, has)
		}) {
			t.Errorf("the timeline has no %s with %q: %+v", event, has, r.Timeline)
		}
	}

	id, r := analyse(sleeper)
	if got := line(t, decisions); got != id+" go" {
		t.Errorf("the gate says %q", got)
	}
	detail(r, schemas.EventGateAnswered, "approve: go: nothing is against petri.context.run_sample.v1")
	detail(r, schemas.EventControlDecided, "dump_memory of asking: granted")
	detail(r, schemas.EventControlDecided, "screenshot of asking: granted")
	detail(r, schemas.EventControlDecided, "extend of asking: granted, the wait may take 5s longer, cut from 1h0m0s")
	detail(r, schemas.EventControlDecided, "stop of asking: granted")
	if r.Outcome.Value != schemas.OutcomeCompleted {
		t.Errorf("outcome %+v", r.Outcome)
	}
	for kind, magic := range map[schemas.Kind]string{schemas.KindMemory: "\x7fELF", schemas.KindScreenshot: "\x89PNG\r\n\x1a\n"} {
		i := slices.IndexFunc(r.Artifacts, func(a schemas.Artifact) bool { return a.Kind == kind })
		if i < 0 {
			t.Errorf("there is no %s", kind)
			continue
		}
		body, _, err := b.Artifacts().Open(t.Context(), r.Artifacts[i].SHA256)
		if err != nil {
			t.Fatal(err)
		}
		head := make([]byte, len(magic))
		_, err = body.Read(head)
		body.Close()
		if err != nil || string(head) != magic {
			t.Errorf("%s begins with %q, %v", kind, head, err)
		}
	}

	forbidden := filepath.Join(t.TempDir(), "forbidden")
	if err := os.Link(sleeper, forbidden); err != nil {
		t.Fatal(err)
	}
	id, r = analyse(forbidden)
	if got := line(t, decisions); got != id+" stop" {
		t.Errorf("the gate says %q", got)
	}
	if r.Outcome.Value != schemas.OutcomeNotExecuted || !slices.Equal(r.Outcome.Reasons, []string{"gate approve stopped it: forbidden is forbidden"}) {
		t.Errorf("outcome %+v", r.Outcome)
	}
}

// noHooks is a configuration without hooks, so that nothing but the analyzer asks
// for memory.
func noHooks(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hooks.yaml")
	if err := os.WriteFile(path, []byte("hooks: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestLiveExample restarts the server under the JavaScript example, which has
// everything that the log has all the same.
func TestLiveExample(t *testing.T) {
	dir := t.TempDir()
	s, err := bus.StartServer(dir, bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := bus.Connect(t.Context(), s.Address(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Reconcile(t.Context(), bus.Limits{Log: 64 << 20, Store: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := s.Announce(); err != nil {
		t.Fatal(err)
	}
	id := schemas.NewID(time.Now())
	w, err := b.OpenContext(t.Context(), schemas.DefaultTenant, id)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	publish := func(name string) {
		t.Helper()
		e, err := schemas.NewEvent(schemas.DefaultTenant, id, w.NextID(), time.Now(), schemas.OriginHost, schemas.Custom{Name: name})
		if err == nil {
			err = w.Write(t.Context(), e)
		}
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, e.ID)
	}
	lines, process := example(t, s.Address(), "live.mjs", schemas.DefaultTenant)
	publish("first")
	got := []string{line(t, lines)}
	signal := func(sig os.Signal) {
		t.Helper()
		if err := process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGSTOP) // it is not there to see what comes next
	s.Kill()
	if s, err = bus.StartServer(dir, bus.ServerOptions{}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	late := 0
	for range 20 {
		publish("unseen")
	}
	signal(syscall.SIGCONT)
	for n := 0; len(got) < len(want)+1; n++ {
		publish("seen")
		select {
		case l := <-lines:
			got = append(got, l)
		case <-time.After(100 * time.Millisecond):
			continue
		}
		for len(got) < len(want) {
			got = append(got, line(t, lines))
		}
		break
	}
	for i, l := range got {
		f := strings.Fields(l)
		if f[0] == "late" {
			late++
		}
		if f[len(f)-1] != want[i] {
			t.Errorf("line %d is %q, not of %s", i, l, want[i])
		}
	}
	if late < 20 {
		t.Errorf("%d events came late: %v", late, got)
	}
}
