// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"encoding/json"
	"io"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// benchEvents is how many events the long analysis of the benchmarks has; the
// environment variable PETRI_BENCH_EVENTS asks for more.
func benchEvents(b *testing.B) int {
	n, err := strconv.Atoi(os.Getenv("PETRI_BENCH_EVENTS"))
	if err != nil {
		return 20_000
	}
	return max(n, 3)
}

// long writes an analysis of n events.
func long(b *testing.B, c *bus.Bus, n int) string {
	b.Helper()
	id := schemas.NewID(time.Now())
	put := func(subject, eventID string, data schemas.Typed) {
		e, err := schemas.NewEvent("default", id, eventID, time.Now(), schemas.OriginHost, data)
		if err != nil {
			b.Fatal(err)
		}
		body, err := json.Marshal(e)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.JetStream().PublishMsgAsync(&nats.Msg{Subject: "petri.default." + id + "." + subject, Data: body}); err != nil {
			b.Fatal(err)
		}
	}
	put("context.analysis_submitted", id+"/context/0", schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: id, Tenant: "default"}, Attempt: 1})
	for i := range n - 2 {
		k := strconv.Itoa(i)
		put("segment.stdout."+k, id+"/segment/stdout/"+k, schemas.Segment{Source: schemas.SourceStdout, N: i, Size: 6, Data: []byte("hello\n")})
		if i%2000 == 0 {
			<-c.JetStream().PublishAsyncComplete()
		}
	}
	put("context.analysis_completed", id+"/context/1", schemas.AnalysisCompleted{})
	<-c.JetStream().PublishAsyncComplete()
	return id
}

// BenchmarkLongAnalysis reads, exports, archives and reads again one analysis
// of many events. The peak of this process' heap is the server's too, which
// runs in it.
func BenchmarkLongAnalysis(b *testing.B) {
	dir := b.TempDir()
	s, err := bus.StartServer(dir, bus.ServerOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	c, err := bus.Connect(b.Context(), s.Address(), "bench")
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if err := c.Reconcile(b.Context(), bus.Limits{Log: 4 << 30, Store: 4 << 30}); err != nil {
		b.Fatal(err)
	}
	n := benchEvents(b)
	id := long(b, c, n)
	measure := func(name string, f func() error) {
		b.Run(name, func(b *testing.B) {
			peak := watchHeap(b)
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64(peak())/(1<<20), "MiB-heap")
		})
	}
	all := func() error {
		return c.Read(b.Context(), "default", id, 0, func(bus.Entry) error { return nil })
	}
	measure("read_log", all)
	measure("export", func() error {
		_, err := c.Export(b.Context(), "default", id, io.Discard, bus.ExportOptions{})
		return err
	})
	begin := time.Now()
	if err := archiver(c).Archive(b.Context(), "default", id); err != nil {
		b.Fatal(err)
	}
	b.Logf("archived %d events in %s", n, time.Since(begin).Round(time.Millisecond))
	measure("read_archive", all)
}

// watchHeap returns what tells the largest heap since it was called.
func watchHeap(b *testing.B) func() uint64 {
	runtime.GC()
	stop, done := make(chan struct{}), make(chan uint64)
	go func() {
		t := time.NewTicker(20 * time.Millisecond)
		defer t.Stop()
		var m runtime.MemStats
		peak := uint64(0)
		for {
			select {
			case <-t.C:
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapInuse)
			case <-stop:
				done <- peak
				return
			}
		}
	}()
	return func() uint64 {
		close(stop)
		return <-done
	}
}

// BenchmarkArchive moves small analyses.
func BenchmarkArchive(b *testing.B) {
	c := start(b)
	var ids []string
	for range b.N {
		a := newAnalysis(b, c)
		a.event(schemas.AnalysisSubmitted{Attempt: 1})
		a.event(schemas.AnalysisCompleted{})
		ids = append(ids, a.id)
	}
	x := archiver(c)
	b.ResetTimer()
	for _, id := range ids {
		if err := x.Archive(b.Context(), "default", id); err != nil {
			b.Fatal(err)
		}
	}
}
