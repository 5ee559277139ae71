// SPDX-License-Identifier: Apache-2.0

// Package recorded replays what a machine did: it is a [machine.Machine] whose
// facts and bytes come out of the log and the store of an analysis that has
// ended. There is no guest, nothing is executed, and nothing can happen in it
// that has not been recorded. It is for load tests and for working on what
// reads an analysis.
package recorded

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// Objects opens what a log names. A store is one.
type Objects interface {
	Open(ctx context.Context, d schemas.Digest) (io.ReadCloser, int64, error)
}

// A Recording is an analysis to replay. It is read only, and serves any number
// of machines at once.
type Recording struct {
	Analysis string
	Sample   schemas.Digest

	boot    machine.Boot
	started *schemas.SampleStarted
	refused *machine.NotExecuted
	before  []step // until the sample was started, since the machine was
	after   []step // since the sample was started
	ends    []schemas.SourceCoverage
	execs   []schemas.Exec
	files   schemas.DropList
	cuts    map[schemas.Digest]int64 // of files, bytes left out
	dump    *schemas.Digest
	picture *schemas.Digest
	objects Objects
}

// step is one thing that a machine reported: a fact, or bytes of a source, which
// lie here or in the store.
type step struct {
	at     time.Duration
	fact   *machine.Event
	src    schemas.Source
	data   []byte
	object *schemas.Digest
}

// Bounds of a recording: what a sandbox makes is far below.
const (
	maxSteps    = 1 << 20
	maxInline   = 256 << 20 // bytes of segments that lie in the log
	maxDropList = 256 << 20
)

// Load makes a recording of the events of an ended analysis, in the log's order.
// objects must stay open for as long as the recording is used.
func Load(ctx context.Context, events []schemas.Event, objects Objects) (*Recording, error) {
	l := loader{r: &Recording{objects: objects, cuts: map[schemas.Digest]int64{}}}
	for _, e := range events {
		if err := l.take(ctx, e); err != nil {
			return nil, fmt.Errorf("event %s: %w", e.ID, err)
		}
	}
	switch {
	case l.r.Sample == schemas.Digest{}:
		return nil, errors.New("the analysis has no sample")
	case l.r.boot.Machine.Arch == "":
		return nil, errors.New("the analysis had no machine that started")
	case l.boots > 1:
		return nil, errors.New("the analysis started its machine more than once, which cannot be replayed")
	}
	l.finish()
	return l.r, nil
}

// Arch is the guest that was recorded.
func (r *Recording) Arch() string { return r.boot.Machine.Arch }

// loader folds a log into a recording.
type loader struct {
	r       *Recording
	boots   int
	up      time.Time // when the machine had started
	started time.Time // when the sample had
	steps   []timed
	inline  int64
}

type timed struct {
	time time.Time
	step
}

func (l *loader) take(ctx context.Context, e schemas.Event) error {
	switch e.Family() {
	case "context":
		return l.fact(e)
	case "segment":
		var s schemas.Segment
		if err := e.Decode(&s); err != nil {
			return err
		}
		st := step{src: s.Source, data: s.Data}
		if len(s.Data) == 0 && s.Size > 0 {
			st.object = &s.SHA256
		}
		if l.inline += int64(len(s.Data)); l.inline > maxInline {
			return fmt.Errorf("more than %d bytes of segments", maxInline)
		}
		return l.add(s.From, st)
	case "artifact":
		var a schemas.Artifact
		if err := e.Decode(&a); err != nil {
			return err
		}
		return l.artifact(ctx, a)
	}
	return nil
}

func (l *loader) add(at time.Time, s step) error {
	if len(l.steps) >= maxSteps {
		return fmt.Errorf("more than %d things happened", maxSteps)
	}
	l.steps = append(l.steps, timed{at, s})
	return nil
}

// fact takes a context event.
func (l *loader) fact(e schemas.Event) error {
	r := l.r
	out := machine.Event{}
	switch e.Name() {
	case schemas.EventSubmitted:
		var s schemas.AnalysisSubmitted
		if err := e.Decode(&s); err != nil {
			return err
		}
		r.Analysis, r.Sample = e.Analysis, s.Submission.Sample.SHA256
		return nil
	case schemas.EventPostPoweron:
		l.boots++
		l.up = e.Time
		return e.Decode(&r.boot.PostPoweron)
	case schemas.EventPostRestart:
		l.boots++
		return nil
	case schemas.EventGuestReady:
		return e.Decode(&r.boot.Ready)
	case schemas.EventSampleStarted:
		r.started, l.started = new(schemas.SampleStarted), e.Time
		return e.Decode(r.started)
	case schemas.EventExec:
		var x schemas.Exec
		if err := e.Decode(&x); err != nil {
			return err
		}
		r.execs = append(r.execs, x)
		return nil
	case schemas.EventStartAnalysis:
		var s schemas.StartAnalysis
		if err := e.Decode(&s); err != nil {
			return err
		}
		r.ends = s.Sources
		return nil
	case schemas.EventIPAddress:
		out.Lease = new(schemas.IPAddress)
		if err := e.Decode(out.Lease); err != nil {
			return err
		}
	case schemas.EventSampleExited:
		var x schemas.SampleExited
		if err := e.Decode(&x); err != nil {
			return err
		}
		if x.Reason == "not_executed" {
			r.refused = &machine.NotExecuted{Reason: x.Error, Errno: x.Errno, Missing: x.Missing}
			return nil
		}
		out.Exited = &x
	case schemas.EventTreeExited:
		out.Tree = &machine.TreeExited{}
	case schemas.EventMachineOff:
		out.Off = new(schemas.MachineOff)
		if err := e.Decode(out.Off); err != nil {
			return err
		}
	case schemas.EventTampering:
		out.Tampering = new(schemas.PossibleTampering)
		if err := e.Decode(out.Tampering); err != nil {
			return err
		}
	case schemas.EventFault:
		var f schemas.Fault
		if err := e.Decode(&f); err != nil || e.Origin != schemas.OriginGuest {
			return err // the sandbox' own faults are of that run
		}
		out.Fault = f.Text
	default:
		return nil
	}
	return l.add(e.Time, step{fact: &out})
}

// artifact takes an announcement.
func (l *loader) artifact(ctx context.Context, a schemas.Artifact) error {
	r := l.r
	if a.Analyzer != "" { // derived
		return nil
	}
	switch a.Kind {
	case schemas.KindMemory:
		r.dump = &a.SHA256
	case schemas.KindScreenshot:
		r.picture = &a.SHA256
	case schemas.KindDropped:
		r.cuts[a.SHA256] = a.Cut
	case schemas.KindDrops:
		in, size, err := r.objects.Open(ctx, a.SHA256)
		if err != nil {
			return fmt.Errorf("open the list of changed files: %w", err)
		}
		defer in.Close()
		if size > maxDropList {
			return fmt.Errorf("a list of changed files of %d bytes", size)
		}
		return json.NewDecoder(io.LimitReader(in, maxDropList)).Decode(&r.files)
	}
	return nil
}

// finish puts what happened in order, and to the start that it followed.
func (l *loader) finish() {
	slices.SortStableFunc(l.steps, func(a, b timed) int { return a.time.Compare(b.time) })
	for _, s := range l.steps {
		st := s.step
		if l.started.IsZero() || s.time.Before(l.started) && !ofSample(st) {
			st.at = max(0, s.time.Sub(l.up))
			l.r.before = append(l.r.before, st)
			continue
		}
		st.at = max(0, s.time.Sub(l.started))
		l.r.after = append(l.r.after, st)
	}
	l.r.ends = slices.DeleteFunc(slices.Clone(l.r.ends), func(c schemas.SourceCoverage) bool { return c.Source == schemas.SourceDropped })
	slices.SortFunc(l.r.ends, func(a, b schemas.SourceCoverage) int { return cmp.Compare(a.Source, b.Source) })
}

// ofSample reports whether only a sample that runs can be the reason of a step:
// its first bytes can come before the word that it has started.
func ofSample(s step) bool {
	return s.src == schemas.SourceStdout || s.src == schemas.SourceStderr || s.fact != nil && (s.fact.Exited != nil || s.fact.Tree != nil || s.fact.Tampering != nil)
}
