// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"regexp"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// TestSubjectsAreDocumented holds the subjects that are used to the list that
// strangers are given.
func TestSubjectsAreDocumented(t *testing.T) {
	t.Parallel()
	id := schemas.NewID(time.Now())
	d := schemas.Sum([]byte("x"))
	task := schemas.TaskRef{Tenant: "default", Analysis: id, Run: schemas.LiveRun, Analyzer: "yara", SHA256: &d, Kind: schemas.KindSample}
	again := task
	again.Run = "r-" + id
	bh := schemas.Behavior{Category: "file", Action: "open"}
	for want, subject := range map[string]string{
		"context":         contextSubject("default", id, schemas.EventPrePoweron),
		"segments":        segmentSubject("default", id, schemas.SourceTrace, 3),
		"artifacts":       artifactSubject("default", id, &schemas.Artifact{Kind: schemas.KindSample, SHA256: d}),
		"findings":        findingSubject(task, schemas.SeverityHigh, 2),
		"refindings":      findingSubject(again, schemas.SeverityHigh, 2),
		"derivations":     derivationsOf(again, schemas.KindExtracted, d) + ".0",
		"receipts":        receiptSubject(again),
		"reports":         reportSubject("default", id, "json"),
		"checkpoints":     checkpointSubject("default", id, 41),
		"registrations":   registry + "yara",
		"unregistrations": unregistry + "yara",
		"behavior":        BehaviorSubject("default", id, &bh),
		"inbox":           inboxSubject(task),
	} {
		var fits []string
		for _, c := range schemas.Channels() {
			if address(c.Address).MatchString(subject) {
				fits = append(fits, c.Name)
			}
		}
		if len(fits) != 1 || fits[0] != want {
			t.Errorf("%s fits %q, not %s", subject, fits, want)
		}
	}
}

var token = regexp.MustCompile(`\\\{[a-z]+\\\}`)

// address is the expression that the subjects of a channel match.
func address(a string) *regexp.Regexp {
	return regexp.MustCompile("^" + token.ReplaceAllString(regexp.QuoteMeta(a), `[^.]+`) + "$")
}
