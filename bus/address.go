// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
)

// auth is how a client shows who it is, and sees who the server is. It returns
// the user's name too, empty if there is none.
func (a Address) auth() (opts []nats.Option, user string, err error) {
	user = a.User
	if a.User != "" {
		opts = append(opts, nats.UserInfo(a.User, a.Password))
	}
	if a.Creds != "" {
		text, err := os.ReadFile(a.Creds)
		if err != nil {
			return nil, "", fmt.Errorf("read the credentials: %w (petri bus init and petri bus user make them)", err)
		}
		token, err := jwt.ParseDecoratedJWT(text)
		if err != nil {
			return nil, "", fmt.Errorf("read the credentials %s: %w", a.Creds, err)
		}
		claims, err := jwt.DecodeUserClaims(token)
		if err != nil {
			return nil, "", fmt.Errorf("read the credentials %s: %w", a.Creds, err)
		}
		user = claims.Name
		opts = append(opts, nats.UserCredentials(a.Creds))
	}
	if a.CA != "" {
		if _, err := os.Stat(a.CA); err != nil {
			return nil, "", fmt.Errorf("read the authority: %w", err)
		}
		opts = append(opts, nats.RootCAs(a.CA), nats.Secure(&tls.Config{MinVersion: tls.VersionTLS13}))
	}
	if user != "" {
		// Its permissions name its inbox, where nobody else may listen.
		opts = append(opts, nats.CustomInboxPrefix("_INBOX_"+user))
	}
	return opts, user, nil
}

// denials are the subjects that the server has said the client may not use, and
// when. It says so on the side: the call that was refused only finds that nobody
// answers.
type denials struct {
	mu   sync.Mutex
	last map[string]time.Time // by the server's words
}

// maxDenials bounds what is remembered.
const maxDenials = 1000

func (d *denials) note(err error) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.last == nil || len(d.last) >= maxDenials {
		d.last = map[string]time.Time{}
	}
	d.last[err.Error()] = time.Now()
}

// since returns an error if the use of a subject was refused after a time.
func (d *denials) since(subject string, t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for text, at := range d.last {
		if !at.Before(t) && strings.Contains(text, `"`+subject+`"`) {
			return fmt.Errorf("%s: %w", subject, ErrDenied)
		}
	}
	return nil
}

// asking makes f, which asks or publishes on a subject, say if it was not
// allowed to, where it would say that nobody answers.
func (b *Bus) asking(subject string, f func(ctx context.Context) error) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		begin := time.Now()
		err := f(ctx)
		if err != nil && transient(err) {
			if denied := b.denied.since(subject, begin); denied != nil {
				return denied
			}
		}
		return err
	}
}
