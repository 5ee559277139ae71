// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// authority signs the servers' certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// lifetime of certificates: that of a machine. They are made anew by a new
// installation.
const lifetime = 10 * 365 * 24 * time.Hour

func newCA(dir string) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, err
	}
	t, err := template("Petri bus")
	if err != nil {
		return authority{}, err
	}
	t.IsCA, t.BasicConstraintsValid, t.MaxPathLenZero = true, true, true
	t.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return authority{}, fmt.Errorf("make the authority: %w", err)
	}
	ca := authority{key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		return authority{}, err
	}
	if err := write(filepath.Join(dir, "ca", "ca.pem"), ca.pem, 0o644); err != nil {
		return authority{}, err
	}
	return ca, savePrivate(filepath.Join(dir, "ca", "ca.key"), key)
}

func template(name string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(lifetime), // clocks differ
	}, nil
}

func savePrivate(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return write(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// node makes the directory of one server: what is to be copied to its host.
func node(dir, host string, o Options, ca authority, preload string) error {
	at := filepath.Join(dir, "nodes", host)
	if err := os.MkdirAll(at, 0o700); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t, err := template(host)
	if err != nil {
		return err
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	// A server is its neighbours' client.
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	if ip := net.ParseIP(host); ip != nil {
		t.IPAddresses = []net.IP{ip}
	} else {
		t.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		return fmt.Errorf("make the certificate of %s: %w", host, err)
	}
	if err := write(filepath.Join(at, "tls.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return err
	}
	if err := savePrivate(filepath.Join(at, "tls.key"), key); err != nil {
		return err
	}
	if err := write(filepath.Join(at, "ca.pem"), ca.pem, 0o644); err != nil {
		return err
	}
	return write(filepath.Join(at, "nats.conf"), []byte(config(host, o, preload)), 0o600)
}

// config is a server's configuration. Its paths are relative to its directory,
// in which the server is to be started.
func config(host string, o Options, preload string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Made by petri bus init. Start it with: petri bus serve --config nats.conf
# or, in this directory: nats-server -c nats.conf
server_name: %q
listen: %q
max_payload: %d

tls {
  cert_file: "tls.pem"
  key_file: "tls.key"
  min_version: "1.3"
}

jetstream {
  store_dir: "data"
  # What is acknowledged is on the disk. Without it a power cut loses minutes.
  sync_interval: always
  # Each stream has its own bound.
  max_file_store: 1PB
  max_memory_store: 256MB
}

`, host, net.JoinHostPort(host, fmt.Sprint(o.Port)), o.MaxPayload)
	if len(o.Hosts) > 1 {
		fmt.Fprintf(&b, "cluster {\n  name: petri\n  listen: %q\n  # Both sides of a route show a certificate of this installation.\n  tls {\n    cert_file: \"tls.pem\"\n    key_file: \"tls.key\"\n    ca_file: \"ca.pem\"\n    verify: true\n    min_version: \"1.3\"\n  }\n  routes: [\n", net.JoinHostPort(host, fmt.Sprint(o.ClusterPort)))
		for _, h := range o.Hosts {
			if h != host {
				fmt.Fprintf(&b, "    %q\n", "nats-route://"+net.JoinHostPort(h, fmt.Sprint(o.ClusterPort)))
			}
		}
		b.WriteString("  ]\n}\n\n")
	}
	b.WriteString("# Who may connect: users of these accounts, by their credentials. There are no\n# passwords.\n" + preload)
	return b.String()
}

// URL is how clients reach the servers.
func (o Options) URL() string {
	var urls []string
	for _, h := range o.Hosts {
		urls = append(urls, "tls://"+net.JoinHostPort(h, fmt.Sprint(o.Port)))
	}
	return strings.Join(urls, ",")
}

func readme(o Options) string {
	return fmt.Sprintf(`# A Petri bus

Made by petri bus init. Keep this directory off the network: keys/ and ca/ca.key
can make anybody anything.

| copy | to |
|---|---|
| nodes/HOST/ | the server HOST; start it there: petri bus serve --config nats.conf |
| ca/ca.pem | every host |
| users/bus.creds | a host that runs: petri bus run |
| users/sandboxd.creds | a host that runs: sandboxd |
| users/analyzer-builtin.creds | a host that runs: analyzer |
| users/reporter.creds | a host that runs: reporter |
| users/admin.creds | who types petri commands |
| users/siem.creds | who listens to live.petri.*.*.finding.> |
| users/user-TENANT.creds | who types petri commands for a tenant: submit, list, watch, report, get, cancel |

Every program is told where it works, and as whom, by its environment:

    PETRI_NATS=%s
    PETRI_CA=/etc/petri/ca.pem
    PETRI_CREDS=/etc/petri/ROLE.creds

More analyzers: petri bus user DIR analyzer NAME. More tenants: petri bus user DIR user NAME.
`, o.URL())
}
