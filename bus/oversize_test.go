// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// TestOversize sends more than every bound: who does so hears which it was, stays
// connected, and can go on; nothing of it is stored, and nothing else is lost.
func TestOversize(t *testing.T) {
	t.Parallel()
	b := start(t)
	clerk(t, b)
	register(t, b, "static", schemas.KindSample)
	a := newAnalysis(t, b)
	ref := a.refs("static", 1)[0]
	a.event(schemas.Custom{Name: "before"})
	js := b.JetStream()
	lost := make(chan struct{}, 1)
	js.Conn().SetDisconnectErrHandler(func(*nats.Conn, error) { lost <- struct{}{} })
	code := func(err error, want jetstream.ErrorCode) bool {
		var api *jetstream.APIError
		return errors.As(err, &api) && api.ErrorCode == want
	}
	before := messages(t, b, "LOG")

	e, err := schemas.NewEvent("default", a.id, a.w.NextID(), time.Now(), schemas.OriginHost, schemas.AnalysisFailed{Reason: "x", Error: strings.Repeat("x", bus.MaxEvent)})
	if err != nil {
		t.Fatal(err)
	}
	finding := schemas.Finding{Kind: "x", Title: strings.Repeat("x", bus.MaxPayload)}
	for what, tt := range map[string]struct {
		err error
		is  func(error) bool
	}{
		"an event": {a.w.Write(t.Context(), e), func(err error) bool { return strings.Contains(err.Error(), "bytes, more than") || code(err, 10054) }},
		"an answer": {b.Finish(t.Context(), schemas.FinishedTask{Task: ref, Version: "1.0.0", Instance: "i", Status: schemas.TaskDone, Findings: []schemas.Finding{finding}}),
			func(err error) bool { return strings.Contains(err.Error(), "bytes, more than") }},
		"an event's id": {b.PublishReport(t.Context(), schemas.Event{ID: strings.Repeat("x", 70<<10), Tenant: "default", Analysis: a.id}, "json"),
			func(err error) bool { return code(err, 10097) }}, // JetStream stores headers of 64 KiB
	} {
		if tt.err == nil || !tt.is(tt.err) {
			t.Errorf("%s that is too large: %.300v", what, tt.err)
		}
	}
	// Somebody else's client, which knows no bound.
	if _, err := js.Publish(t.Context(), "petri.default."+a.id+".context.huge", make([]byte, bus.MaxEvent+1)); !code(err, 10054) {
		t.Errorf("a message that the log does not take: %v", err)
	}
	if _, err := js.Publish(t.Context(), "in.static.huge", make([]byte, js.Conn().MaxPayload()+1)); !errors.Is(err, nats.ErrMaxPayload) {
		t.Errorf("a message that the server does not take: %v", err)
	}
	if n := messages(t, b, "LOG"); n != before {
		t.Errorf("the log has %d messages, and had %d", n, before)
	}
	a.event(schemas.StartAnalysis{})
	finish(t, b, next(t, b, "static"), schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "x", Title: "x"}}})
	if missing := a.wait(time.Minute); len(missing) > 0 {
		t.Errorf("missing: %+v", missing)
	}
	select {
	case <-lost:
		t.Error("the connection was lost")
	default:
	}
	account(t, b, a)
}
