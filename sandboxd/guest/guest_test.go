// SPDX-License-Identifier: Apache-2.0

package guest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/sandboxd/guest"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
)

// observer keeps what a client reports.
type observer struct {
	mu     sync.Mutex
	events []machine.Event
	files  []*file
}

type file struct {
	schemas.DroppedFile
	data   []byte
	closed int
	err    error
}

func (o *observer) Event(e machine.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, e)
}
func (*observer) Data(schemas.Source, []byte)                {}
func (*observer) End(schemas.Source, schemas.SourceCoverage) {}
func (o *observer) File(f schemas.DroppedFile) machine.FileWriter {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.files = append(o.files, &file{DroppedFile: f})
	return o.files[len(o.files)-1]
}
func (f *file) Write(p []byte) (int, error) {
	f.data = append(f.data, p...)
	return len(p), nil
}
func (f *file) Close(_ int64, err error) { f.closed, f.err = f.closed+1, err }

// serve connects a client with a guest that answers requests by answer.
func serve(t testing.TB, o machine.Observer, answer func(*wire.Conn, string, json.RawMessage) (any, error)) (*guest.Client, *wire.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	client := guest.New(ours, o)
	var conn *wire.Conn
	conn = wire.NewConn(theirs, wire.Handler{Request: func(_ context.Context, name string, data json.RawMessage) (any, error) {
		return answer(conn, name, data)
	}})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{client.Serve, conn.Run} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_ = run(ctx)
		}()
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait() // hangs if the client leaves anything running
	})
	return client, conn
}

// sample is larger than the window of a stream.
func sample(t *testing.T) (machine.Run, *os.File) {
	t.Helper()
	p := filepath.Join(t.TempDir(), "sample")
	if err := os.WriteFile(p, make([]byte, 4*wire.Window), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return machine.Run{Size: 4 * wire.Window}, f
}

// TestRunHostile checks that no answer of a guest keeps Run waiting.
func TestRunHostile(t *testing.T) {
	long := strings.Repeat("\xff\x00", 1000)
	tests := map[string]struct {
		answer any
		fail   error
		hang   bool
		check  func(error) bool
	}{
		"refuses_unread":  {fail: errors.New("no"), check: func(err error) bool { return err.Error() == "no" }},
		"starts_unread":   {answer: guest.RunResult{Started: &machine.Started{PID: 7}}, check: isProtocol},
		"empty":           {answer: guest.RunResult{}, check: isProtocol},
		"no_number":       {answer: guest.RunResult{Started: &machine.Started{PID: -7}}, check: isProtocol},
		"other_way":       {answer: guest.RunResult{Started: &machine.Started{PID: 7, How: "mapped"}}, check: isProtocol},
		"wrong_type":      {answer: []int{1}, check: isProtocol},
		"never_answers":   {hang: true, check: func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }},
		"endless_refusal": {answer: guest.RunResult{NotExecuted: &machine.NotExecuted{Reason: long, Missing: slices.Repeat([]string{"lib"}, 5000)}}, check: isClipped},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			release := make(chan struct{})
			client, _ := serve(t, &observer{}, func(*wire.Conn, string, json.RawMessage) (any, error) {
				if test.hang {
					<-release
				}
				return test.answer, test.fail
			})
			defer close(release)
			limit := 2 * time.Minute
			if test.hang {
				limit = time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			r, f := sample(t)
			_, err := client.Run(ctx, r, f) // returns, although the guest hangs
			if err == nil || !test.check(err) {
				t.Errorf("run: %v", err)
			}
		})
	}
}

func isProtocol(err error) bool { return errors.Is(err, wire.ErrProtocol) }

func isClipped(err error) bool {
	var ne *machine.NotExecuted
	return errors.As(err, &ne) && len(ne.Reason) < 600 && utf8.ValidString(ne.Reason) && len(ne.Missing) == 64
}

// TestExec checks that a guest can't answer for another command, nor at length.
func TestExec(t *testing.T) {
	client, _ := serve(t, &observer{}, func(*wire.Conn, string, json.RawMessage) (any, error) {
		return schemas.Exec{Command: []string{"other"}, Stdout: strings.Repeat("x", 40_000), Signal: strings.Repeat("S", 1000), Cut: -5}, nil
	})
	got, err := client.Exec(t.Context(), machine.Exec{Command: []string{"id"}, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Command, []string{"id"}) || len(got.Stdout) > 17_000 || len(got.Signal) > 100 || got.Cut != 0 {
		t.Errorf("result %v, %d bytes, signal of %d, cut %d", got.Command, len(got.Stdout), len(got.Signal), got.Cut)
	}
}

// TestEvents checks that a guest ends one sample once, and can't flood with
// faults.
func TestEvents(t *testing.T) {
	o := &observer{}
	client, conn := serve(t, o, func(*wire.Conn, string, json.RawMessage) (any, error) { return nil, nil })
	code := 3
	for range 5 {
		for _, e := range []schemas.SampleExited{{Reason: "exited", ExitCode: &code}, {Reason: "killed", Signal: "SIGKILL"}} {
			if err := conn.Notify(guest.EventExited, e); err != nil {
				t.Fatal(err)
			}
		}
		if err := conn.Notify(guest.EventTree, machine.TreeExited{}); err != nil {
			t.Fatal(err)
		}
	}
	for range 3000 {
		if err := conn.Notify(guest.EventFault, guest.Fault{Text: strings.Repeat("f", 5000)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(2 * time.Minute)
	count := func() (exits, trees, faults int) {
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, e := range o.events {
			switch {
			case e.Exited != nil:
				exits++
			case e.Tree != nil:
				trees++
			case len(e.Fault) > 600:
				t.Errorf("fault of %d bytes", len(e.Fault))
			default:
				faults++
			}
		}
		return
	}
	for {
		exits, trees, faults := count()
		if exits == 1 && trees == 1 && faults == 1000 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d exits, %d trees, %d faults", exits, trees, faults)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestHeld: what a guest says of a held call is clipped, told and answered, and it
// cannot flood with them nor ask for anything else.
func TestHeld(t *testing.T) {
	o := &observer{}
	_, conn := serve(t, o, func(*wire.Conn, string, json.RawMessage) (any, error) { return nil, nil })
	long := strings.Repeat("\xff", 2000)
	for range 1200 {
		if err := conn.Call(t.Context(), guest.ReqHeld, schemas.PossibleTampering{Call: long, Request: long, ABI: long, Comm: long, Behind: long, PID: -1, Records: 9}, nil); err != nil {
			t.Fatal(err)
		}
	}
	var e *wire.Error
	if err := conn.Call(t.Context(), "anything", nil, nil); !errors.As(err, &e) {
		t.Errorf("another request: %v", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := len(o.events); n != 1001 || !strings.Contains(o.events[n-1].Fault, "more than 1000 held calls") {
		t.Errorf("%d events, the last %+v", n, o.events[n-1])
	}
	checkEvents(t, o.events)
}

// TestFilesRoundTrip sends files through a FilesWriter and a FilesSink.
func TestFilesRoundTrip(t *testing.T) {
	var b bytes.Buffer
	w := guest.NewFilesWriter(&b)
	large := bytes.Repeat([]byte("0123456789"), 20_000)
	send := func(f schemas.DroppedFile, data []byte) {
		t.Helper()
		if err := w.File(f); err != nil {
			t.Fatal(err)
		}
		if f.Stored {
			if _, err := w.Write(data); err != nil {
				t.Fatal(err)
			}
			if err := w.End(wire.Status{Size: int64(len(data))}); err != nil {
				t.Fatal(err)
			}
		}
	}
	meta := func(p string, stored bool) schemas.DroppedFile {
		return schemas.DroppedFile{FileMeta: schemas.FileMeta{Path: p, Change: "created", Modified: time.Unix(1, 0).UTC()}, Type: "file", Stored: stored}
	}
	send(meta("/a", true), []byte("a"))
	send(meta("/b", false), nil)
	send(meta("/c", true), large)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, piece := range []int{1, 7, 4096, b.Len()} {
		o := &observer{}
		s := guest.NewFilesSink(o, machine.Collect{MaxFile: 1 << 20, MaxFiles: 2, MaxTotal: 1 << 20, MaxList: 3})
		for p := range slices.Chunk(b.Bytes(), piece) {
			s.Write(bytes.Clone(p))
		}
		s.End(wire.Status{})
		if err := s.Wait(t.Context()); err != nil {
			t.Fatalf("in pieces of %d: %v", piece, err)
		}
		var got []string
		for _, f := range o.files {
			got = append(got, f.Path+" "+string(f.data[:min(len(f.data), 5)]))
		}
		if diff := cmp.Diff([]string{"/a a", "/b ", "/c 01234"}, got); diff != "" {
			t.Errorf("in pieces of %d (-want +got):\n%s", piece, diff)
		}
		if !bytes.Equal(o.files[2].data, large) {
			t.Errorf("in pieces of %d: the large file differs", piece)
		}
	}
}

// record is one of a files' stream.
func record(typ byte, payload string) []byte {
	b := binary.LittleEndian.AppendUint32([]byte{typ}, uint32(len(payload)))
	return append(b, payload...)
}

const fileRecord = `{"path":"/a","change":"created","size":1,"stored":true,"modified":"2020-01-01T00:00:00Z"}`

// FuzzFilesSink feeds it anything, in pieces. Whatever comes, the limits hold,
// each file is closed once, and only a whole stream is without an error.
func FuzzFilesSink(f *testing.F) {
	whole := slices.Concat(record('F', fileRecord), record('D', "x"), record('E', `{"size":1}`))
	f.Add(whole, 3)
	f.Add(slices.Concat(whole, whole, whole, whole), 1000)
	f.Add(whole[:len(whole)-1], 1)
	f.Add(record('D', "x"), 10)
	f.Add(slices.Concat(record('F', fileRecord), record('F', fileRecord)), 10)
	f.Add(slices.Concat(record('F', fileRecord), record('D', strings.Repeat("x", 200))), 10)
	f.Add(record('F', `{"path":"../../etc/passwd","change":"created"}`), 10)
	f.Add(record('F', `{"path":"/a","change":"created","size":-1}`), 10)
	f.Add([]byte{'F', 0xff, 0xff, 0xff, 0xff}, 10)
	f.Fuzz(func(t *testing.T, stream []byte, piece int) {
		limits := machine.Collect{MaxFile: 100, MaxFiles: 2, MaxTotal: 150, MaxList: 3}
		o := &observer{}
		s := guest.NewFilesSink(o, limits)
		for p := range slices.Chunk(stream, min(max(1, piece), 1<<16)) {
			s.Write(bytes.Clone(p))
		}
		s.End(wire.Status{})
		err := s.Wait(t.Context())
		stored, total := 0, 0
		for _, f := range o.files {
			if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || !utf8.ValidString(f.Path) || f.Size < 0 {
				t.Errorf("file %+v", f.DroppedFile)
			}
			want := 0
			if f.Stored {
				stored, want = stored+1, 1
			}
			if f.closed != want || int64(len(f.data)) > limits.MaxFile {
				t.Errorf("%q was closed %d times and has %d bytes", f.Path, f.closed, len(f.data))
			}
			total += len(f.data)
		}
		if stored > limits.MaxFiles || total > int(limits.MaxTotal) || len(o.files) > limits.MaxList {
			t.Errorf("%d files, %d with bytes, %d bytes", len(o.files), stored, total)
		}
		if err == nil && countRecords(stream) < 0 {
			t.Errorf("no error of %q", stream)
		}
	})
}

// countRecords is -1 of what does not end where a record does.
func countRecords(b []byte) int {
	n := 0
	for len(b) > 0 {
		if len(b) < 5 || uint64(len(b)) < 5+uint64(binary.LittleEndian.Uint32(b[1:])) {
			return -1
		}
		b = b[5+binary.LittleEndian.Uint32(b[1:]):]
		n++
	}
	return n
}

// link is one that plays a recording and forgets what it is told.
type link struct {
	io.Reader
	io.Writer
}

func (link) Close() error { return nil }

// FuzzEvent has a guest send one event of any name and content.
func FuzzEvent(f *testing.F) {
	f.Add("exited", `{"reason":"exited","exit_code":3}`)
	f.Add("exited", `{"reason":"killed","signal":"SIGSEGV","left":-1}`)
	f.Add("exited", `{"reason":"exited"}`)
	f.Add("tree", `{}`)
	f.Add("fault", `{"text":"\u0000"}`)
	f.Add("hello", `{"version":1}`)
	f.Add("nonsense", `null`)
	f.Fuzz(func(t *testing.T, name, data string) {
		if !json.Valid([]byte(data)) {
			t.Skip()
		}
		msg, err := json.Marshal(map[string]any{"kind": "event", "name": name, "data": json.RawMessage(data)})
		if err != nil || len(msg) > wire.MaxPayload {
			t.Skip()
		}
		stream := binary.LittleEndian.AppendUint32(nil, uint32(len(msg)))
		stream = append(append(stream, 1, 0, 0, 0), msg...)
		o := &observer{}
		if err := guest.New(link{bytes.NewReader(slices.Concat(stream, stream)), io.Discard}, o).Serve(t.Context()); !errors.Is(err, io.EOF) {
			t.Errorf("serve: %v", err)
		}
		checkEvents(t, o.events)
	})
}

func checkEvents(t *testing.T, events []machine.Event) {
	t.Helper()
	exits := 0
	for _, e := range events {
		if len(e.Fault) > 1000 || !utf8.ValidString(e.Fault) {
			t.Errorf("fault %q", e.Fault)
		}
		if x := e.Exited; x != nil {
			exits++
			if !slices.Contains([]string{"exited", "killed", "reboot"}, x.Reason) || x.Left < 0 || x.Ran < 0 || (x.ExitCode != nil) != (x.Reason == "exited") || len(x.Signal) > 100 {
				t.Errorf("exit %+v", x)
			}
		}
		if p := e.Tampering; p != nil {
			if text := p.Call + p.Request + p.ABI + p.Comm + p.Behind; len(text) > 1000 || !utf8.ValidString(text) || p.PID < 0 {
				t.Errorf("held call %+v", p)
			}
		}
		if e.Lease != nil || e.Off != nil || e.Behavior != nil {
			t.Errorf("the guest speaks for the host: %+v", e)
		}
	}
	if exits > 1 {
		t.Errorf("%d exits", exits)
	}
}

// FuzzLink plays any bytes to a client. It ends, and says what is wrong.
func FuzzLink(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x02\x00\x00\x00\x01\x00\x00\x00{}"))
	f.Add([]byte("\xff\xff\xff\xff\x02\x00\x03\x00"))
	f.Add([]byte("\x46\x00\x00\x00\x01\x00\x00\x00" + `{"kind":"request","id":1,"name":"held","data":{"call":"bpf","pid":-5}}`))
	f.Add([]byte("\x04\x00\x00\x00\x03\x00\x04\x00\xff\xff\xff\xff"))
	f.Add([]byte("\x01\x00\x00\x00\x02\x00\x07\x00x\x02\x00\x00\x00\x04\x00\x07\x00{}"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		o := &observer{}
		err := guest.New(link{bytes.NewReader(stream), io.Discard}, o).Serve(t.Context())
		if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, wire.ErrProtocol) {
			t.Errorf("serve: %v", err)
		}
		checkEvents(t, o.events)
	})
}
