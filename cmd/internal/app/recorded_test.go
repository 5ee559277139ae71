// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/sandboxd/machine/recorded"
	"github.com/petri-sandbox/petri/schemas"
)

// inMemory are objects that lie nowhere else.
type inMemory map[schemas.Digest][]byte

func (m inMemory) put(b []byte) schemas.Digest {
	d := schemas.Sum(b)
	m[d] = b
	return d
}

func (m inMemory) Open(_ context.Context, d schemas.Digest) (io.ReadCloser, int64, error) {
	b, ok := m[d]
	if !ok {
		return nil, 0, os.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
}

// script is a sample that nothing here executes.
const script = "#!/bin/sh\necho out\n"

// firstRecording is written by hand: what a run of the script would have been.
func firstRecording(t *testing.T) *recorded.Recording {
	t.Helper()
	begin, objects := time.Now().Add(-time.Hour), inMemory{}
	const id = "01K9ZJ7RZ0000000000000000A"
	var events []schemas.Event
	add := func(seconds int, data schemas.Typed) {
		e, err := schemas.NewEvent("default", id, id+"/"+data.EventType(), begin.Add(time.Duration(seconds)*time.Second), schemas.OriginGuest, data)
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	kept := objects.put([]byte("dropped"))
	list, err := json.Marshal(schemas.DropList{Schema: schemas.DropsSchema, Files: []schemas.DroppedFile{
		{FileMeta: schemas.FileMeta{Path: "/tmp/a", Change: "created", Modified: begin}, Type: "file", Size: 7, SHA256: &kept, Stored: true},
	}})
	if err != nil {
		t.Fatal(err)
	}
	code := 7
	add(0, schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: id, Sample: schemas.Sample{SHA256: schemas.Sum([]byte(script))}}})
	add(1, schemas.PostPoweron{Machine: schemas.MachineSpec{Arch: "amd64", Backend: "qemu", Start: "warm", Accel: "tcg", CPUs: 1, Memory: 256 << 20}, Kernel: "6.1.0"})
	add(1, schemas.GuestReady{Kernel: "6.1.0", Tracer: schemas.Tracer{Backend: "ebpf"}, Identity: schemas.Identity{Hostname: "gw", MachineID: strings.Repeat("0", 32), MAC: "52:54:00:aa:bb:01"}})
	add(2, schemas.IPAddress{Address: "10.0.2.15", MAC: "52:54:00:aa:bb:01", Lease: "dhcp"})
	add(3, schemas.SampleStarted{PID: 700, Path: "/root/sample", SHA256: schemas.Sum([]byte(script))})
	add(4, schemas.Segment{Source: schemas.SourceStdout, SHA256: schemas.Sum([]byte("out\n")), Size: 4, Data: []byte("out\n"), From: begin.Add(4 * time.Second)})
	add(13, schemas.SampleExited{Reason: "exited", ExitCode: &code})
	add(13, schemas.TreeExited{})
	add(14, schemas.Artifact{Kind: schemas.KindMemory, SHA256: objects.put([]byte("\x7fELF core"))})
	add(14, schemas.Artifact{Kind: schemas.KindDropped, SHA256: kept})
	add(14, schemas.Artifact{Kind: schemas.KindDrops, SHA256: objects.put(list)})
	add(15, schemas.StartAnalysis{Sources: []schemas.SourceCoverage{{Source: schemas.SourceStdout, Status: schemas.StatusWhole}}})
	r, err := recorded.Load(t.Context(), events, objects)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// analysed submits a file n times, waits for the endings, and returns each
// analysis' context events but for those of the last part, by name, and, in order,
// what its artifacts are: the hooks that take them run beside each other.
func analysed(t *testing.T, b *bus.Bus, path string, n int) (ids []string, events, artifacts [][]string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for range n {
		p, err := Prepare(Request{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if err := p.Submit(ctx, b); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, p.Submission.ID)
	}
	for _, id := range ids {
		var names, stored []string
		err := b.Follow(ctx, schemas.DefaultTenant, id, 0, nil, func(e bus.Entry) error {
			switch e.Event.Family() {
			case "context":
				name := e.Event.Name()
				switch name {
				case schemas.EventIPAddress, schemas.EventLogAway: // they come when they come
				default:
					names = append(names, name)
				}
				if schemas.Ending(name) {
					return bus.ErrStop
				}
			case "artifact":
				var a schemas.Artifact
				if err := e.Event.Decode(&a); err != nil {
					return err
				}
				if a.Kind != schemas.KindDrops { // it has the time of the copy's making
					stored = append(stored, string(a.Kind)+" "+a.SHA256.String())
				}
			}
			return nil
		})
		if err != nil {
			t.Fatalf("analysis %s, after %q: %v", id, names, err)
		}
		slices.Sort(stored)
		events, artifacts = append(events, names), append(artifacts, stored)
	}
	return ids, events, artifacts
}

// running runs a sandbox until it is stopped.
func running(t *testing.T, run func(ctx context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil && ctx.Err() == nil {
			t.Errorf("the sandbox: %v", err)
		}
	}
}

// record replays the first recording of the script, exports what came of that, and
// returns the file, with the names of the events and what the artifacts are.
func record(t *testing.T, b *bus.Bus, c Config, sample string) (file string, events, artifacts []string) {
	t.Helper()
	dir := t.TempDir()
	r := firstRecording(t)
	rs := &recordings{bySample: map[schemas.Digest]*recorded.Recording{r.Sample: r}}
	stop := running(t, sandboxd.NewWorker(logAdapter{b}, c.store(b), jobsAdapter{b, &guestQueue{b: b, guests: rs.guests}}, endingsAdapter{b}, rs, sandboxd.Options{
		ID: schemas.NewID(time.Now()), Dir: filepath.Join(dir, "run"), Slog: slog.New(slog.NewTextHandler(t.Output(), nil)), InstallHooks: installHooks, Describe: rs.describe,
	}).Run)
	ids, first, stored := analysed(t, b, sample, 1)
	stop()
	file = filepath.Join(dir, "analysis.petri")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Export(t.Context(), schemas.DefaultTenant, ids[0], f, bus.ExportOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return file, first[0], stored[0]
}

// TestRecorded replays an analysis, exports what came of that, and has a
// sandbox replay the file, three at a time: each is the same again.
func TestRecorded(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	s, err := bus.StartServer(data, bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Announce(); err != nil {
		t.Fatal(err)
	}
	c := Config{Data: data, Cache: filepath.Join(dir, "cache"), Parallel: 3}
	b, err := c.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Reconcile(t.Context(), bus.Limits{Log: 64 << 20, Store: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	sample := filepath.Join(dir, "sample.sh")
	if err := os.WriteFile(sample, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	file, first, stored := record(t, b, c, sample)
	if got := strings.Join(first, " "); !strings.Contains(got, "post_poweron guest_ready") || !strings.Contains(got, "sample_exited sample_tree_exited") || !strings.HasSuffix(got, "analysis_completed") {
		t.Fatalf("events %s", got)
	}
	if got := strings.Join(stored, " "); !strings.Contains(got, "memory "+schemas.Sum([]byte("\x7fELF core")).String()) || !strings.Contains(got, "dropped "+schemas.Sum([]byte("dropped")).String()) {
		t.Fatalf("artifacts %s", got)
	}

	replay := c
	replay.Recorded = []string{file}
	stop := running(t, func(ctx context.Context) error { return RunSandbox(ctx, replay, log, func() {}) })
	defer stop()
	_, again, storedAgain := analysed(t, b, sample, 3)
	for i := range again {
		if diff := cmp.Diff(first, again[i]); diff != "" {
			t.Errorf("events of replay %d (-first +again):\n%s", i, diff)
		}
		if diff := cmp.Diff(stored, storedAgain[i]); diff != "" {
			t.Errorf("artifacts of replay %d (-first +again):\n%s", i, diff)
		}
	}

	// A sample without a recording fails, and says why.
	if err := os.WriteFile(sample, []byte(script+"# another\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ids, names, _ := analysed(t, b, sample, 1)
	if last := names[0][len(names[0])-1]; last != schemas.EventFailed {
		t.Errorf("another sample ended in %s", last)
	}
	entries, err := b.Context(t.Context(), schemas.DefaultTenant, ids[0])
	if err != nil {
		t.Fatal(err)
	}
	var failed schemas.AnalysisFailed
	if err := entries[len(entries)-1].Event.Decode(&failed); err != nil || !strings.Contains(failed.Error, "has none of sample") {
		t.Errorf("it failed with %+v, %v", failed, err)
	}

	// A file that is not whole is no recording.
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, whole[:len(whole)-20], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadRecordings(t.Context(), []string{file}, 1, filepath.Join(dir, "unpacked")); err == nil {
		t.Error("a file without an end was taken")
	}
}
