// SPDX-License-Identifier: Apache-2.0

package app_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/petrifile"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/schemas"
)

// serverVariable names the data directory for a process that is only a server,
// whose memory is then nobody else's.
const serverVariable = "PETRI_BENCH_SERVER"

// TestServerProcess is that process. It ends with its standard input.
func TestServerProcess(t *testing.T) {
	dir := os.Getenv(serverVariable)
	if dir == "" {
		return
	}
	s, err := bus.StartServer(dir, bus.ServerOptions{Sync: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Announce(); err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// serverProcess is a server in a process of its own.
type serverProcess struct {
	cmd *exec.Cmd
	in  io.Closer
}

func startServerProcess(b *testing.B, dir string) (*serverProcess, *bus.Bus) {
	b.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run", "^TestServerProcess$")
	cmd.Env = append(os.Environ(), serverVariable+"="+dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	p := &serverProcess{cmd, in}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		p.stop()
		b.Fatalf("the server says %q, %v", line, err)
	}
	a, err := bus.ReadAddress(dir)
	if err != nil {
		b.Fatal(err)
	}
	c, err := bus.Connect(b.Context(), a, "bench")
	if err != nil {
		b.Fatal(err)
	}
	return p, c
}

func (p *serverProcess) stop() {
	p.in.Close()
	_ = p.cmd.Wait()
}

// resident is the process' memory, in MiB.
func (p *serverProcess) resident(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				b.Fatal(err)
			}
			return float64(n) / 1024
		}
	}
	b.Fatal("no VmRSS")
	return 0
}

// synthetic makes the events of an analysis: an honest mixture, as many as are
// asked for and at least 10, each with its subject.
func synthetic(b *testing.B, id string, n int, emit func(subject string, body []byte)) {
	b.Helper()
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	put := func(subject, eventID string, data schemas.Typed) {
		at = at.Add(time.Millisecond)
		e, err := schemas.NewEvent(schemas.DefaultTenant, id, eventID, at, schemas.OriginHost, data)
		if err != nil {
			b.Fatal(err)
		}
		body, err := json.Marshal(e)
		if err != nil {
			b.Fatal(err)
		}
		emit("petri."+schemas.DefaultTenant+"."+id+"."+subject, body)
	}
	contexts := 0
	context := func(v schemas.Typed, name string) {
		put("context."+name, id+"/context/"+strconv.Itoa(contexts), v)
		contexts++
	}
	sample := schemas.Sum([]byte(id))
	context(schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: id, Tenant: schemas.DefaultTenant, Sample: schemas.Sample{Name: "sample", SHA256: sample, Size: 10}, Submitted: at}, Attempt: 1}, schemas.EventSubmitted)
	context(schemas.AnalysisClaimed{Worker: "bench", Host: "bench", Version: "1"}, schemas.EventClaimed)
	segment := 0
	for i := range n - 4 {
		d := schemas.Sum(fmt.Appendf(nil, "%s/%d", id, i))
		switch i % 5 {
		case 0, 1:
			data := fmt.Appendf(nil, "line %d of what the sample prints, which is some eighty bytes long, as lines are\n", i)
			s := schemas.Segment{Source: schemas.SourceStdout, N: segment, SHA256: schemas.Sum(data), Size: int64(len(data)), Records: uint64(len(data)), Data: data, From: at}
			put("segment.stdout."+strconv.Itoa(segment), s.ID(id), s)
			segment++
		case 2, 3:
			a := schemas.Artifact{Kind: schemas.KindDropped, SHA256: d, Size: 1000, Name: "/tmp/dropped", File: &schemas.FileMeta{Path: "/tmp/dropped/" + strconv.Itoa(i), Mode: 0o644, Modified: at, Change: "created"}}
			put("artifact.dropped."+d.Token()+".0", a.ID(id), a)
		case 4:
			t := schemas.TaskRef{Tenant: schemas.DefaultTenant, Analysis: id, Run: schemas.LiveRun, Analyzer: "static", SHA256: &d, Kind: schemas.KindDropped}
			put("receipt.live.static."+d.Token(), id+"/receipt/live/static/"+d.Token(), schemas.Receipt{Task: t, Version: "1.0.0", Instance: "bench", Status: schemas.TaskDone, Took: schemas.Duration(time.Millisecond)})
		}
	}
	context(schemas.StartAnalysis{}, schemas.EventStartAnalysis)
	context(schemas.AnalysisCompleted{}, schemas.EventCompleted)
}

// publisher writes events to the log as fast as it takes them.
func publisher(b *testing.B, c *bus.Bus) (emit func(string, []byte), flush func()) {
	n := 0
	wait := func() {
		select {
		case <-c.JetStream().PublishAsyncComplete():
		case <-time.After(time.Minute):
			b.Fatal("the server does not acknowledge")
		}
	}
	return func(subject string, body []byte) {
		if _, err := c.JetStream().PublishMsgAsync(&nats.Msg{Subject: subject, Data: body}); err != nil {
			b.Fatal(err)
		}
		if n++; n%2000 == 0 {
			wait()
		}
	}, wait
}

// peak samples the heap of this process until the returned function is called,
// which says how large it was, in MiB.
func peak() func() float64 {
	runtime.GC()
	var most atomic.Uint64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(10 * time.Millisecond)
		defer t.Stop()
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most.Store(max(most.Load(), m.HeapInuse))
			select {
			case <-t.C:
			case <-stop:
				return
			}
		}
	}()
	return func() float64 {
		close(stop)
		<-done
		return float64(most.Load()) / (1 << 20)
	}
}

// size is a benchmark's size, and a hundredth of it with -short.
func size(n int) int {
	if testing.Short() {
		return n / 100
	}
	return n
}

// BenchmarkRebuild folds the report of a long analysis out of its log. The peak
// of the heap must not depend on how long it is. Beside it, the events are only
// received, with the client's own consumer.
func BenchmarkRebuild(b *testing.B) {
	dir := b.TempDir()
	p, c := startServerProcess(b, dir)
	defer p.stop()
	defer c.Close()
	if err := c.Reconcile(b.Context(), bus.Limits{Log: 8 << 30, Store: 1 << 30}); err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{size(100_000), size(1_000_000)} {
		id := schemas.NewID(time.Now())
		emit, flush := publisher(b, c)
		synthetic(b, id, n, emit)
		flush()
		perSecond := func(b *testing.B) { b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s") }
		b.Run(fmt.Sprintf("fold/%d", n), func(b *testing.B) {
			heap := peak()
			for b.Loop() {
				_, got, err := app.Fold(b.Context(), c, schemas.DefaultTenant, id)
				if err != nil || got != n {
					b.Fatalf("%d events of %d, %v", got, n, err)
				}
			}
			b.ReportMetric(heap(), "peak-heap-MB")
			perSecond(b)
		})
		b.Run(fmt.Sprintf("receive/%d", n), func(b *testing.B) {
			heap := peak()
			for b.Loop() {
				receive(b, c, bus.AnalysisSubject(schemas.DefaultTenant, id), n)
			}
			b.ReportMetric(heap(), "peak-heap-MB")
			perSecond(b)
		})
	}
}

// receive takes n messages and throws them away.
func receive(b *testing.B, c *bus.Bus, subject string, n int) {
	b.Helper()
	cons, err := c.JetStream().OrderedConsumer(b.Context(), "LOG", jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}})
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	got := 0
	cc, err := cons.Consume(func(jetstream.Msg) {
		if got++; got == n {
			close(done)
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	defer cc.Stop()
	<-done
}

// BenchmarkPastAnalyses says how much memory a server has that was started anew
// with nothing, with 20,000 past analyses of 40 events in its log, and with as
// many in its archive.
func BenchmarkPastAnalyses(b *testing.B) {
	const events = 40
	n := size(20_000)
	for range b.N {
		for _, where := range []string{"empty", "hot", "archived"} {
			b.ReportMetric(pastAnalyses(b, where, n, events), where+"-MB")
		}
	}
	b.ReportMetric(float64(n), "analyses")
	b.ReportMetric(0, "ns/op")
}

func pastAnalyses(b *testing.B, where string, n, events int) float64 {
	b.Helper()
	dir := filepath.Join(b.TempDir(), where)
	p, c := startServerProcess(b, dir)
	if err := c.Reconcile(b.Context(), bus.Limits{Log: 8 << 30, Store: 16 << 30}); err != nil {
		b.Fatal(err)
	}
	switch where {
	case "hot":
		emit, flush := publisher(b, c)
		for i := range n {
			synthetic(b, schemas.NewID(time.Now().Add(-time.Duration(i)*time.Minute)), events, emit)
		}
		flush()
	case "archived":
		importAll(b, c, n, events)
	}
	c.Close()
	p.stop()
	// What was needed to write it is of no interest, only what it takes to keep.
	p, c = startServerProcess(b, dir)
	defer p.stop()
	defer c.Close()
	if err := c.Reconcile(b.Context(), bus.Limits{}); err != nil {
		b.Fatal(err)
	}
	if where != "empty" {
		// Reads one, and lists them all.
		list := 0
		count := func(schemas.ArchiveEntry) error { list++; return nil }
		if err := c.ArchiveEntries(b.Context(), schemas.DefaultTenant, count); err != nil {
			b.Fatal(err)
		}
		if where == "archived" && list != n {
			b.Fatalf("%d analyses in the archive, not %d", list, n)
		}
	}
	return p.resident(b)
}

// importAll puts analyses into the archive.
func importAll(b *testing.B, c *bus.Bus, n, events int) {
	b.Helper()
	g, ctx := errgroup.WithContext(b.Context())
	g.SetLimit(8)
	for i := range n {
		g.Go(func() error {
			return importOne(ctx, b, c, schemas.NewID(time.Now().Add(-time.Duration(i)*time.Minute)), events)
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

func importOne(ctx context.Context, b *testing.B, c *bus.Bus, id string, events int) error {
	buf := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(buf)
	buf.Reset()
	w, err := petrifile.NewWriter(buf, petrifile.Header{Tenant: schemas.DefaultTenant, Analysis: id})
	if err != nil {
		return err
	}
	seq := uint64(0)
	synthetic(b, id, events, func(subject string, body []byte) {
		if seq++; err == nil {
			_, err = w.Event(petrifile.Entry{Seq: seq, Subject: subject, Body: body})
		}
	})
	for _, ok := w.Due(); ok && err == nil; _, ok = w.Due() {
		err = w.Absent(petrifile.AbsentLeftOut)
	}
	if err == nil {
		_, err = w.Close()
	}
	if err == nil {
		_, err = c.Import(ctx, buf, bus.ImportOptions{})
	}
	return err
}
