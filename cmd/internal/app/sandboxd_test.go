// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/faults"
	"github.com/petri-sandbox/petri/schemas"
)

// RoleVariable makes the test program the daemon that it names.
const RoleVariable = "PETRI_TEST_ROLE"

// A site is a bus with a sample, and a recording of it that sandboxes replay.
type site struct {
	t      *testing.T
	b      *bus.Bus
	at     bus.Address
	cache  string
	sample string
	file   string
	steps  []string // the names of an analysis' context events
	books  faults.Books
}

func newSite(t *testing.T) *site {
	t.Helper()
	dir := t.TempDir()
	s, err := bus.StartServer(filepath.Join(dir, "data"), bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	b, err := bus.Connect(t.Context(), s.Address(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if err := b.Reconcile(t.Context(), bus.Limits{Log: 64 << 20, Store: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	x := &site{t: t, b: b, at: s.Address(), cache: filepath.Join(dir, "cache"), sample: filepath.Join(dir, "sample.sh")}
	if err := os.WriteFile(x.sample, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	x.file, x.steps, _ = record(t, b, Config{Data: dir, Cache: x.cache}, x.sample)
	return x
}

// daemon is a process of sandboxd.
type daemon struct {
	cmd  *exec.Cmd
	data string
	said *sayings
}

// sandboxd starts one on a data directory, which replays so many times as fast as
// recorded, and returns when it takes jobs.
func (x *site) sandboxd(data string, speed string) *daemon {
	x.t.Helper()
	d := &daemon{data: data, said: &sayings{out: x.t.Output()}}
	d.cmd = exec.Command(os.Args[0], "--nats", x.at.URL, "--creds", x.at.Creds, "--ca", x.at.CA, "--data", data, "--cache", x.cache, "--recorded", x.file, "--speed", speed)
	d.cmd.Env = append(os.Environ(), RoleVariable+"=sandboxd")
	d.cmd.Stderr = d.said
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(d.kill)
	eventually(x.t, "sandboxd is ready", func() bool { return d.said.count("msg=ready") > 0 })
	return d
}

// kill ends it as kill -9 does.
func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
}

// stop ends it as it is told to.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("sandboxd ended: %v", err)
	}
}

// works are the analyses that it has something of on the disk.
func (d *daemon) works() []string {
	dirs, _ := filepath.Glob(filepath.Join(d.data, "run", "*"))
	return dirs
}

// submit submits the sample, which may be tried twice, and returns the submission
// when its analysis has come to an event.
func (x *site) submit(event string) string {
	x.t.Helper()
	said := make(chan *nats.Msg, 16)
	sub, err := x.b.JetStream().Conn().ChanSubscribe("petri.*.*.context."+event, said)
	if err != nil {
		x.t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	p, err := Prepare(Request{Path: x.sample, Options: schemas.Options{Retries: 1}})
	if err != nil {
		x.t.Fatal(err)
	}
	defer p.Close()
	if err := p.Submit(x.t.Context(), x.b); err != nil {
		x.t.Fatal(err)
	}
	select {
	case <-said:
	case <-time.After(3 * time.Minute):
		x.t.Fatalf("the analysis does not come to %s", event)
	}
	return p.Submission.ID
}

// events are the context events of an analysis. All of them must stay.
func (x *site) events(id string) (names []string) {
	x.t.Helper()
	entries, err := x.b.Context(x.t.Context(), schemas.DefaultTenant, id)
	if err != nil {
		x.t.Fatal(err)
	}
	for _, e := range entries {
		x.books.Ack(e.Event.ID)
		names = append(names, e.Event.Name())
	}
	return names
}

// ended waits for the ending of an analysis.
func (x *site) ended(id string) string {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(x.t.Context(), 4*time.Minute)
	defer cancel()
	ending := ""
	err := x.b.Follow(ctx, schemas.DefaultTenant, id, 0, nil, func(e bus.Entry) error {
		if e.Event.Family() == "context" && schemas.Ending(e.Event.Name()) {
			ending = e.Event.Name()
			return bus.ErrStop
		}
		return nil
	})
	if err != nil {
		x.t.Fatalf("analysis %s has no ending, after %v: %v", id, x.events(id), err)
	}
	return ending
}

// over waits until a submission is: its first attempt, or the second after that
// has failed, has completed, each has one ending, and the queue is empty.
func (x *site) over(id string) (attempts int) {
	x.t.Helper()
	for attempts = 1; ; attempts++ {
		attempt := schemas.AttemptID(id, attempts)
		ending := x.ended(attempt)
		if ending == schemas.EventFailed && attempts == 1 {
			continue
		}
		if ending != schemas.EventCompleted {
			x.t.Errorf("attempt %d ended in %s", attempts, ending)
		}
		break
	}
	eventually(x.t, "the queue is empty", func() bool {
		st, err := x.b.JetStream().Stream(x.t.Context(), "JOBS")
		return err == nil && st.CachedInfo().State.Msgs == 0
	})
	for n := range attempts {
		names := x.events(schemas.AttemptID(id, n+1))
		endings := 0
		for _, name := range names {
			if schemas.Ending(name) {
				endings++
			}
		}
		if endings != 1 {
			x.t.Errorf("attempt %d has %d endings: %v", n+1, endings, names)
		}
	}
	return attempts
}

// TestKillSandboxd kills sandboxd at each event of an analysis' context, and starts
// it again: the analysis has one ending, and where that is a failure the sample is
// run again.
func TestKillSandboxd(t *testing.T) {
	t.Parallel()
	x := newSite(t)
	steps := slices.Compact(slices.Sorted(slices.Values(x.steps)))
	data := t.TempDir()
	d := x.sandboxd(data, "0")
	again := 0
	for _, step := range steps {
		id := x.submit(step)
		d.kill()
		x.events(id)
		d = x.sandboxd(data, "0")
		again += x.over(id) - 1
		eventually(t, "nothing is left on the disk", func() bool { return len(d.works()) == 0 })
	}
	if again == 0 || again == len(steps) {
		t.Errorf("of %d samples %d were run again", len(steps), again)
	}
	d.stop(t)
	faults.Account(t.Context(), t, x.b.JetStream(), fmt.Sprintf("killed %d times, %d samples were run again", len(steps), again), &x.books)
}

// TestStoppedSandboxd has sandboxd stand still for longer than its lease, while
// another one takes its analysis over. When it goes on it finds that out, ends its
// machine, writes no more, and works on.
func TestStoppedSandboxd(t *testing.T) {
	t.Parallel()
	x := newSite(t)
	old := x.sandboxd(t.TempDir(), "2")
	id := x.submit(schemas.EventSampleStarted)
	if err := old.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	if os.Getenv("PETRI_FAULTS") != "full" { // as if its time were up
		kv, err := x.b.JetStream().KeyValue(t.Context(), "LEASE")
		if err == nil {
			err = kv.Purge(t.Context(), id)
		}
		var n struct{ Token string }
		body, noted := os.ReadFile(filepath.Join(old.data, "run", id, "job.json"))
		if err != nil || noted != nil || json.Unmarshal(body, &n) != nil {
			t.Fatal(err, noted, string(body))
		}
		if err := x.b.ReleaseByToken(n.Token); err != nil {
			t.Fatal(err)
		}
	}
	other := x.sandboxd(t.TempDir(), "0")
	if n := x.over(id); n != 2 {
		t.Errorf("the other one made %d attempts of it", n)
	}
	still := time.Since(stopped)
	before := x.events(id)
	if err := old.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its machine has ended", func() bool { return len(old.works()) == 0 })
	other.stop(t)
	next := x.submit(schemas.EventClaimed)
	if n := x.over(next); n != 1 {
		t.Errorf("afterwards it needs %d attempts", n)
	}
	if after := x.events(id); !slices.Equal(before, after) {
		t.Errorf("it went on writing: %v", after[len(before):])
	}
	old.stop(t)
	faults.Account(t.Context(), t, x.b.JetStream(), fmt.Sprintf("it stood still for %s", still.Round(time.Second)), &x.books)
}
