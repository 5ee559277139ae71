// SPDX-License-Identifier: Apache-2.0

package recorded_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/machinetest"
	"github.com/petri-sandbox/petri/sandboxd/machine/recorded"
	"github.com/petri-sandbox/petri/schemas"
)

// store is one in memory.
type store map[schemas.Digest][]byte

func (s store) put(b []byte) schemas.Digest {
	d := schemas.Sum(b)
	s[d] = b
	return d
}

func (s store) Open(_ context.Context, d schemas.Digest) (io.ReadCloser, int64, error) {
	b, ok := s[d]
	if !ok {
		return nil, 0, os.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
}

const analysis = "01K9ZJ7RZ0000000000000000A"

// recordedLog is one of a short run: 2 s to the lease, the sample at 3 s, output
// a second later, its end at 13 s.
type recordedLog struct {
	t      *testing.T
	store  store
	begin  time.Time
	events []schemas.Event
}

func (l *recordedLog) add(after time.Duration, origin schemas.Origin, data schemas.Typed) {
	l.t.Helper()
	e, err := schemas.NewEvent("default", analysis, analysis+"/"+data.EventType()+"/"+after.String(), l.begin.Add(after), origin, data)
	if err != nil {
		l.t.Fatal(err)
	}
	l.events = append(l.events, e)
}

func (l *recordedLog) segment(after time.Duration, src schemas.Source, n int, text string, inStore bool) {
	s := schemas.Segment{Source: src, N: n, SHA256: schemas.Sum([]byte(text)), Size: int64(len(text)), From: l.begin.Add(after)}
	if inStore {
		l.store.put([]byte(text))
	} else {
		s.Data = []byte(text)
	}
	l.add(after+time.Second, schemas.OriginGuest, s) // a segment is published when it is full
}

func newLog(t *testing.T) *recordedLog {
	l := &recordedLog{t: t, store: store{}, begin: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)}
	code := 7
	kept, gone := l.store.put([]byte("dropped")), schemas.Sum([]byte("too large"))
	list, err := json.Marshal(schemas.DropList{Schema: schemas.DropsSchema, Omitted: 2, Files: []schemas.DroppedFile{
		{FileMeta: schemas.FileMeta{Path: "/tmp/a", Change: "created"}, Type: "file", Size: 7, SHA256: &kept, Stored: true},
		{FileMeta: schemas.FileMeta{Path: "/tmp/b", Change: "created"}, Type: "file", Size: 9, SHA256: &gone, Reason: "over the limits"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	host, guest := schemas.OriginHost, schemas.OriginGuest
	l.add(0, host, schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: analysis, Sample: schemas.Sample{SHA256: schemas.Sum([]byte("sample"))}}})
	l.add(0, host, schemas.PostPoweron{Machine: schemas.MachineSpec{Arch: "amd64", Backend: "qemu", Start: "warm"}, Template: &kept, Took: schemas.Duration(time.Second)})
	l.add(0, host, schemas.GuestReady{Kernel: "6.1.0", Identity: schemas.Identity{Hostname: "gw"}})
	l.segment(time.Second, schemas.SourceSerial, 0, "kernel\n", false)
	l.add(2*time.Second, host, schemas.IPAddress{Address: "10.0.2.15", MAC: "52:54:00:aa:bb:01", Lease: "dhcp"})
	l.add(3*time.Second, guest, schemas.SampleStarted{PID: 700, Path: "/root/sample", SHA256: schemas.Sum([]byte("sample"))})
	l.segment(3*time.Second, schemas.SourceTrace, 0, "trace", true)
	l.segment(4*time.Second, schemas.SourceStdout, 0, "out\n", false)
	l.add(5*time.Second, guest, schemas.Fault{Text: "guest: something"})
	l.add(5*time.Second, guest, schemas.PossibleTampering{Call: "bpf", PID: 2, Records: 4})
	l.add(5*time.Second, host, schemas.Fault{Text: "the sandbox' own"})
	l.add(6*time.Second, guest, schemas.Exec{Command: []string{"id"}, Stdout: "uid=0\n"})
	l.add(13*time.Second, guest, schemas.SampleExited{Reason: "exited", ExitCode: &code})
	l.add(13*time.Second, guest, schemas.TreeExited{})
	l.add(14*time.Second, host, schemas.Artifact{Kind: schemas.KindMemory, SHA256: l.store.put([]byte("core"))})
	l.add(14*time.Second, host, schemas.Artifact{Kind: schemas.KindDropped, SHA256: kept, Cut: 3})
	l.add(14*time.Second, host, schemas.Artifact{Kind: schemas.KindDrops, SHA256: l.store.put(list)})
	l.add(15*time.Second, host, schemas.StartAnalysis{Sources: []schemas.SourceCoverage{
		{Source: schemas.SourceTrace, Status: schemas.StatusWhole, Produced: 9},
		{Source: schemas.SourceStdout, Status: schemas.StatusWhole},
		{Source: schemas.SourcePcap, Status: schemas.StatusMissing, Reason: "no capture"},
		{Source: schemas.SourceDropped, Status: schemas.StatusPartial},
	}})
	return l
}

func (l *recordedLog) load() *recorded.Recording {
	l.t.Helper()
	r, err := recorded.Load(l.t.Context(), l.events, l.store)
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

// TestReplay plays a recording at several speeds: everything comes, in its order
// and at its time.
func TestReplay(t *testing.T) {
	for _, speed := range []float64{1, 10, 0.5, 0} {
		synctest.Test(t, func(t *testing.T) {
			scale := func(d time.Duration) time.Duration {
				if speed == 0 {
					return 0
				}
				return time.Duration(float64(d) / speed)
			}
			begin := time.Now()
			at := func(want time.Duration, what string) {
				t.Helper()
				if got := time.Since(begin); got < scale(want) || got > scale(want)+time.Millisecond {
					t.Errorf("at speed %g %s came after %v, want %v", speed, what, got, scale(want))
				}
			}
			rec := machinetest.NewRecorder()
			m := recorded.New(newLog(t).load(), speed, rec)
			boot, err := m.Poweron(t.Context(), machinetest.Identity(1))
			if err != nil {
				t.Fatal(err)
			}
			if boot.Machine.Backend != recorded.Backend || boot.Template != nil || boot.Ready.Identity.Hostname != "gw" || !strings.Contains(boot.Version, analysis) {
				t.Errorf("boot %+v", boot)
			}
			rec.Await(t, time.Hour, "lease", func(e machine.Event) bool { return e.Lease != nil && e.Lease.Address == "10.0.2.15" })
			at(2*time.Second, "the lease")
			if got := rec.Text(schemas.SourceSerial); got != "kernel\n" {
				t.Errorf("serial %q", got)
			}

			time.Sleep(time.Minute) // the sample is started when we like
			begin = time.Now().Add(-scale(3 * time.Second))
			started, err := m.Run(t.Context(), machine.Run{}, nil)
			if err != nil || started.PID != 700 {
				t.Fatalf("run: %+v, %v", started, err)
			}
			rec.AwaitText(t, time.Hour, schemas.SourceStdout, "out\n")
			at(4*time.Second, "the output")
			if speed != 0 {
				if err := m.Pause(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if err := m.Resume(t.Context()); err != nil {
					t.Fatal(err)
				}
				begin = begin.Add(time.Minute)
			}
			rec.AwaitTree(t, time.Hour)
			at(13*time.Second, "the end")
			if x := rec.AwaitExit(t, time.Hour); *x.ExitCode != 7 {
				t.Errorf("exit %+v", x)
			}
			if diff := cmp.Diff([]string{"guest: something"}, rec.Faults()); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
			var held []schemas.PossibleTampering
			for _, e := range rec.Events() {
				if e.Tampering != nil {
					held = append(held, *e.Tampering)
				}
			}
			if diff := cmp.Diff([]schemas.PossibleTampering{{Call: "bpf", PID: 2, Records: 4}}, held); diff != "" {
				t.Errorf("held calls (-want +got):\n%s", diff)
			}
			if got := rec.Text(schemas.SourceTrace); got != "trace" {
				t.Errorf("trace %q", got)
			}
			if err := m.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			if c := rec.AwaitEnd(t, time.Hour, schemas.SourceTrace); c.Status != schemas.StatusWhole || c.Produced != 9 {
				t.Errorf("coverage of the trace %+v", c)
			}
			if err := m.Flush(t.Context()); !errors.Is(err, machine.ErrGone) {
				t.Errorf("flush after the end: %v", err)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAnswers asks for what was recorded, and for what was not.
func TestAnswers(t *testing.T) {
	rec := machinetest.NewRecorder()
	m := recorded.New(newLog(t).load(), 0, rec)
	defer m.Close()
	ctx := t.Context()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := m.DumpMemory(ctx, f); !errors.Is(err, machine.ErrGone) {
		t.Errorf("a dump before the start: %v", err)
	}
	if _, err := m.Poweron(ctx, machinetest.Identity(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Poweron(ctx, machinetest.Identity(1)); !errors.Is(err, recorded.ErrNotRecorded) {
		t.Errorf("a second start: %v", err)
	}
	if _, err := m.Restart(ctx, machinetest.Identity(1)); !errors.Is(err, recorded.ErrNotRecorded) {
		t.Errorf("restart: %v", err)
	}
	if err := m.DumpMemory(ctx, f); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(f.Name()); string(b) != "core" {
		t.Errorf("memory %q", b)
	}
	if err := m.Screenshot(ctx, f); !errors.Is(err, recorded.ErrNotRecorded) {
		t.Errorf("a screenshot: %v", err)
	}
	if x, err := m.Exec(ctx, machine.Exec{Command: []string{"id"}}); err != nil || x.Stdout != "uid=0\n" {
		t.Errorf("exec: %+v, %v", x, err)
	}
	if _, err := m.Exec(ctx, machine.Exec{Command: []string{"id"}}); !errors.Is(err, recorded.ErrNotRecorded) {
		t.Errorf("exec again: %v", err)
	}
	sum, err := m.Collect(ctx, machine.Collect{MaxFile: 100, MaxFiles: 10, MaxTotal: 100, MaxList: 10})
	if want := (machine.Collected{Listed: 2, Sent: 1, Omitted: 2}); err != nil || sum != want {
		t.Errorf("collected %+v, %v", sum, err)
	}
	if a := rec.Files()["/tmp/a"]; a == nil || string(a.Data) != "dropped" || a.Cut != 3 || !a.Ended || a.Err != nil {
		t.Errorf("file %+v", a)
	}
	if b := rec.Files()["/tmp/b"]; b == nil || b.Stored || len(b.Data) > 0 {
		t.Errorf("file %+v", b)
	}
	sum, err = m.Collect(ctx, machine.Collect{MaxFile: 6, MaxFiles: 10, MaxTotal: 100, MaxList: 1})
	if want := (machine.Collected{Listed: 1, Omitted: 3}); err != nil || sum != want {
		t.Errorf("collected by narrower limits %+v, %v", sum, err)
	}
	if _, err := m.Run(ctx, machine.Run{}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Run(ctx, machine.Run{}, nil); !errors.Is(err, recorded.ErrNotRecorded) {
		t.Errorf("a second sample: %v", err)
	}
}

// TestCutShort ends a machine before its recording does: what did not come is
// not called whole.
func TestCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := machinetest.NewRecorder()
		m := recorded.New(newLog(t).load(), 1, rec)
		if _, err := m.Poweron(t.Context(), machinetest.Identity(1)); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Run(t.Context(), machine.Run{}, nil); err != nil {
			t.Fatal(err)
		}
		rec.AwaitText(t, time.Hour, schemas.SourceStdout, "out\n")
		if err := m.Poweroff(t.Context()); err != nil {
			t.Fatal(err)
		}
		if c := rec.AwaitEnd(t, time.Hour, schemas.SourceTrace); c.Status != schemas.StatusPartial || !strings.Contains(c.Reason, "not played to its end") {
			t.Errorf("coverage of the trace %+v", c)
		}
		if c := rec.AwaitEnd(t, time.Hour, schemas.SourcePcap); c.Status != schemas.StatusMissing || c.Reason != "no capture" {
			t.Errorf("coverage of the capture, which was missing then too: %+v", c)
		}
		for _, e := range rec.Events() {
			if e.Exited != nil || e.Off != nil {
				t.Errorf("it reported %+v", e)
			}
		}
	})
}

// TestNeverRun ends a machine whose sample was not started: of what the sample
// did nothing came.
func TestNeverRun(t *testing.T) {
	rec := machinetest.NewRecorder()
	m := recorded.New(newLog(t).load(), 0, rec)
	if _, err := m.Poweron(t.Context(), machinetest.Identity(1)); err != nil {
		t.Fatal(err)
	}
	if err := m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := rec.AwaitEnd(t, time.Hour, schemas.SourceTrace); c.Status != schemas.StatusPartial {
		t.Errorf("coverage of the trace %+v", c)
	}
}

// TestNotExecuted replays a guest's refusal.
func TestNotExecuted(t *testing.T) {
	l := newLog(t)
	for i, e := range l.events {
		if e.Name() == schemas.EventSampleStarted {
			l.events = l.events[:i]
			break
		}
	}
	l.add(3*time.Second, schemas.OriginGuest, schemas.SampleExited{Reason: "not_executed", Error: "no loader", Errno: "ENOENT", Missing: []string{"libx.so"}})
	m := recorded.New(l.load(), 0, machinetest.NewRecorder())
	defer m.Close()
	if _, err := m.Poweron(t.Context(), machinetest.Identity(1)); err != nil {
		t.Fatal(err)
	}
	_, err := m.Run(t.Context(), machine.Run{}, nil)
	var n *machine.NotExecuted
	if !errors.As(err, &n) || n.Reason != "no loader" || n.Errno != "ENOENT" || len(n.Missing) != 1 {
		t.Errorf("run: %v", err)
	}
}

// TestUnloadable refuses what is no recording.
func TestUnloadable(t *testing.T) {
	whole := newLog(t)
	twice := newLog(t)
	twice.add(9*time.Second, schemas.OriginHost, schemas.PostPoweron{Machine: schemas.MachineSpec{Arch: "amd64"}})
	lost := newLog(t)
	for d, b := range lost.store {
		if bytes.Contains(b, []byte(schemas.DropsSchema)) {
			delete(lost.store, d)
		}
	}
	for name, tt := range map[string]struct {
		events []schemas.Event
		store  store
		says   string
	}{
		"nothing":    {nil, whole.store, "no sample"},
		"no machine": {whole.events[:1], whole.store, "no machine"},
		"two starts": {twice.events, twice.store, "more than once"},
		"no list":    {lost.events, lost.store, "list of changed files"},
	} {
		if _, err := recorded.Load(t.Context(), tt.events, tt.store); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
