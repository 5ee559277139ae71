// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// collected is what a live feed gave. Its fields are for whoever has waited for
// the feed's end.
type collected struct {
	events []string // ids
	gaps   []bus.Gap
	begun  chan struct{} // closed at the first event
	goOn   chan struct{} // which the first event waits for
	end    chan error
	cancel context.CancelFunc
}

// errLast ends a feed at the event that is called last.
var errLast = errors.New("the last event")

// listen follows a tenant until an event of the name last.
func listen(t *testing.T, b *bus.Bus, tenant string) *collected {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &collected{begun: make(chan struct{}), goOn: make(chan struct{}), end: make(chan error, 1), cancel: cancel}
	feed := bus.Feed{
		Event: func(e schemas.Event) error {
			if len(c.events) == 0 {
				close(c.begun)
				<-c.goOn
			}
			c.events = append(c.events, e.ID)
			if e.Name() == "last" {
				return errLast
			}
			return nil
		},
		Gap: func(g bus.Gap) error {
			c.gaps = append(c.gaps, g)
			return nil
		},
	}
	go func() { c.end <- b.Live(ctx, tenant, feed) }()
	return c
}

// wait returns when the feed has ended.
func (c *collected) wait(t *testing.T) {
	t.Helper()
	defer c.cancel()
	if err := <-c.end; !errors.Is(err, errLast) {
		t.Fatalf("the feed ended with %v after %d events", err, len(c.events))
	}
}

// missed are the events of the log in all gaps.
func (c *collected) missed() (n uint64) {
	for _, g := range c.gaps {
		n += g.Events
	}
	return n
}

// begin publishes until the feed has begun.
func (c *collected) begin(a *analysis) {
	for {
		a.event(schemas.Custom{Name: "first"})
		select {
		case <-c.begun:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// whole fails unless the feed gave the analysis' events each once and in order,
// from the first that it gave to the last.
func (c *collected) whole(t *testing.T, a *analysis) {
	t.Helper()
	var want []string
	if err := a.b.Read(t.Context(), "default", a.id, 0, func(e bus.Entry) error {
		want = append(want, e.Event.ID)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	i := slices.Index(want, c.events[0])
	if i < 0 || !slices.Equal(want[i:], c.events) {
		t.Errorf("%d events came, %d are in the log from the first of them on", len(c.events), len(want)-i)
	}
}

// TestLiveSlow takes so long over an event that the client drops thousands.
func TestLiveSlow(t *testing.T) {
	t.Parallel()
	b, s := startAt(t, t.TempDir())
	reader, err := bus.Connect(t.Context(), s.Address(), "reader")
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	a := newAnalysis(t, b)
	c := listen(t, reader, "default")
	c.begin(a)
	const n = 6000 // more than may wait
	js := b.JetStream()
	for i := range n {
		seg := schemas.Segment{Source: schemas.SourceStdout, N: i}
		e, err := schemas.NewEvent("default", a.id, seg.ID(a.id), time.Now(), schemas.OriginHost, seg)
		if err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.PublishAsync("petri.default."+a.id+".segment.stdout."+fmt.Sprint(i), body); err != nil {
			t.Fatal(err)
		}
		if i%200 == 199 { // what may be under way
			<-js.PublishAsyncComplete()
		}
	}
	if err := reader.JetStream().Conn().Flush(); err != nil { // everything has come, or was dropped
		t.Fatal(err)
	}
	close(c.goOn)
	a.event(schemas.Custom{Name: "last"})
	c.wait(t)
	c.whole(t, a)
	if n := c.missed(); n < 1000 {
		t.Errorf("%d events were missed; the reader was not slow", n)
	}
	account(t, b, a)
}

// TestLiveStrange has messages between events that are none.
func TestLiveStrange(t *testing.T) {
	t.Parallel()
	b := start(t)
	a := newAnalysis(t, b)
	c := listen(t, b, "default")
	c.begin(a)
	close(c.goOn)
	for _, body := range []string{"", "{}"} {
		if _, err := b.JetStream().Publish(t.Context(), "petri.default."+a.id+".artifact.x", []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	a.event(schemas.Custom{Name: "last"})
	c.wait(t)
	c.whole(t, a)
	var strange uint64
	for _, g := range c.gaps {
		strange += g.Foreign
	}
	if strange != 2 {
		t.Errorf("the gaps are %+v", c.gaps)
	}
}

// proxy is a server's address whose connections can be cut.
type proxy struct {
	ln     net.Listener
	target string

	mu    sync.Mutex
	cut   bool
	conns []net.Conn
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln, target: target}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		ln.Close()
		p.set(true)
		wg.Wait()
	})
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				in.Close()
				continue
			}
			p.add(in, out)
			wg.Add(2)
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				go func() {
					defer wg.Done()
					_, _ = io.Copy(pair[0], pair[1])
					pair[0].Close()
					pair[1].Close()
				}()
			}
		}
	}()
	return p
}

func (p *proxy) add(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, conns...)
	if p.cut {
		p.closeAll()
	}
}

// set cuts every connection, also new ones, or lets them be.
func (p *proxy) set(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut = cut; cut {
		p.closeAll()
	}
}

func (p *proxy) closeAll() {
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// TestLiveDisconnected loses the connection in the middle: once so that a later
// event shows the gap, and once at the end, where only the silence does.
func TestLiveDisconnected(t *testing.T) {
	t.Parallel()
	for _, atEnd := range []bool{false, true} {
		t.Run(fmt.Sprintf("at_end_%t", atEnd), func(t *testing.T) {
			b, s := startAt(t, t.TempDir())
			addr := s.Address()
			p := newProxy(t, strings.TrimPrefix(addr.URL, "nats://"))
			addr.URL = "nats://" + p.ln.Addr().String()
			reader, err := bus.Connect(t.Context(), addr, "reader")
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			a := newAnalysis(t, b)
			c := listen(t, reader, "default")
			close(c.goOn)
			c.begin(a)
			p.set(true)
			for reader.Away() == 0 {
				time.Sleep(time.Millisecond)
			}
			const n = 50
			for range n {
				a.event(schemas.Custom{Name: "unseen"})
			}
			want := uint64(n)
			if atEnd {
				a.event(schemas.Custom{Name: "last"})
				want++
			}
			p.set(false)
			for reader.Away() > 0 {
				time.Sleep(time.Millisecond)
			}
			if !atEnd {
				if err := reader.JetStream().Conn().Flush(); err != nil {
					t.Fatal(err)
				}
				a.event(schemas.Custom{Name: "last"})
			}
			c.wait(t)
			c.whole(t, a)
			if got := c.missed(); got < want {
				t.Errorf("%d of %d events are in gaps: %+v", got, want, c.gaps)
			}
		})
	}
}

// TestLiveForeign has another tenant between one's own events: a sequence that
// is skipped for that is no gap.
func TestLiveForeign(t *testing.T) {
	t.Parallel()
	b := start(t)
	a := newAnalysis(t, b)
	c := listen(t, b, "default")
	close(c.goOn)
	c.begin(a)
	other := schemas.NewID(time.Now())
	for range 20 {
		if _, err := b.JetStream().Publish(t.Context(), "petri.other."+other+".context.x", []byte("{}")); err != nil {
			t.Fatal(err)
		}
		a.event(schemas.Custom{Name: "own"})
	}
	a.event(schemas.Custom{Name: "last"})
	c.wait(t)
	c.whole(t, a)
	if len(c.gaps) > 0 {
		t.Errorf("gaps: %+v", c.gaps)
	}
}

// TestLiveBehavior counts the behaviour that does not come.
func TestLiveBehavior(t *testing.T) {
	t.Parallel()
	b := start(t)
	a := newAnalysis(t, b)
	show := func(n uint64) {
		t.Helper()
		bh := schemas.Behavior{Category: "file", Action: "open", Number: n}
		e, err := schemas.NewEvent("default", a.id, fmt.Sprintf("%s/behavior/%d", a.id, n), time.Now(), schemas.OriginGuest, bh)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.PublishBehavior("default", a.id, &bh, e); err != nil {
			t.Fatal(err)
		}
	}
	want := []bus.Gap{{Behavior: 12, Analysis: a.id}, {Behavior: 1, Analysis: a.id}}
	check := func(name string, gaps []bus.Gap, behavior int) {
		t.Helper()
		if !slices.Equal(gaps, want) || behavior != 5 {
			t.Errorf("%s: gaps %+v, %d behaviour events", name, gaps, behavior)
		}
	}
	numbers := []uint64{4, 5, 18, 20, 21} // what came before the first is no gap

	c := listen(t, b, "default")
	close(c.goOn)
	c.begin(a)
	for _, n := range numbers {
		show(n)
	}
	a.event(schemas.Custom{Name: "last"})
	c.wait(t)
	behavior := slices.DeleteFunc(slices.Clone(c.events), func(id string) bool { return !strings.Contains(id, "/behavior/") })
	check("live", c.gaps, len(behavior))

	var gaps []bus.Gap
	shown, seen := 0, make(chan struct{})
	end := make(chan error, 1)
	go func() {
		end <- b.Watch(t.Context(), "default", a.id, bus.Feed{
			Event: func(e schemas.Event) error {
				switch {
				case e.Family() == "behavior":
					shown++
				case e.Name() == "last":
					close(seen)
				}
				if shown == len(numbers) {
					return errLast
				}
				return nil
			},
			Gap: func(g bus.Gap) error { gaps = append(gaps, g); return nil },
		})
	}()
	<-seen // it listens
	for _, n := range numbers {
		show(n)
	}
	if err := <-end; !errors.Is(err, errLast) {
		t.Fatal(err)
	}
	check("watch", gaps, shown)
}
