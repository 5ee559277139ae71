// SPDX-License-Identifier: Apache-2.0

package term_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/reporters/term"
	"github.com/petri-sandbox/petri/schemas"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// folded reads a report that package fold has made of a real run.
func folded(t testing.TB, path string) *schemas.Report {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := new(schemas.Report)
	if err := json.Unmarshal(b, r); err != nil {
		t.Fatal(err)
	}
	return r
}

func render(t testing.TB, r *schemas.Report, o term.Options) string {
	t.Helper()
	var b bytes.Buffer
	if err := term.Write(&b, r, o); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name + ".golden"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; go test -update makes it", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("it differs from %s (-want +got); is that meant? go test -update:\n%s", path, diff)
	}
}

func TestGolden(t *testing.T) {
	files, err := filepath.Glob("../fold/testdata/*.golden")
	if err != nil || len(files) == 0 {
		t.Fatalf("there are no folded reports (%v)", err)
	}
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".golden")
		t.Run(name, func(t *testing.T) {
			r := folded(t, path)
			got := render(t, r, term.Options{Width: 80})
			golden(t, name+".80", got)
			fits(t, got, 80)
			if name == "completed" {
				golden(t, name+".wide", render(t, r, term.Options{Width: 160, Full: true}))
				golden(t, name+".color", render(t, r, term.Options{Width: 80, Color: true}))
			}
		})
	}
}

// TestColor takes the colors away again: they are all that differs.
func TestColor(t *testing.T) {
	sgr := regexp.MustCompile("\x1b\\[[0-9;]*m")
	for _, r := range []*schemas.Report{folded(t, "../fold/testdata/completed.golden"), hostile()} {
		plain, colored := render(t, r, term.Options{}), render(t, r, term.Options{Color: true})
		if strings.Contains(plain, "\x1b") {
			t.Error("there are escapes without colors")
		}
		if !strings.Contains(colored, "\x1b[") {
			t.Error("there are no colors")
		}
		if diff := cmp.Diff(plain, sgr.ReplaceAllString(colored, "")); diff != "" {
			t.Errorf("colors change more than colors (-plain +colored):\n%s", diff)
		}
		if strings.Count(colored, "\x1b[0m")*2 != strings.Count(colored, "\x1b") {
			t.Error("a color is not ended")
		}
	}
}

// evil is text that would do something to a terminal, or hide something.
const evil = "a\x1b[2Jb\x1b]0;title\x07c\r\nd\x00e\x9bmf\u202eg\u200bh\u2066i\u00adj\u2028k\xffl\U000e0041m\x7f"

// hostile has evil, long and wide text wherever a guest or an analyzer might
// bring some.
func hostile() *schemas.Report {
	text := evil + strings.Repeat("long ", 200)
	one := 1
	d := schemas.Sum([]byte("x"))
	now := time.Unix(1e9, 0).UTC()
	r := &schemas.Report{
		Sample:  schemas.Sample{Name: text, Size: 1, Type: schemas.SampleType{Description: text}},
		Outcome: schemas.ReportOutcome{Value: schemas.OutcomeIncomplete, Reasons: []string{text, text, text, text, text, text, text}},
		Verdict: schemas.ReportVerdict{Value: schemas.VerdictUndetermined, Reasons: []string{text, text}},
		Machine: schemas.ReportMachine{
			Spec: &schemas.MachineSpec{Arch: text, Start: text, Accel: text}, Kernel: text, Fallback: text, Tracer: &schemas.Tracer{Backend: text},
		},
		Console:  schemas.ReportConsole{Stdout: text + "\n" + strings.Repeat("宽", 200) + "\r\n", Stderr: text, Signal: text, Reason: text, ExitCode: &one, Truncated: true},
		Network:  schemas.ReportNetwork{Address: text, Connections: []schemas.NetworkActivity{{Action: text, Family: text, Path: text, Errors: []string{text}}}},
		Findings: []schemas.ReportFinding{{Analyzer: text, Finding: schemas.Finding{Severity: schemas.Severity(text), Title: text, Techniques: []string{text}}}},
		Files:    []schemas.FileActivity{{Path: text, Actions: []string{text}, Errors: []string{text}, Dropped: &d}},
		Processes: []schemas.Process{
			{PID: 1, Start: 1, Argv: []string{text}, Signal: text},
			{PID: 2, Start: 2, Path: text, ExitCode: &one, Parent: 1, ParentAt: 1},
		},
		Artifacts: []schemas.Artifact{{Kind: schemas.Kind(text), Name: text}},
		Coverage: schemas.ReportCoverage{
			Gaps:      []string{text},
			Sources:   []schemas.SourceCoverage{{Source: schemas.Source(text), Produced: 1, Lost: 1 << 60}},
			Analyzers: []schemas.AnalyzerCoverage{{Name: text, Status: text}},
		},
		Analyzers: []schemas.ReportRun{{Analyzer: text, Reused: &schemas.TaskRef{}}},
		Timeline:  []schemas.TimelineEntry{{Event: schemas.EventGateAnswered, Detail: text}},
		Analysis:  schemas.ReportAnalysis{ID: "01M7WZ34TR4T32M2AMXEPM8TA2", Ended: &now, Submitted: now},
	}
	for i := range 100 {
		r.Processes = append(r.Processes, schemas.Process{PID: 3 + i, Start: uint64(3 + i), Comm: text, Parent: 2 + i, ParentAt: uint64(2 + i)})
		r.Console.Stdout += text + "\n"
	}
	return r
}

func TestHostile(t *testing.T) {
	for _, o := range []term.Options{{Width: 80}, {Width: 80, Full: true}, {Width: 200}, {Width: 20}, {Width: 1}} {
		got := render(t, hostile(), o)
		for _, r := range got {
			if r != '\n' && (unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)) {
				t.Fatalf("%+v: %U came through:\n%q", o, r, got)
			}
		}
		if !utf8.ValidString(got) {
			t.Errorf("%+v: it is no UTF-8", o)
		}
		if o.Width >= 80 {
			fits(t, got, o.Width)
		}
		if o == (term.Options{Width: 80}) {
			golden(t, "hostile.80", got)
		}
	}
}

// fits checks that no line is wider than the terminal.
func fits(t testing.TB, text string, width int) {
	t.Helper()
	for l := range strings.Lines(text) {
		n := 0
		for _, r := range strings.TrimSuffix(l, "\n") {
			n++
			if r >= 0x2e80 && r < 0xfffd {
				n++
			}
		}
		if n > width {
			t.Errorf("a line has %d columns, not %d: %s", n, width, l)
		}
	}
}

// TestShort says how much it leaves out, and with Full leaves nothing out.
func TestShort(t *testing.T) {
	r := &schemas.Report{}
	for i := range 100 {
		r.Findings = append(r.Findings, schemas.ReportFinding{Finding: schemas.Finding{Title: fmt.Sprintf("finding %d.", i)}})
	}
	short, full := render(t, r, term.Options{}), render(t, r, term.Options{Full: true})
	if !strings.Contains(short, "finding 19.") || strings.Contains(short, "finding 20.") || !strings.Contains(short, "80 more (--full shows all)") {
		t.Error("the short list is not of the first 20, and says that 80 are left")
	}
	if !strings.Contains(full, "finding 99.") || strings.Contains(full, "more (") {
		t.Error("the full list is not full")
	}
}

// TestTree draws processes whose parents are forged: each is drawn once.
func TestTree(t *testing.T) {
	var r schemas.Report
	add := func(pid int, start uint64, parent int, parentAt uint64) {
		r.Processes = append(r.Processes, schemas.Process{PID: pid, Start: start, Parent: parent, ParentAt: parentAt, Comm: fmt.Sprintf("name-%d-", len(r.Processes))})
	}
	add(1, 5, 2, 5) // each other's parent
	add(2, 5, 1, 5)
	add(3, 5, 3, 5)   // its own
	add(4, 1, 5, 9)   // older than its parent
	add(5, 9, 77, 77) // unknown
	add(6, 10, 5, 9)
	add(6, 10, 5, 9) // twice
	got := render(t, &r, term.Options{Full: true})
	for i := range r.Processes {
		if n := strings.Count(got, fmt.Sprintf("name-%d-", i)); n != 1 {
			t.Errorf("process %d is drawn %d times:\n%s", i, n, got)
		}
	}
	// As deep as a report can have it.
	r.Processes = nil
	for i := range schemas.MaxReportList {
		add(i+1, uint64(i+1), i, uint64(i))
	}
	got = render(t, &r, term.Options{Full: true, Width: 80})
	fits(t, got, 80)
	if n := strings.Count(got, "name-"); n != schemas.MaxReportList {
		t.Errorf("%d of %d processes are drawn", n, schemas.MaxReportList)
	}
}

// TestGates lists the gates' decisions, and nothing else of the timeline.
func TestGates(t *testing.T) {
	at := time.Date(2026, 11, 20, 17, 12, 4, 0, time.UTC)
	r := &schemas.Report{Timeline: []schemas.TimelineEntry{
		{Time: at, Event: schemas.EventSubmitted, Detail: "the sample"},
		{Time: at.Add(time.Second), Event: schemas.EventGateAnswered, Detail: "approve: go (after 120ms)"},
		{Time: at.Add(time.Minute), Event: schemas.EventGateAnswered, Detail: "quota: timeout, counts as stop (after 5s)"},
	}}
	got := render(t, r, term.Options{})
	if want := "\ngates\n  17:12:05 approve: go (after 120ms)\n  17:13:04 quota: timeout, counts as stop (after 5s)\n\n"; !strings.Contains(got, want) {
		t.Errorf("%q is not in:\n%s", want, got)
	}
	r.Timeline = r.Timeline[:1]
	if got := render(t, r, term.Options{}); strings.Contains(got, "gates") || strings.Contains(got, "the sample") {
		t.Errorf("no gate was asked:\n%s", got)
	}
}

// TestReused marks what was found before, and only that.
func TestReused(t *testing.T) {
	one, two := schemas.Sum([]byte("one")), schemas.Sum([]byte("two"))
	finding := func(title string, d *schemas.Digest) schemas.ReportFinding {
		return schemas.ReportFinding{Analyzer: "static", SHA256: d, Finding: schemas.Finding{Title: title}}
	}
	r := &schemas.Report{
		Findings: []schemas.ReportFinding{finding("old", &one), finding("new", &two), finding("whole", nil)},
		Analyzers: []schemas.ReportRun{
			{Analyzer: "static", SHA256: &one, Status: schemas.TaskDone, Reused: &schemas.TaskRef{}},
			{Analyzer: "static", SHA256: &two, Status: schemas.TaskDone},
		},
		Coverage: schemas.ReportCoverage{Analyzers: []schemas.AnalyzerCoverage{
			{Name: "static", Status: "done", Tasks: 2, Done: 2}, {Name: "behavior", Status: "done", Tasks: 1, Done: 1},
		}},
	}
	got := render(t, r, term.Options{})
	for _, want := range []string{"static     old  (reused)\n", "static     new\n", "static     whole\n", "analyzers: static done (2/2, 1 reused), behavior done (1/1)\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in:\n%s", want, got)
		}
	}
}

func TestClip(t *testing.T) {
	for _, row := range []struct {
		s     string
		width int
		want  string
	}{
		{"", 5, ""}, {"abcde", 5, "abcde"}, {"abcdef", 5, "abcd…"}, {"äöüäö", 5, "äöüäö"}, {"äöüäöü", 5, "äöüä…"},
		{"宽宽", 4, "宽宽"}, {"宽宽宽", 4, "宽…"}, {"宽宽宽", 5, "宽宽…"}, {"e\u0301e\u0301", 2, "e\u0301e\u0301"},
		{"a\tb", 9, "a b"}, {"a\x1b[1m", 9, "a\ufffd[1m"}, {"abc", 1, "…"}, {"abc", 0, ""}, {"abc", -7, ""},
	} {
		if got := term.Clip(row.s, row.width); got != row.want {
			t.Errorf("Clip(%q, %d) is %q, not %q", row.s, row.width, got, row.want)
		}
	}
}

func TestSize(t *testing.T) {
	var got []string
	for _, n := range []int64{0, 1023, 1024, 1 << 20, 5<<30 + 1<<29, 1 << 62} {
		got = append(got, term.Size(n))
	}
	if diff := cmp.Diff([]string{"0 B", "1023 B", "1.0 KiB", "1.0 MiB", "5.5 GiB", "4096.0 PiB"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// FuzzClean gives terminals nothing but text.
func FuzzClean(f *testing.F) {
	f.Add(evil, 10)
	f.Fuzz(func(t *testing.T, s string, width int) {
		got := term.Clip(s, width)
		if strings.ContainsFunc(got, func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }) || !utf8.ValidString(got) {
			t.Errorf("%q became %q", s, got)
		}
		if again := term.Clip(got, width); again != got {
			t.Errorf("%q became %q, and that %q", s, got, again)
		}
		if marks := func(r rune) bool { return unicode.In(r, unicode.Mn, unicode.Me) }; !strings.ContainsFunc(got, marks) && width >= 0 && utf8.RuneCountInString(got) > width {
			t.Errorf("%q has more than %d columns", got, width)
		}
	})
}

// TestHistory prints the verdict's history once there is one.
func TestHistory(t *testing.T) {
	r := &schemas.Report{History: []schemas.ReportHistory{{
		Time: time.Unix(0, 0), Event: schemas.EventCompleted, Outcome: schemas.OutcomeIncomplete, Verdict: schemas.VerdictUndetermined, Findings: 3,
	}}}
	if got := render(t, r, term.Options{}); strings.Contains(got, "history") {
		t.Errorf("a report of which nothing was adopted has a history:\n%s", got)
	}
	r.History = append(r.History, schemas.ReportHistory{
		Time: time.Unix(60, 0), Event: schemas.EventRunAdopted, Run: "r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA", By: "some\x1bbody",
		Outcome: schemas.OutcomeCompleted, Verdict: schemas.VerdictUndetermined, Findings: 4,
	})
	want := "  1970-01-01 00:01:00  completed, undetermined, 4 findings  run_adopted r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA by some\ufffdbody\n"
	if got := render(t, r, term.Options{Width: 160}); !strings.Contains(got, want) {
		t.Errorf("no line %q in:\n%s", want, got)
	}
}
