// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// Found is an artifact, and the last of the analyses that announced it, or in
// which a run derived it.
type Found struct {
	SHA256   schemas.Digest `json:"sha256"`
	Analysis string         `json:"analysis"`
}

// FindArtifacts returns the artifacts, in the order of their digests, that a
// tenant's analyses announced, or runs derived in them, and whose digest begins
// with the hexadecimal prefix. It reads the log's list of subjects and the archive's
// entries, not the events.
func (b *Bus) FindArtifacts(ctx context.Context, tenant, prefix string) ([]Found, error) {
	if err := schemas.CheckTenant(tenant); err != nil {
		return nil, err
	}
	if b.tenant == tenant {
		var out []Found
		err := b.ask(ctx, askFind, deskAsk{Prefix: prefix}, &out)
		return out, err
	}
	s, err := b.js.Stream(ctx, streamLog)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	var out []Found
	for _, family := range []string{"artifact", "derivation"} {
		info, err := s.Info(ctx, jetstream.WithSubjectFilter(logPrefix+tenant+".*."+family+".>"))
		if err != nil {
			return nil, fmt.Errorf("list the log's subjects: %w", err)
		}
		for subject := range info.State.Subjects {
			tokens := strings.Split(subject, ".") // petri.<tenant>.<analysis>. … .<digest>.<occurrence>
			d, err := schemas.ParseToken(tokens[len(tokens)-2])
			if err == nil && strings.HasPrefix(d.String(), prefix) {
				out = append(out, Found{d, tokens[2]})
			}
		}
	}
	// The archive comes second: what is moved meanwhile is then in both.
	err = b.ArchiveEntries(ctx, tenant, func(e schemas.ArchiveEntry) error {
		for _, a := range e.Artifacts {
			if strings.HasPrefix(a.SHA256.String(), prefix) {
				out = append(out, Found{a.SHA256, e.Analysis})
			}
		}
		if e.More+e.Derived == 0 {
			return nil
		}
		return b.archivedEvents(ctx, e, func(en Entry) error {
			if f := en.Event.Family(); f != "artifact" && f != "derivation" {
				return nil
			}
			a, err := artifactOf(en.Subject, en.Body)
			if err == nil && strings.HasPrefix(a.SHA256.String(), prefix) {
				out = append(out, Found{a.SHA256, e.Analysis})
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(x, y Found) int {
		return cmp.Or(bytes.Compare(x.SHA256[:], y.SHA256[:]), strings.Compare(y.Analysis, x.Analysis))
	})
	return slices.CompactFunc(out, func(x, y Found) bool { return x.SHA256 == y.SHA256 }), nil
}
