// SPDX-License-Identifier: Apache-2.0

package schemas

import "time"

// ReportVersion is the schema_version of [Report].
const ReportVersion = "1.0"

// MaxReportList bounds every list of a report; what is left out is counted in
// its coverage.
const MaxReportList = 10000

// Outcome says how far an analysis got.
type Outcome string

// Outcomes.
const (
	OutcomeCompleted   Outcome = "completed"    // it ran, and everything expected is there
	OutcomeIncomplete  Outcome = "incomplete"   // it ran, but something is missing
	OutcomeNotExecuted Outcome = "not_executed" // the guest's kernel never ran the sample
	OutcomeUnsupported Outcome = "unsupported"  // there is no guest for it
	OutcomeFailed      Outcome = "failed"       // the sandbox broke
	OutcomeCancelled   Outcome = "cancelled"    // somebody stopped it
)

// Verdict says what the findings amount to.
type Verdict string

// Verdicts. VerdictNoFindings needs [OutcomeCompleted] and whole coverage.
const (
	VerdictMalicious    Verdict = "malicious"
	VerdictSuspicious   Verdict = "suspicious"
	VerdictNoFindings   Verdict = "no_findings"
	VerdictUndetermined Verdict = "undetermined"
)

// Report is a pure fold over an analysis' log and the result documents that
// its receipts name: the same log gives the same bytes.
type Report struct {
	SchemaVersion string          `json:"schema_version"`
	Analysis      ReportAnalysis  `json:"analysis"`
	Sample        Sample          `json:"sample"`
	Outcome       ReportOutcome   `json:"outcome"`
	Verdict       ReportVerdict   `json:"verdict"`
	History       []ReportHistory `json:"history"` // of the verdict: at the ending, and after each run that was adopted
	Coverage      ReportCoverage  `json:"coverage"`
	Machine       ReportMachine   `json:"machine"`
	Timeline      []TimelineEntry `json:"timeline"`
	Console       ReportConsole   `json:"console"`
	Processes     []Process       `json:"processes"`
	Files         []FileActivity  `json:"files"`
	Network       ReportNetwork   `json:"network"`
	Findings      []ReportFinding `json:"findings"`
	Artifacts     []Artifact      `json:"artifacts"`
	Analyzers     []ReportRun     `json:"analyzers"`
}

// EventType implements [Typed]; it names the report's schema.
func (Report) EventType() string { return "petri.report.document.v1" }

// ReportAnalysis says which analysis it was.
type ReportAnalysis struct {
	ID         string     `json:"id"`
	Tenant     string     `json:"tenant"`
	Submission string     `json:"submission"`
	Attempt    int        `json:"attempt"`
	RetryOf    string     `json:"retry_of,omitempty"`
	Submitted  time.Time  `json:"submitted"`
	Claimed    *time.Time `json:"claimed,omitempty"`
	Ended      *time.Time `json:"ended,omitempty"`
	Worker     string     `json:"worker,omitempty"`
	Version    string     `json:"version,omitempty"` // of the sandbox
	Options    Options    `json:"options"`
	Protocol   Digest     `json:"protocol"` // sha256 of the protocol's text
	Amended    int        `json:"amended,omitempty"`
}

// ReportOutcome is the outcome and why.
type ReportOutcome struct {
	Value   Outcome  `json:"value"`
	Reasons []string `json:"reasons"`
}

// ReportVerdict is the verdict and why.
type ReportVerdict struct {
	Value   Verdict  `json:"value"`
	Reasons []string `json:"reasons"`
}

// ReportHistory says what the report amounted to from some time on.
type ReportHistory struct {
	Time     time.Time `json:"time"`
	Event    string    `json:"event"`         // the ending, or run_adopted
	Run      string    `json:"run,omitempty"` // that was adopted
	By       string    `json:"by,omitempty"`
	Outcome  Outcome   `json:"outcome"`
	Verdict  Verdict   `json:"verdict"`
	Findings int       `json:"findings"`
}

// ReportCoverage is what was expected, what arrived, and what was lost.
type ReportCoverage struct {
	Whole     bool               `json:"whole"`
	Gaps      []string           `json:"gaps"` // for people, one line each
	Sources   []SourceCoverage   `json:"sources"`
	Hooks     []HookCoverage     `json:"hooks"`
	Analyzers []AnalyzerCoverage `json:"analyzers"`
	Steps     []StepFailed       `json:"failed_steps"`
	Omitted   map[string]int     `json:"omitted"` // entries left out of this report's lists

	// Tampering is there if the sample may have changed what records it.
	Tampering *Tampering `json:"after_possible_tampering,omitempty"`

	// Foreign counts messages that lay in the log under the analysis' subjects and
	// are no events of it. They were left out; nothing of the analysis is missing
	// for that.
	Foreign uint64 `json:"foreign,omitempty"`
}

// Tampering says from when on the guest's word is that of a guest which the sample
// may have changed.
type Tampering struct {
	Since time.Time         `json:"since"` // when the host heard of it
	First PossibleTampering `json:"first"`
	// Records is how many records of the trace came afterwards.
	Records uint64         `json:"records"`
	Calls   map[string]int `json:"calls"` // that were held, by name; of too many names: others
}

// ReportMachine is the machine that ran the sample.
type ReportMachine struct {
	Spec     *MachineSpec `json:"spec,omitempty"`
	Version  string       `json:"version,omitempty"`
	Kernel   string       `json:"kernel,omitempty"`
	Image    string       `json:"image,omitempty"`
	Template *Digest      `json:"template,omitempty"`
	Fallback string       `json:"fallback,omitempty"`

	Isolation *Isolation `json:"isolation,omitempty"`

	Identity *Identity   `json:"identity,omitempty"`
	Tracer   *Tracer     `json:"tracer,omitempty"`
	Address  string      `json:"address,omitempty"`
	Off      *MachineOff `json:"off,omitempty"`
}

// TimelineEntry is one context event.
type TimelineEntry struct {
	Time   time.Time `json:"time"`
	Event  string    `json:"event"`
	Origin Origin    `json:"origin"`
	Detail string    `json:"detail,omitempty"`
}

// ReportConsole is what the sample printed and how it ended.
type ReportConsole struct {
	Stdout   string `json:"stdout"` // at most 64 KiB; bytes that are not UTF-8 are replaced
	Stderr   string `json:"stderr"`
	ExitCode *int   `json:"exit_code"`
	Signal   string `json:"signal,omitempty"`
	// Reason is as in [SampleExited], or stopped: it still ran when the machine
	// was taken down, or running: its end was not seen.
	Reason    string `json:"reason,omitempty"`
	Truncated bool   `json:"truncated"` // the artifacts hold more, or a limit cut it
}

// ReasonStopped is the console's reason where the sandbox ended the sample.
const ReasonStopped = "stopped"

// Process is a process of the sample.
type Process struct {
	PID         int      `json:"pid"`
	Start       uint64   `json:"start"` // ns since the guest's boot
	Parent      int      `json:"parent"`
	ParentAt    uint64   `json:"parent_start"` // start of the parent, since pids are reused
	Path        string   `json:"path"`         // of its last exec
	Argv        []string `json:"argv"`
	ArgvOmitted int      `json:"argv_omitted,omitempty"` // arguments that are not in Argv
	Comm        string   `json:"comm,omitempty"`
	End         *uint64  `json:"end,omitempty"`
	ExitCode    *int     `json:"exit_code,omitempty"`
	Signal      string   `json:"signal,omitempty"`
	Threads     int      `json:"threads,omitempty"` // beyond the first
	Syscalls    uint64   `json:"syscalls"`
}

// FileActivity is what was done to one path.
type FileActivity struct {
	Path    string   `json:"path"`
	Actions []string `json:"actions"` // open, create, write, …, sorted
	Opens   int      `json:"opens,omitempty"`
	Failed  int      `json:"failed,omitempty"` // calls that returned an error
	Errors  []string `json:"errors,omitempty"` // their errnos, sorted
	Written int64    `json:"written,omitempty"`
	Read    int64    `json:"read,omitempty"`
	Target  string   `json:"target,omitempty"`  // of a rename or link
	Dropped *Digest  `json:"dropped,omitempty"` // artifact that holds what was left
	PIDs    []int    `json:"pids,omitempty"`
}

// ReportNetwork is what went over the guest's network.
type ReportNetwork struct {
	Address     string            `json:"address,omitempty"`
	MAC         string            `json:"mac,omitempty"`
	Frames      uint64            `json:"frames"`
	Pcap        *Digest           `json:"pcap,omitempty"`
	Connections []NetworkActivity `json:"connections"` // asked for by the sample's system calls
}

// NetworkActivity is what was done with one address.
type NetworkActivity struct {
	Action  string   `json:"action"` // connect, bind, listen, accept or send
	Family  string   `json:"family"`
	Type    string   `json:"type,omitempty"`
	Address string   `json:"address,omitempty"`
	Port    int      `json:"port,omitempty"`
	Path    string   `json:"path,omitempty"`
	Count   int      `json:"count"`
	Errors  []string `json:"errors,omitempty"`
	PIDs    []int    `json:"pids,omitempty"`
}

// ReportFinding is a finding and who made it.
type ReportFinding struct {
	Analyzer string  `json:"analyzer"`
	Version  string  `json:"version"`
	SHA256   *Digest `json:"sha256,omitempty"` // of the artifact that it is about
	Run      string  `json:"run,omitempty"`    // adopted, that it is of; none: it was made while the analysis went on
	Finding
}

// ReportRun is one task of an analyzer.
type ReportRun struct {
	Analyzer string     `json:"analyzer"`
	Version  string     `json:"version"`
	SHA256   *Digest    `json:"sha256,omitempty"`
	Kind     Kind       `json:"kind,omitempty"`
	Run      string     `json:"run,omitempty"` // adopted, that it is of
	Status   string     `json:"status"`
	Error    string     `json:"error,omitempty"`
	Findings int        `json:"findings"`
	Result   *ResultRef `json:"result,omitempty"`
	Reused   *TaskRef   `json:"reused,omitempty"` // the earlier task whose answer this is
	Took     Duration   `json:"took"`
}

// ReportWritten announces a report in the store.
type ReportWritten struct {
	Format string `json:"format"` // json
	SHA256 Digest `json:"sha256"`
	Size   int64  `json:"size"`
	Events int    `json:"events"` // that it was folded from
	// For whoever wants no more than these.
	Outcome Outcome `json:"outcome"`
	Verdict Verdict `json:"verdict"`
}

// EventType implements [Typed].
func (ReportWritten) EventType() string { return "petri.report.written.v1" }

// BehaviorResult is the result document of the analyzer behavior.
type BehaviorResult struct {
	Schema    string            `json:"schema"` // petri.result.behavior.v1
	Processes []Process         `json:"processes"`
	Files     []FileActivity    `json:"files"`
	Network   []NetworkActivity `json:"network"`
	Syscalls  map[string]uint64 `json:"syscalls"` // calls by name; those of another ABI as abi:name
	Records   uint64            `json:"records"`
	Bad       uint64            `json:"bad,omitempty"` // records that could not be decoded
	Omitted   map[string]int    `json:"omitted,omitempty"`
	Gaps      []string          `json:"gaps,omitempty"` // behaviour that the trace cannot show, such as io_uring
}

// BehaviorSchema is the schema field of a [BehaviorResult].
const BehaviorSchema = "petri.result.behavior.v1"
