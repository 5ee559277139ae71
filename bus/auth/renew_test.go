// SPDX-License-Identifier: Apache-2.0

package auth_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/petri-sandbox/petri/bus/auth"
)

// TestRenew has an installation without accounts per role get them, and a server
// with the new configuration take new credentials, and those of before.
func TestRenew(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bus")
	if err := auth.Init(dir, auth.Options{Hosts: []string{"127.0.0.1"}, Port: 4222, Tenants: []string{"acme"}, Analyzers: []string{"static"}, MaxPayload: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	// What an older Petri made: one key and one account for everybody.
	petri, err := os.ReadFile(filepath.Join(dir, "keys", "petri.nk"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := nkeys.FromSeed([]byte(strings.TrimSpace(string(petri))))
	if err != nil {
		t.Fatal(err)
	}
	account, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	creds := filepath.Join(dir, "users", "user-acme.creds")
	if err := os.Remove(creds); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"analyzers", "reporters", "users"} {
		if err := os.WriteFile(filepath.Join(dir, "keys", name+".nk"), petri, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := auth.AddUser(dir, auth.User, "acme", auth.UserOptions{}); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(t.TempDir(), "old.creds")
	text, err := os.ReadFile(creds)
	if err == nil {
		err = os.WriteFile(old, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"analyzers", "reporters", "users"} {
		if err := os.Remove(filepath.Join(dir, "keys", name+".nk")); err != nil {
			t.Fatal(err)
		}
	}

	for range 2 { // the second time changes nothing
		if err := auth.Renew(dir, []string{"static"}); err != nil {
			t.Fatal(err)
		}
	}
	now, err := os.ReadFile(creds)
	if err != nil {
		t.Fatal(err)
	}
	before, after := claims(t, string(text)), claims(t, string(now))
	if before.Issuer != account || after.Issuer == account || after.Subject != before.Subject {
		t.Errorf("of %+v became %+v", before, after)
	}
	t.Chdir(filepath.Join(dir, "nodes", "127.0.0.1"))
	opts, err := server.ProcessConfigFile("nats.conf")
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
	for what, path := range map[string]string{"new": creds, "old": old, "the bus'": filepath.Join(dir, "users", "bus.creds"), "the analyzers'": filepath.Join(dir, "users", "analyzer-builtin.creds")} {
		nc, _, err := connectAs(dir, s.ClientURL(), path)
		if err != nil {
			t.Errorf("%s credentials: %v", what, err)
			continue
		}
		nc.Close()
	}
	if err := auth.Renew(t.TempDir(), nil); err == nil {
		t.Error("renewed what is no installation")
	}
}
