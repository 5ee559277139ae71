// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

func TestReadInOrder(t *testing.T) {
	t.Parallel()
	b := start(t)
	a, other := newAnalysis(t, b), newAnalysis(t, b)
	var want []string
	for i := range 50 {
		name := fmt.Sprintf("event_%d", i)
		a.event(schemas.Custom{Name: name})
		other.event(schemas.Custom{Name: "noise"})
		want = append(want, "context "+name)
	}
	if diff := cmp.Diff(want, a.names()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	// From the middle on.
	var seqs []uint64
	if err := b.Read(t.Context(), "default", a.id, 0, func(e bus.Entry) error {
		seqs = append(seqs, e.Seq)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := b.Read(t.Context(), "default", a.id, seqs[30], func(bus.Entry) error { n++; return nil }); err != nil || n != 20 {
		t.Errorf("from the 31st on: %d events, %v", n, err)
	}
	// An analysis that is not there ends at once.
	if err := b.Read(t.Context(), "default", schemas.NewID(time.Now()), 0, func(bus.Entry) error { return errors.New("an event") }); err != nil {
		t.Error(err)
	}
}

func TestFollow(t *testing.T) {
	t.Parallel()
	b := start(t)
	a := newAnalysis(t, b)
	a.event(schemas.Custom{Name: "first"})
	caught := make(chan struct{})
	got := make(chan string, 10)
	done := make(chan error, 1)
	go func() {
		done <- b.Follow(t.Context(), "default", a.id, 0, func() { close(caught) }, func(e bus.Entry) error {
			got <- e.Event.Name()
			if e.Event.Name() == "last" {
				return bus.ErrStop
			}
			return nil
		})
	}()
	<-caught
	a.event(schemas.Custom{Name: "last"})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if x, y := <-got, <-got; x != "first" || y != "last" {
		t.Errorf("%s, %s", x, y)
	}
}

func TestOneWriter(t *testing.T) {
	t.Parallel()
	b := start(t)
	account(t, b, oneWriter(t, b))
}

func TestSameBytes(t *testing.T) { sameBytes(t, start(t)) }

// TestBeginContext is a sandbox that has found an analysis without events, and
// takes it up after somebody else has cancelled it or taken it.
func TestBeginContext(t *testing.T) {
	t.Parallel()
	b := start(t)
	s := submit(t, b, "normal")
	early, err := b.BeginContext(t.Context(), "default", s.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Cancel(t.Context(), "default", s.ID, "somebody"); err != nil {
		t.Fatal(err)
	}
	e, err := schemas.NewEvent("default", s.ID, early.NextID(), time.Now(), schemas.OriginHost, schemas.AnalysisSubmitted{Submission: s, Attempt: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := early.Write(t.Context(), e); !errors.Is(err, bus.ErrFenced) {
		t.Errorf("whoever began before the cancellation: %v", err)
	}
	if _, err := b.BeginContext(t.Context(), "default", s.ID); !errors.Is(err, bus.ErrFenced) {
		t.Errorf("whoever begins after it: %v", err)
	}
	entries, err := b.Context(t.Context(), "default", s.ID)
	if err != nil || len(entries) != 2 {
		t.Errorf("%d events, %v", len(entries), err)
	}
}

func TestOneEnding(t *testing.T) {
	t.Parallel()
	b := start(t)
	a := newAnalysis(t, b)
	a.event(schemas.Custom{Name: "begin"})
	endings := []schemas.Typed{schemas.AnalysisCompleted{}, schemas.AnalysisFailed{Reason: "x"}, schemas.AnalysisCancelled{By: "x"}}
	var wg sync.WaitGroup
	got := make([]string, 12)
	for i := range got {
		wg.Add(1)
		go func() {
			defer wg.Done()
			e, err := b.End(context.Background(), "default", a.id, endings[i%3])
			if err != nil {
				t.Error(err)
			}
			got[i] = e.Name()
		}()
	}
	wg.Wait()
	if len(slices.Compact(got)) != 1 {
		t.Errorf("they do not agree: %v", got)
	}
	if n := len(a.names()); n != 2 {
		t.Errorf("%d events: %v", n, a.names())
	}
}

func TestSurvivesRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b, s := startAt(t, dir)
	a := newAnalysis(t, b)
	for range 20 {
		a.event(schemas.Custom{Name: "before"})
	}
	if err := s.Announce(); err != nil {
		t.Fatal(err)
	}
	addr := s.Address()
	s.Kill() // as kill -9 does: nothing is written any more
	s, err := bus.StartServer(dir, bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if s.Address().URL != addr.URL || s.Address().Creds != addr.Creds {
		t.Error("clients that live on will not find the new server")
	}
	a.event(schemas.Custom{Name: "after"}) // over the old connection
	if n := len(a.names()); n != 21 {
		t.Errorf("%d events", n)
	}
}

func TestSecondServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b, _ := startAt(t, dir)
	a := newAnalysis(t, b)
	a.event(schemas.Custom{Name: "before"})
	if _, err := bus.StartServer(dir, bus.ServerOptions{}); !errors.Is(err, bus.ErrInUse) {
		t.Errorf("a second server: %v", err)
	}
	a.event(schemas.Custom{Name: "after"})
	account(t, b, a)
}

func TestListen(t *testing.T) {
	t.Parallel()
	for _, listen := range []string{"0.0.0.0:0", "nonsense", "example.org:4222", "127.0.0.1:x"} {
		if s, err := bus.StartServer(t.TempDir(), bus.ServerOptions{Listen: listen}); err == nil {
			s.Close()
			t.Errorf("it listens on %s", listen)
		}
	}
}

// TestCredentials has who has no credentials, or another server's, refused.
func TestCredentials(t *testing.T) {
	t.Parallel()
	_, s := startAt(t, t.TempDir())
	_, other := startAt(t, t.TempDir())
	a := s.Address()
	for _, bad := range []bus.Address{{URL: a.URL}, {URL: strings.Replace(a.URL, "//", "//petri:petri@", 1)}, {URL: a.URL, Creds: other.Address().Creds}} {
		if b, err := bus.Connect(t.Context(), bad, "stranger"); !errors.Is(err, nats.ErrAuthorization) {
			if err == nil {
				b.Close()
			}
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// TestUpgrade starts on a directory of an older Petri, whose server knew one
// user by a password and kept the streams of no account, with the keys lost, and
// as it is.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b, s := startAt(t, dir)
	a := newAnalysis(t, b)
	a.event(schemas.Custom{Name: "before"})
	url := s.Address().URL
	s.Kill()
	streams := filepath.Join(dir, "jetstream")
	of, err := filepath.Glob(filepath.Join(streams, "*", "streams"))
	if err != nil || len(of) != 1 {
		t.Fatalf("the streams lie in %v, %v", of, err)
	}
	if err := os.Rename(filepath.Dir(of[0]), filepath.Join(streams, "$G")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"keys", "users", "accounts.conf"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	old, err := json.Marshal(map[string]any{"url": url, "user": "petri", "password": "old", "pid": 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "nats.json"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	account := ""
	for round, lost := range []bool{false, true, false} {
		if lost {
			if err := os.RemoveAll(filepath.Join(dir, "keys")); err != nil {
				t.Fatal(err)
			}
		}
		s, err := bus.StartServer(dir, bus.ServerOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if s.Address().URL != url {
			t.Errorf("round %d: it is at %s, not at %s", round, s.Address().URL, url)
		}
		b, err := bus.Connect(t.Context(), s.Address(), "test")
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Reconcile(t.Context(), bus.Limits{Log: 64 << 20, Store: 256 << 20}); err != nil {
			t.Fatal(err)
		}
		a.b = b
		if n := len(a.names()); n != 1+round {
			t.Errorf("round %d: %d events", round, n)
		}
		if a.w, err = b.OpenContext(t.Context(), "default", a.id); err != nil {
			t.Fatal(err)
		}
		a.event(schemas.Custom{Name: "after"})
		b.Close()
		s.Kill()
		of, err := filepath.Glob(filepath.Join(streams, "A*", "streams"))
		if err != nil || len(of) != 1 || (of[0] == account) != (round == 2) { // new keys are another account
			t.Fatalf("round %d: the streams lie in %v, %v", round, of, err)
		}
		account = of[0]
	}
}

// TestReadersLeave has readers leave no trace, and one for whom the server has no
// place, of which it has a thousand, wait until there is one.
func TestReadersLeave(t *testing.T) {
	t.Parallel() // it waits until they are forgotten
	b := start(t)
	a := newAnalysis(t, b)
	a.event(schemas.StartAnalysis{})
	consumers := func() int {
		t.Helper()
		st, err := b.JetStream().Stream(t.Context(), "LOG")
		if err != nil {
			t.Fatal(err)
		}
		return st.CachedInfo().State.Consumers
	}
	before := consumers()
	for range 20 {
		a.names()
	}
	if consumers() <= before {
		t.Fatal("readers make no consumers: this tests nothing")
	}
	for end := time.Now().Add(2 * time.Minute); consumers() > before; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("there are %d consumers more", consumers()-before)
		}
	}
	cfg := jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, InactiveThreshold: 10 * time.Second}
	for err := error(nil); err == nil; {
		_, err = b.JetStream().CreateConsumer(t.Context(), "LOG", cfg)
		var full *jetstream.APIError
		if err != nil && (!errors.As(err, &full) || full.ErrorCode != 10026) {
			t.Fatal(err)
		}
	}
	if got := a.names(); len(got) != 1 {
		t.Errorf("read %v", got)
	}
}
