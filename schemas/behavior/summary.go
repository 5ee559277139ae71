// SPDX-License-Identifier: Apache-2.0

package behavior

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// summary is what becomes the result.
type summary struct {
	records   uint64
	untracked uint64
	untold    uint64 // calls whose arguments are not known
	files     map[string]*file
	addresses map[addressKey]*schemas.NetworkActivity
	calls     map[callKey]uint64
	omitted   map[string]int
	gaps      map[string]bool
	text      int
}

type file struct {
	schemas.FileActivity
	actions, errors map[string]bool
}

type addressKey struct {
	action, family, typ, address, path string
	port                               int
}

type callKey struct {
	abi    sysno.ABI
	call   uint32
	mux    uint8
	untold bool // the ABI means nothing
}

func newSummary() summary {
	return summary{
		files: map[string]*file{}, addresses: map[addressKey]*schemas.NetworkActivity{},
		calls: map[callKey]uint64{}, omitted: map[string]int{}, gaps: map[string]bool{},
	}
}

func (s *summary) gap(text string) { s.gaps[text] = true }

func (s *summary) syscall(r *trace.Record) {
	k := callKey{r.ABI, r.Call, r.Mux, r.Untold&trace.UntoldCPU != 0}
	if _, ok := s.calls[k]; !ok && len(s.calls) >= maxCallNames {
		s.omitted["syscalls"]++
		return
	}
	s.calls[k]++
}

// of returns the entry of a path, nil if there is no more room.
func (s *summary) of(path string) *file {
	f := s.files[path]
	if f == nil {
		if len(s.files) >= maxFiles || s.text+len(path) > maxText {
			s.omitted["files"]++
			return nil
		}
		s.text += len(path)
		f = &file{actions: map[string]bool{}, errors: map[string]bool{}}
		f.Path = path
		s.files[path] = f
	}
	return f
}

// file notes that a process did something to a path.
func (s *summary) file(p *process, path, action, errno string) *file {
	f := s.of(path)
	if f == nil {
		return nil
	}
	f.actions[action] = true
	if errno != "" {
		f.Failed++
		f.errors[errno] = true
	}
	f.PIDs = withPID(f.PIDs, p.info.PID)
	return f
}

func (s *summary) opened(p *process, n name) {
	if n.abs {
		if f := s.of(n.path); f != nil {
			f.Opens++
		}
	}
}

func (s *summary) target(path, target string) {
	if f := s.files[path]; f != nil && s.text+len(target) <= maxText {
		s.text += len(target)
		f.Target = Printable(target)
	}
}

// transfer notes bytes read or written.
func (s *summary) transfer(p *process, path, action, errno string, n int64) {
	f := s.file(p, path, action, errno)
	if f == nil || errno != "" || n < 0 {
		return
	}
	// A trace that lies may overflow the sum: it stays at its largest then.
	total := &f.Read
	if action == "write" {
		total = &f.Written
	}
	if *total += n; *total < 0 {
		*total = 1<<63 - 1
	}
}

// network notes what was done with an address; again says that it was noted
// when the call had begun.
func (s *summary) network(p *process, action string, n schemas.NetworkBehavior, errno string, again bool) {
	k := addressKey{action, n.Family, n.Type, n.Address, n.Path, n.Port}
	a := s.addresses[k]
	if a == nil {
		if len(s.addresses) >= maxNetwork {
			s.omitted["network"]++
			return
		}
		a = &schemas.NetworkActivity{
			Action: action, Family: n.Family, Type: n.Type, Address: n.Address, Port: n.Port, Path: n.Path,
		}
		s.addresses[k] = a
	}
	if !again || a.Count == 0 {
		a.Count++
	}
	if errno != "" && !slices.Contains(a.Errors, errno) && len(a.Errors) < 100 {
		a.Errors = append(a.Errors, errno)
	}
	a.PIDs = withPID(a.PIDs, p.info.PID)
}

func withPID(list []int, pid int) []int {
	if len(list) >= maxPIDs || slices.Contains(list, pid) {
		return list
	}
	return append(list, pid)
}

// Result sums up everything so far. totals are those of the trace's reader.
func (t *Tracker) Result(totals trace.Totals) schemas.BehaviorResult {
	t.Settle()
	r := schemas.BehaviorResult{
		Schema:    schemas.BehaviorSchema,
		Processes: []schemas.Process{}, Files: []schemas.FileActivity{}, Network: []schemas.NetworkActivity{},
		Syscalls: map[string]uint64{}, Records: t.sum.records, Bad: totals.Bad,
	}
	for _, p := range t.order {
		info := p.info
		info.Argv = slices.Clone(info.Argv)
		r.Processes = append(r.Processes, info)
	}
	slices.SortStableFunc(r.Processes, func(a, b schemas.Process) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.PID, b.PID))
	})
	for _, path := range slices.Sorted(maps.Keys(t.sum.files)) {
		f := t.sum.files[path]
		a := f.FileActivity
		a.Path = Printable(path)
		a.Actions = slices.Sorted(maps.Keys(f.actions))
		a.Errors = slices.Sorted(maps.Keys(f.errors))
		a.PIDs = slices.Sorted(slices.Values(f.PIDs))
		r.Files = append(r.Files, a)
	}
	for _, a := range t.sum.addresses {
		b := *a
		b.Errors = slices.Sorted(slices.Values(a.Errors))
		b.PIDs = slices.Sorted(slices.Values(a.PIDs))
		r.Network = append(r.Network, b)
	}
	slices.SortFunc(r.Network, func(a, b schemas.NetworkActivity) int {
		return cmp.Or(cmp.Compare(a.Action, b.Action), cmp.Compare(a.Family, b.Family), cmp.Compare(a.Type, b.Type),
			cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Path, b.Path))
	})
	for k, n := range t.sum.calls {
		name := sysno.Lookup(k.abi, uint64(k.call), k.mux).Name
		if t.main != 0 && k.abi != t.main && !k.untold {
			name = k.abi.String() + ":" + name
		}
		r.Syscalls[name] += n
	}
	r.Omitted, r.Gaps = t.omitted(), t.gaps(totals)
	return r
}

func (t *Tracker) omitted() map[string]int {
	if len(t.sum.omitted) == 0 {
		return nil
	}
	return maps.Clone(t.sum.omitted)
}

// gaps says what the trace cannot show.
func (t *Tracker) gaps(totals trace.Totals) []string {
	gaps := slices.Sorted(maps.Keys(t.sum.gaps))
	add := func(n uint64, text string) {
		if n > 0 {
			gaps = append(gaps, fmt.Sprintf("%d %s", n, text))
		}
	}
	add(totals.Lost, "records were lost in the guest")
	add(totals.Missing, "records are missing between blocks of the trace")
	add(totals.Bad, "records could not be decoded")
	add(totals.Skipped, "bytes of the trace are none")
	add(totals.Unreadable, "arguments could not be read in the guest")
	add(t.sum.untracked, "tasks could not be recorded for lack of memory")
	add(t.sum.untold, "calls of which not all arguments are known count for nothing else")
	return gaps
}
