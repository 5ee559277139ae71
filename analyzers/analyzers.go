// SPDX-License-Identifier: Apache-2.0

// Package analyzers is the contract between Petri and everything that looks at
// what an analysis left behind, and the runner that holds both sides to it.
//
// An [Analyzer] is a function from the bytes of an artifact to findings, a
// result document and derived artifacts. It never sees the bus, the network or
// another analyzer. To write one, make a directory below this one, implement
// the interface, and add a line to package all.
//
// [Run] takes tasks from the [Services] that the caller wires to the bus, and
// runs each of them in a child process of its own: the program starts itself
// again, and [Child], which its main must call first, does the work there,
// without privileges, network, files or a way out. Whatever becomes of the
// child, the task is answered. Samples are the enemy, and a child that has
// read one counts as taken over: all that it says is checked.
package analyzers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"regexp"
	"slices"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// An Analyzer turns a job into findings.
//
// Tasks are delivered at least once, so Analyze must give the same findings,
// result and derived artifacts in the same order for the same job: no wall
// clock, no map order, no randomness. It must return soon after ctx is done;
// one that does not is killed. Bad input is a finding, or [Skip] if the job is
// not for this analyzer at all; an error says that the analyzer failed, and
// with it everything that it had emitted is dropped. Analyze runs once per
// process and may start goroutines if it waits for them.
//
// An analyzer is made before the process is confined: what it needs from files
// (rules, tables) it reads in its constructor.
type Analyzer interface {
	Info() Info
	Analyze(ctx context.Context, job Job, emit Emit) error
}

// Preflighter is an optional part of an [Analyzer] that needs something from
// the host, such as a program.
type Preflighter interface {
	// Preflight returns an error that wraps [ErrUnavailable], and says what to
	// do about it, if the analyzer cannot work here. Its tasks are then skipped
	// with that reason. It is called in the runner's process, again from time
	// to time, and must return soon.
	Preflight(ctx context.Context) error
}

// Configured is an optional part of an [Analyzer] that is not in the program but
// was made from a configuration. The child gets the configuration, and a [Maker]
// in its list makes the analyzer anew.
type Configured interface {
	// Configuration returns what Make takes.
	Configuration() ([]byte, error)
}

// Maker is an optional part of an element of a child's list that stands for all
// analyzers that it can make: those of its own name, if it has one. There is at
// most one without a name in a list, behind those with one.
type Maker interface {
	Make(configuration []byte) (Analyzer, error)
}

// Defaults of [Info].
const (
	DefaultDeadline = time.Minute
	DefaultMemory   = 512 << 20
)

// AfterArtifacts is the only value of [Info].After: start when every artifact
// task of the analysis is closed.
const AfterArtifacts = "artifacts"

// Info says what an analyzer is and what it asks for.
type Info struct {
	Name    string          // [schemas.CheckAnalyzer]
	Version string          // semantic: change it whenever the output changes
	Rules   *schemas.Digest // of the rule set that it uses, if any
	Config  *schemas.Digest // of what it was configured with, if anything

	// Impure says that the answer depends on more than the bytes, their kind and
	// the three above: on the artifact's name, or on the network. Then no earlier
	// answer is taken for it.
	Impure bool

	Kinds []schemas.Kind // of scope artifact: what it has a task for each of
	Scope schemas.Scope  // empty: [schemas.ScopeArtifact]
	After string         // of scope analysis: [AfterArtifacts] or empty
	Reads []schemas.Kind // of scope analysis: artifacts whose bytes it wants in [Job].Artifacts

	Deadline time.Duration // per task; zero: [DefaultDeadline]
	Memory   int64         // bytes; zero: [DefaultMemory]
	Threads  int           // that run at once; zero: 1
	Exec     bool          // it starts programs: it may open files, and they run under the same limits
	MaxInput int64         // bytes of an artifact; zero: [Options].MaxInput

	// Of programs that it starts:

	CPU       time.Duration // of each; zero: what the deadline and the threads allow
	Network   bool          // they may use the host's network
	Processes int           // that run at once; zero: there is no limit of its own
}

// fill sets the defaults.
func (i Info) fill() Info {
	if i.Scope == "" {
		i.Scope = schemas.ScopeArtifact
	}
	if i.Deadline == 0 {
		i.Deadline = DefaultDeadline
	}
	if i.Memory == 0 {
		i.Memory = DefaultMemory
	}
	if i.Threads == 0 {
		i.Threads = 1
	}
	return i
}

// Registration is what is put in the log for an analyzer.
func (i Info) Registration() schemas.Registration {
	i = i.fill()
	return schemas.Registration{
		Name: i.Name, Version: i.Version, Rules: i.Rules, Config: i.Config, Kinds: i.Kinds, Scope: i.Scope, After: i.After,
		Deadline: schemas.Duration(i.Deadline),
	}
}

// semver is the expression that semver.org suggests.
var semver = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)` +
	`(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?` +
	`(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$`)

// Check reports what is wrong with an Info.
func (i Info) Check() error {
	r := i.Registration()
	if err := r.Check(); err != nil {
		return err
	}
	i = i.fill()
	switch {
	case !semver.MatchString(i.Version):
		return fmt.Errorf("version %.40q is not semantic (1.2.3)", i.Version)
	case i.After != "" && (i.After != AfterArtifacts || i.Scope != schemas.ScopeAnalysis):
		return fmt.Errorf("after %.40q: only an analyzer of scope analysis can start after %q", i.After, AfterArtifacts)
	case len(i.Reads) > 0 && i.Scope != schemas.ScopeAnalysis:
		return fmt.Errorf("only an analyzer of scope analysis reads artifacts besides its own")
	case i.Deadline < 0 || i.Memory < 0 || i.Threads < 0 || i.CPU < 0 || i.Processes < 0 || i.MaxInput < 0:
		return fmt.Errorf("deadline, memory, threads and other limits cannot be negative")
	case i.Memory < 16<<20:
		return fmt.Errorf("memory of %d bytes is less than a program needs (16 MiB)", i.Memory)
	}
	for _, k := range i.Reads {
		if err := schemas.CheckKind(k); err != nil {
			return err
		}
	}
	return nil
}

// Check reports what is wrong with a list of analyzers: each must be sound,
// and their names unique.
func Check(list []Analyzer) error {
	var names []string
	for _, a := range list {
		info := a.Info()
		if err := info.Check(); err != nil {
			return fmt.Errorf("analyzer %q: %w", info.Name, err)
		}
		if slices.Contains(names, info.Name) {
			return fmt.Errorf("analyzer %q is listed twice", info.Name)
		}
		names = append(names, info.Name)
	}
	return nil
}

// A Job is what an analyzer is given.
type Job struct {
	Task schemas.TaskRef

	// Of scope artifact:

	Artifact schemas.Artifact  // the first announcement of the bytes in the analysis
	Input    *Input            // the bytes. Those that a manifest stands for, if it is one
	Manifest *schemas.Manifest // of a stream: where it came from, and what is missing of it

	// Of scope analysis:

	Artifacts []Item                          // those of the kinds in [Info].Reads, in the log's order
	Omitted   int                             // artifacts of those kinds that were too many or too large
	Events    iter.Seq2[schemas.Event, error] // the analysis' log so far, in order
}

// An Item is an artifact of a job of scope analysis.
type Item struct {
	Artifact schemas.Artifact
	Input    *Input
	Manifest *schemas.Manifest
}

// Input is bytes of a known size. It may be read by many goroutines at once.
type Input struct {
	io.ReaderAt
	size int64
}

// NewInput returns an Input of the size bytes in r.
func NewInput(r io.ReaderAt, size int64) *Input { return &Input{r, size} }

// Size is the number of bytes.
func (i *Input) Size() int64 { return i.size }

// Reader returns a new reader of all the bytes, from the first. It does not
// buffer.
func (i *Input) Reader() *io.SectionReader { return io.NewSectionReader(i.ReaderAt, 0, i.size) }

// Emit takes what an analyzer has to say. Limits cut and count; they are no
// errors, except for the result document. Its methods may be called by many
// goroutines, but the order of the calls must be the same each time.
type Emit interface {
	// Finding adds a finding. Of more than [schemas.MaxFindings], the most
	// severe stay, and of those the earliest; data over
	// [schemas.MaxFindingData] is left out. The error says what is wrong with
	// the finding.
	Finding(f schemas.Finding) error

	// Result writes the result document, at most once. schema is
	// petri.result.<name>.v<N>. What write writes goes on at once and is not
	// held in memory; [ErrTooLarge] if it is over the limit.
	Result(schema string, write func(w io.Writer) error) error

	// Derive adds an artifact with the bytes of r. SHA256 and Size of d are
	// filled in by the receiver. One over the limit is left out and counted.
	Derive(d schemas.Derived, r io.Reader) error
}

// NewFinding returns a finding with typed data.
func NewFinding(kind, title string, severity schemas.Severity, data any) (schemas.Finding, error) {
	b, err := json.Marshal(data)
	if err != nil {
		return schemas.Finding{}, fmt.Errorf("encode data of finding %s: %w", kind, err)
	}
	return schemas.Finding{Kind: kind, Title: title, Severity: severity, Data: b}, nil
}

// EmitJSON emits v as the result document.
func EmitJSON(emit Emit, schema string, v any) error {
	return emit.Result(schema, func(w io.Writer) error {
		if err := json.NewEncoder(w).Encode(v); err != nil {
			return fmt.Errorf("write result document: %w", err)
		}
		return nil
	})
}
