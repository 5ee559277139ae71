// SPDX-License-Identifier: Apache-2.0

package app

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// keyFile is where a sandbox keeps the key that it signs checkpoints with,
// below its data directory.
const keyFile = "sandbox-key.pem"

// signingKey is the key of the sandbox that lives on a data directory. It is
// made at the first start, and never replaced: a key that cannot be read is an
// error, since what a new one signs nobody could check.
func signingKey(data string) (ed25519.PrivateKey, error) {
	path := filepath.Join(data, keyFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return newKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the sandbox's key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("read the sandbox's key: %s is no PEM file (remove it, and a new key is made)", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the sandbox's key: %s: %w", path, err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read the sandbox's key: %s is no Ed25519 key", path)
	}
	return key, nil
}

func newKey(path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	b, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".key-*") // 0600
	if err != nil {
		return nil, fmt.Errorf("write the sandbox's key: %w", err)
	}
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: b})
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return nil, fmt.Errorf("write the sandbox's key: %w", err)
	}
	return key, nil
}

// PublicKey is the key, hexadecimal, that the checkpoints of this data
// directory's sandbox are signed with; ok is false if there is none yet.
func (c *Config) PublicKey() (key string, ok bool, err error) {
	if _, err := os.Stat(filepath.Join(c.Data, keyFile)); errors.Is(err, os.ErrNotExist) {
		return "", false, nil
	}
	k, err := signingKey(c.Data)
	if err != nil {
		return "", false, err
	}
	return hex.EncodeToString(k.Public().(ed25519.PublicKey)), true, nil
}
