// SPDX-License-Identifier: Apache-2.0

package schemas

import (
	"encoding/json"
	"fmt"
)

// MaxFindingData bounds a finding's data in bytes; larger results belong in
// the result document.
const MaxFindingData = 64 << 10

// Limits of one finished task.
const (
	MaxFindings = 200
	MaxDerived  = 500
)

// Severity grades a finding.
type Severity string

// Severities, from the least.
const (
	SeverityInfo     Severity = "info"
	SeverityLow      Severity = "low"
	SeverityMedium   Severity = "medium"
	SeverityHigh     Severity = "high"
	SeverityCritical Severity = "critical"
)

// Valid reports whether s is one of the five.
func (s Severity) Valid() bool {
	switch s {
	case SeverityInfo, SeverityLow, SeverityMedium, SeverityHigh, SeverityCritical:
		return true
	}
	return false
}

// Finding is a structured statement of an analyzer.
type Finding struct {
	Kind       string          `json:"kind"`                 // what it is about: elf_identity, process_summary, …
	Title      string          `json:"title"`                // one line for people
	Severity   Severity        `json:"severity,omitempty"`   // empty counts as info
	Confidence int             `json:"confidence,omitempty"` // 1 to 100 percent; 0: not stated
	Techniques []string        `json:"techniques,omitempty"` // MITRE ATT&CK ids: T1059.004
	Evidence   []Evidence      `json:"evidence,omitempty"`
	Data       json.RawMessage `json:"data,omitempty"` // typed by Kind, at most MaxFindingData bytes
}

// Evidence points at what a finding rests on.
type Evidence struct {
	Artifact *Digest `json:"artifact,omitempty"`
	Offset   *int64  `json:"offset,omitempty"` // bytes into the artifact
	Event    string  `json:"event,omitempty"`  // id of an event of the log
	Record   *uint64 `json:"record,omitempty"` // number of a record of the trace
}

// Check reports what is wrong with a finding that a stranger wrote.
func (f *Finding) Check() error {
	switch {
	case checkName("name", f.Kind, 64, "_") != nil:
		return fmt.Errorf("kind: %w", checkName("name", f.Kind, 64, "_"))
	case f.Title == "" || len(f.Title) > 512:
		return fmt.Errorf("title has %d bytes; 1 to 512 are allowed", len(f.Title))
	case f.Severity != "" && !f.Severity.Valid():
		return fmt.Errorf("severity %.40q is none of info, low, medium, high, critical", f.Severity)
	case f.Confidence < 0 || f.Confidence > 100:
		return fmt.Errorf("confidence %d is not within 0 and 100", f.Confidence)
	case len(f.Techniques) > 32 || len(f.Evidence) > 64:
		return fmt.Errorf("%d techniques and %d pieces of evidence; 32 and 64 are allowed", len(f.Techniques), len(f.Evidence))
	case len(f.Data) > MaxFindingData:
		return fmt.Errorf("data has %d bytes; %d are allowed", len(f.Data), MaxFindingData)
	}
	return nil
}

// TaskRef names a task: what an analyzer owes for one artifact, or for a whole
// analysis.
type TaskRef struct {
	Tenant   string  `json:"tenant"`
	Analysis string  `json:"analysis"`
	Run      string  `json:"run"` // live, or r-<id> of a replay
	Analyzer string  `json:"analyzer"`
	SHA256   *Digest `json:"sha256,omitempty"` // of the artifact; none: the task is over the analysis
	Kind     Kind    `json:"kind,omitempty"`   // of the artifact
}

// Token is the artifact's subject token, or _ for a task over the analysis.
func (t TaskRef) Token() string {
	if t.SHA256 == nil {
		return "_"
	}
	return t.SHA256.Token()
}

// FindingCommitted is a finding as the log holds it.
type FindingCommitted struct {
	Task    TaskRef  `json:"task"`
	Version string   `json:"version"`          // of the analyzer
	Rules   *Digest  `json:"rules,omitempty"`  // of the rule set that it used
	Config  *Digest  `json:"config,omitempty"` // of its configuration
	Reused  *TaskRef `json:"reused,omitempty"` // the earlier task that it was found in
	N       int      `json:"n"`                // from 0 within the task
	Finding Finding  `json:"finding"`
}

// EventType implements [Typed].
func (FindingCommitted) EventType() string { return "petri.finding.committed.v1" }

// FinishedTask is what an analyzer hands in: one message to its inbox.
type FinishedTask struct {
	Task     TaskRef    `json:"task"`
	Version  string     `json:"version"`
	Rules    *Digest    `json:"rules,omitempty"`
	Config   *Digest    `json:"config,omitempty"`
	Reuse    *TaskRef   `json:"reuse,omitempty"`    // an earlier task of the same work, whose answer is this one's; then nothing of its own
	Instance string     `json:"instance"`           // which process did it
	Status   string     `json:"status"`             // done, failed or skipped
	Error    string     `json:"error,omitempty"`    // of failed and skipped
	Findings []Finding  `json:"findings,omitempty"` // at most MaxFindings
	Derived  []Derived  `json:"derived,omitempty"`  // at most MaxDerived
	Result   *ResultRef `json:"result,omitempty"`
	Cut      *TaskCut   `json:"cut,omitempty"`
	Took     Duration   `json:"took"`
}

// EventType implements [Typed].
func (FinishedTask) EventType() string { return "petri.task.finished.v1" }

// Statuses of a [FinishedTask].
const (
	TaskDone    = "done"
	TaskFailed  = "failed"
	TaskSkipped = "skipped" // not for this analyzer: wrong format, tool missing
)

// Derived is an artifact that an analyzer made; its bytes are in the
// analyzer's own upload bucket until the clerk has verified them.
type Derived struct {
	Kind      Kind      `json:"kind"`
	SHA256    Digest    `json:"sha256"`
	Size      int64     `json:"size"`
	MediaType string    `json:"media_type,omitempty"`
	Name      string    `json:"name,omitempty"`
	File      *FileMeta `json:"file,omitempty"`
}

// ResultRef names a result document.
type ResultRef struct {
	Schema string `json:"schema"` // petri.result.<name>.v<N>
	SHA256 Digest `json:"sha256"`
	Size   int64  `json:"size"`
}

// TaskCut counts what an analyzer left out because of limits.
type TaskCut struct {
	Findings int `json:"findings,omitempty"`
	Derived  int `json:"derived,omitempty"`
}

// Receipt closes a task. There is at most one per task, and what the task gave
// was committed together with it.
type Receipt struct {
	Task     TaskRef    `json:"task"`
	Version  string     `json:"version"`
	Rules    *Digest    `json:"rules,omitempty"`
	Config   *Digest    `json:"config,omitempty"`
	Reused   *TaskRef   `json:"reused,omitempty"` // the earlier task whose answer this is
	Instance string     `json:"instance"`
	Status   string     `json:"status"`
	Error    string     `json:"error,omitempty"`
	Findings int        `json:"findings"`
	Derived  int        `json:"derived"`
	Result   *ResultRef `json:"result,omitempty"`
	Cut      *TaskCut   `json:"cut,omitempty"`
	Took     Duration   `json:"took"`
}

// EventType implements [Typed].
func (Receipt) EventType() string { return "petri.receipt.committed.v1" }

// Scope says what an analyzer works on.
type Scope string

const (
	// ScopeArtifact analyzers have a task per artifact of their kinds.
	ScopeArtifact Scope = "artifact"
	// ScopeAnalysis analyzers have one task per analysis, at its start_analysis.
	ScopeAnalysis Scope = "analysis"
)

// Registration says that an analyzer is interested from here on: it owes an
// answer for every matching artifact behind this event, until an
// [Unregistration].
type Registration struct {
	Name     string   `json:"name"`
	Version  string   `json:"version"` // semantic
	Rules    *Digest  `json:"rules,omitempty"`
	Config   *Digest  `json:"config,omitempty"` // of whatever else changes its answers: options, limits, a wrapped program
	Kinds    []Kind   `json:"kinds,omitempty"`  // of scope artifact
	Scope    Scope    `json:"scope"`
	After    string   `json:"after,omitempty"` // of scope analysis: artifacts, to start when all artifact tasks are closed
	Deadline Duration `json:"deadline"`        // per task
}

// EventType implements [Typed].
func (Registration) EventType() string { return "petri.registry.registered.v1" }

// Check reports what is wrong with a registration that a stranger wrote.
func (r *Registration) Check() error {
	if err := CheckAnalyzer(r.Name); err != nil {
		return err
	}
	if len(r.Version) == 0 || len(r.Version) > 64 {
		return fmt.Errorf("version has %d bytes; 1 to 64 are allowed", len(r.Version))
	}
	switch r.Scope {
	case ScopeArtifact:
		if len(r.Kinds) == 0 || len(r.Kinds) > 32 {
			return fmt.Errorf("%d kinds; 1 to 32 are allowed", len(r.Kinds))
		}
		for _, k := range r.Kinds {
			if err := CheckKind(k); err != nil {
				return err
			}
		}
	case ScopeAnalysis:
		if len(r.Kinds) != 0 {
			return fmt.Errorf("an analyzer of scope analysis has no kinds")
		}
	default:
		return fmt.Errorf("scope %.40q is neither artifact nor analysis", r.Scope)
	}
	return nil
}

// Unregistration ends an analyzer's interest.
type Unregistration struct {
	Name string `json:"name"`
}

// EventType implements [Typed].
func (Unregistration) EventType() string { return "petri.registry.unregistered.v1" }
