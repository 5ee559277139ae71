// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus/petrifile"
	"github.com/petri-sandbox/petri/schemas"
)

// A Signer writes checkpoints into an analysis' log. It reads each event once,
// however many checkpoints it signs, in constant memory. It is for one goroutine
// at a time.
type Signer struct {
	b                *Bus
	key              ed25519.PrivateKey
	tenant, analysis string
	tree             petrifile.Tree
	last             uint64 // sequence in the log up to which it was read
	repeats          *repeats
}

// NewSigner returns the signer of an analysis.
func (b *Bus) NewSigner(key ed25519.PrivateKey, tenant, analysis string) *Signer {
	return &Signer{b: b, key: key, tenant: tenant, analysis: analysis, repeats: newRepeats()}
}

// Sign signs everything that the log has of the analysis by now. at is the name
// of the context event that has just been written.
func (s *Signer) Sign(ctx context.Context, at string) error {
	if err := checkTokens(s.tenant, s.analysis); err != nil {
		return err
	}
	r := &reading{b: s.b, tenant: s.tenant, analysis: s.analysis, passed: s.tree.Size(), last: s.last, repeats: s.repeats, fn: func(e Entry) error {
		s.tree.Append(petrifile.LeafHash(e.Body))
		return nil
	}}
	err := r.run(ctx)
	s.last = r.last
	if err != nil {
		return fmt.Errorf("sign %s: %w", s.analysis, err)
	}
	c := petrifile.Sign(s.key, s.tenant, s.analysis, at, s.tree.Size(), s.tree.Root())
	e, err := schemas.NewEvent(s.tenant, s.analysis, checkpointID(s.analysis, c.Events), time.Now(), schemas.OriginHost, c)
	if err != nil {
		return err
	}
	_, err = s.b.publish(ctx, checkpointSubject(s.tenant, s.analysis, c.Events), e, jetstream.WithExpectLastSequencePerSubject(0))
	if hasCode(err, codeWrongLastSequence) {
		return nil // these events are signed already, perhaps by a try whose acknowledgement was lost
	}
	return err
}
