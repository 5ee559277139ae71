// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/sandboxd/capture"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
)

// slow is an observer whose events wait until they may pass.
type slow struct {
	pass chan struct{} // closed to let them

	mu   sync.Mutex
	data map[schemas.Source]string
	ends map[schemas.Source][]schemas.SourceCoverage
}

func newSlow() *slow {
	return &slow{pass: make(chan struct{}), data: map[schemas.Source]string{}, ends: map[schemas.Source][]schemas.SourceCoverage{}}
}

func (s *slow) Event(machine.Event) { <-s.pass }

func (s *slow) Data(src schemas.Source, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data[src] += string(p)
}

func (s *slow) End(src schemas.Source, c schemas.SourceCoverage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends[src] = append(s.ends[src], c)
}

func (s *slow) File(schemas.DroppedFile) machine.FileWriter { return nil }

// link connects a supervisor's observer with a client, without a machine.
func link(t *testing.T, rec machine.Observer, pcap int64) (m *Machine, out *observer, cut func()) {
	t.Helper()
	ours, theirs := net.Pipe()
	m = &Machine{observer: rec}
	if err := m.attach(ours); err != nil {
		t.Fatal(err)
	}
	conn := wire.NewConn(theirs, wire.Handler{})
	var running sync.WaitGroup
	for _, c := range []*wire.Conn{m.conn, conn} {
		running.Add(1)
		go func() {
			defer running.Done()
			_ = c.Run(context.Background())
		}()
	}
	t.Cleanup(func() {
		conn.Close()
		m.conn.Close()
		running.Wait()
	})
	out, err := newObserver(conn, Spec{Pcap: pcap, Guest: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	return m, out, conn.Close
}

// ended returns when every source has ended.
func ended(t *testing.T, m *Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	m.awaitStreams(ctx)
	if err := ctx.Err(); err != nil {
		t.Fatalf("the sources do not end: %v", err)
	}
}

// TestEndsBehindEvents checks that what became of each source is there when the
// source has ended, however many events still wait.
func TestEndsBehindEvents(t *testing.T) {
	rec := newSlow()
	m, out, _ := link(t, rec, 1<<20)
	defer close(rec.pass)
	for range 100 {
		out.Event(machine.Event{Fault: "wait"})
	}
	out.Data(schemas.SourceStdout, []byte("one"))
	out.End(schemas.SourceStdout, schemas.SourceCoverage{Status: schemas.StatusWhole, Bytes: 3})
	out.Data(schemas.SourceStdout, []byte("two"))
	out.End(schemas.SourceStdout, schemas.SourceCoverage{Status: schemas.StatusPartial, Reason: "cut", Cut: 7})
	out.Data(schemas.SourceSerial, []byte("boot")) // and never an end
	out.End(schemas.SourceTrace, schemas.SourceCoverage{Status: schemas.StatusWhole})
	out.close()
	ended(t, m)

	pcap := rec.ends[schemas.SourcePcap]
	if len(pcap) != 1 || pcap[0].Status != schemas.StatusWhole || rec.data[schemas.SourcePcap] == "" {
		t.Errorf("pcap %+v", pcap)
	}
	delete(rec.ends, schemas.SourcePcap)
	want := map[schemas.Source][]schemas.SourceCoverage{
		schemas.SourceStdout: {
			{Source: schemas.SourceStdout, Status: schemas.StatusWhole, Bytes: 3},
			{Source: schemas.SourceStdout, Status: schemas.StatusPartial, Reason: "cut", Cut: 7},
		},
		schemas.SourceSerial: {{Source: schemas.SourceSerial, Status: schemas.StatusPartial, Reason: "it ended without a word"}},
		schemas.SourceTrace:  {{Source: schemas.SourceTrace, Status: schemas.StatusPartial, Reason: "it ends without the tracer's last counts"}},
	}
	if diff := cmp.Diff(want, rec.ends); diff != "" {
		t.Errorf("ends (-want +got):\n%s", diff)
	}
	if got := rec.data[schemas.SourceStdout]; got != "onetwo" {
		t.Errorf("stdout %q", got)
	}
}

// TestNoEnd checks that sources of a supervisor that dies, or that keeps to
// itself what became of them, are not whole.
func TestNoEnd(t *testing.T) {
	t.Run("died", func(t *testing.T) {
		rec := newSlow()
		close(rec.pass)
		m, out, cut := link(t, rec, 1<<20)
		out.Data(schemas.SourceStdout, []byte("half"))
		out.End(schemas.SourceStdout, schemas.SourceCoverage{Status: schemas.StatusWhole})
		cut()
		ended(t, m)
		for src := range streamOf {
			if e := rec.ends[src]; len(e) != 1 || e[0].Status != schemas.StatusPartial || !strings.Contains(e[0].Reason, "supervisor") {
				t.Errorf("%s: %+v", src, e)
			}
		}
	})
	for name, st := range map[string]wire.Status{
		"silent":     {},
		"empty":      {Detail: []byte(`[]`)},
		"unreadable": {Detail: []byte(`"whole"`)},
		"too_large":  {Detail: []byte(`"` + strings.Repeat("x", wire.MaxPayload) + `"`)},
	} {
		t.Run(name, func(t *testing.T) {
			rec := newSlow()
			close(rec.pass)
			m, out, _ := link(t, rec, 1<<20)
			out.Data(schemas.SourceStdout, []byte("half"))
			for _, s := range out.streams {
				if err := s.w.Close(st); err != nil {
					t.Fatal(err)
				}
			}
			ended(t, m)
			if e := rec.ends[schemas.SourceStdout]; len(e) != 1 || e[0].Status != schemas.StatusPartial {
				t.Errorf("stdout: %+v", e)
			}
			if got := rec.data[schemas.SourceStdout]; got != "half" {
				t.Errorf("stdout %q", got)
			}
		})
	}
}

// TestPcapLimit checks that a capture ends at the limit that the supervisor was
// given, and that one is made however small the limit.
func TestPcapLimit(t *testing.T) {
	for _, limit := range []int64{1, 600, 5000} {
		rec := newSlow()
		close(rec.pass)
		m, out, _ := link(t, rec, limit)
		for range 100 {
			out.pcap.Packet(capture.Outbound, time.Unix(1, 0), make([]byte, 100), 100)
		}
		out.close()
		ended(t, m)
		if n := int64(len(rec.data[schemas.SourcePcap])); n == 0 || n > max(limit, minPcap) {
			t.Errorf("limit %d: %d bytes", limit, n)
		}
		if e := rec.ends[schemas.SourcePcap]; len(e) != 1 || e[0].Status != schemas.StatusPartial || e[0].Produced != 100 || e[0].Lost == 0 {
			t.Errorf("limit %d: %+v", limit, e)
		}
	}
}
