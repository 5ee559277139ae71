// SPDX-License-Identifier: Apache-2.0

package behavior

import (
	"cmp"
	"slices"

	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// A Filter says which records or events are of interest. The zero value takes
// all.
type Filter struct {
	// Classes and Calls select system calls; either is enough. The life of
	// processes, which has records without calls, is of class process.
	Classes sysno.Class
	Calls   []string
	// Processes are numbers of processes or threads in the sample's view. A fork
	// is its parent's and its child's.
	Processes []int
	// Failed takes only calls that have returned an error.
	Failed bool
}

// Record reports whether a record is of interest. Of a call that two records
// show, only the joined one is known to have failed: see [Joiner].
func (f *Filter) Record(r *trace.Record) bool {
	switch r.Type {
	case trace.Syscall:
		if f.Failed && (!r.Finished() || r.ABI.Errno(r.Result) == "") {
			return false
		}
		return f.call(r.Describe().Name) && f.process(r.Who.NSPID, r.Who.NSTID)
	case trace.Fork:
		return f.life() && f.process(r.Who.NSPID, r.Who.NSTID, uint32(r.Args[2]), uint32(r.Args[3]))
	case trace.Exec, trace.Exit:
		return f.life() && f.process(r.Who.NSPID, r.Who.NSTID)
	}
	return f.life() && len(f.Processes) == 0 && f.Classes == 0
}

// Event reports whether an event is of interest.
func (f *Filter) Event(b *schemas.Behavior) bool {
	if f.Failed && b.Errno == "" {
		return false
	}
	pids := []uint32{uint32(b.Actor.PID), uint32(b.Actor.TID)}
	if b.Syscall != "" {
		return f.call(b.Syscall) && f.process(pids...)
	}
	if b.Process != nil && b.Action == "fork" {
		pids = append(pids, uint32(b.Process.PID))
	}
	return f.life() && f.process(pids...)
}

func (f *Filter) call(name string) bool {
	if f.Classes == 0 && len(f.Calls) == 0 {
		return true
	}
	class, _ := sysno.ClassOf(name)
	return class&f.Classes != 0 || slices.Contains(f.Calls, name)
}

// life reports whether records that are no calls are of interest.
func (f *Filter) life() bool {
	return !f.Failed && (f.Classes == 0 && len(f.Calls) == 0 || f.Classes&sysno.ClassProcess != 0)
}

func (f *Filter) process(pids ...uint32) bool {
	return len(f.Processes) == 0 || slices.ContainsFunc(pids, func(pid uint32) bool { return slices.Contains(f.Processes, int(pid)) })
}

// maxBegun bounds the calls that a Joiner remembers.
const maxBegun = 4096

// A Joiner makes one record of the two of a call that gave one when it began. It
// is for one goroutine; the zero value is ready.
type Joiner struct {
	begun map[uint32]*trace.Record
}

// Join takes the next record and returns what to make of it: the record itself,
// or that of the whole call, or nil where the call has only begun. At the end of
// a thread it comes after the call that the thread has ended in, if any. What
// Join returns is valid until the next call.
func (j *Joiner) Join(r *trace.Record) []*trace.Record {
	switch {
	case r.Type == trace.Syscall && r.Flags&trace.Entry != 0:
		old := j.take(r.TID)
		if j.begun == nil || len(j.begun) >= maxBegun {
			j.begun = map[uint32]*trace.Record{} // the ends of these were not seen
		}
		j.begun[r.TID] = clone(r)
		return old
	case r.Type == trace.Syscall && r.Flags&trace.Continued != 0:
		p := j.begun[r.TID]
		if p == nil || p.Call != r.Call || p.Begin != r.Begin {
			break
		}
		delete(j.begun, r.TID)
		whole := merge(p, r)
		whole.Flags &^= trace.Continued
		return []*trace.Record{whole}
	case r.Type == trace.Exec && uint32(r.Args[0]) != r.TID: // another thread's number is its now
		if p := j.begun[uint32(r.Args[0])]; p != nil {
			delete(j.begun, uint32(r.Args[0]))
			j.begun[r.TID] = p
		}
	case r.Type == trace.Exit:
		return append(j.take(r.TID), r)
	}
	return []*trace.Record{r}
}

// take returns a thread's call whose end will not be seen.
func (j *Joiner) take(tid uint32) []*trace.Record {
	p := j.begun[tid]
	if p == nil {
		return nil
	}
	delete(j.begun, tid)
	p.Flags = p.Flags&^trace.Entry | trace.Unfinished
	return []*trace.Record{p}
}

// Rest returns the calls that have begun and not returned, in the order of their
// beginnings.
func (j *Joiner) Rest() []*trace.Record {
	var out []*trace.Record
	for tid := range j.begun {
		out = append(out, j.take(tid)...)
	}
	slices.SortFunc(out, func(a, b *trace.Record) int { return cmp.Compare(a.Number, b.Number) })
	return out
}
