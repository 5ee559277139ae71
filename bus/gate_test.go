// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

func TestGate(t *testing.T) {
	t.Parallel()
	b := start(t)
	e, err := schemas.NewEvent("default", schemas.NewID(time.Now()), "x", time.Now(), schemas.OriginHost, schemas.RunSample{Path: "/root/x"})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(limit time.Duration) (schemas.GateAnswer, error) {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		body, err := b.AskGate(ctx, "default", "approve", e)
		if err != nil {
			return schemas.GateAnswer{}, err
		}
		var a schemas.GateAnswer
		return a, json.Unmarshal(body, &a)
	}
	if _, err := ask(time.Minute); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("a gate that nobody serves: %v", err)
	}
	if _, err := b.AskGate(t.Context(), "default", "a.b", e); err == nil {
		t.Error("a gate of two tokens was asked")
	}
	ctx, cancel := context.WithCancel(t.Context())
	end := make(chan error, 1)
	var silent bool // for the service, between two questions
	go func() {
		end <- b.ServeGate(ctx, "default", "approve", func(_ context.Context, got schemas.Event) (*schemas.GateAnswer, error) {
			if got.ID != e.ID || got.Name() != "run_sample" {
				t.Errorf("asked about %+v", got)
			}
			if silent {
				return nil, nil
			}
			return &schemas.GateAnswer{Decision: "stop", Reason: "no"}, nil
		})
	}()
	var a schemas.GateAnswer
	for err = error(bus.ErrNotFound); errors.Is(err, bus.ErrNotFound); { // until it serves
		a, err = ask(time.Minute)
	}
	if err != nil || a.Decision != "stop" || a.Reason != "no" {
		t.Errorf("%+v, %v", a, err)
	}
	silent = true
	if _, err := ask(100 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent gate: %v", err)
	}
	cancel()
	if err := <-end; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
