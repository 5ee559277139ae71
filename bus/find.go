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

// Found is an artifact, and the last of the analyses that announced it.
type Found struct {
	SHA256   schemas.Digest `json:"sha256"`
	Analysis string         `json:"analysis"`
}

// FindArtifacts returns the artifacts, in the order of their digests, that a
// tenant's analyses announced and whose digest begins with the hexadecimal
// prefix. It reads the log's list of subjects and the archive's entries, not the
// events.
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
	const analysis, digest = 2, 5 // token of petri.<tenant>.<analysis>.artifact.<kind>.<digest>.<occurrence>
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(logPrefix+tenant+".*.artifact.>"))
	if err != nil {
		return nil, fmt.Errorf("list the log's subjects: %w", err)
	}
	var out []Found
	for subject := range info.State.Subjects {
		tokens := strings.Split(subject, ".")
		if len(tokens) <= digest {
			continue
		}
		d, err := schemas.ParseToken(tokens[digest])
		if err == nil && strings.HasPrefix(d.String(), prefix) {
			out = append(out, Found{d, tokens[analysis]})
		}
	}
	// The archive comes second: what is moved meanwhile is then in both.
	err = b.ArchiveEntries(ctx, tenant, func(e schemas.ArchiveEntry) error {
		for _, a := range e.Artifacts {
			if strings.HasPrefix(a.SHA256.String(), prefix) {
				out = append(out, Found{a.SHA256, e.Analysis})
			}
		}
		if e.More == 0 {
			return nil
		}
		return b.ArchivedArtifacts(ctx, e, func(a schemas.Artifact) error {
			if strings.HasPrefix(a.SHA256.String(), prefix) {
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
