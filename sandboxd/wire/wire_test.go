// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/wire"
)

// pair returns two connected ends that run until the test ends.
func pair(t *testing.T, a, b wire.Handler) (*wire.Conn, *wire.Conn) {
	t.Helper()
	x, y := net.Pipe()
	ca, cb := wire.NewConn(x, a), wire.NewConn(y, b)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, c := range []*wire.Conn{ca, cb} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_ = c.Run(ctx)
		}()
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return ca, cb
}

func TestCall(t *testing.T) {
	type echo struct{ Text string }
	a, _ := pair(t, wire.Handler{}, wire.Handler{
		Request: func(_ context.Context, name string, params json.RawMessage) (any, error) {
			switch name {
			case "echo":
				var e echo
				err := json.Unmarshal(params, &e)
				return e, err
			case "fail":
				return nil, errors.New("it broke")
			case "errno":
				return nil, &wire.Error{Text: "no such file", Errno: "ENOENT"}
			}
			return nil, fmt.Errorf("no request %q", name)
		},
	})
	var got echo
	if err := a.Call(t.Context(), "echo", echo{"hello"}, &got); err != nil || got.Text != "hello" {
		t.Errorf("echo: %+v, %v", got, err)
	}
	var werr *wire.Error
	if err := a.Call(t.Context(), "fail", nil, nil); !errors.As(err, &werr) || werr.Text != "it broke" {
		t.Errorf("fail: %v", err)
	}
	if err := a.Call(t.Context(), "errno", nil, nil); !errors.As(err, &werr) || werr.Errno != "ENOENT" {
		t.Errorf("errno: %v", err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var got echo
			want := fmt.Sprint("message ", i)
			if err := a.Call(t.Context(), "echo", echo{want}, &got); err != nil || got.Text != want {
				t.Errorf("concurrent echo: %+v, %v", got, err)
			}
		}()
	}
	wg.Wait()
}

func TestCallEndsWithItsContext(t *testing.T) {
	a, _ := pair(t, wire.Handler{}, wire.Handler{
		Request: func(ctx context.Context, _ string, _ json.RawMessage) (any, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := a.Call(ctx, "hang", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestEventsComeInOrder(t *testing.T) {
	got := make(chan string, 100)
	a, _ := pair(t, wire.Handler{}, wire.Handler{Event: func(name string, _ json.RawMessage) { got <- name }})
	for i := range 100 {
		if err := a.Notify(fmt.Sprint(i), nil); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 100 {
		if n := <-got; n != fmt.Sprint(i) {
			t.Fatalf("event %d is %s", i, n)
		}
	}
}

// sink collects a stream; it can be told to wait.
type sink struct {
	mu     sync.Mutex
	b      bytes.Buffer
	status wire.Status
	gate   chan struct{} // if set, Write waits for it
	done   chan struct{}
}

func newSink() *sink { return &sink{done: make(chan struct{})} }

func (s *sink) Write(p []byte) {
	if s.gate != nil {
		<-s.gate
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b.Write(p)
}

func (s *sink) End(st wire.Status) {
	s.status = st
	close(s.done)
}

func TestStream(t *testing.T) {
	a, b := pair(t, wire.Handler{}, wire.Handler{})
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB, four windows
	s := newSink()
	go func() { // the receiver comes late
		time.Sleep(10 * time.Millisecond)
		if err := b.Receive(5, s); err != nil {
			t.Error(err)
		}
	}()
	w, err := a.Send(5)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := w.Write(want); n != len(want) || err != nil {
		t.Fatalf("wrote %d, %v", n, err)
	}
	if err := w.Close(wire.Status{Size: int64(len(want)), Cut: 3}); err != nil {
		t.Fatal(err)
	}
	<-s.done
	if !bytes.Equal(s.b.Bytes(), want) || s.status.Cut != 3 {
		t.Errorf("%d bytes arrived, status %+v", s.b.Len(), s.status)
	}
	// The number is free again.
	if _, err := a.Send(5); err != nil {
		t.Error(err)
	}
	if err := b.Receive(5, newSink()); err != nil {
		t.Error(err)
	}
}

// TestSlowStreamStopsAlone holds one stream's reader back: another stream and
// requests go on, and no more than the window is on its way.
func TestSlowStreamStopsAlone(t *testing.T) {
	a, b := pair(t, wire.Handler{}, wire.Handler{Request: func(context.Context, string, json.RawMessage) (any, error) { return nil, nil }})
	slow, fast := newSink(), newSink()
	slow.gate = make(chan struct{})
	if err := errors.Join(b.Receive(1, slow), b.Receive(2, fast)); err != nil {
		t.Fatal(err)
	}
	w1, _ := a.Send(1)
	w2, _ := a.Send(2)
	sent := make(chan error, 1)
	go func() {
		_, err := w1.Write(make([]byte, 4*wire.Window))
		sent <- err
	}()
	if _, err := w2.Write(make([]byte, 4*wire.Window)); err != nil {
		t.Fatal(err)
	}
	if err := a.Call(t.Context(), "ping", nil, nil); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-sent:
		t.Fatalf("the slow stream took everything: %v", err)
	default:
	}
	close(slow.gate)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

func TestEndOfLink(t *testing.T) {
	x, y := net.Pipe()
	c := wire.NewConn(x, wire.Handler{})
	s := newSink()
	done := make(chan error, 1)
	go func() { done <- c.Run(t.Context()) }()
	if err := c.Receive(1, s); err != nil {
		t.Fatal(err)
	}
	y.Close()
	if err := <-done; !errors.Is(err, io.EOF) {
		t.Errorf("Run: %v", err)
	}
	<-s.done
	if s.status.Error == "" {
		t.Error("the stream ended as if it were whole")
	}
	if err := c.Call(t.Context(), "ping", nil, nil); err == nil {
		t.Error("a call over a link that has ended")
	}
	if err := c.Receive(2, newSink()); err == nil {
		t.Error("a stream over a link that has ended")
	}
}

// raw frames, as an enemy writes them.
func frame(typ byte, stream uint16, payload string) string {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(payload)))
	b = append(b, typ, 0)
	b = binary.LittleEndian.AppendUint16(b, stream)
	return string(append(b, payload...))
}

func TestViolations(t *testing.T) {
	many := func(n int, s string) string { return strings.Repeat(s, n) }
	streams := ""
	for i := range 100 {
		streams += frame(2, uint16(i), "x")
	}
	tests := map[string]string{
		"too_long":           "\xff\xff\xff\xff\x01\x00\x00\x00",
		"unknown_type":       frame(9, 0, ""),
		"reserved_byte":      "\x00\x00\x00\x00\x01\x01\x00\x00",
		"no_json":            frame(1, 0, "{"),
		"unknown_kind":       frame(1, 0, `{"kind":"gossip"}`),
		"request_to_nobody":  frame(1, 0, `{"kind":"request","id":1,"name":"x"}`),
		"beyond_the_window":  many(5, frame(2, 1, many(wire.MaxPayload, "x"))),
		"data_after_the_end": frame(4, 1, "{}") + frame(2, 1, "x"),
		"end_is_no_json":     frame(4, 1, "x"),
		"credit_of_3_bytes":  frame(3, 1, "abc"),
		"too_many_streams":   streams,
	}
	for name, input := range tests {
		t.Run(name, func(t *testing.T) {
			err := feed(t, input)
			if !errors.Is(err, wire.ErrProtocol) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// feed runs a Conn on input and returns how that ended.
func feed(t testing.TB, input string) error {
	x, y := net.Pipe()
	go func() {
		_, _ = io.WriteString(y, input)
		y.Close()
	}()
	go func() { _, _ = io.Copy(io.Discard, y) }()
	c := wire.NewConn(x, wire.Handler{})
	return c.Run(t.Context())
}

// FuzzConn's property: whatever the other end sends, the link ends, and either
// the input ended between two frames or the error says what was wrong.
func FuzzConn(f *testing.F) {
	f.Add(frame(1, 0, `{"kind":"event","name":"hello","data":{}}`))
	f.Add(frame(2, 1, "data") + frame(4, 1, `{"size":4}`))
	f.Add(frame(3, 1, "\x00\x01\x00\x00"))
	f.Add("\xff\xff\xff\xffPETRI\x00\x01\xff")
	f.Fuzz(func(t *testing.T, input string) {
		err := feed(t, input)
		if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, wire.ErrProtocol) && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("got %v", err)
		}
	})
}

// leaving is an end whose other end has gone: nothing can be written any more,
// and what it had said is read only after that has been seen.
type leaving struct {
	net.Conn
	once sync.Once
	deaf chan struct{}
}

func (l *leaving) Write(p []byte) (int, error) {
	n, err := l.Conn.Write(p)
	if err != nil {
		l.once.Do(func() { close(l.deaf) })
	}
	return n, err
}

func (l *leaving) Read(p []byte) (int, error) {
	<-l.deaf
	return l.Conn.Read(p)
}

// TestLastWords checks that what the other end said before it went is heard,
// although something was still to be sent to it.
func TestLastWords(t *testing.T) {
	ours, theirs := socketpair(t)
	for i := range 100 {
		msg := fmt.Sprintf(`{"kind":"event","name":"%d"}`, i)
		if _, err := io.WriteString(theirs, frame(1, 0, msg)); err != nil {
			t.Fatal(err)
		}
	}
	theirs.Close()
	var got []string
	a := wire.NewConn(&leaving{Conn: ours, deaf: make(chan struct{})}, wire.Handler{Event: func(name string, _ json.RawMessage) { got = append(got, name) }})
	for range 3 {
		if err := a.Notify("hello", nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Run(t.Context()); !errors.Is(err, io.EOF) {
		t.Errorf("run: %v", err)
	}
	if len(got) != 100 {
		t.Errorf("%d of its last 100 words were heard", len(got))
	}
}

// TestUnreadEnd checks that an end which went without reading everything has
// ended between two frames all the same.
func TestUnreadEnd(t *testing.T) {
	ours, theirs := socketpair(t)
	if _, err := ours.Write([]byte("unread")); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	if err := wire.NewConn(ours, wire.Handler{}).Run(t.Context()); !errors.Is(err, io.EOF) {
		t.Errorf("run: %v", err)
	}
}

// TestAnswerBeforeTheEnd checks that an answer counts although the link has ended
// right behind it.
func TestAnswerBeforeTheEnd(t *testing.T) {
	for range 100 {
		ours, theirs := socketpair(t)
		go func() {
			b := make([]byte, 4096)
			_, _ = theirs.Read(b)
			msg := `{"kind":"response","id":1}`
			_, _ = io.WriteString(theirs, frame(1, 0, msg))
			theirs.Close()
		}()
		a := wire.NewConn(ours, wire.Handler{})
		ended := make(chan error, 1)
		go func() { ended <- a.Run(t.Context()) }()
		if err := a.Call(t.Context(), "last", nil, nil); err != nil {
			t.Fatalf("call: %v", err)
		}
		<-ended
	}
}

func socketpair(t *testing.T) (ours, theirs net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { ends[i].Close() })
	}
	return ends[0], ends[1]
}
