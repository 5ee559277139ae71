// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/nats-io/jwt/v2"

	"github.com/petri-sandbox/petri/schemas"
)

// A Local is the installation of the server that Petri runs by itself on one
// machine. It lies in the data directory: keys and users as [Init] makes them,
// and one file that the server reads its accounts from.
type Local struct {
	Config  string // that file
	Account string // whose directory the streams lie in
}

const localConfig = "accounts.conf"

// IsLocal reports whether the installation in a directory is that of one machine.
func IsLocal(dir string) bool { return exists(filepath.Join(dir, localConfig)) }

// OpenLocal makes what is not there of the installation in a data directory, and
// signs anew what an older Petri has signed otherwise. analyzers are those that
// Petri brings; nil leaves the credentials of their process as they are. Nobody
// else may open the directory meanwhile.
func OpenLocal(dir string, analyzers []string) (Local, error) {
	l := Local{Config: filepath.Join(dir, localConfig)}
	for _, d := range []string{"keys", "users"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return l, err
		}
	}
	if err := makeKeys(dir); err != nil {
		return l, fmt.Errorf("make the keys: %w", err)
	}
	key, err := loadKey(dir, petriKey)
	if err != nil {
		return l, err
	}
	if l.Account, err = key.PublicKey(); err != nil {
		return l, err
	}
	before, err := readConfig(l.Config)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return l, err
	}
	now, err := sign(dir, before)
	if err != nil {
		return l, err
	}
	if now != string(before) {
		if err := replace(l.Config, []byte(now)); err != nil {
			return l, fmt.Errorf("write the accounts: %w", err)
		}
	}
	for _, r := range unnamed() {
		if _, err := Credentials(dir, r, ""); err != nil {
			return l, err
		}
	}
	if _, err := Credentials(dir, User, schemas.DefaultTenant); err != nil {
		return l, err
	}
	if analyzers != nil {
		if _, err := Credentials(dir, Analyzer, Builtin, analyzers...); err != nil {
			return l, err
		}
	}
	return l, renewUsers(dir, analyzers)
}

// Renew makes of the installation of an older Petri what [Init] would make: keys
// that are not there, the accounts in the servers' configurations, and what the
// users may do. The log's account stays the same.
func Renew(dir string, analyzers []string) error {
	configs, err := filepath.Glob(filepath.Join(dir, "nodes", "*", "nats.conf"))
	if err != nil || len(configs) == 0 {
		return fmt.Errorf("%s has no servers' configurations: %w (it must be a directory of petri bus init)", dir, errors.Join(err, fs.ErrNotExist))
	}
	if err := makeKeys(dir); err != nil {
		return fmt.Errorf("make the keys: %w", err)
	}
	now := ""
	for _, path := range configs {
		text, err := readConfig(path)
		if err != nil {
			return err
		}
		at := operatorLine.FindIndex(text)
		if at == nil {
			return fmt.Errorf("%s names no operator", path)
		}
		if now == "" { // all have the same
			if now, err = sign(dir, text); err != nil {
				return err
			}
		}
		if err := replace(path, append(text[:at[0]:at[0]], now...)); err != nil {
			return err
		}
	}
	return renewUsers(dir, analyzers)
}

func renewUsers(dir string, analyzers []string) error {
	users, err := filepath.Glob(filepath.Join(dir, "users", "*.creds"))
	if err != nil {
		return err
	}
	for _, path := range users {
		if err := renew(dir, path, analyzers); err != nil {
			return fmt.Errorf("renew %s: %w (if it is none of Petri's take it away)", path, err)
		}
	}
	return nil
}

// Credentials returns the file of the credentials of a role's user in a data
// directory, and makes it if it is not there.
func Credentials(dir string, r Role, name string, analyzers ...string) (string, error) {
	user, err := UserName(r, name)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "users", user+".creds")
	if exists(path) {
		return path, nil
	}
	return AddUser(dir, r, name, UserOptions{Analyzers: analyzers})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// renew signs the credentials in a file anew if their role's may do other things
// now, or the account has another key. The user stays who it was, and ends when
// it did.
func renew(dir, path string, analyzers []string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	token, err := jwt.ParseDecoratedJWT(text)
	if err != nil {
		return err
	}
	c, err := jwt.DecodeUserClaims(token)
	if err != nil {
		return err
	}
	role, name, _ := strings.Cut(c.Name, "-")
	var of []string
	if c.Name == string(Analyzer)+"-"+Builtin {
		if analyzers == nil {
			return nil
		}
		of = analyzers
	}
	p, err := PermissionsOf(Role(role), name, of...)
	if err != nil {
		return err
	}
	account, err := loadKey(dir, keyOf(Role(role)))
	if err != nil {
		return err
	}
	key, err := jwt.ParseDecoratedUserNKey(text)
	if err != nil {
		return err
	}
	c.Permissions = p.claim()
	now, err := keep(token, c, account)
	if err != nil || now == token {
		return err
	}
	return writeUser(path, now, key)
}
