// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/petrifile"
	"github.com/petri-sandbox/petri/schemas"
)

var testKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))

// coverage is what the checkpoints of a log cover.
func coverage(t testing.TB, b *bus.Bus, id, key string) petrifile.Coverage {
	t.Helper()
	log, err := b.Verify(t.Context(), "default", id, key)
	if err != nil {
		t.Fatal(err)
	}
	return log.Coverage()
}

// TestSign signs an analysis twice, moves it between, and finds the signatures
// valid wherever the log lies.
func TestSign(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b, there := start(t), start(t)
	a := newAnalysis(t, b)
	a.event(schemas.AnalysisSubmitted{Attempt: 1})
	a.artifact(schemas.KindSample, "x", 0)
	a.event(schemas.StartAnalysis{})
	s := b.NewSigner(testKey, "default", a.id)
	if err := s.Sign(ctx, schemas.EventStartAnalysis); err != nil {
		t.Fatal(err)
	}
	if err := b.NewSigner(testKey, "default", a.id).Sign(ctx, schemas.EventStartAnalysis); err != nil {
		t.Fatal("signed by one that comes later:", err)
	}
	a.event(schemas.AnalysisCompleted{})
	if err := archiver(b).Archive(ctx, "default", a.id); err != nil {
		t.Fatal(err)
	}
	if err := s.Sign(ctx, schemas.EventCompleted); err != nil {
		t.Fatal(err)
	}
	// Three events, two checkpoints, the ending, and a third checkpoint.
	c := coverage(t, b, a.id, "")
	if c.Events != 7 || c.Covered != 6 || len(c.Checkpoints) != 3 || c.Uncovered["petri.checkpoint.signed.v1"] != 1 {
		t.Errorf("coverage %+v", c)
	}
	for _, p := range c.Checkpoints {
		if p.Problem != "" || p.Key != hex.EncodeToString(testKey.Public().(ed25519.PublicKey)) {
			t.Errorf("checkpoint %+v", p)
		}
	}
	if c := coverage(t, b, a.id, strings.Repeat("0", 64)); c.Covered != 0 {
		t.Errorf("by another key %d events are covered", c.Covered)
	}
	im, err := there.Import(ctx, bytes.NewReader(export(t, b, a.id, bus.ExportOptions{})), bus.ImportOptions{})
	if err != nil || im.Coverage.Covered != 6 {
		t.Errorf("imported %+v, %v", im, err)
	}
}

// TestImportTampered changes a signed log and writes a file of it that is right
// in itself.
func TestImportTampered(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := start(t)
	a := ended(t, b)
	if err := b.NewSigner(testKey, "default", a.id).Sign(ctx, schemas.EventCompleted); err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w, err := petrifile.NewWriter(&buf, petrifile.Header{Tenant: "default", Analysis: a.id, Thin: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Read(ctx, "default", a.id, 0, func(e bus.Entry) error {
		body := bytes.Replace(e.Body, []byte(`"name":"sample"`), []byte(`"name":"simple"`), 1)
		_, err := w.Event(petrifile.Entry{Seq: e.Seq, Subject: e.Subject, Body: body})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	there := start(t)
	if _, err := there.Import(ctx, &buf, bus.ImportOptions{}); !errors.Is(err, bus.ErrTampered) {
		t.Errorf("the error is %v", err)
	}
	if got := bodies(t, there, a.id); len(got) != 0 {
		t.Errorf("%d events are there", len(got))
	}
	account(t, b, a)
}
