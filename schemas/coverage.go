// SPDX-License-Identifier: Apache-2.0

package schemas

// SourceCoverage is what became of a source: everything that it made is either
// stored, or counted here.
type SourceCoverage struct {
	Source     Source            `json:"source"`
	Status     string            `json:"status"`           // whole, partial or missing
	Reason     string            `json:"reason,omitempty"` // why it is not whole
	Segments   int               `json:"segments"`
	Bytes      int64             `json:"bytes"`                // stored
	Produced   uint64            `json:"produced"`             // records
	Lost       uint64            `json:"lost"`                 // records
	Cut        uint64            `json:"cut,omitempty"`        // bytes left out because of a limit
	Unreadable uint64            `json:"unreadable,omitempty"` // strings that the tracer could not read
	PerCPU     []CPUCoverage     `json:"per_cpu,omitempty"`
	Suppressed map[string]uint64 `json:"suppressed,omitempty"` // live events over the budget, by type
}

// Statuses of a [SourceCoverage].
const (
	StatusWhole   = "whole"
	StatusPartial = "partial"
	StatusMissing = "missing"
)

// CPUCoverage counts records per CPU of the guest.
type CPUCoverage struct {
	CPU      int    `json:"cpu"`
	Produced uint64 `json:"produced"`
	Lost     uint64 `json:"lost"`
}

// HookCoverage is what became of a hook.
type HookCoverage struct {
	Name     string `json:"name"`
	Runs     int    `json:"runs"`
	Failed   int    `json:"failed"`
	Required bool   `json:"required,omitempty"`
	Error    string `json:"error,omitempty"` // the last one
}

// AnalyzerCoverage is what became of an analyzer's tasks.
type AnalyzerCoverage struct {
	Name     string        `json:"name"`
	Version  string        `json:"version,omitempty"`
	Expected bool          `json:"expected"`
	Status   string        `json:"status"` // done, failed, missing
	Tasks    int           `json:"tasks"`
	Done     int           `json:"done"`
	Failed   int           `json:"failed,omitempty"`
	Skipped  int           `json:"skipped,omitempty"`
	Missing  []MissingTask `json:"missing,omitempty"`
}
