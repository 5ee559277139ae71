// SPDX-License-Identifier: Apache-2.0

package behavior_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/behavior"
	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// render is everything that a trace says: its records as text, the events and
// the result.
func render(t testing.TB, r func() io.Reader) []byte {
	t.Helper()
	var out bytes.Buffer
	out.WriteString("-- records --\n")
	if err := behavior.Text(&out, r()); err != nil {
		t.Fatal(err)
	}
	out.WriteString("-- events --\n")
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	encode := func(v any) {
		if err := enc.Encode(v); err != nil {
			t.Fatal(err)
		}
	}
	result, err := behavior.Analyze(r(), func(b schemas.Behavior) { encode(b) })
	if err != nil {
		t.Fatal(err)
	}
	out.WriteString("-- result --\n")
	enc.SetIndent("", "  ")
	encode(result)
	return out.Bytes()
}

// TestGolden decodes traces of real guests, which the tests of the tracer have
// recorded (go test -tags vm ./cmd/guestd/tracer -run TestFacts -record); s390x
// is that of connect on a big-endian guest. They must say the same for ever,
// however they are read.
func TestGolden(t *testing.T) {
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
			got := render(t, func() io.Reader { return bytes.NewReader(b) })
			slow := render(t, func() io.Reader { return iotest.OneByteReader(bytes.NewReader(b)) })
			if diff := cmp.Diff(string(got), string(slow)); diff != "" {
				t.Errorf("read in small pieces it says something else: %s", diff)
			}
			golden := strings.TrimSuffix(file, ".trace") + ".golden"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatalf("%v; go test ./schemas/behavior -update makes it", err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("it differs from %s (-want +got): %s", golden, diff)
			}
		})
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":                  "",
		"/tmp/ä b":          "/tmp/ä b",
		"a\x1b[31m\n":       `a\x1b[31m\x0a`,
		`back\slash`:        `back\\slash`,
		"\xff\xfe":          `\xff\xfe`,
		"\u202egpj.exe":     `\u202egpj.exe`,
		"\U000e0041":        `\U000e0041`,
		"\ufffd":            "\ufffd",
		"mixed \xc3 \u00a0": `mixed \xc3 \u00a0`,
	} {
		if got := behavior.Printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	for _, s := range []string{"/tmp/x", "a\x1b[31m", `\x1b`, "\xff", "\u202e"} {
		f.Add(s, s+"\x00")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		pa, pb := behavior.Printable(a), behavior.Printable(b)
		if !safe(pa) {
			t.Errorf("%q became %q", a, pa)
		}
		if (a == b) != (pa == pb) {
			t.Errorf("%q and %q became %q and %q", a, b, pa, pb)
		}
		if len(pa) > 4*len(a) {
			t.Errorf("%d bytes became %d", len(a), len(pa))
		}
	})
}

// safe reports whether text may go to a terminal and into JSON.
func safe(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\u202e' })
}

// check says what every trace must give, whatever it holds.
func check(t *testing.T, b []byte) {
	t.Helper()
	if len(b) > 1<<20 {
		return
	}
	got := render(t, func() io.Reader { return bytes.NewReader(b) })
	if again := render(t, func() io.Reader { return bytes.NewReader(b) }); !bytes.Equal(got, again) {
		t.Fatalf("two runs differ: %s", cmp.Diff(string(got), string(again)))
	}
	records, _, _ := strings.Cut(string(got), "-- events --")
	for line := range strings.Lines(records) {
		if !safe(strings.TrimSuffix(line, "\n")) {
			t.Errorf("the line %q is not fit for a terminal", line)
		}
	}
	r, err := behavior.Analyze(bytes.NewReader(b), func(e schemas.Behavior) { checkEvent(t, e) })
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Processes) > schemas.MaxReportList || len(r.Files) > schemas.MaxReportList || len(r.Network) > schemas.MaxReportList {
		t.Errorf("%d processes, %d files, %d addresses", len(r.Processes), len(r.Files), len(r.Network))
	}
	for _, p := range r.Processes {
		if !safe(p.Path) || !safe(p.Comm) || slices.ContainsFunc(p.Argv, func(s string) bool { return !safe(s) }) {
			t.Errorf("process %+v", p)
		}
	}
	for _, f := range r.Files {
		if !safe(f.Path) || !safe(f.Target) || f.Read < 0 || f.Written < 0 {
			t.Errorf("file %+v", f)
		}
	}
	for _, n := range r.Network {
		if !safe(n.Path) || !safe(n.Address) || n.Count <= 0 {
			t.Errorf("address %+v", n)
		}
	}
}

func checkEvent(t *testing.T, e schemas.Behavior) {
	if !slices.Contains(schemas.BehaviorActions, e.Category+"."+e.Action) {
		t.Errorf("event %s.%s", e.Category, e.Action)
	}
	objects := 0
	text := []string{e.Actor.Comm, e.Syscall, e.Errno}
	if p := e.Process; p != nil {
		objects++
		text = append(append(text, p.Path, p.Name, p.Signal, p.Request), p.Argv...)
	}
	if f := e.File; f != nil {
		objects++
		text = append(text, f.Path, f.Raw, f.Target, f.Flags)
	}
	if n := e.Network; n != nil {
		objects++
		text = append(text, n.Family, n.Type, n.Address, n.Path)
	}
	if m := e.Memory; m != nil {
		objects++
		text = append(text, m.Name, m.Prot)
	}
	if k := e.Kernel; k != nil {
		objects++
		text = append(text, k.Name, k.Command, k.Params)
	}
	if objects != 1 {
		t.Errorf("%d objects in %+v", objects, e)
	}
	for _, s := range text {
		if !safe(s) {
			t.Errorf("%q in an event %s.%s", s, e.Category, e.Action)
		}
	}
}

// FuzzAnalyze feeds bytes as they may come from a guest.
func FuzzAnalyze(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.trace")
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(check)
}

// FuzzTracker feeds well-formed records that make no sense: each comes from a
// few bytes, so that threads, descriptors and calls meet again.
func FuzzTracker(f *testing.F) {
	f.Add([]byte("\x01\x02\x03 a short program that means nothing at all, but some\xff\x00\x80"), uint8(sysno.AMD64))
	f.Add(bytes.Repeat([]byte{2, 1, 0, 9, 3, 3, 1, 7, 0, 250, 1, 2, 59, 4}, 40), uint8(sysno.I386))
	f.Fuzz(func(t *testing.T, b []byte, abi uint8) {
		var out bytes.Buffer
		next := func() byte {
			if len(b) == 0 {
				return 0
			}
			c := b[0]
			b = b[1:]
			return c
		}
		who := func(tid uint32) trace.Identity {
			return trace.Identity{TGID: tid &^ 1, NSTID: tid, NSPID: tid &^ 1, Start: uint64(tid >> 3)}
		}
		e := trace.NewEncoder(sysno.ABI(abi), trace.LittleEndian, who, func(block []byte) error { out.Write(block); return nil })
		first, end := sysno.ABI(abi).Numbers()
		names := []string{"/tmp/x", "..", "", "\x1b]0;\a", "/dev/fd/3", "/proc/self/exe", "\xff\xfe", "a/../../b", "/"}
		for now := uint64(1e9); len(b) > 0; now += 50e6 {
			r := trace.Record{
				Type: trace.Type(next()%7 + 1), ABI: sysno.ABI(abi), TID: uint32(next() % 16), Flags: trace.Flags(next() & 0x1f),
				Begin: now, End: now + 1, N: 6, Result: int64(int8(next())), Mux: next() % 32 / 30,
			}
			if r.Type != trace.Fork && r.Type != trace.Exec && r.Type != trace.Exit {
				r.Type = trace.Syscall
			}
			r.Call = uint32(first + uint64(next())*4%max(end-first, 1) + uint64(next()%4))
			for i := range r.Args {
				r.Args[i] = uint64(int64(int8(next())))
			}
			if r.Type == trace.Fork {
				r.Args[4] = r.Args[0] & 0xff >> 3
			}
			for range next() % 4 {
				k := next()
				name := names[int(next())%len(names)]
				a := trace.Attachment{Arg: k % 8, Kind: trace.Kind(k/8%9 + 1), Flags: trace.AttachFlags(next() & 7), Data: []byte(name + string(rune(k)))}
				if a.Arg > 5 {
					a.Arg = trace.NoArg
				}
				if a.Flags&trace.Unreadable != 0 {
					a.Data = nil
				}
				r.Attachments = append(r.Attachments, a)
			}
			if err := e.Add(&r); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.Flush(); err != nil {
			t.Fatal(err)
		}
		if r, err := behavior.Analyze(bytes.NewReader(out.Bytes()), nil); err != nil || r.Bad != 0 {
			t.Fatalf("%d bad records, error %v", r.Bad, err)
		}
		check(t, out.Bytes())
	})
}

// TestBounds: what a trace makes a Tracker remember does not grow with it, even
// if its clock stands still and no call ever returns.
// TestFormatExecuted: what could not be read of a call that replaced its
// caller's memory is in the record of type Exec, and no gap.
func TestFormatExecuted(t *testing.T) {
	nr, ok := sysno.AMD64.Number("execve")
	if !ok {
		t.Fatal("amd64 has no execve")
	}
	r := trace.Record{
		Type: trace.Syscall, ABI: sysno.AMD64, Call: uint32(nr), N: 3, Begin: 1, End: 2, Args: [6]uint64{0x1000, 0x2000, 0x3000},
		Attachments: []trace.Attachment{{Arg: 0, Kind: trace.String, Data: []byte("/bin/x")}, {Arg: 1, Kind: trace.Argv, Flags: trace.Unreadable}},
	}
	if got, want := behavior.Format(&r), `execve("/bin/x", 0x2000, 0x3000) = 0`; got != want {
		t.Errorf("%s, not %s", got, want)
	}
	r.Flags = trace.Entry
	if got, want := behavior.Format(&r), `execve("/bin/x", 0x2000, 0x3000 <unfinished ...>`; got != want {
		t.Errorf("%s, not %s", got, want)
	}
	r.Result, r.Flags = -2, trace.Continued
	if got, want := behavior.Format(&r), `<... execve resumed> "/bin/x", 0x2000 /* unreadable */) = -1 ENOENT (no such file or directory)`; got != want {
		t.Errorf("%s, not %s", got, want)
	}
	r.Flags = 0
	if got, want := behavior.Format(&r), `execve("/bin/x", 0x2000 /* unreadable */, 0x3000) = -1 ENOENT (no such file or directory)`; got != want {
		t.Errorf("%s, not %s", got, want)
	}
}

func TestBounds(t *testing.T) {
	tracker := behavior.New(nil)
	data := bytes.Repeat([]byte{'x'}, 16<<10)
	n, _ := sysno.AMD64.Number("execve")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range 200_000 {
		tracker.Add(&trace.Record{
			Type: trace.Syscall, ABI: sysno.AMD64, Flags: trace.Entry, Call: uint32(n), TID: uint32(i % 1000), N: 6, Args: [6]uint64{1},
			Attachments: []trace.Attachment{{Kind: trace.String, Data: data}},
			Who:         trace.Identity{TGID: uint32(i%1000) + 1, NSPID: 1, Start: 1},
		})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := int64(after.HeapAlloc) - int64(before.HeapAlloc); n > 32<<20 {
		t.Errorf("%d MiB are kept", n>>20)
	}
	if r := tracker.Result(trace.Totals{}); r.Records != 200_000 || r.Syscalls["execve"] != 200_000 {
		t.Errorf("%d records, %d calls", r.Records, r.Syscalls["execve"])
	}
}

// TestFlushedTwice: a call that several flushes have told of while it was under way
// is one call.
func TestFlushedTwice(t *testing.T) {
	number, _ := sysno.AMD64.Number("openat")
	seen := map[uint64]bool{}
	tracker := behavior.New(func(b schemas.Behavior) { seen[b.Record] = true })
	for i, flags := range []trace.Flags{trace.Unfinished, trace.Unfinished, trace.Unfinished, 0} {
		tracker.Add(&trace.Record{
			Number: uint64(i), Type: trace.Syscall, ABI: sysno.AMD64, TID: 7, Call: uint32(number), Begin: 1, N: 4, Flags: flags, Result: 3,
			Attachments: []trace.Attachment{{Arg: 1, Kind: trace.String, Data: []byte("/tmp/fifo")}},
		})
	}
	r := tracker.Result(trace.Totals{})
	if n := r.Syscalls["openat"]; n != 1 || len(seen) != 1 || len(r.Files) != 1 || r.Files[0].Opens != 1 {
		t.Errorf("%d calls, records %v, files %+v", n, seen, r.Files)
	}
}
