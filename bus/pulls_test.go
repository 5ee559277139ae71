// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// forgetful is a way to a server on which some requests get lost, so that the
// server knows nothing of them, and the client waits.
type forgetful struct {
	addr  string
	what  string       // what the subjects of those begin with
	drop  atomic.Int64 // how many more
	lost  atomic.Int64 // how many did
	conns sync.WaitGroup
	lag   atomic.Int64 // nanoseconds that the server's word takes to the client
}

// forget opens such a way, of which the first n requests get lost.
func forget(t *testing.T, to, what string, n int64) *forgetful {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &forgetful{addr: l.Addr().String(), what: what}
	f.drop.Store(n)
	ctx, cancel := context.WithCancel(context.Background())
	f.conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			context.AfterFunc(ctx, func() {
				c.Close()
				d.Close()
			})
			f.conns.Go(func() { f.late(c, d) })
			f.conns.Go(func() { f.pass(d, bufio.NewReader(c)) })
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		f.conns.Wait()
	})
	return f
}

// pass passes a client's protocol on, but for what gets lost.
// https://docs.nats.io/reference/reference-protocols/nats-protocol
func (f *forgetful) pass(to io.WriteCloser, from *bufio.Reader) {
	defer to.Close()
	for {
		line, err := from.ReadString('\n')
		if err != nil {
			return
		}
		msg := []byte(line)
		fields := strings.Fields(line)
		if len(fields) > 2 && (fields[0] == "PUB" || fields[0] == "HPUB") {
			size, err := strconv.Atoi(fields[len(fields)-1])
			if err != nil {
				return
			}
			msg = append(msg, make([]byte, size+2)...)
			if _, err := io.ReadFull(from, msg[len(line):]); err != nil {
				return
			}
			if strings.HasPrefix(fields[1], f.what) && f.drop.Add(-1) >= 0 {
				f.lost.Add(1)
				continue
			}
		}
		if _, err := to.Write(msg); err != nil {
			return
		}
	}
}

// late passes on what the server says, when it is time.
func (f *forgetful) late(to io.Writer, from io.Reader) {
	type word struct {
		at   time.Time
		text []byte
	}
	words := make(chan word, 1000) // closed by the reader
	f.conns.Go(func() {
		defer close(words)
		for buf := make([]byte, 64<<10); ; {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			words <- word{time.Now().Add(time.Duration(f.lag.Load())), bytes.Clone(buf[:n])}
		}
	})
	for w := range words {
		time.Sleep(time.Until(w.at))
		_, _ = to.Write(w.text) // who has gone hears no more
	}
}

// behind connects on such a way.
func behind(t *testing.T, s *bus.Server, what string, n int64) (*bus.Bus, *forgetful) {
	t.Helper()
	addr := s.Address()
	f := forget(t, strings.TrimPrefix(addr.URL, "nats://"), what, n)
	addr.URL = "nats://" + f.addr
	b, err := bus.Connect(t.Context(), addr, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b, f
}

// TestLostRegistration has what the registrar asks of the server get lost, as it
// does with a leader that dies: whoever registers, and those behind him, do not
// wait for as long as a request may take.
func TestLostRegistration(t *testing.T) {
	t.Parallel() // it waits until the loss is noticed
	dir := t.TempDir()
	s, err := bus.StartServer(dir, bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	b, err := s.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if err := b.Reconcile(t.Context(), bus.Limits{Log: 64 << 20, Store: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	a := newAnalysis(t, b)
	for i, what := range []string{"$JS.API.STREAM.INFO.LOG", "$JS.API.STREAM.CREATE.", "$JS.API.CONSUMER.CREATE.RUNS.", "$JS.API.CONSUMER.INFO.LOG.", "$JS.API.CONSUMER.CREATE.LOG."} {
		asRegistrar, f := behind(t, s, what, 1)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = bus.NewRegistrar(asRegistrar, slog.New(slog.NewTextHandler(t.Output(), nil))).Run(ctx)
		}()
		begin := time.Now()
		register(t, b, fmt.Sprint("static", i), schemas.KindSample)
		if took := time.Since(begin); f.lost.Load() != 1 || took > 28*time.Second {
			t.Errorf("%d of %s were lost, and the registration took %s", f.lost.Load(), what, took)
		}
		stop()
		<-done
	}
	a.artifact(schemas.KindSample, "the sample", 0)
	account(t, b, a)
}

// TestLostPulls has requests for messages get lost of everybody who reads by a
// consumer: nobody waits for ever for what the server does not know that it is
// asked for.
func TestLostPulls(t *testing.T) {
	t.Parallel() // it waits until the loss is noticed
	b, s := startAt(t, t.TempDir())
	a := newAnalysis(t, b)
	register(t, b, "static", schemas.KindSample)
	const n = 2
	const pulls = "$JS.API.CONSUMER.MSG.NEXT."
	asClerk, clerks := behind(t, s, pulls, n)
	asAnalyzer, analyzers := behind(t, s, pulls, n)
	asReporter, reporters := behind(t, s, pulls, n)
	clerk(t, asClerk)
	ended := make(chan string, 10)
	following, enough := context.WithCancel(t.Context())
	defer enough()
	go func() {
		_ = asReporter.Endings(following, "reporter", func(_ context.Context, e schemas.Event) error {
			ended <- e.Analysis
			return nil
		})
	}()
	a.artifact(schemas.KindSample, "the sample", 0)
	a.event(schemas.StartAnalysis{})
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	task, err := asAnalyzer.NextTask(ctx, "static")
	if err != nil {
		t.Fatal(err)
	}
	finish(t, asAnalyzer, task, schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "x", Title: "x"}}})
	if missing := a.wait(time.Minute); len(missing) > 0 {
		t.Errorf("missing: %+v", missing)
	}
	a.event(schemas.AnalysisCompleted{})
	select {
	case id := <-ended:
		if id != a.id {
			t.Errorf("%s has ended", id)
		}
	case <-time.After(2 * time.Minute):
		t.Error("nobody hears of the ending")
	}
	for who, f := range map[string]*forgetful{"clerk": clerks, "analyzer": analyzers, "reporter": reporters} {
		if f.lost.Load() != n {
			t.Errorf("%d requests of the %s were lost, not %d", f.lost.Load(), who, n)
		}
	}
	t.Logf("it took %s", time.Since(begin).Round(time.Millisecond))
	account(t, b, a)
}

// TestLateTasks has tasks sent to an analyzer that hears of them late, when the
// time for which it has asked is over: it has them nevertheless, and not only when
// they are given out again.
func TestLateTasks(t *testing.T) {
	t.Parallel() // it waits for what is late
	b, s := startAt(t, t.TempDir())
	a := newAnalysis(t, b)
	register(t, b, "static", schemas.KindSample)
	slow, way := behind(t, s, "nothing", 0)
	cons, err := b.JetStream().Consumer(t.Context(), "LOG", "az-static-live")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for n := range 3 {
		way.lag.Store(int64(250 * time.Millisecond))
		got := make(chan error, 1)
		go func() {
			task, err := slow.NextTask(ctx, "static")
			if err == nil && task.Attempt != 1 {
				err = fmt.Errorf("given out for the %d. time", task.Attempt)
			}
			if err == nil {
				err = task.Done()
			}
			got <- err
		}()
		for { // until the server knows that it is asked
			info, err := cons.Info(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if info.NumWaiting > 0 {
				break
			}
		}
		a.artifact(schemas.KindSample, fmt.Sprint("sample ", n), 0)
		if err := <-got; err != nil {
			t.Errorf("task %d: %v", n, err)
		}
	}
	account(t, b, a)
}
