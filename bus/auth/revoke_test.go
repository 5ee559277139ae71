// SPDX-License-Identifier: Apache-2.0

package auth_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/petri-sandbox/petri/bus/auth"
)

// connectAs connects without ever connecting again; closed is closed when the
// connection is, for whatever reason.
func connectAs(dir, url, creds string) (nc *nats.Conn, closed <-chan struct{}, err error) {
	end := make(chan struct{})
	nc, err = nats.Connect(url, nats.UserCredentials(creds), nats.RootCAs(filepath.Join(dir, "ca", "ca.pem")), nats.NoReconnect(), nats.Timeout(time.Minute),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), nats.ClosedHandler(func(*nats.Conn) { close(end) }))
	return nc, end, err
}

// TestRevoke has a user whose credentials are taken back cut off, others not,
// and the revocation outlive the server.
func TestRevoke(t *testing.T) {
	dir, url := serve(t)
	users := filepath.Join(dir, "users")
	stolen := filepath.Join(t.TempDir(), "stolen.creds")
	creds, err := os.ReadFile(filepath.Join(users, "user-acme.creds"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stolen, creds, 0o600); err != nil {
		t.Fatal(err)
	}
	acme, closed, err := connectAs(dir, url, stolen)
	if err != nil {
		t.Fatal(err)
	}
	defer acme.Close()
	other, _, err := connectAs(dir, url, filepath.Join(users, "user-other.creds"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if n, err := auth.Revoke(t.Context(), dir, url, "user-acme"); err != nil || n != 1 {
		t.Fatalf("revoke: %d servers, %v", n, err)
	}
	select {
	case <-closed:
	case <-time.After(2 * time.Minute):
		t.Fatal("a revoked user is still connected")
	}
	if _, _, err := connectAs(dir, url, stolen); !errors.Is(err, nats.ErrAuthRevoked) && !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("revoked credentials connect: %v", err)
	}
	if err := other.FlushTimeout(time.Minute); err != nil {
		t.Errorf("another user was cut off: %v", err)
	}
	// New ones are no concern of the revocation.
	fresh, err := auth.AddUser(dir, auth.User, "acme", auth.UserOptions{})
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := connectAs(dir, url, fresh)
	if err != nil {
		t.Fatalf("connect with new credentials: %v", err)
	}
	again.Close()
	// A second one does not undo the first.
	if n, err := auth.Revoke(t.Context(), dir, "", "user-other"); err != nil || n != 0 {
		t.Fatalf("revoke without servers: %d, %v", n, err)
	}
	opts, err := server.ProcessConfigFile(filepath.Join(dir, "nodes", "127.0.0.1", "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	opts.NoSigs, opts.NoLog, opts.Port, opts.StoreDir = true, true, server.RANDOM_PORT, t.TempDir()
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("a server of the new configuration does not start")
	}
	if _, _, err := connectAs(dir, s.ClientURL(), stolen); err == nil {
		t.Error("a server of the new configuration takes revoked credentials")
	}
	nc, _, err := connectAs(dir, s.ClientURL(), fresh)
	if err != nil {
		t.Fatalf("a server of the new configuration refuses others: %v", err)
	}
	nc.Close()
	for _, bad := range []string{"", "../x", "nobody"} {
		if _, err := auth.Revoke(t.Context(), dir, url, bad); err == nil {
			t.Errorf("revoked %q", bad)
		}
	}
}

// TestExpiry has the server cut a user off when its credentials expire.
func TestExpiry(t *testing.T) {
	dir, url := serve(t)
	var creds string
	var nc *nats.Conn
	var closed <-chan struct{}
	for d := 3 * time.Second; ; d *= 3 {
		made := time.Now()
		var err error
		if creds, err = auth.AddUser(dir, auth.User, fmt.Sprint("brief", d), auth.UserOptions{Expires: d}); err != nil {
			t.Fatal(err)
		}
		if nc, closed, err = connectAs(dir, url, creds); err == nil {
			break
		}
		if time.Since(made) < d-time.Second || d > time.Minute { // else it was too brief for this machine
			t.Fatal(err)
		}
	}
	late := time.After(2 * time.Minute)
	for err := error(nil); err == nil; { // within the second in which they expire they connect, and are cut off again
		select {
		case <-closed:
		case <-late:
			t.Fatal("expired credentials stay connected")
		}
		nc.Close()
		nc, closed, err = connectAs(dir, url, creds)
	}
}
