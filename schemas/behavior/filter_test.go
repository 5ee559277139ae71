// SPDX-License-Identifier: Apache-2.0

package behavior_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/behavior"
	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

func sysCall(t *testing.T, tid uint32, name string, result int64, flags trace.Flags) *trace.Record {
	t.Helper()
	nr, ok := sysno.AMD64.Number(name)
	if !ok {
		t.Fatalf("there is no call %s", name)
	}
	return &trace.Record{
		Type: trace.Syscall, ABI: sysno.AMD64, TID: tid, Call: uint32(nr), Result: result, Flags: flags, N: 6,
		Who: trace.Identity{TGID: tid, NSTID: tid, NSPID: tid},
	}
}

func TestFilter(t *testing.T) {
	open, getpid, kill := sysCall(t, 1, "openat", -2, 0), sysCall(t, 2, "getpid", 2, 0), sysCall(t, 1, "kill", 0, 0)
	thread := sysCall(t, 1, "getpid", 1, 0)
	thread.Who.NSTID = 9
	fork := &trace.Record{Type: trace.Fork, TID: 1, Who: open.Who, N: 6, Args: [6]uint64{2, 2, 2, 2}}
	stats := &trace.Record{Type: trace.Stats}
	all := []*trace.Record{open, getpid, kill, thread, fork, stats}
	names := []string{"open", "getpid", "kill", "thread", "fork", "stats"}
	for _, test := range []struct {
		filter behavior.Filter
		want   string
	}{
		{behavior.Filter{}, "open getpid kill thread fork stats"},
		{behavior.Filter{Classes: sysno.ClassFile}, "open"},
		{behavior.Filter{Classes: sysno.ClassFile | sysno.ClassSignal}, "open kill"},
		{behavior.Filter{Classes: sysno.ClassProcess}, "kill fork"},
		{behavior.Filter{Calls: []string{"getpid"}}, "getpid thread"},
		{behavior.Filter{Classes: sysno.ClassFile, Calls: []string{"getpid"}}, "open getpid thread"},
		{behavior.Filter{Processes: []int{2}}, "getpid fork"},
		{behavior.Filter{Processes: []int{9}}, "thread"},
		{behavior.Filter{Failed: true}, "open"},
		{behavior.Filter{Failed: true, Processes: []int{2}}, ""},
	} {
		var got []string
		for i, r := range all {
			if test.filter.Record(r) {
				got = append(got, names[i])
			}
		}
		if s := strings.Join(got, " "); s != test.want {
			t.Errorf("%+v takes %q, want %q", test.filter, s, test.want)
		}
	}
}

// TestFilterEvents takes the events of those records that a filter takes.
func TestFilterEvents(t *testing.T) {
	result := int64(-2)
	open := schemas.Behavior{Category: "file", Action: "open", Syscall: "openat", Errno: "ENOENT", Result: &result, Actor: schemas.Actor{PID: 1, TID: 1}}
	fork := schemas.Behavior{Category: "process", Action: "fork", Actor: schemas.Actor{PID: 1, TID: 3}, Process: &schemas.ProcessBehavior{PID: 2}}
	for _, test := range []struct {
		filter     behavior.Filter
		open, fork bool
	}{
		{behavior.Filter{}, true, true},
		{behavior.Filter{Classes: sysno.ClassDesc}, true, false},
		{behavior.Filter{Classes: sysno.ClassProcess}, false, true},
		{behavior.Filter{Failed: true}, true, false},
		{behavior.Filter{Processes: []int{2}}, false, true},
		{behavior.Filter{Processes: []int{3}}, false, true},
		{behavior.Filter{Processes: []int{1}, Calls: []string{"openat"}}, true, false},
	} {
		if gotOpen, gotFork := test.filter.Event(&open), test.filter.Event(&fork); gotOpen != test.open || gotFork != test.fork {
			t.Errorf("%+v takes open: %v, fork: %v", test.filter, gotOpen, gotFork)
		}
	}
}

// TestJoiner: a call of two records is one, with the arguments of its beginning
// and the result of its end; what ends otherwise is not lost.
func TestJoiner(t *testing.T) {
	var j behavior.Joiner
	begin := sysCall(t, 1, "connect", 0, trace.Entry)
	begin.Begin = 5
	begin.Attachments = []trace.Attachment{{Arg: 1, Kind: trace.Sockaddr, Data: []byte{1, 0, '/', 0}}}
	end := sysCall(t, 1, "connect", -111, trace.Continued)
	end.Begin, end.End = 5, 9
	var got []string
	add := func(list []*trace.Record) {
		for _, r := range list {
			got = append(got, behavior.Format(r))
		}
	}
	add(j.Join(begin))
	begin.Attachments[0].Data[2] = '?' // its owner has other plans for it
	add(j.Join(sysCall(t, 2, "getpid", 2, 0)))
	add(j.Join(end))
	add(j.Join(end)) // whose beginning is gone
	add(j.Join(sysCall(t, 1, "exit_group", 0, trace.Entry)))
	add(j.Join(&trace.Record{Type: trace.Exit, TID: 1, N: 3}))
	add(j.Join(sysCall(t, 2, "pause", 0, trace.Entry)))
	add(j.Join(sysCall(t, 2, "kill", 0, trace.Entry))) // the end of pause was lost
	add(j.Rest())
	want := []string{
		"getpid() = 2",
		`connect(0, {AF_UNIX, "/"}, 0) = -1 ECONNREFUSED (connection refused)`,
		"<... connect resumed>) = -1 ECONNREFUSED (connection refused)",
		"exit_group(0 <unfinished ...>", "+++ exited with 0 +++",
		"pause( <unfinished ...>", "kill(0, SIG0 <unfinished ...>",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// Ends that are never seen take a bounded amount of memory.
	for tid := range uint32(10_000) {
		j.Join(sysCall(t, tid, "pause", 0, trace.Entry))
	}
	if n := len(j.Rest()); n == 0 || n > 4096 {
		t.Errorf("%d calls are remembered", n)
	}
}

func TestDump(t *testing.T) {
	buffer := func(i uint8, n int, flags trace.AttachFlags) trace.Attachment {
		return trace.Attachment{Arg: i, Kind: trace.Bytes, Flags: flags, Data: bytes.Repeat([]byte("\x00\x1fAz~\x7f\xff "), n)[:n]}
	}
	write := sysCall(t, 1, "write", 4096, 0)
	write.Args = [6]uint64{1, 0x1000, 4096}
	for _, test := range []struct {
		name   string
		attach trace.Attachment
		flags  trace.Flags
		want   string
	}{
		{"one", buffer(1, 1, 0), 0, " | 00000  00                                                .                |\n"},
		{"lines", buffer(1, 18, 0), 0, "" +
			" | 00000  00 1f 41 7a 7e 7f ff 20  00 1f 41 7a 7e 7f ff 20  ..Az~.. ..Az~..  |\n" +
			" | 00010  00 1f                                             ..               |\n"},
		{"cut", buffer(1, 2, trace.Truncated), 0, "" +
			" | 00000  00 1f                                             ..               |\n" +
			" | 2 of 4096 bytes were captured |\n"},
		{"unreadable", trace.Attachment{Arg: 1, Kind: trace.Bytes, Flags: trace.Unreadable}, 0, ""},
		{"no_buffer", trace.Attachment{Arg: 1, Kind: trace.String, Data: []byte("x")}, 0, ""},
		{"no_such_argument", buffer(200, 1, trace.Truncated), 0, "" +
			" | 00000  00                                                .                |\n" +
			" | 1 bytes were captured, and there were more |\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := *write
			r.Attachments = []trace.Attachment{test.attach}
			if diff := cmp.Diff(test.want, behavior.Dump(&r)); diff != "" {
				t.Error(diff)
			}
		})
	}
	// What the kernel reads into many buffers says how much there was at the end.
	read := sysCall(t, 1, "readv", 300, 0)
	read.Attachments = []trace.Attachment{buffer(1, 256, trace.Truncated)}
	if s := behavior.Dump(read); !strings.HasSuffix(s, " | 256 of 300 bytes were captured |\n") {
		t.Error(s)
	}
	read.Flags = trace.Unfinished
	if s := behavior.Dump(read); !strings.HasSuffix(s, " | 256 bytes were captured, and there were more |\n") {
		t.Error(s)
	}
}
