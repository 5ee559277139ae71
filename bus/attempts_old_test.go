// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/auth"
	"github.com/petri-sandbox/petri/schemas"
)

// TestAttemptsOldCredentials has an analyzer's credentials from before attempts
// were counted: it works, and is told what to run; after that it counts.
func TestAttemptsOldCredentials(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b, s := startAt(t, dir)
	creds, err := auth.Credentials(dir, auth.Analyzer, "static")
	if err != nil {
		t.Fatal(err)
	}
	withoutAttempts(t, dir, creds)
	connect := func() *bus.Bus {
		t.Helper()
		a, err := bus.Connect(t.Context(), bus.Address{URL: s.Address().URL, Creds: creds}, "static")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(a.Close)
		return a
	}
	old := connect()
	register(t, b, "static", schemas.KindSample)
	a := newAnalysis(t, b)
	a.artifact(schemas.KindSample, "the sample", 0)
	task := next(t, old, "static")
	if err := task.Begin(t.Context()); err != nil { // the first time is not written down
		t.Error(err)
	}
	if err := task.Retry(time.Millisecond); err != nil {
		t.Fatal(err)
	}
	task = next(t, old, "static")
	if task.Attempt != 2 {
		t.Errorf("attempt 2 is %d", task.Attempt)
	}
	if err := task.Begin(t.Context()); !errors.Is(err, bus.ErrDenied) || !strings.Contains(err.Error(), "run petri bus renew") {
		t.Errorf("with credentials that do not allow it: %v", err)
	}
	if err := task.Retry(time.Millisecond); err != nil {
		t.Fatal(err)
	}
	old.Close()

	if _, err := auth.OpenLocal(dir, nil); err != nil { // it renews the users as petri bus renew does
		t.Fatal(err)
	}
	renewed := connect()
	task = next(t, renewed, "static")
	if task.Attempt != 2 { // nothing of the second was written down
		t.Errorf("what was not written down counts as attempt %d", task.Attempt)
	}
	if err := task.Begin(t.Context()); err != nil {
		t.Error(err)
	}
}

// withoutAttempts signs credentials as they were before there was the bucket.
func withoutAttempts(t *testing.T, dir, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.ParseDecoratedJWT(text)
	if err != nil {
		t.Fatal(err)
	}
	c, err := jwt.DecodeUserClaims(token)
	if err != nil {
		t.Fatal(err)
	}
	before := len(c.Pub.Allow)
	c.Pub.Allow = slices.DeleteFunc(c.Pub.Allow, func(s string) bool { return strings.Contains(s, "ATTEMPTS") })
	if len(c.Pub.Allow) == before {
		t.Fatal("the credentials had no right to take")
	}
	seed, err := os.ReadFile(filepath.Join(dir, "keys", "analyzers.nk"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := nkeys.FromSeed(bytes.TrimSpace(seed))
	if err != nil {
		t.Fatal(err)
	}
	if token, err = c.Encode(key); err != nil {
		t.Fatal(err)
	}
	user, err := jwt.ParseDecoratedUserNKey(text)
	if err != nil {
		t.Fatal(err)
	}
	if seed, err = user.Seed(); err != nil {
		t.Fatal(err)
	}
	if text, err = jwt.FormatUserConfig(token, seed); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}
