// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

func registration(version string, kinds ...schemas.Kind) schemas.Registration {
	return schemas.Registration{Name: "yara", Version: version, Scope: schemas.ScopeArtifact, Kinds: kinds, Deadline: schemas.Duration(time.Minute)}
}

// stored counts the messages of a subject of the log.
func stored(t *testing.T, b *bus.Bus, subject string) int {
	t.Helper()
	s, err := b.JetStream().Stream(t.Context(), "LOG")
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(subject))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, k := range info.State.Subjects {
		n += int(k)
	}
	return n
}

func TestRegisterAgain(t *testing.T) {
	t.Parallel()
	b := start(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := b.Register(t.Context(), registration("1.0.0", schemas.KindSample)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := stored(t, b, "petri._registry.yara"); n != 1 {
		t.Errorf("%d registrations of the same words", n)
	}
	a := newAnalysis(t, b)
	a.artifact(schemas.KindSample, "first", 0)
	if err := b.Register(t.Context(), registration("2.0.0", schemas.KindSample, schemas.KindPcap)); err != nil {
		t.Fatal(err)
	}
	a.artifact(schemas.KindPcap, "second", 0)
	if n := stored(t, b, "petri._registry.yara"); n != 2 {
		t.Errorf("%d registrations after a new version", n)
	}
	// A new version goes on where the old one stood.
	for _, want := range []schemas.Kind{schemas.KindSample, schemas.KindPcap} {
		task := next(t, b, "yara")
		if task.Ref.Kind != want {
			t.Errorf("a task of %s, not %s", task.Ref.Kind, want)
		}
	}
	account(t, b, a)
}

func TestUnregister(t *testing.T) {
	t.Parallel()
	b := start(t)
	if err := b.Unregister(t.Context(), "yara"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("who was never there was unregistered: %v", err)
	}
	r := registration("1.0.0", schemas.KindSample)
	a := newAnalysis(t, b)
	for i, text := range []string{"owed", "nobody is asked", "owed again"} {
		if i != 1 {
			if err := b.Register(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		a.artifact(schemas.KindSample, text, 0)
		if i == 0 {
			if err := b.Unregister(t.Context(), "yara"); err != nil {
				t.Fatal(err)
			}
			if err := b.Unregister(t.Context(), "yara"); err == nil || !strings.Contains(err.Error(), "not found") {
				t.Errorf("withdrawn twice: %v", err)
			}
		}
	}
	if got, want := *next(t, b, "yara").Ref.SHA256, schemas.Sum([]byte("owed again")); got != want {
		t.Errorf("after it came back it was given %s, not %s", got, want)
	}
	if n := stored(t, b, "petri._unregistry.yara"); n != 1 {
		t.Errorf("%d withdrawals", n)
	}
	account(t, b, a)
}

// TestRegistrarRefuses has a stranger's words refused with a reason.
func TestRegistrarRefuses(t *testing.T) {
	t.Parallel()
	_, s := startAt(t, t.TempDir())
	a := s.Address()
	nc, err := nats.Connect(a.URL, nats.UserCredentials(a.Creds), nats.Timeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	event := func(data schemas.Typed) []byte {
		e, err := schemas.NewEvent("_registry", "", "x/1", time.Now(), schemas.OriginHost, data)
		if err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	many := registration("1.0.0")
	for _, c := range []struct {
		subject, want string
		body          []byte
	}{
		{"reg.yara", "parse event", []byte("{")},
		{"reg.capa", "cannot be registered on reg.capa", event(registration("1.0.0", schemas.KindSample))},
		{"unreg.capa", "cannot be unregistered on unreg.capa", event(schemas.Unregistration{Name: "yara"})},
		{"reg.yara", "0 kinds", event(many)},
		{"reg.yara", "not a petri.registry.registered.v1", event(schemas.Unregistration{Name: "yara"})},
		{"reg.YARA", "YARA", event(registration("1.0.0", schemas.KindSample))},
	} {
		m, err := nc.Request(c.subject, c.body, time.Minute)
		if err != nil {
			t.Errorf("%s: %v", c.subject, err)
			continue
		}
		var r schemas.Registered
		if err := json.Unmarshal(m.Data, &r); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(r.Error, c.want) || r.Consumer != "" {
			t.Errorf("%s: answered %s, not %q", c.subject, m.Data, c.want)
		}
	}
}

// TestRegisterWaits has an analyzer that is there before its registrar.
func TestRegisterWaits(t *testing.T) {
	t.Parallel()
	s, err := bus.StartServer(t.TempDir(), bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	b, err := bus.Connect(t.Context(), s.Address(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if err := b.Reconcile(t.Context(), bus.Limits{Log: 64 << 20, Store: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	r := registration("1.0.0", schemas.KindSample)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := b.Register(ctx, r); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no registrar") {
		t.Errorf("without a registrar: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- b.Register(t.Context(), r) }()
	registrar(t, b)
	if err := <-done; err != nil {
		t.Error(err)
	}
	beat, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.Heartbeat(beat, "yara", "host.example-1", "1.0.0")
	}()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		alive, err := b.Alive(t.Context())
		if err == nil && alive["yara"] == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("alive: %v, %v", alive, err)
		}
	}
	stop()
	<-ended
}
