// SPDX-License-Identifier: Apache-2.0

package app_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/protocol"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
)

// TestPrepareRefusesWhatDoesNotFit into the guest's message or the log's event.
func TestPrepareRefusesWhatDoesNotFit(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	sample := write("sample", "#!/bin/sh\n")
	stdin := write("stdin", strings.Repeat("x", machine.MaxStdin))
	// Encoded, each < is six bytes.
	long := write("long.yaml", protocol.Default+"#"+strings.Repeat("<", 60_000))
	tests := []struct {
		name string
		req  app.Request
		want string
	}{
		{"nothing", app.Request{}, ""},
		{"arguments", app.Request{Options: schemas.Options{Args: []string{strings.Repeat("a", 40_000)}}}, ""},
		{"long arguments", app.Request{Options: schemas.Options{Args: []string{strings.Repeat("a", 60_000)}}}, "shorten the sample's arguments, 60004 bytes"},
		{"stdin", app.Request{Stdin: stdin}, ""},
		{"stdin and environment", app.Request{Stdin: stdin, Options: schemas.Options{Env: map[string]string{"A": strings.Repeat("a", 20_000)}}}, "shorten --stdin, "},
		{"environment", app.Request{Options: schemas.Options{Env: map[string]string{"A": strings.Repeat("a", 70_000)}}}, "shorten --env, "},
		{"command", app.Request{Options: schemas.Options{Command: []string{"sh", strings.Repeat("<", 10_000)}}}, "shorten --command, "},
		{"protocol", app.Request{Protocol: long}, "an event of the log has 249856 at most (shorten the protocol, "},
	}
	for _, tt := range tests {
		tt.req.Path = sample
		p, err := app.Prepare(tt.req)
		if tt.want != "" {
			if err == nil || !errors.Is(err, app.ErrBadInput) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s:\n got %v\nwant %s", tt.name, err, tt.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		defer p.Close()
		s := p.Submission
		e, err := schemas.NewEvent(s.Tenant, s.ID, s.ID+"/context/0001", s.Submitted, schemas.OriginHost, schemas.AnalysisSubmitted{Submission: s, Attempt: 1})
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := json.Marshal(e); len(b) > bus.MaxEvent-4<<10 {
			t.Errorf("%s: an event of %d bytes", tt.name, len(b))
		}
		run := machine.Run{RunSample: schemas.RunSample{Command: append(s.Options.Command, s.Options.Args...), Env: s.Options.Env}, Stdin: s.Options.Stdin}
		if b, _ := json.Marshal(run); len(b) > wire.MaxPayload-8<<10 {
			t.Errorf("%s: a request of %d bytes", tt.name, len(b))
		}
	}
}
