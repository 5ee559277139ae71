// SPDX-License-Identifier: Apache-2.0

package schemas

import "time"

// A Sample is the bytes under analysis and what they seem to be.
type Sample struct {
	SHA256 Digest     `json:"sha256"`
	Name   string     `json:"name"` // as its submitter called it; untrusted text
	Size   int64      `json:"size"` // bytes
	Type   SampleType `json:"type"`
}

// SampleType is what a sample's first bytes say, before anything has run.
type SampleType struct {
	Format      string `json:"format"`                // elf, script or unknown
	Arch        string `json:"arch,omitempty"`        // guest that it needs, by Debian's name: amd64, …
	Description string `json:"description"`           // for people: ELF 64-bit LSB pie executable, x86-64
	Interpreter string `json:"interpreter,omitempty"` // of a script: what follows #!
	Unsupported string `json:"unsupported,omitempty"` // why no guest can run it; empty if one can
	Class       int    `json:"class,omitempty"`       // of an ELF file: 32 or 64
	Endianness  string `json:"endianness,omitempty"`  // of an ELF file: little or big
	Machine     string `json:"machine,omitempty"`     // of an ELF file: EM_X86_64, …
	ObjectType  string `json:"object_type,omitempty"` // of an ELF file: exec, dyn, rel, core
}

// Options are what a submitter may choose.
type Options struct {
	Runtime   Duration          `json:"runtime"`            // how long the sample may run
	Command   []string          `json:"command,omitempty"`  // argv; {sample} stands for the sample's path. Empty: the sample itself
	Args      []string          `json:"args,omitempty"`     // appended to the command
	Env       map[string]string `json:"env,omitempty"`      // added to the guest's usual environment
	Dir       string            `json:"dir,omitempty"`      // absolute directory to start in; empty: the user's
	Stdin     []byte            `json:"stdin,omitempty"`    // what the sample can read from standard input; at most 32 KiB
	Name      string            `json:"name,omitempty"`     // the sample's file name in the guest; random: one that tells nothing. Empty: as submitted
	Clock     time.Time         `json:"clock,omitzero"`     // what the guest's clock shows when the machine starts; zero: now
	User      string            `json:"user,omitempty"`     // whom the sample runs as; empty: root
	Cold      bool              `json:"cold,omitempty"`     // boot instead of restoring a snapshot
	Retries   int               `json:"retries,omitempty"`  // new analyses if the sandbox fails
	Priority  string            `json:"priority,omitempty"` // low, normal or high
	MaxSample int64             `json:"max_sample,omitempty"`
	NoReuse   bool              `json:"no_reuse,omitempty"` // have analyzers do their work, whatever was answered before
	Untraced  bool              `json:"untraced,omitempty"` // run without the tracer; a gap in the coverage
	Limits    Limits            `json:"limits,omitzero"`
}

// Limits bound what an analysis keeps, in bytes where nothing else is said.
// What is zero has a default.
type Limits struct {
	Stdout       int64 `json:"stdout,omitempty"`        // of each of stdout and stderr; 4 MiB
	Trace        int64 `json:"trace,omitempty"`         // 512 MiB
	Pcap         int64 `json:"pcap,omitempty"`          // 256 MiB
	DroppedFile  int64 `json:"dropped_file,omitempty"`  // of one dropped file; 32 MiB
	DroppedFiles int64 `json:"dropped_files,omitempty"` // how many are kept; 500
	DroppedTotal int64 `json:"dropped_total,omitempty"` // of all of them; 256 MiB
}

// A Submission is what a user asked for: the body of a job.
type Submission struct {
	ID        string    `json:"id"` // also the id of its first analysis
	Tenant    string    `json:"tenant"`
	Profile   string    `json:"profile"` // which sandboxes may take it: the guest's architecture
	Sample    Sample    `json:"sample"`
	Protocol  string    `json:"protocol"`        // YAML text
	Hooks     string    `json:"hooks,omitempty"` // YAML text; empty: the hooks that sandboxd has
	Options   Options   `json:"options"`
	Expected  []string  `json:"expected_analyzers,omitzero"` // who must answer for the coverage to be whole. Left out: whom the operator expects of the profile; an empty list: nobody
	Submitted time.Time `json:"submitted"`
}

// EventType implements [Typed].
func (Submission) EventType() string { return "petri.job.submission.v1" }
