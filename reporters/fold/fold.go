// SPDX-License-Identifier: Apache-2.0

// Package fold turns the log of an analysis into its report.
//
// A fold is pure: it sees the events' envelopes and bodies and the result
// documents that receipts name, and nothing else. No sequence of a stream, no
// time of a server and no map's order reaches the report, so that whoever has
// the log has the same report, byte for byte. It decides what an analysis may
// claim: an outcome, a verdict, and what is missing.
package fold

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/behavior"
)

// Documents gives the bytes of result documents.
type Documents interface {
	// Document returns at most limit bytes. An error that wraps [ErrDocument] is
	// a gap in the report; with any other there is no report: whoever asks again
	// may have an answer, and a report must not depend on when it was asked for.
	Document(d schemas.Digest, limit int64) ([]byte, error)
}

// ErrDocument says that a document is not there, or not what it ought to be.
var ErrDocument = errors.New("no such document")

// Limits of what a report holds.
const (
	maxConsole  = 64 << 10
	maxDocument = 64 << 20
	maxGaps     = 200
	maxOmitted  = 64 // names of lists that a result document counts by
)

// A Fold takes an analysis' events in the log's order. Its memory is bounded by
// the report's limits, not by the number of events.
type Fold struct {
	r         schemas.Report
	submitted bool
	events    int

	started   *schemas.SampleStarted
	exited    *schemas.SampleExited
	goingDown bool // the sandbox is ending the machine
	start     *schemas.StartAnalysis
	ending    string
	completed *schemas.AnalysisCompleted
	failed    *schemas.AnalysisFailed
	cancelled *schemas.AnalysisCancelled
	expected  []string
	faults    []string
	nfaults   int
	tampering *schemas.Tampering
	behind    int      // of its calls, how many came before all had left the guest
	whyBehind string   // the last of them
	gates     []string // what gates failed to decide
	undecided int
	stoppedBy string // the first gate that said stop, and why
	bad       int    // events that could not be read

	whole          integrity
	stdout, stderr console
	receipts       map[string]schemas.Receipt
	dropped        map[string]schemas.Digest // by path, as the behaviour has it

	runs     map[string]*runAnswers
	runBytes int
	adopted  []adoption
	runGaps  []string
}

type console struct {
	b    []byte
	more bool
}

// New returns an empty fold.
func New() *Fold {
	f := &Fold{whole: newIntegrity(), receipts: map[string]schemas.Receipt{}, dropped: map[string]schemas.Digest{}, runs: map[string]*runAnswers{}}
	f.r.SchemaVersion = schemas.ReportVersion
	f.r.Coverage.Omitted = map[string]int{}
	return f
}

// Events is how many the fold has taken.
func (f *Fold) Events() int { return f.events }

// Add takes the next event. One that cannot be read is counted and left out:
// one bad record does not cost the report.
func (f *Fold) Add(e schemas.Event) {
	f.events++
	if err := f.take(e); err != nil {
		f.bad++
	}
}

// SetForeign notes how many messages lay in the log that are no events of the
// analysis, and are not among those that the fold was given.
func (f *Fold) SetForeign(n uint64) { f.r.Coverage.Foreign = n }

// take takes an event, once: the same one again changes nothing.
func (f *Fold) take(e schemas.Event) error {
	if err := f.whole.belongs(e); err != nil {
		return err
	}
	switch e.Family() {
	case "context":
		return f.context(e)
	case "segment":
		return f.segment(e)
	case "artifact":
		return f.artifact(e)
	case "derivation":
		return f.derivation(e)
	case "finding":
		return f.finding(e)
	case "receipt":
		return f.receipt(e)
	}
	return nil
}

func (f *Fold) context(e schemas.Event) error {
	if fresh, err := f.whole.context(e); !fresh {
		return err
	}
	detail, err := f.contextData(e)
	f.r.Timeline = add(f, "timeline", f.r.Timeline, schemas.TimelineEntry{Time: e.Time, Event: e.Name(), Origin: e.Origin, Detail: detail})
	return err
}

// add appends to a list of the report until it is full, and counts what does
// not fit.
func add[T any](f *Fold, name string, list []T, v T) []T {
	if len(list) >= schemas.MaxReportList {
		f.r.Coverage.Omitted[name]++
		return list
	}
	return append(list, v)
}

// segment keeps the beginning of what the sample printed.
func (f *Fold) segment(e schemas.Event) error {
	var s schemas.Segment
	if err := e.Decode(&s); err != nil {
		return err
	}
	if !f.whole.segment(&s) {
		return nil
	}
	switch s.Source {
	case schemas.SourceStdout:
		f.stdout.add(s.Data)
	case schemas.SourceStderr:
		f.stderr.add(s.Data)
	}
	return nil
}

func (c *console) add(p []byte) {
	keep := p[:min(len(p), maxConsole-len(c.b))]
	c.b = append(c.b, keep...)
	c.more = c.more || len(keep) < len(p)
}

func (f *Fold) artifact(e schemas.Event) error {
	var a schemas.Artifact
	if err := e.Decode(&a); err != nil {
		return err
	}
	fresh, full := f.whole.artifact(&a)
	if !fresh {
		return nil
	}
	if full {
		f.r.Coverage.Omitted["artifacts"]++
	} else {
		f.r.Artifacts = append(f.r.Artifacts, a)
	}
	switch {
	case a.Kind == schemas.KindPcap:
		d := a.SHA256
		f.r.Network.Pcap = &d
	case a.Kind == schemas.KindDropped && a.File != nil && len(f.dropped) < schemas.MaxReportList:
		f.dropped[behavior.Printable(a.File.Path)] = a.SHA256
	}
	return nil
}

func (f *Fold) finding(e schemas.Event) error {
	var c schemas.FindingCommitted
	if err := e.Decode(&c); err != nil {
		return err
	}
	if c.Task.Run != schemas.LiveRun {
		f.runFinding(&c, len(e.Data))
		return nil
	}
	if !f.whole.finding(&c) {
		return nil
	}
	f.r.Findings = add(f, "findings", f.r.Findings, reportFinding(&c))
	return nil
}

func (f *Fold) receipt(e schemas.Event) error {
	var r schemas.Receipt
	if err := e.Decode(&r); err != nil {
		return err
	}
	if r.Task.Run != schemas.LiveRun {
		f.runReceipt(&r, len(e.Data))
		return nil
	}
	k := taskKey(r.Task)
	if _, ok := f.receipts[k]; ok {
		return nil // a task has one receipt, the first
	}
	if len(f.receipts) >= schemas.MaxReportList {
		f.r.Coverage.Omitted["analyzers"]++
		f.whole.unseen++
		return nil
	}
	f.receipts[k] = r
	return nil
}

// ErrNoSubmission says that the events do not begin with analysis_submitted: they
// are no analysis, or not the whole of one.
var ErrNoSubmission = errors.New("the log has no such analysis, or its beginning is missing")

// Report is what the events so far amount to. The fold may go on after it.
func (f *Fold) Report(docs Documents) (*schemas.Report, error) {
	if !f.submitted {
		return nil, ErrNoSubmission
	}
	if len(f.adopted) > 0 {
		docs = &remembered{docs, map[schemas.Digest][]byte{}}
	}
	r, err := f.as(len(f.adopted)).report(docs)
	if err != nil {
		return nil, err
	}
	r.History, err = f.history(r, docs)
	return r, err
}

func (f *Fold) report(docs Documents) (*schemas.Report, error) {
	r := f.r
	r.Coverage.Omitted = map[string]int{}
	for k, v := range f.r.Coverage.Omitted {
		r.Coverage.Omitted[k] = v
	}
	f.console(&r)
	f.analyzers(&r)
	gaps, err := f.behavior(&r, docs)
	if err != nil {
		return nil, err
	}
	f.coverage(&r, gaps)
	r.Outcome = f.outcome(&r)
	r.Verdict = schemas.ReportVerdict{Value: schemas.VerdictUndetermined, Reasons: []string{"no rules are in force"}}
	r.Artifacts = clip(&r, "artifacts", r.Artifacts)
	r.Findings = slices.Clone(clip(&r, "findings", r.Findings))
	slices.SortStableFunc(r.Findings, compareFindings)
	clipCoverage(&r)
	normalize(&r)
	return &r, nil
}

// Encode is the report's one form as bytes.
func Encode(r *schemas.Report) ([]byte, error) {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode report: %w", err)
	}
	return append(b, '\n'), nil
}

func (f *Fold) console(r *schemas.Report) {
	r.Console = schemas.ReportConsole{
		Stdout: text(f.stdout.b), Stderr: text(f.stderr.b), Truncated: f.stdout.more || f.stderr.more,
	}
	if f.exited != nil {
		r.Console.ExitCode, r.Console.Signal, r.Console.Reason = f.exited.ExitCode, f.exited.Signal, f.exited.Reason
	} else if f.started != nil {
		r.Console.Reason = "running"
	}
	if f.start != nil {
		for _, s := range f.start.Sources {
			if (s.Source == schemas.SourceStdout || s.Source == schemas.SourceStderr) && s.Cut > 0 {
				r.Console.Truncated = true
			}
		}
	}
}

func text(b []byte) string { return strings.ToValidUTF8(string(b), "\ufffd") }

// analyzers lists the tasks, sorted, and sums them up per analyzer.
func (f *Fold) analyzers(r *schemas.Report) {
	by := map[string]*schemas.AnalyzerCoverage{}
	entry := func(name string) *schemas.AnalyzerCoverage {
		c, ok := by[name]
		if !ok {
			c = &schemas.AnalyzerCoverage{Name: name, Expected: slices.Contains(f.expected, name)}
			by[name] = c
		}
		return c
	}
	for _, name := range f.expected {
		entry(name)
	}
	r.Analyzers = nil
	for _, rc := range f.receipts {
		r.Analyzers = append(r.Analyzers, schemas.ReportRun{
			Analyzer: rc.Task.Analyzer, Version: rc.Version, SHA256: rc.Task.SHA256, Kind: rc.Task.Kind, Run: runName(rc.Task.Run),
			Status: rc.Status, Error: rc.Error, Findings: rc.Findings, Result: rc.Result, Reused: rc.Reused, Took: rc.Took,
		})
		c := entry(rc.Task.Analyzer)
		c.Version = max(c.Version, rc.Version)
		c.Tasks++
		switch rc.Status {
		case schemas.TaskDone:
			c.Done++
		case schemas.TaskSkipped:
			c.Skipped++
		default:
			c.Failed++
		}
	}
	slices.SortFunc(r.Analyzers, compareRuns)
	if f.completed != nil {
		for _, m := range f.completed.Missing {
			// What came after the ending is not missing any more.
			t := schemas.TaskRef{Analyzer: m.Analyzer, SHA256: m.SHA256}
			if _, ok := f.receipts[taskKey(t)]; ok {
				continue
			}
			c := entry(m.Analyzer)
			c.Tasks++
			c.Missing = append(c.Missing, m)
		}
	}
	r.Coverage.Analyzers = nil
	for _, c := range by {
		switch {
		case len(c.Missing) > 0:
			c.Status = "missing"
		case c.Failed > 0:
			c.Status = "failed"
		default:
			c.Status = "done"
		}
		r.Coverage.Analyzers = append(r.Coverage.Analyzers, *c)
	}
	slices.SortFunc(r.Coverage.Analyzers, func(a, b schemas.AnalyzerCoverage) int { return strings.Compare(a.Name, b.Name) })
}

func compareRuns(a, b schemas.ReportRun) int {
	return cmp.Or(
		strings.Compare(a.Analyzer, b.Analyzer),
		strings.Compare(string(a.Kind), string(b.Kind)),
		strings.Compare(digestText(a.SHA256), digestText(b.SHA256)))
}

func digestText(d *schemas.Digest) string {
	if d == nil {
		return ""
	}
	return d.String()
}

// severities from the gravest.
var severities = []schemas.Severity{
	schemas.SeverityCritical, schemas.SeverityHigh, schemas.SeverityMedium, schemas.SeverityLow, schemas.SeverityInfo, "",
}

// compareFindings puts the gravest first; within that the log's order is kept
// for each artifact.
func compareFindings(a, b schemas.ReportFinding) int {
	return cmp.Or(
		cmp.Compare(slices.Index(severities, a.Severity), slices.Index(severities, b.Severity)),
		strings.Compare(a.Analyzer, b.Analyzer),
		strings.Compare(digestText(a.SHA256), digestText(b.SHA256)))
}

// behaviorAnalyzer is whose result document the report takes over. One of
// another name cannot put processes and files in its place.
const behaviorAnalyzer = "behavior"

// behavior takes over what the analyzer of that name read out of the trace.
// It returns what its document says that the trace cannot show.
func (f *Fold) behavior(r *schemas.Report, docs Documents) (gaps []string, err error) {
	read := 0
	for _, run := range r.Analyzers {
		if run.Analyzer != behaviorAnalyzer || run.Status != schemas.TaskDone {
			continue
		}
		if read++; read > 1 {
			continue
		}
		doc, err := behaviorDocument(run.Result, docs)
		if errors.Is(err, ErrDocument) {
			gaps = append(gaps, fmt.Sprintf("the result of %s cannot be read: %v", run.Analyzer, err))
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the result of %s: %w", run.Analyzer, err)
		}
		gaps = append(gaps, f.describe(r, doc)...)
	}
	if read > 1 {
		gaps = append(gaps, fmt.Sprintf("%d more traces are not in this report", read-1))
	}
	return gaps, nil
}

func behaviorDocument(ref *schemas.ResultRef, docs Documents) (*schemas.BehaviorResult, error) {
	if ref == nil || ref.Schema != schemas.BehaviorSchema {
		return nil, fmt.Errorf("%w: the receipt names none", ErrDocument)
	}
	b, err := docs.Document(ref.SHA256, maxDocument)
	if err != nil {
		return nil, err
	}
	doc := new(schemas.BehaviorResult)
	if err := json.Unmarshal(b, doc); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDocument, err)
	}
	if doc.Schema != schemas.BehaviorSchema {
		return nil, fmt.Errorf("%w: its schema is %.80q, not %q", ErrDocument, doc.Schema, schemas.BehaviorSchema)
	}
	return doc, nil
}

func (f *Fold) describe(r *schemas.Report, doc *schemas.BehaviorResult) (gaps []string) {
	r.Processes = clip(r, "processes", doc.Processes)
	r.Files = clip(r, "files", doc.Files)
	r.Network.Connections = clip(r, "connections", doc.Network)
	for i := range r.Processes {
		r.Processes[i].Argv = clip(r, "arguments", r.Processes[i].Argv)
	}
	for i := range r.Files {
		a := &r.Files[i]
		a.Actions, a.Errors, a.PIDs = clip(r, "actions", a.Actions), clip(r, "errors", a.Errors), clip(r, "pids", a.PIDs)
		if d, ok := f.dropped[a.Path]; ok {
			a.Dropped = &d
		}
	}
	for i := range r.Network.Connections {
		a := &r.Network.Connections[i]
		a.Errors, a.PIDs = clip(r, "errors", a.Errors), clip(r, "pids", a.PIDs)
	}
	for i, k := range slices.Sorted(maps.Keys(doc.Omitted)) {
		if n := doc.Omitted[k]; n > 0 && i < maxOmitted {
			r.Coverage.Omitted[k] += n
		}
	}
	if n := f.uncounted(doc); n > 0 {
		gaps = append(gaps, fmt.Sprintf("%d records of the trace that the guest counted are not in it", n))
	}
	if f.unseenEnd(doc) {
		gaps = append(gaps, fmt.Sprintf("the trace stops before process %d did: the sample may have blinded the tracer", f.started.PID))
	}
	if doc.Bad > 0 {
		gaps = append(gaps, fmt.Sprintf("%d records of the trace could not be decoded", doc.Bad))
	}
	return append(gaps, doc.Gaps...)
}

// unseenEnd reports whether the trace does not have the end of the sample's
// first process, although the guest's agent has seen it. A sample that is root
// can write the tracer's BPF maps; what it did from then on is not in the trace.
func (f *Fold) unseenEnd(doc *schemas.BehaviorResult) bool {
	if f.started == nil || f.exited == nil || f.exited.ExitCode == nil && f.exited.Signal == "" {
		return false
	}
	first := slices.IndexFunc(doc.Processes, func(p schemas.Process) bool { return p.PID == f.started.PID })
	return first >= 0 && doc.Processes[first].End == nil
}

// uncounted is how many records of the trace the guest has counted, and neither
// sent nor counted as lost.
func (f *Fold) uncounted(doc *schemas.BehaviorResult) uint64 {
	if f.start == nil {
		return 0
	}
	for _, s := range f.start.Sources {
		if have := s.Lost + doc.Records + doc.Bad; s.Source == schemas.SourceTrace && s.Produced > have {
			return s.Produced - have
		}
	}
	return 0
}

// clipCoverage bounds the lists of the coverage, which events bring whole.
func clipCoverage(r *schemas.Report) {
	c := &r.Coverage
	c.Sources = clip(r, "sources", c.Sources)
	c.Hooks = clip(r, "hooks", c.Hooks)
	c.Analyzers = clip(r, "analyzers", c.Analyzers)
	for i := range c.Analyzers {
		c.Analyzers[i].Missing = clip(r, "missing_tasks", c.Analyzers[i].Missing)
	}
}

func clip[T any](r *schemas.Report, name string, list []T) []T {
	if len(list) > schemas.MaxReportList {
		r.Coverage.Omitted[name] += len(list) - schemas.MaxReportList
		list = list[:schemas.MaxReportList]
	}
	return list
}

// normalize makes empty lists of absent ones, so that readers need not care.
func normalize(r *schemas.Report) {
	r.Timeline = some(r.Timeline)
	r.Processes = some(r.Processes)
	r.Files = some(r.Files)
	r.Network.Connections = some(r.Network.Connections)
	r.Findings = some(r.Findings)
	r.Artifacts = some(r.Artifacts)
	r.Analyzers = some(r.Analyzers)
	c := &r.Coverage
	c.Gaps, c.Sources, c.Hooks, c.Analyzers, c.Steps = some(c.Gaps), some(c.Sources), some(c.Hooks), some(c.Analyzers), some(c.Steps)
}

func some[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
