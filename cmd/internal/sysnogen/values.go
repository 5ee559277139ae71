// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
)

// valuesIndex numbers the CPUs of x/sys in the order in which ABIs name them.
func valuesIndex(a abi) int {
	var seen []string
	for _, b := range abis {
		if !slices.Contains(seen, b.xsys) {
			seen = append(seen, b.xsys)
		}
	}
	return slices.Index(seen, a.xsys)
}

// emitValues writes the names of errors and signals and the sets. Most CPUs
// agree, so every distinct table is written once and the CPUs refer to it.
func emitValues(b *bytes.Buffer, s *spec, x *xsys) error {
	var cpus []abi
	for _, a := range abis {
		if valuesIndex(a) == len(cpus) {
			cpus = append(cpus, a)
		}
	}
	for _, t := range []struct {
		ident string
		table map[string]map[uint64]string
	}{{"errno", x.errnos}, {"signal", x.signals}} {
		var tables []string
		fmt.Fprintf(b, "// %sTable is the index into %sNames by the number of the CPU.\nvar %sTable = [...]uint8{", t.ident, t.ident, t.ident)
		for _, c := range cpus {
			fmt.Fprintf(b, "%d, ", intern(&tables, numbered(t.table[c.xsys])))
		}
		fmt.Fprintf(b, "}\n\nvar %sNames = [...][]string{\n", t.ident)
		for _, text := range tables {
			fmt.Fprintf(b, "{\n%s},\n", text)
		}
		b.WriteString("}\n\n")
	}

	b.WriteString("var errnoTexts = map[string]string{\n")
	for _, name := range slices.Sorted(maps.Keys(x.texts)) {
		if name[0] == 'E' {
			fmt.Fprintf(b, "%q: %q,\n", name, x.texts[name])
		}
	}
	b.WriteString("}\n\n// The sets of named values.\nconst (\n")
	for i, t := range s.sets {
		if i == 0 {
			fmt.Fprintf(b, "%s Set = iota + 1 // %s\n", setIdent(t.name), t.name)
		} else {
			fmt.Fprintf(b, "%s // %s\n", setIdent(t.name), t.name)
		}
	}
	b.WriteString(")\n\n// setTable is the index into setMembers by set and CPU.\nvar setTable = [...][]uint8{\n{},\n")
	var tables []string
	for _, t := range s.sets {
		b.WriteString("{")
		for _, c := range cpus {
			text, err := members(t, c, x)
			if err != nil {
				return err
			}
			fmt.Fprintf(b, "%d, ", intern(&tables, text))
		}
		b.WriteString("},\n")
		for _, m := range t.members {
			if m.kind != "" || m.value != nil {
				continue
			}
			if !slices.ContainsFunc(cpus, func(a abi) bool { _, ok := x.consts[a.xsys][m.name]; return ok }) {
				return fmt.Errorf("calls.txt: set %s: x/sys has no %s", t.name, m.name)
			}
		}
	}
	b.WriteString("}\n\nvar setMembers = [...][]member{\n")
	for _, text := range tables {
		fmt.Fprintf(b, "{\n%s},\n", text)
	}
	b.WriteString("}\n")
	return nil
}

func intern(tables *[]string, text string) int {
	if i := slices.Index(*tables, text); i >= 0 {
		return i
	}
	*tables = append(*tables, text)
	return len(*tables) - 1
}

func numbered(table map[uint64]string) string {
	var b bytes.Buffer
	for _, n := range slices.Sorted(maps.Keys(table)) {
		fmt.Fprintf(&b, "%d: %q,\n", n, table[n])
	}
	return b.String()
}

func members(t set, c abi, x *xsys) (string, error) {
	var b bytes.Buffer
	for _, m := range t.members {
		switch m.kind {
		case "mask":
			fmt.Fprintf(&b, "{value: %#x, kind: kindMask},\n", *m.value)
			continue
		case "signal":
			fmt.Fprintf(&b, "{value: %#x, kind: kindSignal},\n", *m.value)
			continue
		}
		v, ok := x.consts[c.xsys][m.name]
		if m.value != nil {
			v, ok = *m.value, true
		}
		if special, found := m.abis[c.name]; found {
			v, ok = special, true
		}
		if !ok {
			continue
		}
		fmt.Fprintf(&b, "{name: %q, value: %#x},\n", m.name, v)
	}
	return b.String(), nil
}
