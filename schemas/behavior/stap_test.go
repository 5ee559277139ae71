// SPDX-License-Identifier: Apache-2.0

package behavior_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/behavior"
	"github.com/petri-sandbox/petri/schemas/stap"
	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

func stapOf(t testing.TB, in io.Reader, keep func(*trace.Record) bool) []byte {
	t.Helper()
	src, err := behavior.Open(in)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := behavior.NewStapWriter(&out, keep)
	for {
		r, err := src.Next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = w.Add(r)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// calls are the whole calls of a trace as far as a text can say them.
func calls(t *testing.T, b []byte) []string {
	t.Helper()
	src, err := behavior.Open(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	var (
		join behavior.Joiner
		out  []string
	)
	cpu := regexp.MustCompile(`^[a-z0-9_]+:`)
	take := func(list []*trace.Record) {
		for _, r := range list {
			if r.Type != trace.Syscall || strings.HasPrefix(r.Describe().Name, "exec") {
				continue
			}
			line := cpu.ReplaceAllString(behavior.Format(r), "")
			line = strings.NewReplacer(`"~`, `"`, `}~`, `}`, `...~`, `...`, " /* unreadable */", "", ", groups 0x1:0}", "}").Replace(line)
			out = append(out, fmt.Sprintf("%d %s", r.Who.NSPID, line))
		}
	}
	for {
		r, err := src.Next()
		if err == io.EOF {
			take(join.Rest())
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		take(join.Join(r))
	}
}

// TestStap: what guests' traces say, their text says too: the same calls, programs,
// files and addresses, and that it is less than a trace.
func TestStap(t *testing.T) {
	files, err := filepath.Glob("testdata/*.trace")
	if err != nil || len(files) == 0 {
		t.Fatalf("there is no testdata/*.trace (%v)", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".trace"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text := stapOf(t, bytes.NewReader(b), nil)
			if again := stapOf(t, bytes.NewReader(text), nil); !bytes.Equal(text, again) {
				t.Errorf("read and written again, the text is another: %s", cmp.Diff(string(text), string(again)))
			}
			if diff := cmp.Diff(calls(t, b), calls(t, text)); diff != "" {
				t.Errorf("the calls are others: %s", diff)
			}
			want, err := behavior.Analyze(bytes.NewReader(b), nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := behavior.Analyze(bytes.NewReader(text), func(e schemas.Behavior) {
				if e.At != 0 || e.Actor.TID != 0 || e.Actor.Start != 0 || e.ABI != "" {
					t.Errorf("an event says what the text does not: %+v", e)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(programs(want), programs(got)); diff != "" {
				t.Errorf("the programs are others: %s", diff)
			}
			if len(got.Gaps) == 0 || !strings.Contains(got.Gaps[0], "no times, no threads, no CPU") || got.Bad > 0 {
				t.Errorf("gaps %q, %d broken", got.Gaps, got.Bad)
			}
		})
	}
}

// programs are the programs of a result's processes, in the order of their names.
func programs(r schemas.BehaviorResult) []string {
	var out []string
	for _, p := range r.Processes {
		out = append(out, fmt.Sprint(p.PID, " of ", p.Parent, ": ", p.Path, " ", p.Argv))
	}
	slices.Sort(out)
	return out
}

// TestStapForgery: what the sample calls itself and its files cannot be taken for
// records, nor does it hide any.
func TestStapForgery(t *testing.T) {
	for _, name := range []string{
		"\nPROCESS\n9:1\n", "SYSCALL", "PROCESS", "OPENFILE", "LISA", "x\n7\n\n0\nSYSCALL", `\x53YSCALL`, "\r", "\xff", "", "\x00", "a\nb\nc\nd\ne\nf",
	} {
		named := sysCall(t, 1, "prctl", 0, 0)
		named.Args = [6]uint64{15, 1} // PR_SET_NAME
		named.Attachments = []trace.Attachment{{Arg: 1, Kind: trace.String, Data: []byte(name)}}
		open := sysCall(t, 1, "open", 3, 0)
		open.Attachments = []trace.Attachment{{Arg: 0, Kind: trace.String, Data: []byte(name)}}
		var b bytes.Buffer
		w := behavior.NewStapWriter(&b, nil)
		for _, r := range []*trace.Record{named, open, sysCall(t, 1, "getpid", 1, 0)} {
			if err := w.Add(r); err != nil {
				t.Fatal(err)
			}
		}
		lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
		if len(lines) != 1+6+2+6+6 {
			t.Errorf("%q: %d lines", name, len(lines))
		}
		comm := name[:min(15, len(name))]
		src := stap.NewReader(&b)
		for i := range 3 {
			r, err := src.Next()
			if err != nil {
				t.Fatal(err)
			}
			if got := string(r.Attached(trace.NoArg, trace.Comm).Data); got != comm {
				t.Errorf("record %d is of %q, not %q", i, got, comm)
			}
			if text, ok := r.Text(1 - uint8(min(i, 1))); i < 2 && (!ok || text != name) {
				t.Errorf("record %d has %q, not %q", i, text, name)
			}
		}
		if _, err := src.Next(); err != io.EOF || src.Totals().Bad+src.Totals().Skipped > 0 {
			t.Errorf("%q: error %v, totals %+v", name, err, src.Totals())
		}
	}
}

// TestStapFilter: the text holds what is asked for, and always its header.
func TestStapFilter(t *testing.T) {
	f := behavior.Filter{Calls: []string{"nothing"}}
	b, err := os.ReadFile("testdata/connect.trace")
	if err != nil {
		t.Fatal(err)
	}
	if got := string(stapOf(t, bytes.NewReader(b), f.Record)); got != stap.Magic {
		t.Errorf("%q", got)
	}
	f = behavior.Filter{Calls: []string{"listen"}}
	if got, want := string(stapOf(t, bytes.NewReader(b), f.Record)), "LISA\nSYSCALL\nconnect\nlisten\n1\n9, 5\n0\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	// An execution is a call of execve, however it is asked for.
	for _, f := range []behavior.Filter{{Calls: []string{"execve"}}, {Classes: sysno.ClassFile, Calls: []string{"none"}}, {Classes: sysno.ClassProcess}} {
		if got := string(stapOf(t, bytes.NewReader(b), f.Record)); !strings.Contains(got, "execve\n1\n\"/usr/bin/connect\", [\"/usr/bin/connect\"]\n0\n") {
			t.Errorf("%+v: %q", f, got)
		}
	}
	f = behavior.Filter{Failed: true}
	if got := string(stapOf(t, bytes.NewReader(b), f.Record)); strings.Contains(got, "execve") {
		t.Errorf("%q", got)
	}
}
