// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

func auditOf(t *testing.T, b *bus.Bus, deep bool) (bus.AuditResult, []bus.AuditProblem) {
	t.Helper()
	var found []bus.AuditProblem
	res, err := b.Audit(t.Context(), bus.AuditOptions{Deep: deep, Found: func(p bus.AuditProblem) { found = append(found, p) }})
	if err != nil {
		t.Fatal(err)
	}
	return res, found
}

// sampled writes an analysis that has ended and whose sample is stored.
func sampled(t *testing.T, b *bus.Bus) (a *analysis, big schemas.Digest) {
	t.Helper()
	a = newAnalysis(t, b)
	d, n, err := b.Artifacts().Put(t.Context(), schemas.KindSample, strings.NewReader("the sample of "+a.id))
	if err != nil {
		t.Fatal(err)
	}
	a.event(schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: a.id, Tenant: "default", Sample: schemas.Sample{SHA256: d, Size: n}, Submitted: time.Now()}, Attempt: 1})
	big = a.artifact(schemas.KindMemory, string(noise(3<<20))+a.id, 0)
	a.event(schemas.StartAnalysis{})
	a.event(schemas.AnalysisCompleted{})
	a.report("report of " + a.id)
	return a, big
}

// TestAudit damages a store in one way after the other: the damage is found, and
// the analysis that it is done to is named.
func TestAudit(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		archive bool
		deep    bool // that only reading finds
		damage  func(t *testing.T, b *bus.Bus, a *analysis, big schemas.Digest) error
		want    string
	}{
		{"whole", false, false, func(*testing.T, *bus.Bus, *analysis, schemas.Digest) error { return nil }, ""},
		{"whole_archived", true, false, func(*testing.T, *bus.Bus, *analysis, schemas.Digest) error { return nil }, ""},
		{"no_record", false, false, func(t *testing.T, b *bus.Bus, _ *analysis, d schemas.Digest) error {
			return b.Artifacts().LoseMeta(t.Context(), d)
		}, "not in the store"},
		{"no_record_archived", true, false, func(t *testing.T, b *bus.Bus, _ *analysis, d schemas.Digest) error {
			return b.Artifacts().LoseMeta(t.Context(), d)
		}, "not in the store"},
		{"lost_chunk", false, false, func(t *testing.T, b *bus.Bus, _ *analysis, d schemas.Digest) error {
			return b.Artifacts().LoseChunks(t.Context(), d)
		}, "3 of its 4 chunks"},
		{"changed_bytes", false, true, func(t *testing.T, b *bus.Bus, _ *analysis, d schemas.Digest) error {
			return b.Artifacts().SwapChunk(t.Context(), d)
		}, "corrupt"},
		{"archive_file", true, false, func(t *testing.T, b *bus.Bus, a *analysis, _ schemas.Digest) error {
			e, err := b.ArchiveEntry(t.Context(), "default", a.id)
			if err != nil {
				return err
			}
			return b.ArchiveFiles().LoseChunks(t.Context(), e.File)
		}, "0 of its 1 chunks"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := start(t)
			a, big := sampled(t, b)
			sampled(t, b)
			if tt.archive {
				if err := archiver(b).Archive(t.Context(), "default", a.id); err != nil {
					t.Fatal(err)
				}
			}
			if err := tt.damage(t, b, a, big); err != nil {
				t.Fatal(err)
			}
			for _, deep := range []bool{false, true} {
				res, found := auditOf(t, b, deep)
				if tt.want == "" || tt.deep && !deep {
					if len(found) != 0 || res.Problems != 0 || res.Objects != 6 && !tt.archive || res.Objects != 7 && tt.archive {
						t.Errorf("deep %v: %+v in %+v", deep, found, res)
					}
					continue
				}
				if len(found) != 1 || res.Problems != 1 || found[0].Analysis != a.id || !strings.Contains(found[0].Problem, tt.want) {
					t.Errorf("deep %v: %+v in %+v, not %q of %s", deep, found, res, tt.want, a.id)
				}
			}
			if !tt.archive { // then the log has it no longer
				account(t, b, a)
			}
		})
	}
}

// TestAuditOrphans finds chunks that no record names, once they are old.
func TestAuditOrphans(t *testing.T) {
	t.Parallel()
	b := start(t)
	d, _, err := b.Artifacts().Put(t.Context(), "test", strings.NewReader("something"))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Artifacts().LoseMeta(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if _, found := auditOf(t, b, false); len(found) != 0 {
		t.Errorf("young chunks: %+v", found)
	}
	later(b, 49*time.Hour)
	if _, found := auditOf(t, b, false); len(found) != 1 || found[0].Upload == "" {
		t.Errorf("%+v", found)
	}
}
