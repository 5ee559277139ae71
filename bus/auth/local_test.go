// SPDX-License-Identifier: Apache-2.0

package auth_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/auth"
)

// files reads everything of an installation.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if fi.Mode().Perm() != 0o600 {
			t.Errorf("%s can be read by others: %v", path, fi.Mode())
		}
		text, err := os.ReadFile(path)
		all[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestLocal has the installation of one machine stay as it is, and what an older
// Petri would have signed otherwise be signed anew, for the same users.
func TestLocal(t *testing.T) {
	dir := t.TempDir()
	first, err := auth.OpenLocal(dir, []string{"static"})
	if err != nil {
		t.Fatal(err)
	}
	mine, err := auth.AddUser(dir, auth.Analyzer, "mine", auth.UserOptions{Expires: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	was := files(t, dir)
	open := func(analyzers ...string) map[string]string {
		t.Helper()
		again, err := auth.OpenLocal(dir, analyzers)
		if err != nil {
			t.Fatal(err)
		}
		if again != first {
			t.Errorf("it is %+v, not %+v", again, first)
		}
		now := files(t, dir)
		for path := range was {
			if now[path] == "" {
				t.Errorf("%s is gone", path)
			}
		}
		return now
	}
	changed := func(now map[string]string) (out []string) {
		for path := range now {
			if now[path] != was[path] {
				out = append(out, filepath.Base(path))
			}
		}
		slices.Sort(out)
		return out
	}
	if c := changed(open("static")); len(c) != 0 {
		t.Errorf("opened anew, %v changed", c)
	}
	if c := changed(open()); len(c) != 0 {
		t.Errorf("opened by who does not know the analyzers, %v changed", c)
	}
	now := open("static", "archive")
	if c := changed(now); !slices.Equal(c, []string{"analyzer-builtin.creds"}) {
		t.Errorf("with one more analyzer, %v changed", c)
	}
	builtin := filepath.Join(dir, "users", "analyzer-builtin.creds")
	before, after := claims(t, was[builtin]), claims(t, now[builtin])
	if before.Subject != after.Subject || before.Pub.Allow.Contains("in.archive.*") || !after.Pub.Allow.Contains("in.archive.*") {
		t.Errorf("of the analyzers' credentials %+v became %+v", before, after)
	}

	// Without the keys all that is signed is signed by new ones.
	if err := os.RemoveAll(filepath.Join(dir, "keys")); err != nil {
		t.Fatal(err)
	}
	again, err := auth.OpenLocal(dir, []string{"static"})
	if err != nil || again.Account == first.Account {
		t.Fatalf("without keys it is %+v, %v", again, err)
	}
	before, after = claims(t, was[mine]), claims(t, files(t, dir)[mine])
	if after.Issuer == before.Issuer || after.Subject != before.Subject || after.Expires != before.Expires {
		t.Errorf("of an analyzer's credentials %+v became %+v", before, after)
	}
}

func claims(t *testing.T, creds string) *jwt.UserClaims {
	t.Helper()
	token, err := jwt.ParseDecoratedJWT([]byte(creds))
	if err != nil {
		t.Fatal(err)
	}
	c, err := jwt.DecodeUserClaims(token)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestLocalRevoke takes credentials of one machine's server back: at once, and
// for the next server too.
func TestLocalRevoke(t *testing.T) {
	dir, url := serveLocal(t)
	creds := address(dir, url, "analyzer-yara").Creds
	stolen := filepath.Join(t.TempDir(), "stolen.creds")
	text, err := os.ReadFile(creds)
	if err == nil {
		err = os.WriteFile(stolen, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	end := make(chan struct{})
	nc, err := nats.Connect(url, nats.UserCredentials(stolen), nats.NoReconnect(), nats.Timeout(time.Minute), nats.ClosedHandler(func(*nats.Conn) { close(end) }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if n, err := auth.Revoke(t.Context(), dir, url, "analyzer-yara"); err != nil || n != 1 {
		t.Fatalf("revoke: %d servers, %v", n, err)
	}
	select {
	case <-end:
	case <-time.After(2 * time.Minute):
		t.Fatal("a revoked analyzer is still connected")
	}
	// The next server reads it, on a directory of its own.
	other := t.TempDir()
	for _, name := range []string{"keys", "users", "accounts.conf"} {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(other, name)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := bus.StartServer(other, bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := nats.Connect(s.Address().URL, nats.UserCredentials(stolen), nats.Timeout(time.Minute)); !errors.Is(err, nats.ErrAuthRevoked) && !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("revoked credentials connect: %v", err)
	}
	nc, err = nats.Connect(s.Address().URL, nats.UserCredentials(filepath.Join(other, "users", "user-acme.creds")), nats.Timeout(time.Minute))
	if err != nil {
		t.Fatalf("others are refused: %v", err)
	}
	nc.Close()
}
