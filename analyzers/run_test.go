// SPDX-License-Identifier: Apache-2.0

package analyzers_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/schemas"
)

// start runs the runner until the test ends, and then looks for what it left.
func start(t *testing.T, w *world, o analyzers.Options) (stop func()) {
	t.Helper()
	o.Dir = t.TempDir()
	if testing.Verbose() {
		o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	fds := descriptors(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- analyzers.Run(ctx, list(), w.services(), o) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		left, err := os.ReadDir(o.Dir)
		if err != nil || len(left) > 0 {
			t.Errorf("files are left: %v, %v", left, err)
		}
		if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.ECHILD {
			t.Errorf("processes are left: %d, %v", pid, err)
		}
		if now := descriptors(t); len(now) > len(fds) {
			t.Errorf("descriptors are left: %v, before: %v", now, fds)
		}
	}
	t.Cleanup(stop)
	return stop
}

func descriptors(t *testing.T) (out []string) {
	t.Helper()
	runtime.GC() // the first use of a poller is no leak
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range dir {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(to, "anon_inode:") {
			out = append(out, e.Name()+" "+to)
		}
	}
	return out
}

// one runs one task of the actor.
func one(t *testing.T, act string) schemas.FinishedTask {
	t.Helper()
	name := "actor"
	if slices.Contains([]string{"loop", "sleep", "obedient"}, act) {
		name = "hasty"
	}
	w := newWorld()
	stop := start(t, w, analyzers.Options{MaxResult: 10 << 20, MaxDerived: 2 << 20})
	w.sample(name, []byte(act))
	w.wait(t, 1)
	stop()
	if len(w.finished) != 1 || w.acks != 1 || len(w.naks) != 0 {
		t.Fatalf("%d answers, %d acks, %d naks", len(w.finished), w.acks, len(w.naks))
	}
	f := w.finished[0]
	if f.Version != "1.0.0" || f.Instance == "" || f.Took <= 0 {
		t.Errorf("answer %+v", f)
	}
	return f
}

// until looks again and again whether something has come about that tells
// nobody of itself.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestDone(t *testing.T) {
	f := one(t, "ok\n12345")
	want := []schemas.Finding{{Kind: "size", Title: "it has a size", Severity: "info", Data: json.RawMessage(`{"size":8}`)}}
	if f.Status != schemas.TaskDone || f.Error != "" {
		t.Errorf("%s: %s", f.Status, f.Error)
	}
	if diff := cmp.Diff(want, f.Findings); diff != "" {
		t.Error(diff)
	}
}

// TestReuse has a memo know an earlier answer: the bytes, which are not there,
// are not asked for, unless the task wants the work done.
func TestReuse(t *testing.T) {
	w := newWorld()
	sample := schemas.Artifact{Kind: schemas.KindSample, SHA256: schemas.Sum([]byte("gone")), Size: 4}
	w.earlier = &schemas.TaskRef{Tenant: schemas.DefaultTenant, Analysis: "01JC0000000000000000000000", Run: schemas.LiveRun, Analyzer: "actor", SHA256: &sample.SHA256, Kind: sample.Kind}
	stop := start(t, w, analyzers.Options{Concurrency: 1})
	w.submit("actor", sample, 1)
	w.wait(t, 1)
	w.submit("actor", sample, 1)
	w.wait(t, 1)
	w.force = true
	w.submit("actor", sample, 1)
	w.wait(t, 1)
	stop()
	if len(w.finished) < 2 || w.finished[0].Reuse != w.earlier || w.finished[0].Status != schemas.TaskDone || len(w.finished[0].Findings) != 0 {
		t.Fatalf("answers %+v", w.finished)
	}
	if last := w.finished[len(w.finished)-1]; len(w.naks) == 0 && last.Reuse != nil {
		t.Errorf("the work was to be done: %+v", last)
	}
}

// TestFaults lets a child end in every bad way: each is an answer.
func TestFaults(t *testing.T) {
	for _, tc := range []struct{ act, status, err string }{
		{"panic", "failed", "panic: runtime error: index out of range [0] with length 0"},
		{"panic_elsewhere", "failed", "panic: in a goroutine"},
		{"oom", "failed", "memory limit of 128 MiB exceeded"},
		{"loop", "failed", "deadline of 500ms exceeded; the analyzer was killed"},
		{"sleep", "failed", "deadline of 500ms exceeded; the analyzer was killed"},
		{"obedient", "failed", "deadline of 500ms exceeded: context deadline exceeded"},
		{"garbage\nhello?", "failed", "the analyzer's process wrote garbage: no frame begins with"},
		{"garbage\n", "failed", "the analyzer's process ended without an answer (exit status 0)"},
		{"garbage\nE", "failed", "the analyzer's process wrote garbage: half a frame"},
		{"garbage\nH\x00\x00\x00\x02{}", "failed", "the analyzer's process wrote garbage: frame 'H' is out of order"},
		{"garbage\nE\xff\xff\xff\xff", "failed", "the analyzer's process wrote garbage: frame 'E' of 4294967295 bytes"},
		{"garbage\nE\x00\x00\x00\x11{\"status\":\"done\"}E\x00\x00\x00\x02{}", "failed", "the analyzer's process wrote garbage: frame 'E' behind the end"},
		{"garbage\nF\x00\x00\x00\x1b{\"kind\":\"x\",\"title\":\"\\u00\"}", "failed", "the analyzer's process wrote garbage"},
		{"garbage_flood", "failed", "the analyzer's process wrote garbage"},
		{"data_flood", "failed", "result document is too large"},
		{"raw_data_flood", "failed", "the analyzer's process wrote garbage: more bytes than the 10485760 that are allowed"},
		{"silent", "failed", "the analyzer's process ended without an answer (exit status 0)"},
		{"exit", "failed", "the analyzer's process ended without an answer (exit status 7): I leave"},
		{"bad_finding", "failed", "finding \"Not A Kind\""},
		{"two_results", "failed", "there is a result document already"},
		{"large_result", "failed", "result document is too large: 10485760 bytes are allowed"},
		{"broken_result", "failed", "no more"},
		{"error", "failed", "this analyzer does not feel well"},
		{"skip", "skipped", "not for me"},
		{"", "skipped", `unknown act ""`},
	} {
		name, _, _ := strings.Cut(tc.act, "\n")
		t.Run(name, func(t *testing.T) {
			if name == "oom" && raceEnabled {
				t.Skip("SKIPPED: there is no memory limit under the race detector")
			}
			if name == "data_flood" {
				// The analyzer does not look at the error, and says that it is done.
				f := one(t, tc.act)
				if f.Status != "done" || f.Result != nil {
					t.Errorf("%s: %s, %v", f.Status, f.Error, f.Result)
				}
				return
			}
			f := one(t, tc.act)
			if f.Status != tc.status || !strings.HasPrefix(f.Error, tc.err) {
				t.Errorf("%s: %s", f.Status, f.Error)
			}
			if len(f.Error) > 500 || strings.ContainsAny(f.Error, "\n\x1b") {
				t.Errorf("error %q", f.Error)
			}
			if f.Findings != nil || f.Derived != nil || f.Result != nil {
				t.Errorf("it has findings: %+v", f)
			}
		})
	}
}

func TestConfined(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for act, want := range map[string]string{
		"network\n" + l.Addr().String(): "operation not permitted",
		"read_file":                     "operation not permitted",
		"write_input":                   "write input: ",
	} {
		f := one(t, act)
		if f.Status != "done" || len(f.Findings) != 1 || !strings.Contains(f.Findings[0].Title, want) {
			t.Errorf("%.20q: %s %s %+v", act, f.Status, f.Error, f.Findings)
		}
	}
	f := one(t, "environment")
	if f.Status != "done" || len(f.Findings) != 1 || !raceEnabled && !strings.HasPrefix(f.Findings[0].Title, "0 variables") {
		t.Errorf("%s %s %+v", f.Status, f.Error, f.Findings)
	}
	f = one(t, "stdout")
	if f.Status != "done" || len(f.Findings) != 1 {
		t.Errorf("stdout: %s %s %+v", f.Status, f.Error, f.Findings)
	}
	f = one(t, "stderr_flood")
	if f.Status != "done" {
		t.Errorf("stderr: %s %s", f.Status, f.Error)
	}
}

func TestLimits(t *testing.T) {
	f := one(t, "many_findings")
	if len(f.Findings) != schemas.MaxFindings || f.Cut == nil || f.Cut.Findings != 800 {
		t.Errorf("%d findings, cut %+v", len(f.Findings), f.Cut)
	}
	var high []string
	for _, x := range f.Findings {
		if x.Severity == schemas.SeverityHigh {
			high = append(high, x.Title)
		}
	}
	if diff := cmp.Diff([]string{"99", "199", "299", "399", "499", "599", "699", "799", "899", "999"}, high); diff != "" {
		t.Errorf("the severe ones must stay: %s", diff)
	}
	if f.Findings[0].Title != "0" || f.Findings[150].Title != "150" {
		t.Errorf("the early ones must stay, in order: %+v", f.Findings[:3])
	}

	f = one(t, "large_findings")
	b, _ := json.Marshal(f)
	if f.Cut == nil || f.Cut.Findings == 0 || len(f.Findings)+f.Cut.Findings != 100 || len(b) > 3<<19 {
		t.Errorf("%d findings, cut %+v, %d bytes", len(f.Findings), f.Cut, len(b))
	}

	f = one(t, "huge_finding")
	if len(f.Findings) != 1 || f.Cut == nil || f.Cut.Findings != 1 || f.Findings[0].Title != "too much data" || !strings.Contains(string(f.Findings[0].Data), "omitted") {
		t.Errorf("%+v, cut %+v", f.Findings, f.Cut)
	}

	f = one(t, "many_derived")
	if len(f.Derived) != schemas.MaxDerived || f.Cut == nil || f.Cut.Derived != 100 {
		t.Errorf("%d derived, cut %+v", len(f.Derived), f.Cut)
	}
}

func TestStreams(t *testing.T) {
	w := newWorld()
	stop := start(t, w, analyzers.Options{MaxDerived: 2 << 20})
	w.sample("actor", []byte("large_derived\nbytes"))
	w.wait(t, 1)
	w.sample("actor", []byte("result"))
	w.wait(t, 1)
	stop()
	f := w.finished[0]
	want := []schemas.Derived{{Kind: "dropped", SHA256: schemas.Sum([]byte("bytes")), Size: 5, Name: "small\x00\uFFFD", MediaType: "text/plain"}}
	if diff := cmp.Diff(want, f.Derived); diff != "" || f.Cut == nil || f.Cut.Derived != 1 {
		t.Errorf("%s, cut %+v", diff, f.Cut)
	}
	f = w.finished[1]
	if f.Result == nil || f.Result.Schema != "petri.result.actor.v1" || f.Result.Size < 5<<20 || int64(len(w.uploads[f.Result.SHA256])) != f.Result.Size {
		t.Errorf("result %+v", f.Result)
	}
	if len(w.uploads) != 2 {
		t.Errorf("%d uploads", len(w.uploads))
	}
}

// TestKilled kills a child from outside.
func TestKilled(t *testing.T) {
	w := newWorld()
	start(t, w, analyzers.Options{})
	w.sample("actor", []byte("loop"))
	for {
		if pid := childOf(t, os.Getpid(), "petri-analyzer:actor"); pid != 0 {
			time.Sleep(100 * time.Millisecond)
			syscall.Kill(pid, syscall.SIGKILL)
			break
		}
		time.Sleep(time.Millisecond)
	}
	w.wait(t, 1)
	if f := w.finished[0]; f.Status != "failed" || f.Error != "the analyzer's process was killed by SIGKILL" {
		t.Errorf("%s: %s", f.Status, f.Error)
	}
}

// TestRunnerKilled kills the runner itself: its child dies with it, and no
// file is left.
func TestRunnerKilled(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("/proc/self/exe", "test-runner", dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	child := 0
	for end := time.Now().Add(2 * time.Minute); child == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		child = childOf(t, cmd.Process.Pid, "petri-analyzer:actor")
	}
	cmd.Process.Kill()
	cmd.Wait()
	if child == 0 {
		t.Fatal("there was no child")
	}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
		if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child)); !strings.HasPrefix(string(b), "petri-analyzer") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the child lives on")
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
}

// childOf finds a child process by the first word of its command line.
func childOf(t *testing.T, ppid int, name string) int {
	t.Helper()
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range dirs {
		b, _ := os.ReadFile(path)
		if !bytes.HasPrefix(b, []byte(name+"\x00")) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		stat, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "stat"))
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(ppid) {
			return pid
		}
	}
	return 0
}

func TestPoison(t *testing.T) {
	w := newWorld()
	stop := start(t, w, analyzers.Options{})
	b := []byte("ok")
	a := schemas.Artifact{Kind: schemas.KindSample, SHA256: w.add(b), Size: 2}
	w.submit("actor", a, 3)
	w.wait(t, 1)
	w.submit("actor", a, 4)
	w.wait(t, 1)
	stop()
	if f := w.finished[0]; f.Status != "done" {
		t.Errorf("third attempt: %s: %s", f.Status, f.Error)
	}
	if f := w.finished[1]; f.Status != "failed" || f.Error != "poison: 3 attempts have ended without an answer" || w.acks != 2 {
		t.Errorf("fourth attempt: %s: %s", f.Status, f.Error)
	}
}

// TestOurFault breaks the services: the task is given back, never answered.
func TestOurFault(t *testing.T) {
	for name, breakIt := range map[string]func(*world){
		"open":   func(w *world) { w.breakOpen = errors.New("the store is away") },
		"put":    func(w *world) { w.breakPut = errors.New("the store is full") },
		"finish": func(w *world) { w.breakFinish = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			breakIt(w)
			stop := start(t, w, analyzers.Options{})
			w.sample("actor", []byte("result"))
			w.wait(t, 1)
			stop()
			if len(w.finished) != 0 || !slices.Equal(w.naks, []time.Duration{time.Second}) {
				t.Errorf("%+v, naks %v", w.finished, w.naks)
			}
		})
	}
}

func TestBadTasks(t *testing.T) {
	w := newWorld()
	stop := start(t, w, analyzers.Options{MaxInput: map[schemas.Kind]int64{schemas.KindSample: 1000}})
	ok := w.add([]byte("ok"))
	bad := func(s string) schemas.Digest { return w.add([]byte(s)) }
	manifest := func(k schemas.Kind, s string) schemas.Artifact {
		return schemas.Artifact{Kind: k, SHA256: bad(s), Size: int64(len(s)), MediaType: schemas.ManifestMediaType}
	}
	for _, tc := range []struct {
		analyzer string
		a        schemas.Artifact
		err      string
	}{
		{"actor", schemas.Artifact{Kind: schemas.KindSample, SHA256: schemas.Sum([]byte("gone")), Size: 4}, "the store does not have"},
		{"actor", schemas.Artifact{Kind: schemas.KindSample, SHA256: ok, Size: 3}, ok.String() + " has not the 3 bytes"},
		{"actor", schemas.Artifact{Kind: schemas.KindSample, SHA256: ok, Size: 1}, ok.String() + " has not the 1 bytes"},
		{"actor", schemas.Artifact{Kind: schemas.KindSample, SHA256: ok, Size: 1001}, "artifact of 1001 bytes is over the limit of 1000 for sample"},
		{"actor", schemas.Artifact{Kind: schemas.KindPcap, SHA256: ok, Size: 2}, `the analyzer does not take artifacts of kind "pcap"`},
		{"stream", manifest(schemas.KindTrace, "{"), "manifest "},
		{"stream", manifest(schemas.KindTrace, "{}"), "manifest "},
		{"stream", manifest(schemas.KindTrace, `{"schema":"petri.manifest.v1","segments":[{"sha256":"`+ok.String()+`","size":-1}]}`), "manifest "},
		{"stream", manifest(schemas.KindTrace, `{"schema":"petri.manifest.v1","segments":[{"sha256":"`+ok.String()+`","size":9223372036854775807},{"sha256":"`+ok.String()+`","size":1}]}`), "manifest "},
		{"stream", manifest(schemas.KindTrace, `{"schema":"petri.manifest.v1","segments":[{"sha256":"`+ok.String()+`","size":5}]}`), ok.String() + " has not the 5 bytes"},
	} {
		w.submit(tc.analyzer, tc.a, 1)
		w.wait(t, 1)
		f := w.finished[len(w.finished)-1]
		if f.Status != "failed" || !strings.HasPrefix(f.Error, tc.err) {
			t.Errorf("%s: %s, want %s", f.Status, f.Error, tc.err)
		}
	}
	stop()
	if len(w.naks) != 0 {
		t.Errorf("naks %v", w.naks)
	}
}

// TestManifest hands over the bytes that a manifest stands for, but never on
// an analyzer's word.
func TestManifest(t *testing.T) {
	w := newWorld()
	stop := start(t, w, analyzers.Options{})
	one, two := w.add([]byte("first, ")), w.add([]byte("second"))
	m, _ := json.Marshal(schemas.Manifest{
		Schema: schemas.ManifestSchema, Source: schemas.SourceTrace, Size: 13,
		Segments: []schemas.ManifestSegment{{SHA256: one, Size: 7}, {SHA256: two, Size: 6}, {SHA256: one, Size: 7}},
		Coverage: schemas.SourceCoverage{Lost: 3},
	})
	a := schemas.Artifact{Kind: schemas.KindTrace, SHA256: w.add(m), Size: int64(len(m)), MediaType: schemas.ManifestMediaType}
	w.submit("stream", a, 1)
	w.wait(t, 1)
	derived := a
	derived.Kind, derived.Analyzer = schemas.KindDropped, "actor"
	w.submit("stream", derived, 1)
	w.wait(t, 1)
	stop()
	if f := w.finished[0]; f.Status != "done" || f.Findings[0].Title != "3 segments, 3 lost: first, secondfirst, " {
		t.Errorf("%+v", f)
	}
	if f := w.finished[1]; f.Status != "done" || !strings.HasPrefix(f.Findings[0].Title, `{"schema":"petri.manifest.v1"`) {
		t.Errorf("an analyzer's manifest was followed: %+v", f)
	}
}

func TestScopeAnalysis(t *testing.T) {
	w := newWorld()
	for i, name := range []string{schemas.EventRunSample, schemas.EventSampleStarted} {
		e, err := schemas.NewEvent("default", "01JD0000000000000000000000", fmt.Sprint(i), time.Unix(int64(i+1), 0), schemas.OriginHost, schemas.Custom{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		w.log = append(w.log, e)
	}
	stop := start(t, w, analyzers.Options{})
	console := schemas.Artifact{Kind: schemas.KindConsole, SHA256: w.add([]byte("login:")), Size: 6}
	gone := schemas.Artifact{Kind: schemas.KindConsole, SHA256: schemas.Sum(nil), Size: 6}
	w.queue("summary") <- &delivery{w: w, task: analyzers.Task{
		Ref:       schemas.TaskRef{Tenant: "default", Analysis: "01JD0000000000000000000000", Run: "live", Analyzer: "summary"},
		Artifacts: []schemas.Artifact{{Kind: schemas.KindSample, SHA256: schemas.Sum(nil)}, console, gone}, Attempt: 1,
	}}
	w.wait(t, 1)
	stop()
	var got []string
	for _, f := range w.finished[0].Findings {
		got = append(got, f.Title)
	}
	want := []string{"petri.context.run_sample.v1", "petri.context.sample_started.v1", "petri.context.run_sample.v1", "petri.context.sample_started.v1", "login:", "1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s\n%+v", diff, w.finished[0])
	}
}

func TestTool(t *testing.T) {
	for argv, want := range map[string]string{
		"/bin/echo hello":          "hello (<nil>)",
		"/bin/sh":                  " (<nil>)",
		"/bin/cat /proc/self/fd/3": "No such file", // the frames are not its to write
		"/no/such/tool":            "no such file",
	} {
		w := newWorld()
		stop := start(t, w, analyzers.Options{})
		w.sample("tool", []byte(argv))
		w.wait(t, 1)
		stop()
		if f := w.finished[0]; f.Status != "done" || !strings.Contains(f.Findings[0].Title, want) {
			t.Errorf("%s: %s %s %+v", argv, f.Status, f.Error, f.Findings)
		}
	}
	// What a tool leaves running dies with the task.
	w := newWorld()
	stop := start(t, w, analyzers.Options{})
	w.sample("tool", []byte("/usr/bin/nohup sleep 3600"))
	w.wait(t, 1)
	stop()
	if f := w.finished[0]; !strings.Contains(f.Error+fmt.Sprint(f.Findings), "killed") {
		t.Errorf("%s %s %+v", f.Status, f.Error, f.Findings)
	}
	left := func() (out []string) {
		dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, path := range dirs {
			if b, _ := os.ReadFile(path); string(b) == "sleep\x003600\x00" {
				out = append(out, path)
			}
		}
		return out
	}
	until(t, "what the tool left running has ended", func() bool { return len(left()) == 0 })
}

func TestUnavailable(t *testing.T) {
	w := newWorld()
	var stats analyzers.Stats
	stop := start(t, w, analyzers.Options{Stats: &stats})
	w.sample("needy", []byte("x"))
	w.wait(t, 1)
	stop()
	if f := w.finished[0]; f.Status != "skipped" || f.Error != "analyzer unavailable: yara is not installed; apt install yara" {
		t.Errorf("%s: %s", f.Status, f.Error)
	}
	s := stats.Snapshot()
	if len(s) != 1 || s[0].Name != "needy" || s[0].Taken != 1 || s[0].Skipped != 1 || s[0].Running != 0 {
		t.Errorf("%+v", s)
	}
}

// TestCountsAreLogged stops a runner, which then says what it has done.
func TestCountsAreLogged(t *testing.T) {
	w := newWorld()
	var out bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- analyzers.Run(ctx, list(), w.services(), analyzers.Options{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(&out, nil))})
	}()
	for _, b := range []string{"x", "y", "z"} {
		w.sample("needy", []byte(b))
	}
	w.wait(t, 3)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"analyzer=needy taken=3 done=0 failed=0 skipped=3 dropped=0 poison=0 ", " half_below=", " most_below="} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

func TestRegisters(t *testing.T) {
	w := newWorld()
	stop := start(t, w, analyzers.Options{})
	w.sample("actor", []byte("ok"))
	w.wait(t, 1)
	stop()
	var names []string
	for _, r := range w.registered {
		names = append(names, r.Name)
	}
	if diff := cmp.Diff([]string{"actor", "hasty", "summary", "stream", "tool", "needy"}, names); diff != "" {
		t.Error(diff)
	}
	if r := w.registered[2]; r.Scope != schemas.ScopeAnalysis || r.After != "artifacts" || r.Deadline.D() != time.Minute {
		t.Errorf("%+v", r)
	}
}

func TestHeartbeat(t *testing.T) {
	w := newWorld()
	stop := start(t, w, analyzers.Options{Heartbeat: 10 * time.Millisecond, Concurrency: 1, Drain: -1})
	w.sample("actor", []byte("sleep"))
	w.sample("hasty", []byte("sleep")) // waits for the slot, and is kept, too
	until(t, "30 heartbeats", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.beats >= 30
	})
	stop()
}

// TestStop stops the runner while a child works: the task is given back.
func TestStop(t *testing.T) {
	w := newWorld()
	stop := start(t, w, analyzers.Options{Drain: -1})
	w.sample("actor", []byte("loop"))
	aChild(t, "actor")
	stop()
	if len(w.finished) != 0 || w.begun != 1 || w.returned != 1 || len(w.naks) != 0 {
		t.Errorf("%+v, begun %d, returned %d, naks %v", w.finished, w.begun, w.returned, w.naks)
	}
}

// TestAgain is handed a task out again while a child works on it, as after the
// queue was away: the work is done once, and its end ends the task.
func TestAgain(t *testing.T) {
	w := newWorld()
	stop := start(t, w, analyzers.Options{Concurrency: 3})
	a := schemas.Artifact{Kind: schemas.KindSample, SHA256: w.add([]byte("sleep")), Size: 5}
	w.submit("actor", a, 1)
	child := aChild(t, "actor")
	w.submit("actor", a, 2)
	w.submit("actor", a, 3)
	w.sample("actor", []byte("ok")) // is taken when those before it have been
	w.wait(t, 1)
	syscall.Kill(child, syscall.SIGKILL)
	w.wait(t, 1)
	stop()
	if len(w.finished) != 2 || w.begun != 2 || w.acks != 2 || w.returned != 0 || len(w.naks) != 0 {
		t.Errorf("%+v, begun %d, %d acks, returned %d, naks %v", w.finished, w.begun, w.acks, w.returned, w.naks)
	}
}

// aChild waits for the child that works for an analyzer.
func aChild(t *testing.T, analyzer string) (pid int) {
	t.Helper()
	until(t, "the child runs", func() bool {
		pid = childOf(t, os.Getpid(), "petri-analyzer:"+analyzer)
		return pid != 0
	})
	return pid
}

// TestDrain stops it while a child is about to be done.
func TestDrain(t *testing.T) {
	w := newWorld()
	stop := start(t, w, analyzers.Options{Drain: 2 * time.Minute, Concurrency: 2})
	w.sample("actor", []byte("sleep"))
	child := aChild(t, "actor")
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	until(t, "no more is taken", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.left == len(list())
	})
	syscall.Kill(child, syscall.SIGKILL)
	<-stopped
	if len(w.finished) != 1 || w.acks != 1 {
		t.Errorf("%+v, naks %v", w.finished, w.naks)
	}
}

// TestMany runs good and bad tasks together: the bad ones take nobody with them.
func TestMany(t *testing.T) {
	w := newWorld()
	var stats analyzers.Stats
	stop := start(t, w, analyzers.Options{Concurrency: 100, Stats: &stats})
	acts := []string{"ok", "panic", "garbage\nxxxxx", "exit", "many_findings", "skip", "ok", "ok", "result", "ok"}
	began := time.Now()
	for i := range 100 {
		w.sample("actor", fmt.Appendf(nil, "%s\n%d", acts[i%len(acts)], i))
	}
	w.wait(t, 100)
	t.Logf("100 tasks in %v", time.Since(began))
	stop()
	count := map[string]int{}
	for _, f := range w.finished {
		count[f.Status]++
	}
	if diff := cmp.Diff(map[string]int{"done": 60, "failed": 30, "skipped": 10}, count); diff != "" {
		t.Error(diff)
	}
	if s := stats.Snapshot(); len(s) != 1 || s[0].Taken != 100 || s[0].Done != 60 || s[0].Failed != 30 || s[0].Skipped != 10 {
		t.Errorf("%+v", s)
	}
}

func TestCannotStart(t *testing.T) {
	w := newWorld()
	for name, list := range map[string][]analyzers.Analyzer{
		"twice": {actor{}, actor{}},
		"bad":   {bad{}},
	} {
		if err := analyzers.Run(t.Context(), list, w.services(), analyzers.Options{}); err == nil {
			t.Errorf("%s: it runs", name)
		}
	}
}

type bad struct{ analyzers.Analyzer }

func (bad) Info() analyzers.Info {
	return analyzers.Info{Name: "bad", Version: "v1", Kinds: []schemas.Kind{"sample"}}
}

// BenchmarkTask is one task from delivery to acknowledgement, one at a time.
func BenchmarkTask(b *testing.B) { bench(b, 1, 1) }

// BenchmarkTasks is the same with as many children as CPUs.
func BenchmarkTasks(b *testing.B) {
	bench(b, runtime.GOMAXPROCS(0), 4*runtime.GOMAXPROCS(0))
}

func bench(b *testing.B, concurrency, ahead int) {
	w := newWorld()
	w.answered = make(chan struct{}, 1<<20)
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() {
		done <- analyzers.Run(ctx, list(), w.services(), analyzers.Options{Concurrency: concurrency, Dir: b.TempDir()})
	}()
	sample := bytes.Repeat([]byte("ok\n"), 20000)
	w.sample("actor", sample)
	<-w.answered
	flying := 0
	for b.Loop() {
		w.sample("actor", sample)
		if flying++; flying >= ahead {
			<-w.answered
			flying--
		}
	}
	for range flying {
		<-w.answered
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
	cancel()
	if err := <-done; err != nil {
		b.Error(err)
	}
	for _, f := range w.finished {
		if f.Status != "done" {
			b.Fatal(f.Error)
		}
	}
}
