// SPDX-License-Identifier: Apache-2.0

// Package behavior sums up what the sample did, from the stored trace: which
// processes there were, what became of which files, which addresses it asked
// for, and what stands out.
//
// What a trace means is for package schemas/behavior to say; this one counts,
// and points at the records. All of it is the guest's testimony.
package behavior

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/behavior"
)

// Analyzer implements [analyzers.Analyzer].
type Analyzer struct{}

var _ analyzers.Analyzer = Analyzer{}

// New returns an Analyzer.
func New() Analyzer { return Analyzer{} }

// Info implements [analyzers.Analyzer].
func (Analyzer) Info() analyzers.Info {
	return analyzers.Info{
		Name:     "behavior",
		Version:  "1.1.0",
		Kinds:    []schemas.Kind{schemas.KindTrace},
		Deadline: 5 * time.Minute,
		Memory:   1 << 30,
		Threads:  2, // one collects garbage
	}
}

// Analyze implements [analyzers.Analyzer].
func (Analyzer) Analyze(ctx context.Context, job analyzers.Job, emit analyzers.Emit) error {
	s := newSummary()
	r := bufio.NewReaderSize(&interruptible{ctx, job.Input.Reader()}, 256<<10)
	result, err := behavior.Analyze(r, s.add)
	if err != nil {
		return fmt.Errorf("read trace: %w", err)
	}
	result.Schema = schemas.BehaviorSchema
	findings, err := s.findings(job, &result)
	if err != nil {
		return err
	}
	for _, f := range findings {
		if err := emit.Finding(f); err != nil {
			return err
		}
	}
	return analyzers.EmitJSON(emit, schemas.BehaviorSchema, result)
}

// interruptible ends with ctx.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i *interruptible) Read(b []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.r.Read(b)
}

// ProcessSummary is the data of a finding process_summary.
type ProcessSummary struct {
	Processes int      `json:"processes"`
	Execs     Count    `json:"execs"`
	Programs  []string `json:"programs,omitempty"` // that were run: the first few, each once
	Signalled int      `json:"signalled,omitempty"`
}

// FileSummary is the data of a finding file_summary. Pipes and devices are not
// counted as files.
type FileSummary struct {
	Paths    int      `json:"paths"`   // that were touched
	Created  Count    `json:"created"` // opened so as to be made if they were not there
	Written  Count    `json:"written"`
	Deleted  Count    `json:"deleted"`
	Renamed  Count    `json:"renamed"`
	Examples []string `json:"examples,omitempty"` // of what was changed: the first few, each once
}

// NetworkSummary is the data of a finding network_summary. Sockets within the
// guest are not counted.
type NetworkSummary struct {
	Connect   Count    `json:"connect"`
	Listen    Count    `json:"listen"`
	Send      Count    `json:"send"`
	Addresses []string `json:"addresses,omitempty"` // the first few, each once
}

// Count counts calls.
type Count struct {
	Calls  uint64 `json:"calls"`
	Failed uint64 `json:"failed,omitempty"`
}

// Fact is the data of the other findings: one thing that stands out.
type Fact struct {
	Count
	Details []string `json:"details,omitempty"` // the first few, each once
}

// TraceGaps is the data of a finding trace_gaps: what this analyzer cannot know.
type TraceGaps struct {
	Lost    uint64   `json:"lost,omitempty"` // records that the tracer had no room for
	Bad     uint64   `json:"bad,omitempty"`  // records that could not be decoded
	Cut     uint64   `json:"cut,omitempty"`  // bytes that were over the limit of the trace
	Reasons []string `json:"reasons,omitempty"`
}

func (s *summary) findings(job analyzers.Job, r *schemas.BehaviorResult) ([]schemas.Finding, error) {
	var (
		out  []schemas.Finding
		fail error
	)
	add := func(kind, title string, severity schemas.Severity, data any, records []uint64, techniques ...string) {
		f, err := analyzers.NewFinding(kind, title, severity, data)
		if err != nil {
			fail = err
		}
		f.Techniques = techniques
		for _, n := range records {
			f.Evidence = append(f.Evidence, schemas.Evidence{Artifact: &job.Artifact.SHA256, Record: &n})
		}
		out = append(out, f)
	}
	exec := s.tally("process.exec")
	add("process_summary", fmt.Sprintf("%s, %s", plural(len(r.Processes), "process", "processes"), plural(int(exec.done()), "program run", "programs run")), schemas.SeverityInfo,
		ProcessSummary{Processes: len(r.Processes), Execs: exec.Count, Programs: exec.details, Signalled: signalled(r.Processes)}, exec.records)
	if files := s.merge("file.create", "file.write", "file.delete", "file.rename"); len(r.Files) > 0 || files.Calls > 0 {
		d := FileSummary{
			Paths: len(r.Files), Created: s.tally("file.create").Count, Written: s.tally("file.write").Count,
			Deleted: s.tally("file.delete").Count, Renamed: s.tally("file.rename").Count, Examples: files.details,
		}
		add("file_summary", fmt.Sprintf("%s touched; %d opened to be created, %d deleted, %d renamed", plural(d.Paths, "path", "paths"),
			d.Created.done(), d.Deleted.done(), d.Renamed.done()), schemas.SeverityInfo, d, files.records)
	}
	if net := s.merge("network.connect", "network.bind", "network.listen", "network.send", "network.accept"); net.Calls > 0 {
		d := NetworkSummary{
			Connect: s.tally("network.connect").Count, Listen: s.tally("network.listen").Count, Send: s.tally("network.send").Count,
			Addresses: net.details,
		}
		add("network_summary", fmt.Sprintf("%s to connect, %s", plural(int(d.Connect.Calls), "attempt", "attempts"), plural(int(d.Send.Calls), "datagram call", "datagram calls")),
			schemas.SeverityInfo, d, net.records)
	}
	for _, k := range facts {
		t := s.facts[k.kind]
		if t == nil {
			continue
		}
		title := fmt.Sprintf("%s (%d×", k.title, t.Calls)
		if t.Failed > 0 {
			title += fmt.Sprintf(", %d failed", t.Failed)
		}
		severity := k.severity
		if t.done() == 0 {
			severity = min(severity, low) // it tried, no more
		}
		add(k.kind, title+")", severity.name(), Fact{Count: t.Count, Details: t.details}, t.records, k.techniques...)
	}
	gaps := TraceGaps{Bad: r.Bad, Reasons: r.Gaps[:min(len(r.Gaps), maxDetails)]}
	if job.Manifest != nil {
		gaps.Lost, gaps.Cut = job.Manifest.Coverage.Lost, job.Manifest.Coverage.Cut
	}
	if gaps.Lost+gaps.Bad+gaps.Cut > 0 || len(gaps.Reasons) > 0 {
		add("trace_gaps", "the trace does not show everything", schemas.SeverityInfo, gaps, nil)
	}
	return out, fail
}

func signalled(list []schemas.Process) (n int) {
	for _, p := range list {
		if p.Signal != "" {
			n++
		}
	}
	return n
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// merge is the tally of several actions, in the order of their records.
func (s *summary) merge(actions ...string) tally {
	var all tally
	for _, a := range actions {
		t := s.tally(a)
		all.Calls, all.Failed = all.Calls+t.Calls, all.Failed+t.Failed
		all.records = append(all.records, t.records...)
		for _, d := range t.details {
			all.detail(d)
		}
	}
	slices.Sort(all.records)
	all.records = slices.Compact(all.records)
	all.records = all.records[:min(len(all.records), maxRecords)]
	return all
}
