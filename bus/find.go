// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// FindArtifacts returns the digests, in order, of the artifacts that a tenant's
// analyses announced and that begin with the hexadecimal prefix. It reads the
// log's list of subjects and the archive's entries, not the events.
func (b *Bus) FindArtifacts(ctx context.Context, tenant, prefix string) ([]schemas.Digest, error) {
	if err := schemas.CheckTenant(tenant); err != nil {
		return nil, err
	}
	s, err := b.js.Stream(ctx, streamLog)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	const digest = 5 // token of petri.<tenant>.<analysis>.artifact.<kind>.<digest>.<occurrence>
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(logPrefix+tenant+".*.artifact.>"))
	if err != nil {
		return nil, fmt.Errorf("list the log's subjects: %w", err)
	}
	var out []schemas.Digest
	for subject := range info.State.Subjects {
		tokens := strings.Split(subject, ".")
		if len(tokens) <= digest {
			continue
		}
		d, err := schemas.ParseToken(tokens[digest])
		if err == nil && strings.HasPrefix(d.String(), prefix) {
			out = append(out, d)
		}
	}
	// The archive comes second: what is moved meanwhile is then in both.
	err = b.ArchiveEntries(ctx, tenant, func(e schemas.ArchiveEntry) error {
		for _, a := range e.Artifacts {
			if strings.HasPrefix(a.SHA256.String(), prefix) {
				out = append(out, a.SHA256)
			}
		}
		if e.More == 0 {
			return nil
		}
		return b.ArchivedArtifacts(ctx, e, func(a schemas.Artifact) error {
			if strings.HasPrefix(a.SHA256.String(), prefix) {
				out = append(out, a.SHA256)
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(x, y schemas.Digest) int { return bytes.Compare(x[:], y[:]) })
	return slices.Compact(out), nil
}
