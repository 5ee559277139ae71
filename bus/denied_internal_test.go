// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/petri-sandbox/petri/schemas"
)

// TestDenied has calls of who may hardly anything say so, and say it at once.
func TestDenied(t *testing.T) {
	t.Parallel()
	ns, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(), MaxPayload: 2 * MaxPayload,
		Users: []*server.User{{Username: "root", Password: "r"}, {Username: "poor", Password: "p", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{apiPrefix + "INFO", "petri.acme.*.receipt.>", apiPrefix + "STREAM.INFO.>"}},
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	t.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	if !ns.ReadyForConnections(time.Minute) {
		t.Fatal("the server does not start")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	root, err := Connect(ctx, Address{URL: "nats://root:r@" + ns.Addr().String()}, "root")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := root.Reconcile(ctx, Limits{Log: 64 << 20, Store: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	b, err := Connect(ctx, Address{URL: "nats://poor:p@" + ns.Addr().String()}, "poor")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	const tenant = "acme"
	id := schemas.NewID(time.Now())
	batch := func(subjects ...string) error {
		var msgs []batchMsg
		for i, s := range subjects {
			msgs = append(msgs, batchMsg{subject: s, id: s, body: []byte{byte('0' + i)}})
		}
		_, err := b.publishBatch(ctx, msgs)
		return err
	}
	receipt, finding := "petri.acme."+id+".receipt.live.yara._", "petri.acme."+id+".finding.high.yara._.0"
	if err := batch(receipt); err != nil {
		t.Fatalf("what is allowed: %v", err)
	}
	for what, f := range map[string]func() error{
		"a flight": func() error {
			f := newFlight(b, 2)
			for i := range 4 {
				if err := f.publish(ctx, "$O.ART.C.x", []byte("x"), "x"+string(rune('0'+i))); err != nil {
					return err
				}
			}
			return f.wait(ctx)
		},
		"a large artifact": func() error {
			_, _, err := b.Artifacts().Put(ctx, schemas.KindSample, strings.NewReader(strings.Repeat("x", 3*frameSize)))
			return err
		},
		"an artifact":         func() error { _, err := b.Artifacts().Stat(ctx, schemas.Sum(nil)); return err },
		"a batch":             func() error { return batch(finding, finding) },
		"a batch's beginning": func() error { return batch(finding, receipt) },
		"a batch's end":       func() error { return batch(receipt, finding) },
		"an event": func() error {
			_, err := b.publishOne(ctx, batchMsg{first: true, subject: finding, id: "x"})
			return err
		},
		"a list":              func() error { _, err := b.List(ctx, tenant, 0); return err },
		"a list of analyzers": func() error { _, err := b.Analyzers(ctx); return err },
		"the queue":           func() error { return b.Queued(ctx, func(QueuedJob) error { return nil }) },
		"a lease":             func() error { _, err := b.Leased(ctx, id); return err },
		"a run":               func() error { _, err := b.Run(ctx, "r-"+id); return err },
		"a value":             func() error { return b.putSummary(ctx, Summary{Tenant: tenant, Analysis: id}) },
		"a key": func() error {
			kv, err := b.js.KeyValue(ctx, kvState)
			if err == nil {
				_, err = kv.Get(ctx, "acme.x")
			}
			return err
		},
		"reading":               func() error { return b.Read(ctx, tenant, id, 0, func(Entry) error { return nil }) },
		"a consumer":            func() error { return b.follow(ctx, []string{"petri.>"}, 0, nil, func(Entry) error { return nil }) },
		"watching an analysis":  func() error { return b.Watch(ctx, tenant, id, Feed{Event: func(schemas.Event) error { return nil }}) },
		"watching all":          func() error { return b.Live(ctx, tenant, Feed{Event: func(schemas.Event) error { return nil }}) },
		"following the endings": func() error { return b.Endings(ctx, "x", func(context.Context, schemas.Event) error { return nil }) },
		"cancelling":            func() error { return b.Cancel(ctx, tenant, id, "x") },
		"dead letters":          func() error { return b.DeadLetters(ctx, func(DeadLetter) error { return nil }) },
	} {
		t.Run(what, func(t *testing.T) {
			begin := time.Now()
			if err := f(); !errors.Is(err, ErrDenied) {
				t.Errorf("it says %v", err)
			}
			if took := time.Since(begin); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, subject string
		want             bool
	}{
		{"a.b", "a.b", true}, {"a.b", "a", false}, {"a", "a.b", false}, {"a.b", "a.c", false},
		{"a.*", "a.b", true}, {"a.*", "a.b.c", false}, {"*.b", "a.b", true}, {"a.*.c", "a.b.c", true},
		{"a.>", "a.b", true}, {"a.>", "a.b.c", true}, {"a.>", "a", false}, {"a.>", "b.a", false}, {">", "a", true},
		{"a.b.>", "a.b", false}, {"a.*.>", "a.b.c", true}, {"a.*.>", "a.b", false},
	} {
		if got := matches(c.pattern, c.subject); got != c.want {
			t.Errorf("%s matches %s: %v", c.pattern, c.subject, got)
		}
	}
}
