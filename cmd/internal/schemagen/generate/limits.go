// SPDX-License-Identifier: Apache-2.0

package generate

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/invopop/jsonschema"

	"github.com/petri-sandbox/petri/schemas"
)

// Texts as package schemas reads and writes them.
const (
	patternDigest   = `^[0-9a-f]{64}$`
	patternDuration = `^[-+]?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$`
	patternBase64   = `^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$`
	patternName     = `^[a-z][a-z0-9-]{0,31}$`
	patternWord     = `^[a-z][a-z0-9_]{0,63}$`
	patternID       = `^[0-7][0-9A-HJKMNP-TV-Z]{25}$`
	patternRun      = `^(live|r-[0-7][0-9A-HJKMNP-TV-Z]{25})$`
	patternResult   = `^petri\.result\.`
	patternType     = `^petri\.[a-z0-9_]+(\.[a-z0-9_]+)*\.v[1-9][0-9]*$`
	patternSource   = `^/petri/[a-z0-9_/-]+(/[0-9A-Z]{26})?$`
	patternTenant   = `^(_registry|[a-z][a-z0-9-]{0,31})$` // registrations belong to no tenant
)

type limit = func(*jsonschema.Schema)

// limits are what package schemas and the clerk check of a field, by the Go
// type that has it and its name in JSON.
var limits = map[string]limit{
	"Event.specversion":     constant(schemas.SpecVersion),
	"Event.id":              length(1, 0),
	"Event.source":          pattern(patternSource),
	"Event.type":            pattern(patternType),
	"Event.datacontenttype": constant("application/json"),
	"Event.dataschema":      pattern("^" + schemas.SchemaURI(strings.TrimPrefix(patternType, "^"))),
	"Event.tenant":          pattern(patternTenant),
	"Event.analysis":        pattern(patternID),
	"Event.data":            object,

	"Submission.id":     pattern(patternID),
	"Submission.tenant": pattern(patternName),
	"Options.priority":  words("low", "normal", "high"),

	"TaskRef.tenant":   pattern(patternName),
	"TaskRef.analysis": pattern(patternID),
	"TaskRef.run":      pattern(patternRun),
	"TaskRef.analyzer": pattern(patternName),

	"Finding.kind":       pattern(patternWord),
	"Finding.title":      length(1, 512),
	"Finding.confidence": between(0, 100),
	"Finding.techniques": items(0, 32),
	"Finding.evidence":   items(0, 64),

	"FinishedTask.version":  length(0, 64),
	"FinishedTask.instance": length(0, 128),
	"FinishedTask.status":   words(schemas.TaskDone, schemas.TaskFailed, schemas.TaskSkipped),
	"FinishedTask.findings": items(0, schemas.MaxFindings),
	"FinishedTask.derived":  items(0, schemas.MaxDerived),
	"Derived.name":          length(0, 4096),
	"Derived.media_type":    length(0, 128),
	"ResultRef.schema":      all(pattern(patternResult), length(0, 128)),
	"Receipt.status":        words(schemas.TaskDone, schemas.TaskFailed, schemas.TaskSkipped),

	"Registration.name":    pattern(patternName),
	"Registration.version": length(1, 64),
	"Registration.kinds":   items(1, 32),
	"Registration.after":   words("artifacts"),
	"Unregistration.name":  pattern(patternName),

	"Definition.schema":          constant(schemas.DefinitionSchema),
	"Definition.name":            pattern(patternName),
	"Profile.schema":             constant(schemas.ProfileSchema),
	"Profile.name":               pattern(patternName),
	"Profile.expected_analyzers": items(0, schemas.MaxExpected),
	"ControlRequest.action":      words(schemas.ControlActions...),
	"ControlDecided.action":      words(schemas.ControlActions...),
	"GateAnswer.decision":        words(schemas.GateGo, schemas.GateStop),
	"GateAnswer.reason":          length(0, 512),
	"Checkpoint.key":             pattern(patternDigest),
	"RunAdopted.run":             pattern(patternRun),

	"Report.schema_version": pattern(`^` + major(schemas.ReportVersion) + `\.[0-9]+$`),
	"ReportAnalysis.id":     pattern(patternID),
	"ReportHistory.run":     pattern(patternRun),
	"ReportHistory.event":   pattern(patternWord),
	"ReportFinding.run":     pattern(patternRun),
	"ReportRun.run":         pattern(patternRun),
	"TimelineEntry.event":   pattern(patternWord),
}

func major(version string) string {
	m, _, _ := strings.Cut(version, ".")
	return m
}

func constant(v string) limit { return func(s *jsonschema.Schema) { s.Const = v } }

func pattern(p string) limit { return func(s *jsonschema.Schema) { s.Pattern = p } }

func object(s *jsonschema.Schema) { s.Type = "object" }

func words(list ...string) limit {
	return func(s *jsonschema.Schema) {
		for _, w := range list {
			s.Enum = append(s.Enum, w)
		}
	}
}

func between(low, high int) limit {
	return func(s *jsonschema.Schema) {
		s.Minimum, s.Maximum = number(low), number(high)
	}
}

func number(n int) json.Number { return json.Number(strconv.Itoa(n)) }

// length bounds a text; 0 is no bound. Petri counts bytes and JSON Schema
// characters: a text that Petri takes passes here, but not the reverse.
func length(low, high uint64) limit {
	return func(s *jsonschema.Schema) { s.MinLength, s.MaxLength = bound(low), bound(high) }
}

func items(low, high uint64) limit {
	return func(s *jsonschema.Schema) { s.MinItems, s.MaxItems = bound(low), bound(high) }
}

func bound(n uint64) *uint64 {
	if n == 0 {
		return nil
	}
	return &n
}

func all(list ...limit) limit {
	return func(s *jsonschema.Schema) {
		for _, l := range list {
			l(s)
		}
	}
}
