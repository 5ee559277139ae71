// SPDX-License-Identifier: Apache-2.0

// Package behavior says what a trace means: it follows processes, descriptors
// and directories through the records of package trace, turns them into
// [schemas.Behavior] events as they come, and sums them up in a
// [schemas.BehaviorResult].
//
// It judges nothing: whether a behaviour is bad is for rules to say. A trace is
// a hostile guest's testimony, so that whatever it says takes a bounded amount
// of memory; what does not fit is counted. The same records give the same
// events and the same result, byte for byte. Text that a sample chose is made
// printable by [Printable]; paths are resolved by name, as symbolic links cannot
// be seen.
package behavior

import (
	"bufio"
	"errors"
	"io"

	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/stap"
	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// Bounds of what a Tracker remembers.
const (
	maxProcesses   = schemas.MaxReportList
	maxThreads     = 32768
	maxFiles       = schemas.MaxReportList
	maxNetwork     = schemas.MaxReportList
	maxCallNames   = 2000
	maxDescriptors = 1 << 18 // in all tables
	maxPerTable    = 4096
	maxPIDs        = 64 // of one file or address
	maxArgs        = 256
	maxText        = 64 << 20 // bytes of paths and arguments
	maxPending     = 8 << 10  // bytes of what a call that has begun points to
)

// A Tracker follows one trace. It is for one goroutine.
type Tracker struct {
	emit func(schemas.Behavior)

	procs   map[procKey]*process
	order   []*process // as they appeared
	threads map[uint32]*thread
	main    sysno.ABI // of the first program
	now     uint64    // of the newest record
	waiting []*thread // whose calls have begun, oldest first

	descriptors int // in all tables
	text        int // bytes of text that is kept
	sum         summary
}

// New returns a Tracker that hands every event to emit, which may be nil.
//
// A call that blocks for long gives an event without a result, and when it
// returns the same event with it: both have the number of the record of the
// call's beginning.
func New(emit func(schemas.Behavior)) *Tracker {
	if emit == nil {
		emit = func(schemas.Behavior) {}
	}
	return &Tracker{emit: emit, procs: map[procKey]*process{}, threads: map[uint32]*thread{}, sum: newSummary()}
}

// A Source gives the records of a trace, one after the other, each valid until the
// next: a [trace.Reader] or a [stap.Reader].
type Source interface {
	Next() (*trace.Record, error)
	Totals() trace.Totals
}

// Open returns the source of the trace in r, which is SystemTap's text if it
// begins so.
func Open(r io.Reader) (Source, error) {
	b := bufio.NewReader(r)
	start, err := b.Peek(len(stap.Magic))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if string(start) == stap.Magic {
		return stap.NewReader(b), nil
	}
	return trace.NewReader(b), nil
}

// Analyze reads a whole trace, of either format. An error is the stream's own: what is broken in
// the trace is counted in the result.
func Analyze(r io.Reader, emit func(schemas.Behavior)) (schemas.BehaviorResult, error) {
	t := New(emit)
	src, err := Open(r)
	if err != nil {
		return schemas.BehaviorResult{}, err
	}
	for {
		rec, err := src.Next()
		if errors.Is(err, io.EOF) {
			result := t.Result(src.Totals())
			if text, ok := src.(*stap.Reader); ok {
				result.Gaps = append(text.Gaps(), result.Gaps...)
			}
			return result, nil
		}
		if err != nil {
			return schemas.BehaviorResult{}, err
		}
		t.Add(rec)
	}
}

// settle is how long a call may be under way before it gives an event.
const settle = 100e6

// Add takes the next record, of which nothing is kept.
func (t *Tracker) Add(r *trace.Record) {
	t.now = max(t.now, r.Begin, r.End)
	t.sum.records++
	switch r.Type {
	case trace.Syscall:
		t.syscall(r)
	case trace.Fork:
		t.fork(r)
	case trace.Exec:
		t.exec(r)
	case trace.Exit:
		t.exit(r)
	case trace.Stats:
		t.sum.untracked += r.Args[4]
	}
	for len(t.waiting) > 0 && (t.waiting[0].pending == nil || t.now-t.waiting[0].pending.Begin > settle) {
		t.begun(t.waiting[0])
		t.waiting = t.waiting[1:]
	}
}

// Settle gives the events of all calls that have begun and not returned. A
// reader of a live trace calls it when nothing has come for a while.
func (t *Tracker) Settle() {
	for _, th := range t.waiting {
		t.begun(th)
	}
	t.waiting = nil
}

// begun gives the event of a call that has not returned.
func (t *Tracker) begun(th *thread) {
	if r := th.pending; r != nil && !th.shown {
		th.shown = true
		t.handle(th, r, false)
	}
}

// syscall brings the two records of a call that gave one at its beginning
// together, and has it handled once it is known how it ended.
func (t *Tracker) syscall(r *trace.Record) {
	th := t.threadOf(r)
	if a := r.Attached(trace.NoArg, trace.Comm); a != nil { // only of a source that says it with every call
		th.comm = string(a.Data)
		if th.proc.info.Comm == "" {
			th.proc.info.Comm = Printable(th.comm)
		}
	}
	if r.Flags&trace.Entry != 0 {
		t.forget(th)
		t.count(th, r)
		th.pending, th.shown = clone(r), false
		if len(t.waiting) >= maxThreads {
			t.Settle() // in a trace whose clock stands still
		}
		t.waiting = append(t.waiting, th)
		return
	}
	p := th.pending
	switch {
	case p != nil && r.Flags&trace.Continued != 0 && p.Call == r.Call && p.Begin == r.Begin:
		shown := th.shown
		th.pending = nil
		t.handle(th, merge(p, r), shown)
	case th.flushed != nil && th.flushed.begin == r.Begin && r.Untold == 0:
		// A flush has told of it while it was under way.
		same := *r
		same.Number = th.flushed.number
		if r.Flags&trace.Unfinished == 0 { // another flush may have come meanwhile
			th.flushed = nil
		}
		t.handle(th, &same, true)
	default:
		t.count(th, r)
		if r.Flags&trace.Unfinished != 0 {
			th.flushed = &flushed{begin: r.Begin, number: r.Number}
		}
		t.handle(th, r, false)
	}
}

// forget drops a thread's call whose end was never seen.
func (t *Tracker) forget(th *thread) {
	t.begun(th)
	th.pending = nil
}

// merge is the record of a whole call. What could be read only at its end
// takes the place of what could not at its beginning.
func merge(begin, end *trace.Record) *trace.Record {
	whole := *end
	whole.Number = begin.Number
	whole.Attachments = append([]trace.Attachment(nil), end.Attachments...)
	for _, a := range begin.Attachments {
		if end.Attached(a.Arg, a.Kind) == nil {
			whole.Attachments = append(whole.Attachments, a)
		}
	}
	return &whole
}

// clone copies a record, with no more attached to it than the tracer does.
func clone(r *trace.Record) *trace.Record {
	c := *r
	c.Attachments = append([]trace.Attachment(nil), r.Attachments...)
	left := maxPending
	for i := range c.Attachments {
		a := &c.Attachments[i]
		if len(a.Data) > left {
			a.Data, a.Flags = a.Data[:left], a.Flags|trace.Truncated
		}
		left -= len(a.Data)
		a.Data = append([]byte(nil), a.Data...)
	}
	return &c
}

// handle finds out what a call was and what it means; again says that it was
// handled when it had begun.
func (t *Tracker) handle(th *thread, r *trace.Record, again bool) {
	c := &call{t: t, r: r, th: th, p: th.proc, desc: r.Describe(), again: again}
	if r.Finished() {
		c.errno = r.ABI.Errno(r.Result)
	}
	f := handlers[c.desc.Name]
	switch {
	case f == nil:
	case !c.told():
		t.sum.untold++
	default:
		f(c)
	}
}

// count counts a call once.
func (t *Tracker) count(th *thread, r *trace.Record) {
	th.proc.info.Syscalls++
	t.sum.syscall(r)
}
