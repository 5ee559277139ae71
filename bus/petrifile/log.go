// SPDX-License-Identifier: Apache-2.0

package petrifile

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/petri-sandbox/petri/schemas"
)

// An Entry is one event of a log as it lies there.
type Entry struct {
	// Seq is where the entry lay in the log that it was written from: a hint,
	// of no consequence.
	Seq     uint64
	Subject string
	Body    []byte
}

// An Object is bytes that a log names.
type Object struct {
	SHA256 schemas.Digest `json:"sha256"`
	Size   int64          `json:"size"` // uncompressed
	// Kinds says under which kinds the log names it, first the one that the
	// store has it under. A segment has its source's name too.
	Kinds []schemas.Kind `json:"kinds"`
}

// Is reports whether an object is of one of the kinds.
func (o *Object) Is(kinds []schemas.Kind) bool {
	return slices.ContainsFunc(o.Kinds, func(k schemas.Kind) bool { return slices.Contains(kinds, k) })
}

// Kinds of objects that are no artifacts.
const (
	KindSegment schemas.Kind = "segment" // a piece of a source
	KindResult  schemas.Kind = "result"  // a result document
)

// Limits of a log.
const (
	MaxEvent   = 256 << 10 // bytes of an event
	MaxSubject = 255       // bytes of a subject
	MaxObjects = 1 << 18   // that a log names
	MaxTasks   = 1 << 20   // receipts, findings and announcements of a log
	MaxObject  = 64 << 30  // bytes of an object
)

// A Log follows an analysis' events in their order and says which do not
// belong: another analysis', one that comes twice, one before which something
// is missing, one under a subject that is not its own.
type Log struct {
	prefix   string // of every subject
	tenant   string
	analysis string
	events   uint64
	context  int
	foreign  uint64
	tree     Tree
	ending   string
	segments map[schemas.Source]int // number of the next
	seen     map[[16]byte]struct{}  // what comes once
	objects  []Object
	index    map[schemas.Digest]int
	covering covering
}

// NewLog returns an empty log of an analysis. key names whose checkpoints
// count, hexadecimal; empty is anybody's.
func NewLog(tenant, analysis, key string) (*Log, error) {
	if err := schemas.CheckTenant(tenant); err != nil {
		return nil, err
	}
	if err := schemas.CheckID(analysis); err != nil {
		return nil, err
	}
	return &Log{
		prefix: "petri." + tenant + "." + analysis + ".", tenant: tenant, analysis: analysis,
		segments: map[schemas.Source]int{}, seen: map[[16]byte]struct{}{}, index: map[schemas.Digest]int{},
		covering: covering{tenant: tenant, analysis: analysis, key: strings.ToLower(key), uncovered: map[string]uint64{}},
	}, nil
}

// Events is how many there are; Context how many of them are context events.
func (l *Log) Events() uint64 { return l.events }

// Context is how many context events there are.
func (l *Log) Context() int { return l.context }

// Foreign is how many messages lay among the events that are none, and were left
// out: the word of whoever read them.
func (l *Log) Foreign() uint64 { return l.foreign }

// SetForeign notes what was left out. A [Writer] is told when all events are
// written, and before it is given objects.
func (l *Log) SetForeign(n uint64) { l.foreign = n }

// Root is the Merkle tree hash over the events' bytes.
func (l *Log) Root() schemas.Digest { return l.tree.Root() }

// Ending is the name of the context event that ended the analysis, or empty.
func (l *Log) Ending() string { return l.ending }

// Objects lists what the events name so far, in the order in which they first
// do. The caller must not change it.
func (l *Log) Objects() []Object { return l.objects }

// Coverage says what checkpoints cover so far.
func (l *Log) Coverage() Coverage {
	c := &l.covering
	out := Coverage{Events: l.events, Foreign: l.foreign, Covered: c.covered, Uncovered: map[string]uint64{}, Checkpoints: slices.Clone(c.checked)}
	for k, v := range c.uncovered {
		out.Uncovered[k] = v
	}
	return out
}

// Add takes the next event. An error says why it does not belong; the log is
// of no use then.
func (l *Log) Add(e Entry) (schemas.Event, error) {
	ev, err := l.add(e)
	if err != nil {
		return schemas.Event{}, fmt.Errorf("event %d: %w", l.events+1, err)
	}
	return ev, nil
}

func (l *Log) add(e Entry) (schemas.Event, error) {
	if len(e.Body) > MaxEvent {
		return schemas.Event{}, fmt.Errorf("it has %d bytes; %d are allowed", len(e.Body), MaxEvent)
	}
	ev, err := schemas.ParseEvent(e.Body)
	if err != nil {
		return schemas.Event{}, err
	}
	if ev.Tenant != l.tenant || ev.Analysis != l.analysis {
		return schemas.Event{}, fmt.Errorf("it is analysis %.40q's of tenant %.40q", ev.Analysis, ev.Tenant)
	}
	rest, ok := strings.CutPrefix(e.Subject, l.prefix)
	if !ok || len(e.Subject) > MaxSubject {
		return schemas.Event{}, fmt.Errorf("its subject %.80q is not the analysis'", e.Subject)
	}
	if err := l.take(ev, rest); err != nil {
		return schemas.Event{}, err
	}
	leaf := LeafHash(e.Body)
	l.tree.Append(leaf)
	l.covering.add(leaf, ev.Type)
	l.events++
	return ev, nil
}

// take checks an event against its family's rules.
func (l *Log) take(e schemas.Event, subject string) error {
	if l.events == 0 && e.Name() != schemas.EventSubmitted {
		return fmt.Errorf("it is the first, and a %.80q, not %s", e.Type, schemas.EventSubmitted)
	}
	switch e.Family() {
	case "context":
		return l.contextEvent(e, subject)
	case "segment":
		return l.segment(e, subject)
	case "artifact":
		return l.artifact(e, subject)
	case "derivation":
		return l.derivation(e, subject)
	case "finding":
		return l.finding(e, subject)
	case "receipt":
		return l.receipt(e, subject)
	case "report":
		return l.report(e, subject)
	case "checkpoint":
		return l.checkpoint(e, subject)
	}
	// A newer Petri's. Its subject is a label, and no more than that.
	for token := range strings.SplitSeq(subject, ".") {
		if token == "" || strings.Trim(token, tokenChars) != "" {
			return fmt.Errorf("its subject has the token %.80q", token)
		}
	}
	return nil
}

const tokenChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"

var (
	errTwoEnds  = errors.New("the analysis has ended before")
	errTwice    = errors.New("it is there twice")
	errSubject  = errors.New("it lies under another event's subject")
	errNegative = errors.New("a number is negative")
)

// under reports why a subject is not the one that an event lies under.
func under(subject string, tokens ...string) error {
	if want := strings.Join(tokens, "."); subject != want {
		return fmt.Errorf("%w: %.120q, not %.120q", errSubject, subject, want)
	}
	return nil
}

// once notes what may come once.
func (l *Log) once(name string) error {
	sum := sha256.Sum256([]byte(name))
	key := [16]byte(sum[:16])
	if _, ok := l.seen[key]; ok {
		return errTwice
	}
	if len(l.seen) >= MaxTasks {
		return fmt.Errorf("the log has more than %d receipts, findings and announcements", MaxTasks)
	}
	l.seen[key] = struct{}{}
	return nil
}

// contextEvent holds the context events to their numbers: the one writer counts
// from 0, without a hole.
func (l *Log) contextEvent(e schemas.Event, subject string) error {
	if err := schemas.CheckEventName(e.Name()); err != nil {
		return err
	}
	if want := l.analysis + "/context/" + strconv.Itoa(l.context); e.ID != want {
		return fmt.Errorf("its id is %.80q; %s is due: an event is missing or comes twice", e.ID, want)
	}
	if err := under(subject, "context", e.Name()); err != nil {
		return err
	}
	if schemas.Ending(e.Name()) {
		if l.ending != "" {
			return errTwoEnds
		}
		l.ending = e.Name()
	}
	l.context++
	return nil
}

func (l *Log) segment(e schemas.Event, subject string) error {
	var s schemas.Segment
	if err := e.Decode(&s); err != nil {
		return err
	}
	if err := schemas.CheckKind(schemas.Kind(s.Source)); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	next, known := l.segments[s.Source]
	switch {
	case s.N < next:
		return errTwice
	case !known && len(l.segments) >= maxSources:
		return fmt.Errorf("the log has more than %d sources", maxSources)
	}
	l.segments[s.Source] = s.N + 1
	if err := under(subject, "segment", string(s.Source), strconv.Itoa(s.N)); err != nil {
		return err
	}
	if len(s.Data) > 0 || s.Size == 0 { // its bytes are here
		return nil
	}
	return l.names(s.SHA256, s.Size, KindSegment, schemas.Kind(s.Source))
}

// maxSources is more than there are.
const maxSources = 32

func (l *Log) artifact(e schemas.Event, subject string) error {
	var a schemas.Artifact
	if err := e.Decode(&a); err != nil {
		return err
	}
	return l.announced(&a, subject, "artifact")
}

// derivation is what an analyzer derived in a run.
func (l *Log) derivation(e schemas.Event, subject string) error {
	var d schemas.Derivation
	if err := e.Decode(&d); err != nil {
		return err
	}
	if err := l.task(&d.Task); err != nil {
		return err
	}
	if d.Task.Run == schemas.LiveRun {
		return errors.New("what is derived while the analysis goes on is announced")
	}
	return l.announced(&d.Artifact, subject, "derivation", d.Task.Run)
}

// announced checks an artifact that lies under a subject of those first tokens.
func (l *Log) announced(a *schemas.Artifact, subject string, of ...string) error {
	if err := schemas.CheckKind(a.Kind); err != nil {
		return err
	}
	if a.Occurrence < 0 || a.Depth < 0 {
		return errNegative
	}
	if err := under(subject, append(of, string(a.Kind), a.SHA256.Token(), strconv.Itoa(a.Occurrence))...); err != nil {
		return err
	}
	if err := l.once(subject); err != nil {
		return err
	}
	return l.names(a.SHA256, a.Size, a.Kind)
}

// task checks a task's names, which are tokens of subjects.
func (l *Log) task(t *schemas.TaskRef) error {
	if t.Tenant != l.tenant || t.Analysis != l.analysis {
		return fmt.Errorf("its task is analysis %.40q's", t.Analysis)
	}
	return errors.Join(schemas.CheckAnalyzer(t.Analyzer), schemas.CheckRun(t.Run))
}

func (l *Log) finding(e schemas.Event, subject string) error {
	var f schemas.FindingCommitted
	if err := e.Decode(&f); err != nil {
		return err
	}
	if err := l.task(&f.Task); err != nil {
		return err
	}
	if err := f.Finding.Check(); err != nil {
		return err
	}
	if f.N < 0 {
		return errNegative
	}
	family, severity := "finding", f.Finding.Severity
	if f.Task.Run != schemas.LiveRun {
		family = "refinding"
	}
	if severity == "" {
		severity = schemas.SeverityInfo
	}
	if err := under(subject, family, string(severity), f.Task.Analyzer, f.Task.Token(), strconv.Itoa(f.N)); err != nil {
		return err
	}
	// Not by subject: runs share it, and another severity makes another one.
	return l.once(strings.Join([]string{"finding", f.Task.Run, f.Task.Analyzer, f.Task.Token(), strconv.Itoa(f.N)}, "."))
}

func (l *Log) receipt(e schemas.Event, subject string) error {
	var r schemas.Receipt
	if err := e.Decode(&r); err != nil {
		return err
	}
	if err := l.task(&r.Task); err != nil {
		return err
	}
	if err := under(subject, "receipt", r.Task.Run, r.Task.Analyzer, r.Task.Token()); err != nil {
		return err
	}
	if err := l.once(subject); err != nil {
		return err
	}
	if r.Result == nil {
		return nil
	}
	return l.names(r.Result.SHA256, r.Result.Size, KindResult)
}

func (l *Log) report(e schemas.Event, subject string) error {
	var r schemas.ReportWritten
	if err := e.Decode(&r); err != nil {
		return err
	}
	if err := schemas.CheckEventName(r.Format); err != nil {
		return fmt.Errorf("format: %w", err)
	}
	return under(subject, "report", r.Format)
}

func (l *Log) checkpoint(e schemas.Event, subject string) error {
	var c schemas.Checkpoint
	if err := e.Decode(&c); err != nil {
		return err
	}
	if err := under(subject, "checkpoint", strconv.FormatUint(c.Events, 10)); err != nil {
		return err
	}
	return l.covering.check(&c)
}

// names notes an object that an event names.
func (l *Log) names(d schemas.Digest, size int64, kinds ...schemas.Kind) error {
	if size < 0 || size > MaxObject {
		return fmt.Errorf("%s has %d bytes; 0 to %d are allowed", d, size, int64(MaxObject))
	}
	i, ok := l.index[d]
	if !ok {
		if len(l.objects) >= MaxObjects {
			return fmt.Errorf("the log names more than %d objects", MaxObjects)
		}
		l.index[d] = len(l.objects)
		l.objects = append(l.objects, Object{SHA256: d, Size: size, Kinds: kinds})
		return nil
	}
	o := &l.objects[i]
	if o.Size != size {
		return fmt.Errorf("%s has %d bytes here and %d before", d, size, o.Size)
	}
	for _, k := range kinds {
		if !slices.Contains(o.Kinds, k) && len(o.Kinds) < maxKinds {
			o.Kinds = append(o.Kinds, k)
		}
	}
	return nil
}

// maxKinds bounds how many kinds of one object are kept.
const maxKinds = 16
