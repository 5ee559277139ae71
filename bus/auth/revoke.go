// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// Revoke takes a user's credentials back: those in the installation's file
// users/NAME.creds. It signs the account anew, into the configuration of every
// server, and tells the servers at url, which then cut the user off; an empty url
// leaves that to their next start with the new configuration. The file goes last:
// what was cut short is made good by doing it again. It returns how many servers
// were told.
func Revoke(ctx context.Context, dir, url, user string) (told int, err error) {
	if user == "" || user != filepath.Base(user) {
		return 0, fmt.Errorf("%.80q is no user's name, such as analyzer-yara or user-acme", user)
	}
	path := filepath.Join(dir, "users", user+".creds")
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("there is no user %s: %s is not there (the users there are: %s)", user, path, filepath.Join(dir, "users", "*.creds"))
	}
	if err != nil {
		return 0, fmt.Errorf("read the credentials to revoke: %w", err)
	}
	token, err := jwt.ParseDecoratedJWT(text)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	claims, err := jwt.DecodeUserClaims(token)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	operator, err := loadKey(dir, operatorKey)
	if err != nil {
		return 0, err
	}
	role, _, _ := strings.Cut(claims.Name, "-")
	account, err := loadKey(dir, keyOf(Role(role)))
	if err != nil {
		return 0, err
	}
	id, err := account.PublicKey()
	if err != nil {
		return 0, err
	}
	configs, err := filepath.Glob(filepath.Join(dir, "nodes", "*", "nats.conf"))
	if len(configs) == 0 && err == nil { // of one machine
		configs, err = filepath.Glob(filepath.Join(dir, localConfig))
	}
	if err != nil || len(configs) == 0 {
		return 0, fmt.Errorf("%s has no servers' configurations: %w", dir, errors.Join(err, os.ErrNotExist))
	}
	signed, err := signRevocation(configs, id, claims.Subject, operator)
	if err != nil {
		return 0, err
	}
	if url != "" {
		if told, err = tell(ctx, dir, url, id, signed, len(configs)); err != nil {
			return told, err
		}
	}
	return told, os.Remove(path)
}

// maxConf bounds a server's configuration in bytes; an account's token grows
// with what is revoked.
const maxConf = 4 << 20

// readConfig reads a server's configuration.
func readConfig(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConf+1))
	if err == nil && len(text) > maxConf {
		err = fmt.Errorf("%s has more than %d bytes", path, maxConf)
	}
	return text, err
}

// signRevocation revokes a key in the account that the configurations hold, and
// returns the account's new token.
func signRevocation(configs []string, account, user string, operator nkeys.KeyPair) (string, error) {
	line := regexp.MustCompile(`(?m)^(\s*` + regexp.QuoteMeta(account) + `:\s*)(\S+)$`)
	var signed string
	for _, path := range configs {
		text, err := readConfig(path)
		if err != nil {
			return "", err
		}
		m := line.FindSubmatch(text)
		if m == nil {
			return "", fmt.Errorf("%s does not name the account %s", path, account)
		}
		if signed == "" { // all have the same
			c, err := jwt.DecodeAccountClaims(string(m[2]))
			if err != nil {
				return "", fmt.Errorf("read the account in %s: %w", path, err)
			}
			c.Revoke(user)
			if signed, err = c.Encode(operator); err != nil {
				return "", fmt.Errorf("sign the account: %w", err)
			}
		}
		if err := replace(path, line.ReplaceAll(text, []byte("${1}"+signed))); err != nil {
			return "", err
		}
	}
	return signed, nil
}

// tellTime is how long the servers may take to take an account.
const tellTime = 10 * time.Second

// tell gives the servers the account's new token, as a user of the system's
// account that lives only here, and returns how many have taken it.
func tell(ctx context.Context, dir, url, account, token string, servers int) (int, error) {
	sys, err := loadKey(dir, systemKey)
	if err != nil {
		return 0, err
	}
	key, err := nkeys.CreateUser()
	if err != nil {
		return 0, err
	}
	id, err := key.PublicKey()
	if err != nil {
		return 0, err
	}
	c := jwt.NewUserClaims(id)
	c.Name, c.Expires = "petri bus revoke", time.Now().Add(10*time.Minute).Unix()
	own, err := c.Encode(sys)
	if err != nil {
		return 0, err
	}
	opts := []nats.Option{nats.UserJWT(func() (string, error) { return own, nil }, key.Sign), nats.Timeout(5 * time.Second)}
	if ca := filepath.Join(dir, "ca", "ca.pem"); exists(ca) { // one machine needs none
		opts = append(opts, nats.RootCAs(ca))
	}
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		return 0, fmt.Errorf("tell the servers: %w (do it again when they run, or start them with the new configurations)", err)
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	answers, err := nc.SubscribeSync(nc.NewInbox())
	if err != nil {
		return 0, err
	}
	if err := nc.PublishRequest("$SYS.REQ.ACCOUNT."+account+".CLAIMS.UPDATE", answers.Subject, []byte(token)); err != nil {
		return 0, err
	}
	for n := 0; ; n++ {
		if n == servers {
			return n, nil
		}
		m, err := answers.NextMsgWithContext(ctx)
		if err != nil {
			return n, fmt.Errorf("%d of %d servers have taken the account: %w (do it again when all run, or start the others with the new configurations)", n, servers, err)
		}
		var a struct {
			Data *struct {
				Message string `json:"message"`
			} `json:"data"`
			Error *struct {
				Description string `json:"description"`
			} `json:"error"`
		}
		if err := json.Unmarshal(m.Data, &a); err != nil {
			return n, fmt.Errorf("read a server's answer: %w", err)
		}
		// A server that nobody of the account uses does not take it.
		if a.Error != nil || a.Data == nil || a.Data.Message != "jwt updated" {
			return n, fmt.Errorf("a server does not take the account: %.500s (start it with the new configuration)", m.Data)
		}
	}
}
