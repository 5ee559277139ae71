// SPDX-License-Identifier: Apache-2.0

package behavior

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/petri-sandbox/petri/schemas"
)

// Bounds of what a summary remembers.
const (
	maxDetails = 20
	maxDetail  = 256 // bytes of one
	maxRecords = 16  // evidence of one finding
	maxPaths   = 20_000
	maxPending = 65_536
)

// tally counts one kind of thing.
type tally struct {
	Count
	records []uint64
	details []string
}

// done is how many calls have not failed.
func (c Count) done() uint64 { return c.Calls - c.Failed }

func (t *tally) add(b *schemas.Behavior, detail string) {
	t.Calls++
	if b.Errno != "" {
		t.Failed++
	}
	if len(t.records) < maxRecords {
		t.records = append(t.records, b.Record)
	}
	t.detail(detail)
}

func (t *tally) detail(s string) {
	if s = clip(s); s != "" && len(t.details) < maxDetails && !slices.Contains(t.details, s) {
		t.details = append(t.details, s)
	}
}

// clip cuts a text that is printable already.
func clip(s string) string {
	if len(s) <= maxDetail {
		return s
	}
	return strings.ToValidUTF8(s[:maxDetail], "") + "…"
}

// summary is what is kept of the events.
type summary struct {
	actions map[string]*tally // by category.action
	facts   map[string]*tally // by kind
	pending map[event]bool    // seen before they had a result
	wrote   paths             // files that the sample has made or written
	ran     paths             // programs that it has run
}

// event is what two sights of the same thing have in common.
type event struct {
	record uint64
	action string
}

func newSummary() *summary {
	return &summary{
		actions: map[string]*tally{}, facts: map[string]*tally{}, pending: map[event]bool{}, wrote: paths{}, ran: paths{},
	}
}

// paths is a set of a bounded size.
type paths map[string]bool

func (p paths) add(s string) {
	if s != "" && len(p) < maxPaths {
		p[s] = true
	}
}

func (s *summary) tally(action string) tally {
	if t := s.actions[action]; t != nil {
		return *t
	}
	return tally{}
}

// add takes the next event. One that was seen before its call had returned
// comes again with the result, and is not counted twice.
func (s *summary) add(b schemas.Behavior) {
	action := b.Category + "." + b.Action
	id := event{b.Record, action}
	again := s.pending[id]
	if b.Syscall != "" && b.Result == nil && len(s.pending) < maxPending {
		s.pending[id] = true
	} else if again {
		delete(s.pending, id)
	}
	count := func(m map[string]*tally, key, detail string) {
		t := m[key]
		if t == nil {
			t = &tally{}
			m[key] = t
		}
		if !again {
			t.add(&b, detail)
		} else if b.Errno != "" {
			t.Failed++
		}
	}
	switch what := detail(&b); {
	case incidental(&b):
	case action == "process.exec" && b.Errno != "":
		count(s.actions, action, "") // it has not run
	default:
		count(s.actions, action, what)
	}
	for _, f := range facts {
		if f.action == action && (f.match == nil || f.match(s, &b)) {
			count(s.facts, f.kind, detail(&b))
		}
	}
	if b.Errno == "" {
		s.learn(&b, action)
	}
}

// incidental are events that say nothing about files or the network: writes to
// pipes and terminals, and sockets within the guest.
func incidental(b *schemas.Behavior) bool {
	switch {
	case b.File != nil:
		return !strings.HasPrefix(b.File.Path, "/") || strings.HasPrefix(b.File.Path, "/dev/")
	case b.Network != nil:
		return b.Network.Family == "AF_UNIX" || b.Network.Family == "AF_NETLINK"
	}
	return false
}

// learn remembers what later events are judged by.
func (s *summary) learn(b *schemas.Behavior, action string) {
	switch action {
	case "file.create", "file.write":
		if b.File != nil {
			s.wrote.add(b.File.Path)
		}
	case "file.rename", "file.link":
		if b.File != nil && s.wrote[b.File.Path] {
			s.wrote.add(b.File.Target)
		}
	case "process.exec":
		if b.Process != nil {
			s.ran.add(b.Process.Path)
		}
	}
}

// detail says in a few words what an event is about.
func detail(b *schemas.Behavior) string {
	switch {
	case b.File != nil:
		if b.File.Target != "" {
			return b.File.Path + " → " + b.File.Target
		}
		return b.File.Path
	case b.Process != nil:
		p := b.Process
		switch {
		case p.Path != "":
			return p.Path
		case p.Request != "":
			return p.Request
		case p.Name != "":
			return p.Name
		case p.UID != nil:
			return "uid " + strconv.Itoa(*p.UID)
		}
		return p.Signal
	case b.Network != nil:
		n := b.Network
		if n.Path != "" {
			return b.Action + " " + n.Path
		}
		if n.Address == "" {
			return ""
		}
		a := n.Address
		if strings.Contains(a, ":") {
			a = "[" + a + "]"
		}
		return strings.TrimSpace(fmt.Sprintf("%s %s:%d", b.Action, a, n.Port))
	case b.Memory != nil:
		if b.Memory.Name != "" {
			return b.Memory.Name
		}
		return b.Memory.Prot
	case b.Kernel != nil:
		return strings.TrimSpace(b.Kernel.Name + " " + b.Kernel.Command)
	}
	return ""
}

// severity is a [schemas.Severity] that can be compared.
type severity int

const (
	info severity = iota
	low
	medium
	high
)

func (s severity) name() schemas.Severity {
	return []schemas.Severity{schemas.SeverityInfo, schemas.SeverityLow, schemas.SeverityMedium, schemas.SeverityHigh}[s]
}

// fact is something that stands out.
type fact struct {
	kind, title string
	action      string
	match       func(*summary, *schemas.Behavior) bool // nil: every event of the action
	severity    severity                               // if it has ever succeeded
	techniques  []string
}

// facts are what is looked for. They describe; whether a program is bad is for
// rules that weigh them.
var facts = []fact{
	{kind: "fileless_execution", title: "ran a program that has no file", action: "process.exec", match: fileless, severity: high, techniques: []string{"T1620"}},
	{kind: "descriptor_executed", title: "ran a program through a descriptor in /proc, which may have no file", action: "process.exec", match: throughProc, severity: medium, techniques: []string{"T1620"}},
	{kind: "written_file_executed", title: "ran a program that it had written", action: "process.exec", match: written, severity: medium},
	{kind: "executable_deleted", title: "deleted a program that it had run", action: "file.delete", match: deleted, severity: medium, techniques: []string{"T1070.004"}},
	{kind: "file_made_executable", title: "made a file executable", action: "file.chmod", match: executable, severity: low, techniques: []string{"T1222.002"}},
	{kind: "filesystem_mounted", title: "changed mounts", action: "file.mount", severity: low},
	{kind: "memory_wx", title: "mapped memory that is writable and executable", action: "memory.mmap_rwx", severity: low},
	{kind: "memory_file", title: "made a file in memory", action: "memory.memfd", severity: info},
	{kind: "process_memory_write", title: "wrote into another process's memory", action: "memory.process_write", match: foreign, severity: medium, techniques: []string{"T1055.009"}},
	{kind: "debugger_check", title: "asked to be traced, which finds debuggers", action: "process.ptrace", match: traceme, severity: low, techniques: []string{"T1622"}},
	{kind: "process_traced", title: "traced another process", action: "process.ptrace", match: tracing, severity: medium, techniques: []string{"T1055.008"}},
	{kind: "process_renamed", title: "changed the name of a process", action: "process.rename", severity: info},
	{kind: "user_changed", title: "changed its user", action: "process.setuid", severity: info},
	{kind: "module_loaded", title: "loaded a kernel module", action: "kernel.module_load", severity: high, techniques: []string{"T1547.006"}},
	{kind: "module_unloaded", title: "unloaded a kernel module", action: "kernel.module_unload", severity: medium},
	{kind: "bpf_used", title: "used BPF", action: "kernel.bpf", severity: low},
	{kind: "kernel_replaced", title: "loaded a kernel to boot", action: "kernel.kexec", severity: high},
	{kind: "machine_stopped", title: "shut down or restarted the machine", action: "kernel.reboot", severity: medium, techniques: []string{"T1529"}},
	{kind: "io_uring_used", title: "used io_uring, whose operations are not seen", action: "kernel.io_uring", severity: low},
}

// fileless finds programs in memory: package behavior names what a descriptor
// that is run stands for.
func fileless(_ *summary, b *schemas.Behavior) bool {
	return b.Process != nil && (strings.HasPrefix(b.Process.Path, "memfd:") || strings.HasPrefix(b.Process.Path, "/memfd:"))
}

func throughProc(_ *summary, b *schemas.Behavior) bool {
	return b.Process != nil && strings.HasPrefix(b.Process.Path, "/proc/") && strings.Contains(b.Process.Path, "/fd/")
}

func written(s *summary, b *schemas.Behavior) bool {
	return b.Process != nil && s.wrote[b.Process.Path]
}

func deleted(s *summary, b *schemas.Behavior) bool { return b.File != nil && s.ran[b.File.Path] }

func executable(_ *summary, b *schemas.Behavior) bool {
	if b.File == nil {
		return false
	}
	mode, err := strconv.ParseUint(b.File.Mode, 8, 32)
	return err == nil && mode&0o111 != 0
}

// foreign finds writes to memory that is not the writer's own.
func foreign(_ *summary, b *schemas.Behavior) bool {
	if b.Memory == nil {
		return false
	}
	switch b.Memory.Name {
	case "":
		return b.Memory.PID != b.Actor.PID
	case "/proc/self/mem", "/proc/thread-self/mem", "/proc/" + strconv.Itoa(b.Actor.PID) + "/mem":
		return false
	}
	return true
}

func traceme(_ *summary, b *schemas.Behavior) bool {
	return b.Process != nil && strings.Contains(b.Process.Request, "TRACEME")
}

func tracing(s *summary, b *schemas.Behavior) bool { return !traceme(s, b) }
