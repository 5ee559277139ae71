// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"crypto/tls"
	"fmt"
	"os"

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
