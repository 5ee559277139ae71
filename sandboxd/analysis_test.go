// SPDX-License-Identifier: Apache-2.0

package sandboxd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/sandboxd/catalogue"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/protocol"
	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/elfid"
	"github.com/petri-sandbox/petri/schemas/elfid/elftest"
)

// wholeRun is what the default protocol publishes when all goes well: SEE's
// documented order with Petri's own events between.
var wholeRun = []string{
	"analysis_submitted", "analysis_claimed",
	"pre_poweron", "post_poweron", "guest_ready", "ip_address",
	"run_sample", "sample_started", "sample_exited", "sample_tree_exited",
	"pre_pause", "post_pause", "snapshots_capture", "pre_resume", "post_resume",
	"pre_shutdown", "post_shutdown", "start_analysis", "wait_analysis", "analysis_completed",
}

func TestDefaultProtocol(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		sub := b.submission(t)
		got := b.analyse(t, sub)
		// The lease comes when it comes.
		sortLease := func(names []string) []string {
			names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == "ip_address" })
			return names
		}
		if diff := cmp.Diff(sortLease(wholeRun), sortLease(got)); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		if i, j := slices.Index(got, "ip_address"), slices.Index(got, "run_sample"); i < 0 || i > j {
			t.Errorf("ip_address at %d, run_sample at %d", i, j)
		}
		if diff := cmp.Diff([]string{"start_analysis", "analysis_completed"}, b.signatures()); diff != "" {
			t.Errorf("signatures (-want +got):\n%s", diff)
		}
		if !b.last().isClosed() {
			t.Error("the machine was not closed")
		}
		if _, err := os.Stat(b.dir + "/" + sub.ID); !os.IsNotExist(err) {
			t.Errorf("the analysis' directory is still there: %v", err)
		}
		var start schemas.StartAnalysis
		b.find(t, sub.ID, "start_analysis", &start)
		kinds := map[schemas.Kind]int{}
		for _, a := range start.Artifacts {
			kinds[a.Kind] += a.Occurrences
		}
		want := map[schemas.Kind]int{schemas.KindSample: 1, schemas.KindMemory: 1, schemas.KindDropped: 2, schemas.KindDrops: 1, schemas.KindConsole: 1}
		if diff := cmp.Diff(want, kinds); diff != "" {
			t.Errorf("artifacts (-want +got):\n%s", diff)
		}
		for _, h := range start.Hooks {
			if h.Runs != 1 || h.Failed != 0 {
				t.Errorf("hook %+v", h)
			}
		}
	})
}

// TestUnsigned cannot sign the log: that costs the signatures, not the analysis.
func TestUnsigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.unsigned = errors.New("no key")
		got := b.analyse(t, b.submission(t))
		if got[len(got)-1] != "analysis_completed" || len(b.signatures()) != 2 {
			t.Errorf("events %v, signatures %v", got, b.signatures())
		}
	})
}

func TestMachineFailures(t *testing.T) {
	tests := []struct {
		name    string
		setup   func(m *fakeMachine)
		has     []string // in this order
		hasNot  []string
		reason  string // of analysis_failed
		retries int
	}{
		{
			name: "poweron fails", setup: func(m *fakeMachine) { m.fail["poweron"] = errors.New("no such machine") },
			has:    []string{"pre_poweron", "failed_poweron", "step_failed", "start_analysis", "analysis_failed"},
			hasNot: []string{"post_poweron", "run_sample"}, reason: "machine",
		},
		{
			name: "the sample is refused", setup: func(m *fakeMachine) {
				m.onRun = func(*fakeMachine) (machine.Started, error) {
					return machine.Started{}, &machine.NotExecuted{Reason: "exec format error", Errno: "ENOEXEC"}
				}
			},
			has:    []string{"run_sample", "sample_exited", "pre_poweroff", "post_poweroff", "start_analysis", "analysis_completed"},
			hasNot: []string{"sample_started", "pre_pause", "step_failed"},
		},
		{
			name: "pause fails", setup: func(m *fakeMachine) { m.fail["pause"] = errors.New("stuck") },
			has:    []string{"sample_exited", "pre_pause", "failed_pause", "step_failed", "post_poweroff", "start_analysis", "analysis_completed"},
			hasNot: []string{"post_pause", "snapshots_capture"},
		},
		{
			name: "shutdown fails", setup: func(m *fakeMachine) { m.fail["shutdown"] = errors.New("stuck") },
			has: []string{"pre_shutdown", "failed_shutdown", "step_failed", "pre_poweroff", "post_poweroff", "start_analysis", "analysis_completed"},
		},
		{
			name: "the guest goes down by itself", setup: func(m *fakeMachine) {
				m.onRun = func(m *fakeMachine) (machine.Started, error) {
					m.o.Event(machine.Event{Time: time.Now(), Off: &schemas.MachineOff{State: "crashed", Reason: "guest-panic"}})
					return machine.Started{PID: 7, SHA256: m.sum}, nil
				}
			},
			has:    []string{"sample_started", "machine_off", "start_analysis", "analysis_completed"},
			hasNot: []string{"pre_pause", "step_failed", "pre_shutdown", "pre_poweroff"},
		},
		{
			name: "the sample cannot be sent", setup: func(m *fakeMachine) {
				m.onRun = func(*fakeMachine) (machine.Started, error) { return machine.Started{}, errors.New("link broke") }
			},
			has:    []string{"run_sample", "step_failed", "start_analysis", "analysis_failed"},
			hasNot: []string{"sample_started"}, reason: "machine",
		},
		{
			name: "memory cannot be dumped", setup: func(m *fakeMachine) { m.fail["dump"] = errors.New("disk full") },
			has: []string{"snapshots_capture", "hook_failed", "pre_resume", "post_shutdown", "analysis_completed"},
		},
	}
	for _, tt := range tests {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.machine = tt.setup
				sub := b.submission(t)
				got := b.analyse(t, sub)
				rest := got
				for _, want := range tt.has {
					i := slices.Index(rest, want)
					if i < 0 {
						t.Fatalf("no %s in its place: %v", want, got)
					}
					rest = rest[i+1:]
				}
				for _, n := range tt.hasNot {
					if slices.Contains(got, n) {
						t.Errorf("%s was published: %v", n, got)
					}
				}
				if tt.reason != "" {
					var f schemas.AnalysisFailed
					b.find(t, sub.ID, "analysis_failed", &f)
					if f.Reason != tt.reason {
						t.Errorf("reason %q, want %q (%s)", f.Reason, tt.reason, f.Error)
					}
				}
				if m := b.last(); m != nil && !m.isClosed() {
					t.Error("the machine was not closed")
				}
			})
		})
	}
}

func TestUnsupportedStartsNoMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		sub := b.submission(t)
		sub.Sample.Type.Unsupported = "no guest runs it"
		got := b.analyse(t, sub)
		want := []string{"analysis_submitted", "analysis_claimed", "start_analysis", "wait_analysis", "analysis_failed"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		if b.last() != nil {
			t.Error("a machine was made")
		}
	})
}

// program is the header of an executable.
func program(class byte, order binary.ByteOrder, machine uint16, flags uint32) []byte {
	b := append([]byte("\x7fELF"), make([]byte, 116)...)
	b[4], b[5], b[6] = class/32, 1, 1
	if order == binary.BigEndian {
		b[5] = 2
	}
	order.PutUint16(b[16:], 2) // ET_EXEC
	order.PutUint16(b[18:], machine)
	order.PutUint32(b[20:], 1)
	at, sizes := 36, []uint16{52, 32, 1}
	if class == 64 {
		at, sizes = 48, []uint16{64, 56, 1}
	}
	order.PutUint32(b[at:], flags)
	for i, n := range sizes {
		order.PutUint16(b[at+4+2*i:], n)
	}
	return b
}

// TestWrongGuestStartsNoMachine submits a program of each guest as one of
// another's, and a program that no guest is for.
func TestWrongGuestStartsNoMachine(t *testing.T) {
	le, be := binary.LittleEndian, binary.BigEndian
	programs := map[string][]byte{
		"amd64": program(64, le, 62, 0), "i386": program(32, le, 3, 0),
		"arm64": program(64, le, 183, 0), "armhf": program(32, le, 40, 0x05000400),
		"mips": program(32, be, 8, 0x70001007), "mipsel": program(32, le, 8, 0x70001007), "mips64el": program(64, le, 8, 0x80000007),
		"ppc64": program(64, be, 21, 1), "ppc64el": program(64, le, 21, 2), "riscv64": program(64, le, 243, 5), "s390x": program(64, be, 22, 0),
	}
	refused := func(program []byte, asked, want string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			d, n, err := b.store.Put(t.Context(), schemas.KindSample, bytes.NewReader(program))
			if err != nil {
				t.Fatal(err)
			}
			sub := b.submission(t)
			sub.Sample.SHA256, sub.Sample.Size, sub.Profile = d, n, asked
			b.analyse(t, sub)
			var f schemas.AnalysisFailed
			b.find(t, sub.ID, "analysis_failed", &f)
			if f.Reason != "unsupported_architecture" || !strings.Contains(f.Error, want) {
				t.Errorf("%s: %q, want %q", f.Reason, f.Error, want)
			}
			if b.last() != nil {
				t.Error("a machine was made")
			}
		})
	}
	names := catalogue.Names()
	for i, guest := range names {
		asked := names[(i+1)%len(names)]
		refused(programs[guest], asked, fmt.Sprintf("the sample is for the guest %s, and %s was asked for", guest, asked))
	}
	refused(program(64, be, 43, 0), catalogue.Default, "no guest runs a program for sparc64")
}

// TestTooManyLibraries submits a program that names more libraries than the guest is
// asked for: that nobody looked is told.
func TestTooManyLibraries(t *testing.T) {
	for _, n := range []int{10, 200} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			f := elftest.File{Type: elftest.Exec, Machine: 62, Wide: true}
			for i := range n {
				f.Needed = append(f.Needed, fmt.Sprintf("lib%060d.so", i))
			}
			d, size, err := b.store.Put(t.Context(), schemas.KindSample, bytes.NewReader(f.Bytes()))
			if err != nil {
				t.Fatal(err)
			}
			sub := b.submission(t)
			sub.Sample.SHA256, sub.Sample.Size = d, size
			events := b.analyse(t, sub)
			if !slices.Contains(events, "sample_started") {
				t.Errorf("it did not run: %v", events)
			}
			if told := slices.Contains(events, "fault"); told != (n > 100) {
				t.Errorf("of %d libraries, told that nobody looked: %t", n, told)
			} else if told {
				var fault schemas.Fault
				if b.find(t, sub.ID, "fault", &fault); !strings.Contains(fault.Text, "libraries") {
					t.Errorf("fault: %s", fault.Text)
				}
			}
		})
	}
}

// TestCutOff submits a program that is loaded as if it had more bytes than the file:
// within the file's last page that is nothing, and behind it it is told.
func TestCutOff(t *testing.T) {
	for _, tt := range []struct {
		filesz uint64
		want   bool
	}{{0x40, false}, {0x1000, false}, {0x1001, true}, {1<<64 - 1, true}} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			f := program(64, binary.LittleEndian, 62, 0)
			binary.LittleEndian.PutUint64(f[32:], 64) // e_phoff
			ph := f[64:]
			binary.LittleEndian.PutUint32(ph, 1) // PT_LOAD, of offset 0
			binary.LittleEndian.PutUint64(ph[32:], tt.filesz)
			binary.LittleEndian.PutUint64(ph[40:], tt.filesz)
			d, size, err := b.store.Put(t.Context(), schemas.KindSample, bytes.NewReader(f))
			if err != nil {
				t.Fatal(err)
			}
			sub := b.submission(t)
			sub.Sample.SHA256, sub.Sample.Size = d, size
			events := b.analyse(t, sub)
			if told := slices.Contains(events, "fault"); told != tt.want || !slices.Contains(events, "sample_started") {
				t.Errorf("loaded with %#x bytes: %v", tt.filesz, events)
			}
			if tt.want {
				var fault schemas.Fault
				if b.find(t, sub.ID, "fault", &fault); !strings.Contains(fault.Text, "cut off") {
					t.Errorf("fault: %s", fault.Text)
				}
			}
		})
	}
}

// TestSplitArgumentStartsNoMachine submits a script whose first line the guests'
// env does not understand: it, and not the script, would run.
func TestSplitArgumentStartsNoMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		sub := b.submission(t)
		sub.Sample.Type = schemas.SampleType{Format: elfid.FormatScript, Interpreter: "/usr/bin/env -S sh -x"}
		b.analyse(t, sub)
		var f schemas.AnalysisFailed
		b.find(t, sub.ID, "analysis_failed", &f)
		if f.Reason != "unsupported" || !strings.Contains(f.Error, "-S of env") {
			t.Errorf("%s: %q", f.Reason, f.Error)
		}
		if b.last() != nil {
			t.Error("a machine was made")
		}
	})
}

// running is an onRun of a sample that goes on for ever.
func running(m *fakeMachine) (machine.Started, error) {
	return machine.Started{PID: 7, SHA256: m.sum}, nil
}

// untilQuiet is the default protocol, but for samples of which nothing is new.
var untilQuiet = strings.Replace(protocol.Default, "until: [tree_exited]", "until: [tree_exited, quiet], quiet: 10s", 1)

func TestRuntimeEndsTheWait(t *testing.T) {
	for _, tt := range []struct {
		name     string
		protocol string
		busy     bool
		want     time.Duration
	}{
		{"asleep", protocol.Default, false, 20 * time.Second},
		{"quiet", untilQuiet, false, 10 * time.Second},
		{"busy", untilQuiet, true, 20 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				b.machine = func(m *fakeMachine) {
					m.onRun = func(m *fakeMachine) (machine.Started, error) {
						if tt.busy {
							go func() {
								for ctx.Err() == nil {
									m.o.Data(schemas.SourceStderr, []byte("."))
									time.Sleep(time.Second)
								}
							}()
						}
						return running(m)
					}
				}
				sub := b.submission(t)
				sub.Protocol = tt.protocol
				b.analyse(t, sub)
				stop()
				time.Sleep(2 * time.Second) // the sample's goroutine ends
				var started, paused time.Time
				for _, e := range b.context[sub.ID] {
					switch e.Name() {
					case "sample_started":
						started = e.Time
					case "pre_pause":
						paused = e.Time
					}
				}
				if d := paused.Sub(started); d < tt.want-time.Second || d > tt.want+time.Second {
					t.Errorf("the wait took %s, want %s", d, tt.want)
				}
			})
		})
	}
}

func TestCancel(t *testing.T) {
	// In the middle of every step: whatever runs is ended, and told.
	for _, at := range []string{"pre_poweron", "run_sample", "sample_started", "snapshots_capture", "pre_shutdown", "wait_analysis"} {
		t.Run(at, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.machine = func(m *fakeMachine) { m.onRun, m.slow = running, time.Second }
				sub := b.submission(t)
				stop := b.worker(t)
				defer stop()
				b.jobs <- &fakeJob{sub: sub, b: b, done: make(chan struct{})}
				for !slices.Contains(b.names(sub.ID), at) {
					time.Sleep(time.Millisecond)
				}
				b.cancel(sub.ID)
				b.ended(t, sub.ID)
				names := b.names(sub.ID)
				last := names[len(names)-1]
				if last != "analysis_cancelled" && at != "wait_analysis" {
					t.Errorf("it ended with %s: %v", last, names)
				}
				if m := b.last(); m != nil && !m.isClosed() {
					t.Error("the machine was not closed")
				}
			})
		})
	}
}

func TestLogAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.machine = func(m *fakeMachine) { m.onRun = running }
		sub := b.submission(t)
		stop := b.worker(t)
		defer stop()
		b.jobs <- &fakeJob{sub: sub, b: b, done: make(chan struct{})}
		for !slices.Contains(b.names(sub.ID), "sample_started") {
			time.Sleep(time.Millisecond)
		}
		back := b.goAway()
		time.Sleep(3 * time.Second)
		if !b.last().isPaused() {
			t.Error("the guest goes on while the log is away")
		}
		back()
		b.ended(t, sub.ID)
		var away schemas.LogAway
		b.find(t, sub.ID, "log_away", &away)
		if away.For.D() < time.Second {
			t.Errorf("away for %s", away.For)
		}
		if names := b.names(sub.ID); names[len(names)-1] != "analysis_completed" {
			t.Errorf("%v", names)
		}
	})
}

func TestLogAwayForTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.machine = func(m *fakeMachine) { m.onRun = running }
		sub := b.submission(t)
		stop := b.worker(t)
		defer stop()
		b.jobs <- &fakeJob{sub: sub, b: b, done: make(chan struct{})}
		for !slices.Contains(b.names(sub.ID), "sample_started") {
			time.Sleep(time.Millisecond)
		}
		back := b.goAway()
		time.Sleep(70 * time.Second)
		if !b.last().isClosed() {
			t.Error("the guest lives although the log is away for a minute")
		}
		back()
		b.ended(t, sub.ID)
		var f schemas.AnalysisFailed
		b.find(t, sub.ID, "analysis_failed", &f)
		if f.Reason != "log" {
			t.Errorf("reason %q", f.Reason)
		}
	})
}

func TestFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.machine = func(m *fakeMachine) { m.onRun = running }
		sub := b.submission(t)
		stop := b.worker(t)
		defer stop()
		b.jobs <- &fakeJob{sub: sub, b: b, done: make(chan struct{})}
		for !slices.Contains(b.names(sub.ID), "sample_started") {
			time.Sleep(time.Millisecond)
		}
		// Another sandbox ends it.
		if _, err := b.End(t.Context(), "default", sub.ID, schemas.AnalysisFailed{Reason: "interrupted"}); err != nil {
			t.Fatal(err)
		}
		n := len(b.names(sub.ID))
		for !b.last().isClosed() {
			time.Sleep(100 * time.Millisecond)
		}
		stop()
		if names := b.names(sub.ID); len(names) != n {
			t.Errorf("it went on writing: %v", names[n:])
		}
	})
}

func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		n := 0
		b.machine = func(m *fakeMachine) {
			if n++; n == 1 {
				m.fail["poweron"] = errors.New("broken")
			}
		}
		sub := b.submission(t)
		sub.Options.Retries = 1
		stop := b.worker(t)
		defer stop()
		b.jobs <- &fakeJob{sub: sub, b: b, done: make(chan struct{})}
		b.ended(t, sub.ID)
		second := schemas.AttemptID(sub.ID, 2)
		b.ended(t, second)
		var s schemas.AnalysisSubmitted
		b.find(t, second, "analysis_submitted", &s)
		if s.RetryOf != sub.ID || s.Attempt != 2 {
			t.Errorf("attempt %d, retry of %q", s.Attempt, s.RetryOf)
		}
		if names := b.names(second); names[len(names)-1] != "analysis_completed" {
			t.Errorf("%v", names)
		}
	})
}

// TestRecovery stops a worker the hard way: its directory and its log stay as
// a kill -9 leaves them.
func TestRecovery(t *testing.T) {
	for _, tt := range []struct {
		name    string
		before  []schemas.Typed
		want    string
		retries int
	}{
		{"before its first event", nil, "analysis_completed", 0}, // the job comes again
		{"in the middle", []schemas.Typed{schemas.Custom{Name: "pre_poweron"}}, "analysis_failed", 0},
		{"while analyzers worked", []schemas.Typed{schemas.StartAnalysis{}}, "analysis_completed", 0},
		{"ended already", []schemas.Typed{schemas.AnalysisCancelled{By: "x"}}, "analysis_cancelled", 0},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				sub := b.submission(t)
				if len(tt.before) > 0 {
					w, _ := b.OpenContext(t.Context(), "default", sub.ID)
					for _, d := range append([]schemas.Typed{schemas.AnalysisSubmitted{Submission: sub, Attempt: 1}}, tt.before...) {
						e, err := schemas.NewEvent("default", sub.ID, w.NextID(), time.Now(), schemas.OriginHost, d)
						if err != nil {
							t.Fatal(err)
						}
						if err := w.Write(t.Context(), e); err != nil {
							t.Fatal(err)
						}
					}
				}
				dir := b.dir + "/" + sub.ID
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				note := `{"tenant":"default","analysis":"` + sub.ID + `","token":"token-` + sub.ID + `"}`
				if err := os.WriteFile(dir+"/job.json", []byte(note), 0o600); err != nil {
					t.Fatal(err)
				}
				stop := b.worker(t)
				defer stop()
				j := &fakeJob{sub: sub, b: b, done: make(chan struct{})}
				b.jobs <- j // redelivered
				<-j.done
				b.ended(t, sub.ID)
				names := b.names(sub.ID)
				if last := names[len(names)-1]; last != tt.want {
					t.Errorf("it ended with %s, want %s: %v", last, tt.want, names)
				}
				stop()
				if _, err := os.Stat(dir); !os.IsNotExist(err) {
					t.Errorf("its directory is still there: %v", err)
				}
			})
		})
	}
}

// TestStoppedWhileAnalyzersWork stops the sandbox when nothing is left but to
// wait: its next start goes on with that.
func TestStoppedWhileAnalyzersWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.analysing = 30 * time.Second
		sub := b.submission(t)
		stop := b.worker(t)
		b.submit(sub)
		b.reached(t, sub.ID, "wait_analysis")
		stop()
		if names := b.names(sub.ID); slices.ContainsFunc(names, schemas.Ending) {
			t.Errorf("it was ended: %v", names)
		}
		stop = b.worker(t)
		defer stop()
		b.ended(t, sub.ID)
		names := b.names(sub.ID)
		if last := names[len(names)-1]; last != "analysis_completed" {
			t.Errorf("%v", names)
		}
	})
}

func TestProtocolOfEverySteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		sub := b.submission(t)
		sub.Protocol = `
name: everything
steps:
  - trigger: before
  - poweron: {timeout: 5s}
  - wait_ip
  - exec: [uname, -a]
  - run_sample
  - wait: {until: sample_exited, limit: 5s}
  - wait: {for: 2s}
  - restart
  - pause
  - dump_memory
  - resume
  - poweroff
  - poweron
  - shutdown
  - start_analysis
  - wait_analysis: {timeout: 1s}
`
		if _, err := protocol.Parse(sub.Protocol); err != nil {
			t.Fatal(err)
		}
		got := b.analyse(t, sub)
		for _, e := range []string{"before", "exec", "pre_restart", "post_restart", "post_poweroff", "post_shutdown"} {
			if !slices.Contains(got, e) {
				t.Errorf("no %s: %v", e, got)
			}
		}
		if slices.ContainsFunc(got, func(n string) bool { return strings.HasPrefix(n, "failed_") || n == "step_failed" }) {
			t.Errorf("something failed: %v", got)
		}
	})
}
