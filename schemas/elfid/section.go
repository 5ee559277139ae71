// SPDX-License-Identifier: Apache-2.0

package elfid

import (
	"bytes"
	"fmt"

	"github.com/petri-sandbox/petri/schemas"
)

const (
	maxSectionBytes = 128 << 10
	maxNameBytes    = 64 << 10
	maxSectionName  = 128

	shtSymtab = 2
	shtNobits = 8
)

var sectionTypes = map[uint32]string{
	0: "SHT_NULL", 1: "SHT_PROGBITS", shtSymtab: "SHT_SYMTAB", 3: "SHT_STRTAB", 4: "SHT_RELA", 5: "SHT_HASH", 6: "SHT_DYNAMIC",
	7: "SHT_NOTE", shtNobits: "SHT_NOBITS", 9: "SHT_REL", 10: "SHT_SHLIB", 11: "SHT_DYNSYM", 14: "SHT_INIT_ARRAY",
	15: "SHT_FINI_ARRAY", 16: "SHT_PREINIT_ARRAY", 17: "SHT_GROUP", 18: "SHT_SYMTAB_SHNDX", 19: "SHT_RELR",
	0x6ffffff5: "SHT_GNU_ATTRIBUTES", 0x6ffffff6: "SHT_GNU_HASH", 0x6ffffffd: "SHT_GNU_VERDEF",
	0x6ffffffe: "SHT_GNU_VERNEED", 0x6fffffff: "SHT_GNU_VERSYM",
}

// section is a section header.
type section struct {
	name, typ, link, info    uint32
	flags, addr, off, length uint64
}

func (f *file) decodeSection(b []byte) section {
	o := f.order
	s := section{name: o.Uint32(b), typ: o.Uint32(b[4:])}
	if f.wide {
		s.flags, s.addr, s.off, s.length = o.Uint64(b[8:]), o.Uint64(b[16:]), o.Uint64(b[24:]), o.Uint64(b[32:])
		s.link, s.info = o.Uint32(b[40:]), o.Uint32(b[44:])
		return s
	}
	w := func(i int) uint64 { return uint64(o.Uint32(b[i:])) }
	s.flags, s.addr, s.off, s.length = w(8), w(12), w(16), w(20)
	s.link, s.info = o.Uint32(b[24:]), o.Uint32(b[28:])
	return s
}

// readSections reads the section table. Nothing that runs depends on it, so
// that its faults are anomalies and no more.
func (f *file) readSections() {
	h := &f.hdr
	if h.shoff == 0 {
		if h.shnum != 0 {
			f.odd("shoff_zero", "e_shnum is %d, but e_shoff is 0", h.shnum)
		}
		return
	}
	if h.shentsize != h.wantShentr {
		f.odd("shentsize_odd", "e_shentsize is %d, not %d", h.shentsize, h.wantShentr)
		return
	}
	size := int(h.wantShentr)
	count, names := uint64(h.shnum), uint32(h.shstrndx)
	if count == 0 || h.shstrndx == 0xffff { // the first header holds what does not fit here
		b := f.in.at(h.shoff, size)
		if len(b) < size {
			f.odd("shdr_outside", "the section headers at %#x lie outside of the file", h.shoff)
			return
		}
		first := f.decodeSection(b)
		if count == 0 {
			count = first.length
		}
		if h.shstrndx == 0xffff {
			names = first.link
		}
		if count == 0 {
			f.odd("shnum_zero", "e_shoff is %#x, but there are no section headers", h.shoff)
			return
		}
	}
	if count > uint64(max(f.in.size, 0)) || !f.inside(h.shoff, count*uint64(size)) {
		f.odd("shdr_outside", "%d section headers at %#x lie outside of the file, which ends at %#x", count, h.shoff, f.in.size)
		return
	}
	f.reach(h.shoff, count*uint64(size))
	whole := count*uint64(size) <= maxSectionBytes
	b := f.in.at(h.shoff, int(min(count*uint64(size), maxSectionBytes)))
	var all []section
	for ; len(b) >= size; b = b[size:] {
		all = append(all, f.decodeSection(b))
	}
	var table []byte
	if uint64(names) < uint64(len(all)) && names != 0 {
		table = f.in.at(all[names].off, int(min(all[names].length, maxNameBytes)))
	} else if names != 0 {
		f.odd("shstrndx_outside", "e_shstrndx is %d of %d", names, count)
	}
	stripped := true
	for i, s := range all {
		if s.typ == shtSymtab && s.length > 0 {
			stripped = false
		}
		if s.typ != 0 && s.typ != shtNobits {
			if !f.inside(s.off, s.length) {
				f.odd("section_outside", "section %d at %#x with %#x bytes lies outside of the file", i, s.off, s.length)
			} else {
				f.reach(s.off, s.length)
			}
		}
		name := sectionName(table, s.name)
		if name == ".modinfo" && f.id.ObjectType == "rel" {
			f.id.Module = true
		}
		if i < maxSections {
			f.id.Sections = append(f.id.Sections, schemas.ELFSection{
				Name: name, Type: sectionType(s.typ), Flags: sectionFlags(s.flags), Addr: s.addr, Offset: s.off, Size: s.length,
			})
		}
	}
	f.cut.Sections = int(count) - len(f.id.Sections)
	if whole && len(all) == int(count) {
		f.id.Stripped = &stripped
	}
}

func sectionName(table []byte, at uint32) string {
	if uint64(at) >= uint64(len(table)) {
		return ""
	}
	b := table[at:]
	b = b[:min(len(b), maxSectionName)]
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return text(string(b))
}

func sectionType(t uint32) string {
	if s, ok := sectionTypes[t]; ok {
		return s
	}
	return fmt.Sprintf("%#x", t)
}

func sectionFlags(flags uint64) string {
	out := []byte{}
	for _, f := range []struct {
		bit uint64
		ch  byte
	}{{1, 'w'}, {2, 'a'}, {4, 'x'}} {
		if flags&f.bit != 0 {
			out = append(out, f.ch)
		}
	}
	return string(out)
}
