// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/petri-sandbox/petri/schemas"
)

// Subjects of the log, petri.<tenant>.<analysis>.<family>.…; every token is an
// id, a digest or a validated name, never anything that a sample chose.
const (
	logPrefix  = "petri."
	livePrefix = "live."
	registry   = "petri._registry."
	unregistry = "petri._unregistry."
	tombstones = "petri._tombstone."
)

// registryTenant is in the place of a tenant in the registry's events.
const registryTenant = "_registry"

// AnalysisSubject matches everything in the log about one analysis.
func AnalysisSubject(tenant, analysis string) string {
	return logPrefix + tenant + "." + analysis + ".>"
}

func contextSubject(tenant, analysis, event string) string {
	return logPrefix + tenant + "." + analysis + ".context." + event
}

func segmentSubject(tenant, analysis string, src schemas.Source, n int) string {
	return logPrefix + tenant + "." + analysis + ".segment." + string(src) + "." + strconv.Itoa(n)
}

func artifactSubject(tenant, analysis string, a *schemas.Artifact) string {
	return artifactsOf(tenant, analysis, string(a.Kind), a.SHA256) + "." + strconv.Itoa(a.Occurrence)
}

// artifactsOf is the subject of all occurrences, without the last token.
func artifactsOf(tenant, analysis, kind string, d schemas.Digest) string {
	return logPrefix + tenant + "." + analysis + ".artifact." + kind + "." + d.Token()
}

// artifactsIn matches all announcements of an analysis.
func artifactsIn(tenant, analysis string) string {
	return logPrefix + tenant + "." + analysis + ".artifact.>"
}

// derivationsOf is the subject of all occurrences that a run has derived,
// without the last token.
func derivationsOf(t schemas.TaskRef, kind schemas.Kind, d schemas.Digest) string {
	return logPrefix + t.Tenant + "." + t.Analysis + ".derivation." + t.Run + "." + string(kind) + "." + d.Token()
}

// derivationsIn matches all that a run has derived in an analysis.
func derivationsIn(tenant, analysis, run string) string {
	return logPrefix + tenant + "." + analysis + ".derivation." + run + ".>"
}

func findingSubject(t schemas.TaskRef, sev schemas.Severity, n int) string {
	family := "finding"
	if t.Run != schemas.LiveRun {
		family = "refinding"
	}
	if sev == "" {
		sev = schemas.SeverityInfo
	}
	return fmt.Sprintf("%s%s.%s.%s.%s.%s.%s.%d", logPrefix, t.Tenant, t.Analysis, family, sev, t.Analyzer, t.Token(), n)
}

func receiptSubject(t schemas.TaskRef) string {
	return fmt.Sprintf("%s%s.%s.receipt.%s.%s.%s", logPrefix, t.Tenant, t.Analysis, t.Run, t.Analyzer, t.Token())
}

func reportSubject(tenant, analysis, format string) string {
	return logPrefix + tenant + "." + analysis + ".report." + format
}

func checkpointSubject(tenant, analysis string, events uint64) string {
	return logPrefix + tenant + "." + analysis + ".checkpoint." + strconv.FormatUint(events, 10)
}

func checkpointID(analysis string, events uint64) string {
	return analysis + "/checkpoint/" + strconv.FormatUint(events, 10)
}

// BehaviorSubject is where a live behaviour event goes: a core subject, at most
// once, of no consequence.
func BehaviorSubject(tenant, analysis string, b *schemas.Behavior) string {
	return livePrefix + logPrefix + tenant + "." + analysis + ".behavior." + b.Category + "." + b.Action
}

// LiveSubject matches everything that happens in an analysis, as it happens:
// the log's republished events and the behaviour.
func LiveSubject(tenant, analysis string) string {
	return livePrefix + logPrefix + tenant + "." + analysis + ".>"
}

func tombstoneSubject(tenant, analysis string) string { return tombstones + tenant + "." + analysis }

// jobSubject names the tenant too, so that permissions can say for whom somebody
// may submit.
func jobSubject(tenant, profile, priority string) string {
	return "job." + tenant + "." + profile + "." + priority
}

// priorities are the last tokens of a job's subject, in the order of service.
var priorities = []string{"high", "normal", "low"}

// inboxSubject is what a finished task is published under.
func inboxSubject(t schemas.TaskRef) string {
	return "in." + t.Analyzer + "." + taskToken(t)
}

// waiting is the last token of the subject under which the server keeps what an
// analyzer has handed in.
const waiting = "waiting"

// inboxOf is the subject under which the inbox has an analyzer's finished tasks.
func inboxOf(analyzer string) string { return "in." + analyzer + "." + waiting }

// inboxAnalyzer is who may write under a subject of the inbox.
func inboxAnalyzer(subject string) string {
	analyzer, _, _ := strings.Cut(strings.TrimPrefix(subject, "in."), ".")
	return analyzer
}

// taskToken names a task in one token.
func taskToken(t schemas.TaskRef) string { return taskSum(t).Token() }

func taskSum(t schemas.TaskRef) schemas.Digest {
	return schemas.Sum(fmt.Appendf(nil, "%s/%s/%s/%s/%s", t.Tenant, t.Analysis, t.Run, t.Analyzer, t.Token()))
}

func deadSubject(stream, consumer string) string { return "dead." + stream + "." + consumer }

func cancelSubject(tenant, analysis string) string {
	return "ctl." + tenant + "." + analysis + ".cancel"
}

// analysisOf splits a log subject; ok is false for the registry's.
func analysisOf(subject string) (tenant, analysis, family, rest string, ok bool) {
	f := strings.SplitN(subject, ".", 5)
	if len(f) < 5 || f[0] != "petri" || strings.HasPrefix(f[1], "_") {
		return "", "", "", "", false
	}
	return f[1], f[2], f[3], f[4], true
}

// checkSubject reports why a subject's variable tokens are not valid. It is
// the last line of defence: callers have checked their own input before.
func checkTokens(tenant, analysis string) error {
	if err := schemas.CheckTenant(tenant); err != nil {
		return err
	}
	return schemas.CheckID(analysis)
}
