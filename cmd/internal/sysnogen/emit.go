// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// x32Only are the numbers that x32 has for itself, from
// arch/x86/entry/syscalls/syscall_64.tbl; all others are amd64's.
var x32Only = []string{
	"rt_sigaction", "rt_sigreturn", "ioctl", "readv", "writev", "recvfrom", "sendmsg", "recvmsg",
	"execve", "ptrace", "rt_sigpending", "rt_sigtimedwait", "rt_sigqueueinfo", "sigaltstack",
	"timer_create", "mq_notify", "kexec_load", "waitid", "set_robust_list", "get_robust_list",
	"vmsplice", "move_pages", "preadv", "pwritev", "rt_tgsigqueueinfo", "recvmmsg", "sendmmsg",
	"process_vm_readv", "process_vm_writev", "setsockopt", "getsockopt", "io_setup", "io_submit",
	"execveat", "preadv2", "pwritev2",
}

const x32First = 512

func numbers(a abi, x *xsys) map[uint64]string {
	n := maps.Clone(x.numbers[a.xsys])
	if a.name == "x32" {
		for i, name := range x32Only {
			n[uint64(x32First+i)] = name
		}
	}
	return n
}

// allNames are the names of all calls, sorted; their index is what tables hold.
func allNames(s *spec, x *xsys) []string {
	set := map[string]bool{"": true}
	for _, a := range abis {
		for _, name := range numbers(a, x) {
			set[name] = true
		}
	}
	for _, c := range s.calls {
		set[c.name] = true
	}
	return slices.Sorted(maps.Keys(set))
}

func emitNames(b *bytes.Buffer, s *spec, x *xsys) error {
	fmt.Fprintf(b, "// The ABIs. Traces hold these numbers: they never change.\nconst (\n")
	for i, a := range abis {
		fmt.Fprintf(b, "%s ABI = %d\n", a.ident, i+1)
	}
	fmt.Fprintf(b, ")\n\nvar abis = [...]abiInfo{\n{},\n")
	for _, a := range abis {
		lo, hi := ^uint64(0), uint64(0)
		for n := range numbers(a, x) {
			if n < 1<<16 { // not the few of ARM's own
				lo, hi = min(lo, n), max(hi, n)
			}
		}
		if lo < 1000 {
			lo = 0
		}
		fmt.Fprintf(b, "{name: %q, bits: %d, first: %d, numbers: numbers%s[:], values: %d},\n", a.name, a.bits, lo, a.ident, valuesIndex(a))
	}
	b.WriteString("}\n\n// names are all calls' names; numbersX are indexes into them.\nvar names = [...]string{\n")
	names := allNames(s, x)
	for _, n := range names {
		fmt.Fprintf(b, "%q,\n", n)
	}
	b.WriteString("}\n\n")
	for _, a := range abis {
		table := numbers(a, x)
		lo, hi := uint64(0), uint64(0)
		for n := range table {
			if n < 1<<16 {
				hi = max(hi, n)
			}
		}
		for lo+1000 <= slices.Min(slices.Collect(maps.Keys(table))) {
			lo += 1000
		}
		fmt.Fprintf(b, "var numbers%s = [...]uint16{", a.ident)
		for n := lo; n <= hi; n++ {
			if (n-lo)%16 == 0 {
				b.WriteString("\n")
			}
			i, ok := slices.BinarySearch(names, table[n])
			if !ok {
				return fmt.Errorf("no name %q", table[n])
			}
			fmt.Fprintf(b, "%d, ", i)
		}
		b.WriteString("\n}\n\n")
	}
	return nil
}

func emitCalls(b *bytes.Buffer, s *spec, x *xsys) error {
	names := allNames(s, x)
	known := map[string]bool{}
	for _, a := range abis {
		for _, n := range numbers(a, x) {
			known[n] = true
		}
	}
	for _, c := range s.calls {
		if !known[c.name] {
			return fmt.Errorf("calls.txt: no ABI has a call %q", c.name)
		}
	}
	b.WriteString("// calls are sorted by name, and the more special ABI first.\nvar calls = [...]callInfo{\n")
	calls := slices.Clone(s.calls)
	slices.SortStableFunc(calls, func(p, q call) int {
		if c := strings.Compare(p.name, q.name); c != 0 {
			return c
		}
		return special(p) - special(q)
	})
	for _, c := range calls {
		i, _ := slices.BinarySearch(names, c.name)
		scope := "scopeAny"
		switch special(c) {
		case 0:
			j := slices.IndexFunc(abis, func(a abi) bool { return a.name == c.abi })
			if j < 0 {
				return fmt.Errorf("calls.txt: call %s@%s: no such ABI", c.name, c.abi)
			}
			scope = "scope(" + abis[j].ident + ")"
		case 1:
			scope = "scope32"
		}
		fmt.Fprintf(b, "{name: %d, scope: %s, call: Call{Name: %q, ", i, scope, c.name)
		if c.entry {
			b.WriteString("Entry: true, ")
		}
		if c.noReturn {
			b.WriteString("NoReturn: true, ")
		}
		b.WriteString("Args: []Arg{")
		for _, a := range c.args {
			fmt.Fprintf(b, "{Type: %s", a.typ)
			if a.ref != 0 || needsRef(a.typ) {
				fmt.Fprintf(b, ", Ref: %d", a.ref)
			}
			if a.set != "" {
				fmt.Fprintf(b, ", Set: %s", setIdent(a.set))
			}
			b.WriteString("},")
		}
		b.WriteString("}}},\n")
	}
	b.WriteString("}\n")
	return nil
}

// emitClasses writes each class's bit and the classes of every name.
func emitClasses(b *bytes.Buffer, s *spec, x *xsys) error {
	names := allNames(s, x)
	if len(s.classes) > 16 {
		return fmt.Errorf("calls.txt: %d classes, and a Class has 16 bits", len(s.classes))
	}
	b.WriteString("// The classes of calls.\nconst (\n")
	for i, c := range s.classes {
		fmt.Fprintf(b, "Class%s Class = 1 << %d\n", strings.ToUpper(c.name[:1])+c.name[1:], i)
		for _, n := range c.calls {
			if _, ok := slices.BinarySearch(names, n); !ok {
				return fmt.Errorf("calls.txt: class %s: no ABI has a call %q", c.name, n)
			}
		}
	}
	b.WriteString(")\n\n// classNames are in the order of the bits.\nvar classNames = [...]string{")
	for _, c := range s.classes {
		fmt.Fprintf(b, "%q, ", c.name)
	}
	b.WriteString("}\n\n// classes are those of each name.\nvar classes = [len(names)]Class{")
	for i, n := range names {
		bits := 0
		for j, c := range s.classes {
			if c.holds(s, n) {
				bits |= 1 << j
			}
		}
		if i%16 == 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(b, "%d, ", bits)
	}
	b.WriteString("\n}\n")
	return nil
}

func needsRef(typ string) bool {
	for _, t := range argTypes {
		if t.name == typ {
			return t.needs == "k" || t.needs == "n"
		}
	}
	return false
}

// special orders the lines of one call.
func special(c call) int {
	switch c.abi {
	case "":
		return 2
	case "32":
		return 1
	}
	return 0
}

func setIdent(name string) string {
	var id strings.Builder
	id.WriteString("Set")
	for _, w := range strings.Split(name, "_") {
		id.WriteString(strings.ToUpper(w[:1]) + w[1:])
	}
	return id.String()
}
