// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/petri-sandbox/petri/schemas"
)

// Options are for [Init].
type Options struct {
	Hosts       []string // names or addresses of the servers: one or at least three
	Port        int      // for clients; 0: 4222
	ClusterPort int      // for the other servers; 0: 6222
	Tenants     []string // empty: default
	Analyzers   []string // that Petri brings, for the user of the process that runs them
	MaxPayload  int      // bytes that the servers must take
}

// Builtin is the name of the user of the process that runs the analyzers that
// Petri brings.
const Builtin = "builtin"

// Init makes a new installation in dir, which must not exist or be empty: keys,
// certificates, a configuration per server, and credentials per role. Everything
// that is secret is readable by its owner only.
func Init(dir string, o Options) error {
	if o.Port == 0 {
		o.Port = 4222
	}
	if o.ClusterPort == 0 {
		o.ClusterPort = 6222
	}
	if len(o.Tenants) == 0 {
		o.Tenants = []string{schemas.DefaultTenant}
	}
	if err := o.check(); err != nil {
		return err
	}
	if have, err := os.ReadDir(dir); err == nil && len(have) > 0 {
		return fmt.Errorf("%s is not empty: new keys would shut out everybody who has the old ones (choose another directory)", dir)
	}
	for _, d := range []string{"keys", "ca", "users"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	if err := makeKeys(dir); err != nil {
		return err
	}
	preload, err := sign(dir, nil)
	if err != nil {
		return err
	}
	ca, err := newCA(dir)
	if err != nil {
		return err
	}
	for _, h := range o.Hosts {
		if err := node(dir, h, o, ca, preload); err != nil {
			return err
		}
	}
	for _, r := range unnamed() {
		if _, err := AddUser(dir, r, "", UserOptions{}); err != nil {
			return err
		}
	}
	if _, err := AddUser(dir, Analyzer, Builtin, UserOptions{Analyzers: o.Analyzers}); err != nil {
		return err
	}
	for _, t := range o.Tenants {
		if _, err := AddUser(dir, User, t, UserOptions{}); err != nil {
			return err
		}
	}
	return write(filepath.Join(dir, "README.md"), []byte(readme(o)), 0o600)
}

func (o *Options) check() error {
	if n := len(o.Hosts); n != 1 && n < 3 {
		return fmt.Errorf("%d servers: one server, or at least three, of which more than half must live", n)
	}
	if o.Port == o.ClusterPort && len(o.Hosts) > 1 {
		return fmt.Errorf("clients and the other servers cannot both come to port %d (choose another --port or --cluster-port)", o.Port)
	}
	seen := map[string]bool{}
	for _, h := range o.Hosts {
		if net.ParseIP(h) == nil && !hostName(h) {
			return fmt.Errorf("%.100q is no host name and no address", h)
		}
		if seen[h] {
			return fmt.Errorf("host %s is there twice", h)
		}
		seen[h] = true
	}
	for _, t := range o.Tenants {
		if err := schemas.CheckTenant(t); err != nil {
			return err
		}
	}
	return nil
}

func hostName(s string) bool {
	return s != "" && len(s) < 254 && !strings.HasPrefix(s, "-") && !strings.HasPrefix(s, ".") &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.") == ""
}

// UserOptions are for [AddUser].
type UserOptions struct {
	Analyzers []string      // of a process that runs several
	Expires   time.Duration // from now, when the servers cut the user off; 0: never
}

// AddUser makes the credentials of a role's user in an installation and returns
// their file. The servers need not be told: they know the account that has
// signed them.
func AddUser(dir string, r Role, name string, o UserOptions) (string, error) {
	user, err := UserName(r, name)
	if err != nil {
		return "", err
	}
	p, err := PermissionsOf(r, name, o.Analyzers...)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "users", user+".creds")
	if exists(path) {
		return "", fmt.Errorf("%s exists already (take them back, and make new ones: petri bus revoke %s %s)", path, dir, user)
	}
	account, err := loadKey(dir, keyOf(r))
	if err != nil {
		return "", err
	}
	key, err := nkeys.CreateUser()
	if err != nil {
		return "", err
	}
	id, err := key.PublicKey()
	if err != nil {
		return "", err
	}
	c := jwt.NewUserClaims(id)
	c.Name, c.Permissions = user, p.claim()
	if o.Expires > 0 {
		c.Expires = time.Now().Add(o.Expires).Unix()
	}
	token, err := c.Encode(account)
	if err != nil {
		return "", fmt.Errorf("sign the credentials of %s: %w", user, err)
	}
	return path, writeUser(path, token, key)
}

// writeUser writes a user's credentials.
func writeUser(path, token string, key nkeys.KeyPair) error {
	own, err := key.Seed()
	if err != nil {
		return err
	}
	creds, err := jwt.FormatUserConfig(token, own)
	if err != nil {
		return err
	}
	return replace(path, creds)
}

// write makes a file that was not there.
func write(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
