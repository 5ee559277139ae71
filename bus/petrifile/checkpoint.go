// SPDX-License-Identifier: Apache-2.0

package petrifile

import (
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/petri-sandbox/petri/schemas"
)

// Sign makes the checkpoint over the first events of an analysis whose tree
// hash is root. at is the name of the context event that it follows.
func Sign(key ed25519.PrivateKey, tenant, analysis, at string, events uint64, root schemas.Digest) schemas.Checkpoint {
	return schemas.Checkpoint{
		At: at, Events: events, Root: root, Key: hex.EncodeToString(key.Public().(ed25519.PublicKey)),
		Signature: ed25519.Sign(key, signedText(tenant, analysis, at, events, root)),
	}
}

// signedText is what a checkpoint's signature is made over. It names the
// analysis, so that a checkpoint is worth nothing in another one.
func signedText(tenant, analysis, at string, events uint64, root schemas.Digest) []byte {
	return fmt.Appendf(nil, "petri.checkpoint.signed.v1\n%s\n%s\n%s\n%d\n%s\n", tenant, analysis, at, events, root)
}

var errSignature = errors.New("the signature is not its key's")

// checkSignature reports whether the holder of the checkpoint's key has signed
// it. Whose key that is the reader must know.
func checkSignature(tenant, analysis string, c *schemas.Checkpoint) error {
	if schemas.CheckEventName(c.At) != nil {
		return fmt.Errorf("at %.80q is no event's name", c.At)
	}
	key, err := hex.DecodeString(c.Key)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return fmt.Errorf("key %.80q is not 64 hexadecimal digits", c.Key)
	}
	if !ed25519.Verify(key, signedText(tenant, analysis, c.At, c.Events, c.Root), c.Signature) {
		return errSignature
	}
	return nil
}

// A Checked is a checkpoint of a log and what is wrong with it.
type Checked struct {
	Event   uint64         `json:"event"`  // ordinal of its own event, from 1
	At      string         `json:"at"`     // untrusted text if it is not valid
	Events  uint64         `json:"events"` // how many it covers
	Root    schemas.Digest `json:"root"`
	Key     string         `json:"key"`               // untrusted text if it is not valid
	Problem string         `json:"problem,omitempty"` // empty: it is valid, and signs just these events
}

// Coverage says which of a log's events checkpoints cover.
type Coverage struct {
	Events      uint64            `json:"events"`            // of the log
	Foreign     uint64            `json:"foreign,omitempty"` // messages that lay among them and are none
	Covered     uint64            `json:"covered"`
	Uncovered   map[string]uint64 `json:"uncovered"` // events behind that, by type; some that nobody knows as "other"
	Checkpoints []Checked         `json:"checkpoints"`
}

const (
	// maxCheckpoints is more than any log has: a sandbox signs two.
	maxCheckpoints = 1000
	// window is how many events may lie between the last that a checkpoint
	// covers and the checkpoint itself: what others wrote while it was made.
	window = 4096
	// maxTypes and maxText bound what is remembered of events whose words a
	// stranger chose; there are some hundred types, and none is half so long.
	maxTypes = 1000
	maxText  = 128
	// otherTypes stands for all types behind these.
	otherTypes = "other"
)

// covering follows a log's checkpoints. It holds the tree as it was some events
// ago and the leaves since, so that a log is read only once.
type covering struct {
	tenant, analysis string
	key              string // whose checkpoints count; empty: anybody's
	base             Tree
	leaves           []schemas.Digest // behind base
	types            []string         // of the same events
	covered          uint64
	uncovered        map[string]uint64
	checked          []Checked
}

func (c *covering) size() uint64 { return c.base.size + uint64(len(c.leaves)) }

func (c *covering) add(leaf schemas.Digest, typ string) {
	if len(c.leaves) == 2*window {
		for _, l := range c.leaves[:window] {
			c.base.Append(l)
		}
		c.leaves = append(c.leaves[:0], c.leaves[window:]...)
		c.types = append(c.types[:0], c.types[window:]...)
	}
	typ = clip(typ)
	c.leaves, c.types = append(c.leaves, leaf), append(c.types, typ)
	c.count(typ)
}

// count counts an event behind what is covered.
func (c *covering) count(typ string) {
	if _, ok := c.uncovered[typ]; !ok && len(c.uncovered) >= maxTypes {
		typ = otherTypes
	}
	c.uncovered[typ]++
}

// clip shortens text, and lets go of the rest of it.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.Clone(s[:maxText])
}

// check takes a checkpoint that comes behind what was added so far.
func (c *covering) check(p *schemas.Checkpoint) error {
	if len(c.checked) >= maxCheckpoints {
		return fmt.Errorf("the log has more than %d checkpoints", maxCheckpoints)
	}
	k := Checked{Event: c.size() + 1, At: clip(p.At), Events: p.Events, Root: p.Root, Key: clip(p.Key)}
	if err := c.problem(p); err != nil {
		k.Problem = err.Error()
	} else if (c.key == "" || c.key == p.Key) && p.Events > c.covered {
		c.covered = p.Events
		c.uncovered = map[string]uint64{}
		for _, typ := range c.types[p.Events-c.base.size:] {
			c.count(typ)
		}
	}
	c.checked = append(c.checked, k)
	return nil
}

func (c *covering) problem(p *schemas.Checkpoint) error {
	if err := checkSignature(c.tenant, c.analysis, p); err != nil {
		return err
	}
	switch {
	case p.Events > c.size():
		return fmt.Errorf("it covers %d events, and only %d are before it", p.Events, c.size())
	case p.Events < c.base.size:
		return fmt.Errorf("it covers events that lie more than %d before it", window)
	}
	t := c.base.clone()
	for _, l := range c.leaves[:p.Events-c.base.size] {
		t.Append(l)
	}
	if root := t.Root(); root != p.Root {
		return fmt.Errorf("the %d events before it hash to %s: they are not those that were signed", p.Events, root)
	}
	return nil
}
