// SPDX-License-Identifier: Apache-2.0

package stap_test

import (
	"bytes"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/schemas/behavior"
	"github.com/petri-sandbox/petri/schemas/stap"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// read decodes a text into lines: process, thread's name, record.
func read(t testing.TB, r io.Reader) ([]string, *stap.Reader) {
	t.Helper()
	in := stap.NewReader(r)
	var out []string
	for n := uint64(0); ; n++ {
		rec, err := in.Next()
		if err == io.EOF {
			return out, in
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.Number != n || rec.Begin != 0 || rec.End != 0 || rec.Who.NSTID != 0 || rec.Who.Start != 0 || rec.Untold&trace.UntoldCPU == 0 {
			t.Fatalf("record %d says what no text can: %+v", n, rec)
		}
		comm := ""
		if a := rec.Attached(trace.NoArg, trace.Comm); a != nil {
			comm = string(a.Data)
		}
		out = append(out, strings.TrimSpace(strings.Join([]string{comm, behavior.Format(rec)}, " ")))
	}
}

func call(lines ...string) string {
	return strings.Join(append([]string{"SYSCALL"}, lines...), "\n") + "\n"
}

func TestReader(t *testing.T) {
	getpid := call("sh", "getpid", "7", "", "7")
	for _, test := range []struct {
		name, in string
		want     []string
		totals   trace.Totals
		gaps     string
	}{
		{name: "empty"},
		{name: "header", in: "LISA\n"},
		{name: "call", in: "LISA\n" + getpid, want: []string{"sh getpid() = 7"}},
		{name: "no_newline_at_the_end", in: strings.TrimSuffix(getpid, "\n"), totals: trace.Totals{Bad: 1, Skipped: 14}},
		{name: "cut_tail", in: getpid + "SYSCALL\nsh\nwri", want: []string{"sh getpid() = 7"}, totals: trace.Totals{Bad: 1, Skipped: 6}},
		{name: "process", in: "PROCESS\n9:7\n", want: []string{"+++ new process 9 +++"}},
		{name: "process_broken", in: "PROCESS\n9:-7\n" + getpid, want: []string{"sh getpid() = 7"}, totals: trace.Totals{Bad: 1, Skipped: 5}},
		{name: "process_missing", in: "PROCESS\n" + getpid, want: []string{"sh getpid() = 7"}, totals: trace.Totals{Bad: 1}},
		{name: "opened", in: "OPENFILE\n\"/x\"\n" + call("sh", "open", "7", `"/x", O_RDWR`, "3"), want: []string{`sh open("/x", O_RDWR) = 3`}},
		{name: "opened_without_a_call", in: "OPENFILE\n\"/x\"\n", gaps: "1 names of opened files have no call"},
		{name: "unknown_call", in: call("sh", "frobnicate", "7", "1", "0") + getpid, want: []string{"sh getpid() = 7"}, gaps: "1 calls have names that no kernel has"},
		{name: "call_of_another_cpu", in: call("sh", "send", "7", `3, "x", 1, MSG_NOSIGNAL`, "1"), want: []string{`sh send(3, "x", 1, MSG_NOSIGNAL) = 1`}},
		{name: "never_returns", in: call("sh", "exit_group", "7", "3", ""), want: []string{"sh exit_group(3 <unfinished ...>"}},
		// A name with a newline shifts what follows.
		{name: "shifted", in: call("a", "b", "getpid", "7", "", "7") + getpid, want: []string{"sh getpid() = 7"}, totals: trace.Totals{Bad: 1, Skipped: 16}},
		{name: "nested", in: "SYSCALL\nsh\n" + getpid, want: []string{"sh getpid() = 7"}, totals: trace.Totals{Bad: 1, Skipped: 3}},
		{name: "comm_is_a_keyword", in: call("SYSCALL", "getpid", "7", "", "7"), want: []string{"SYSCALL getpid() = 7"}},
		{name: "keyword_as_arguments", in: call("sh", "getpid", "7", "PROCESS", "9:7"), want: []string{"+++ new process 9 +++"}, totals: trace.Totals{Bad: 1, Skipped: 12}},
		{name: "not_a_pid", in: call("sh", "getpid", "4294967296", "", "0"), totals: trace.Totals{Bad: 1, Skipped: 24}},
		{name: "not_a_result", in: call("sh", "getpid", "7", "", "seven"), totals: trace.Totals{Bad: 1, Skipped: 19}},
		{name: "not_an_error", in: call("sh", "getpid", "7", "", "-2 (EFROB)"), totals: trace.Totals{Bad: 1, Skipped: 24}},
		{name: "long_line", in: strings.Repeat("x", 100_000) + "\n" + getpid, want: []string{"sh getpid() = 7"}, totals: trace.Totals{Skipped: 100_001}},
		{name: "long_comm", in: call(strings.Repeat("x", 100_000), "getpid", "7", "", "7"), totals: trace.Totals{Bad: 1, Skipped: 100_013}},
		{name: "second_header", in: getpid + "LISA\n", want: []string{"sh getpid() = 7"}, totals: trace.Totals{Skipped: 5}},
		// What a program is, execve says with the names that it had before and has now.
		{name: "executed", in: call("ls", "execve", "7", `"/bin/ls", ["ls", "-l"], [/* 9 vars */]`, "0"),
			want: []string{`ls execve("/bin/ls", ["ls", "-l"], ?) = 0`, `ls +++ executing "/bin/ls", ["ls", "-l"] +++`}},
		{name: "executed_at", in: call("x", "execveat", "7", `5, "", ["x"], [], AT_EMPTY_PATH`, "0"),
			want: []string{`x execveat(5, "", ["x"], ?, AT_EMPTY_PATH) = 0`, `x +++ executing "/dev/fd/5", ["x"] +++`}},
		{name: "not_executed", in: call("sh", "execve", "7", `"/bin/ls", ["ls"], []`, "-2 (ENOENT)"),
			want: []string{`sh execve("/bin/ls", ["ls"], ?) = -1 ENOENT (no such file or directory)`}},
		{name: "executed_something", in: call("ls", "execve", "7", `0x7fff, 0x8000, 0x9000`, "0"), want: []string{`ls execve(0x7fff, 0x8000, 0x9000) = 0`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, r := read(t, strings.NewReader(test.in))
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			test.totals.Records = uint64(len(got))
			if diff := cmp.Diff(test.totals, r.Totals()); diff != "" {
				t.Error(diff)
			}
			if gaps := strings.Join(r.Gaps()[1:], ", "); gaps != test.gaps {
				t.Errorf("gaps %q", gaps)
			}
			slow, _ := read(t, iotest.OneByteReader(strings.NewReader(test.in)))
			if diff := cmp.Diff(got, slow); diff != "" {
				t.Errorf("read in small pieces it says something else: %s", diff)
			}
		})
	}
}

// TestArguments: what an argument's text says, in SystemTap's words and in ours,
// and that nothing is made up of what it does not say.
func TestArguments(t *testing.T) {
	for _, test := range []struct{ call, args, want string }{
		{"openat", `AT_FDCWD, "/x", O_RDONLY|O_CREAT, 0600`, `openat(AT_FDCWD, "/x", O_RDONLY|O_CREAT, 0600)`},
		{"openat", `AT_FDCWD, "/x", O_RDONLY`, `openat(AT_FDCWD, "/x", O_RDONLY)`},
		{"openat", `AT_FDCWD, "/x", O_CREAT`, `openat(AT_FDCWD, "/x", O_RDONLY|O_CREAT, ?)`},
		{"openat", `AT_FDCWD, "/x", O_NEW`, `openat(AT_FDCWD, "/x", ?, ?)`},
		{"openat", `5, 0x7fff0000, 0x0`, `openat(5, 0x7fff0000, O_RDONLY)`},
		{"openat", ``, `openat(?, ?, ?, ?)`},
		{"openat", `a, b, c, d, e`, `openat(?, ?, ?, ?)`},
		{"openat", `AT_FDCWD, "/x`, `openat(?, ?, ?, ?)`},
		{"openat", `AT_FDCWD, ]"/x"[, 0`, `openat(?, ?, ?, ?)`},
		{"open", `"/a,\"b\"\\\n\x01\001\0", O_RDWR`, `open("/a,\"b\"\\\n\x01\x01\x00", O_RDWR)`},
		{"open", `"/\q\`, `open(?, ?, ?)`},
		{"write", `1, "abc"..., 4096`, `write(1, "abc"..., 4096)`},
		{"write", `1, "GET / HTTP/1.1\r\nHost: a.example.org\r\nAccept:...", 4096`, `write(1, "GET / HTTP/1.1\r\nHost: a.example.org\r\nAccept:"..., 4096)`},
		{"write", `1, "wait...", 7`, `write(1, "wait...", 7)`},
		{"kill", `-1, SIGKILL`, `kill(-1, SIGKILL)`},
		{"kill", `-1, 9`, `kill(-1, SIGKILL)`},
		{"kill", `-1, SIGFROB`, `kill(-1, ?)`},
		{"connect", `3, {AF_INET, 192.0.2.1, 80}, 16`, `connect(3, {AF_INET, 192.0.2.1:80}, 16)`},
		{"connect", `3, {AF_INET, 192.0.2.1:80}, 16`, `connect(3, {AF_INET, 192.0.2.1:80}, 16)`},
		{"connect", `3, {AF_INET6, [2001:db8::1]:80}, 28`, `connect(3, {AF_INET6, [2001:db8::1]:80}, 28)`},
		{"connect", `3, {AF_INET6, 2001:db8::1, 80}, 28`, `connect(3, {AF_INET6, [2001:db8::1]:80}, 28)`},
		{"connect", `3, {AF_UNIX, "/run/x"}, 28`, `connect(3, {AF_UNIX, "/run/x"}, 28)`},
		{"connect", `3, {AF_NETLINK}, 12`, `connect(3, {AF_NETLINK}, 12)`},
		{"connect", `3, {AF_INET, 192.0.2.1, 99999}, 16`, `connect(3, ?, 16)`},
		{"connect", `3, {AF_INET, 2001:db8::1, 80}, 16`, `connect(3, ?, 16)`},
		{"connect", `3, {unknown address family}, 16`, `connect(3, ?, 16)`},
		{"sendmsg", `3, {{AF_INET, 192.0.2.1:53}, "q"}, 0`, `sendmsg(3, {{AF_INET, 192.0.2.1:53}, "q"}, 0)`},
		{"pipe", `[3, 4]`, `pipe([3, 4])`},
		{"pipe", `[3]`, `pipe(?)`},
		{"nanosleep", `{1 s, 500 ns}, NULL`, `nanosleep({1 s, 500 ns}, NULL)`},
		{"nanosleep", `[1.000000500], NULL`, `nanosleep(?, NULL)`},
	} {
		got, _ := read(t, strings.NewReader(call("x", test.call, "1", test.args, "0")))
		if want := []string{"x " + test.want + " = 0"}; !cmp.Equal(want, got) {
			t.Errorf("%s %s: %q, want %q", test.call, test.args, got, want)
		}
	}
}

// write gives the records of a trace of either format as text.
func write(t testing.TB, b []byte) []byte {
	t.Helper()
	src, err := behavior.Open(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := behavior.NewStapWriter(&out, nil)
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

// FuzzReader: whatever text it is, what is read of it can be written, and that is
// whole: nothing of it is broken, it says the same records, and written again it is
// the same. The memory that reading takes does not depend on what the text says.
func FuzzReader(f *testing.F) {
	f.Add([]byte("LISA\n" + call("sh", "openat", "7", `AT_FDCWD, "/x", O_RDONLY|O_CREAT, 0600`, "-2 (ENOENT)")))
	f.Add([]byte("LISA\nPROCESS\n9:7\nOPENFILE\n\"/x\"\n" + call("x\ny", "getpid", "7", "", "7")))
	f.Add([]byte("LISA\n" + call("SYSCALL", "execve", "7", `"/bin/ls", ["ls", "-l"...], ...`, "0")))
	f.Add([]byte("LISA\n" + call("x", "sendmsg", "7", `3, {{AF_UNIX, "\000a"}, "\xff"...}, MSG_PEEK`, "0x10")))
	f.Add([]byte("LISA\n" + call("x", "clone", "7", `SIGCHLD|CLONE_VM, 0x0`, "") + call("x", "kill", "7", "-1, SIGRT_3", "0")))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = append([]byte(stap.Magic), b...)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		r := stap.NewReader(bytes.NewReader(b))
		size := uint64(0)
		for {
			rec, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("reading from memory: %v", err)
			}
			if len(rec.Attachments) > trace.MaxAttach {
				t.Fatalf("%d attachments", len(rec.Attachments))
			}
			size++
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20+64*uint64(len(b)) {
			t.Errorf("%d bytes were allocated to read %d", n, len(b))
		}
		totals := r.Totals()
		if totals.Records != size || totals.Skipped > uint64(len(b)) || totals.Bad > uint64(len(b)) {
			t.Errorf("%d bytes, %d records read, totals %+v", len(b), size, totals)
		}
		text := write(t, b)
		again := write(t, text)
		if diff := cmp.Diff(string(text), string(again)); diff != "" {
			t.Errorf("what was written says something else: %s", diff)
		}
		lines, second := read(t, bytes.NewReader(text))
		if got := second.Totals(); got.Bad+got.Skipped > 0 || uint64(len(lines)) > totals.Records {
			t.Errorf("of %d records, text with %+v was written:\n%s", totals.Records, got, text)
		}
	})
}
