// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"os"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"

	"github.com/petri-sandbox/petri/bus/auth"
)

// User is the name of who connects, empty if no credentials say it.
func (a Address) User() (string, error) {
	_, user, err := a.auth()
	return user, err
}

// auth is how a client shows who it is, and sees who the server is. It returns
// the user's name too, empty if there is none.
func (a Address) auth() (opts []nats.Option, user string, err error) {
	if a.Creds != "" {
		text, err := os.ReadFile(a.Creds)
		if err != nil {
			return nil, "", fmt.Errorf("read the credentials: %w (petri bus init and petri bus user make them)", err)
		}
		token, err := jwt.ParseDecoratedJWT(text)
		if err != nil {
			return nil, "", fmt.Errorf("%s holds no credentials: %w (petri bus init and petri bus user make them)", a.Creds, err)
		}
		claims, err := jwt.DecodeUserClaims(token)
		if err != nil {
			return nil, "", fmt.Errorf("%s holds no credentials: %w (petri bus init and petri bus user make them)", a.Creds, err)
		}
		user = claims.Name
		opts = append(opts, nats.UserCredentials(a.Creds))
	}
	if a.CA != "" {
		if _, err := os.Stat(a.CA); err != nil {
			return nil, "", fmt.Errorf("read the authority: %w (petri bus init makes it: DIR/ca/ca.pem)", err)
		}
		opts = append(opts, nats.RootCAs(a.CA), nats.Secure(&tls.Config{MinVersion: tls.VersionTLS13}))
	}
	if a.dir != "" {
		opts = append(opts, nats.SetCustomDialer(a))
	}
	if user != "" {
		// Its permissions name its inbox, where nobody else may listen.
		opts = append(opts, nats.CustomInboxPrefix(auth.InboxPrefix(user)))
	}
	return opts, user, nil
}

// Dial connects to the server that runs on the data directory by now, or to the
// one that was there, if none does.
func (a Address) Dial(network, address string) (net.Conn, error) {
	if now, err := ReadAddress(a.dir); err == nil {
		if u, err := url.Parse(now.URL); err == nil && u.Host != "" {
			address = u.Host
		}
	}
	return net.DialTimeout(network, address, dialTimeout)
}

const dialTimeout = 5 * time.Second
