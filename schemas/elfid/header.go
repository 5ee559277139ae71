// SPDX-License-Identifier: Apache-2.0

package elfid

import (
	"encoding/binary"
	"fmt"
)

// header is the ELF header, in either class.
type header struct {
	typ, machine                   uint16
	version                        uint32
	entry, phoff, shoff            uint64
	flags                          uint32
	ehsize, phentsize, phnum       uint16
	shentsize, shnum, shstrndx     uint16
	wantEhdr, wantPhdr, wantShentr uint16
}

func decodeHeader(b []byte, wide bool, o binary.ByteOrder) header {
	h := header{typ: o.Uint16(b[16:]), machine: o.Uint16(b[18:]), version: o.Uint32(b[20:])}
	rest := b[36:]
	if wide {
		h.entry, h.phoff, h.shoff = o.Uint64(b[24:]), o.Uint64(b[32:]), o.Uint64(b[40:])
		h.wantEhdr, h.wantPhdr, h.wantShentr = 64, 56, 64
		rest = b[48:]
	} else {
		h.entry, h.phoff, h.shoff = uint64(o.Uint32(b[24:])), uint64(o.Uint32(b[28:])), uint64(o.Uint32(b[32:]))
		h.wantEhdr, h.wantPhdr, h.wantShentr = 52, 32, 40
	}
	h.flags = o.Uint32(rest)
	h.ehsize, h.phentsize, h.phnum = o.Uint16(rest[4:]), o.Uint16(rest[6:]), o.Uint16(rest[8:])
	h.shentsize, h.shnum, h.shstrndx = o.Uint16(rest[10:]), o.Uint16(rest[12:]), o.Uint16(rest[14:])
	return h
}

// plausible grades a reading of the header: Linux finds the machine and the
// size of a program header where it expects them, whatever e_ident says. A
// wrong EI_CLASS or EI_DATA loses against these, and a number that happens to
// look like the size of a program header does not win against a right EI_CLASS.
func plausible(h header, wide, bigEndian bool, ident []byte) int {
	score := 0
	if m, ok := machines[h.machine]; ok {
		class, order := c32, little
		if wide {
			class = c64
		}
		if bigEndian {
			order = big
		}
		if m.can&class != 0 && m.can&order != 0 {
			score += 5
		}
	}
	if h.phentsize == h.wantPhdr {
		score += 4
	}
	if h.typ >= 1 && h.typ <= 4 {
		score += 2
	}
	if h.ehsize == h.wantEhdr {
		score += 2
	}
	if h.version == 1 {
		score++
	}
	if wide && ident[4] == 2 || !wide && ident[4] == 1 {
		score += 3
	}
	if bigEndian && ident[5] == 2 || !bigEndian && ident[5] == 1 {
		score += 2
	}
	return score
}

// readHeader decodes the first bytes of the file, in the class and byte order
// that make the most of them.
func (f *file) readHeader(raw []byte) {
	b := make([]byte, 64)
	copy(b, raw)
	best := -1
	bigEndian := false
	for _, try := range []struct{ wide, big bool }{{true, false}, {false, false}, {false, true}, {true, true}} {
		var o binary.ByteOrder = binary.LittleEndian
		if try.big {
			o = binary.BigEndian
		}
		h := decodeHeader(b, try.wide, o)
		if s := plausible(h, try.wide, try.big, b); s > best {
			best, bigEndian = s, try.big
			f.wide, f.order, f.hdr = try.wide, o, h
		}
	}
	h, id := &f.hdr, &f.id
	id.Class, id.Endianness = 32, "little"
	if f.wide {
		id.Class = 64
	}
	if bigEndian {
		id.Endianness = "big"
	}
	id.Machine, id.OSABI, id.ABIVersion = MachineName(h.machine), osABI(b[7]), int(b[8])
	id.ObjectType, id.Flags, id.FlagNames, id.Entry = objectType(h.typ), h.flags, flagNames(h.machine, h.flags), h.entry

	if len(raw) < int(h.wantEhdr) {
		f.odd("header_truncated", "the file has %d bytes, its header %d", len(raw), h.wantEhdr)
		f.refuse("truncated: the file ends within the ELF header")
	}
	if want := byte(id.Class / 32); b[4] != want {
		f.odd("class_mismatch", "EI_CLASS is %d, but the header is a %d-bit one", b[4], id.Class)
	}
	if (b[5] == 2) != bigEndian || b[5] != 1 && b[5] != 2 {
		f.odd("data_mismatch", "EI_DATA is %d, but the header is %s-endian", b[5], id.Endianness)
	}
	if b[6] != 1 || h.version != 1 {
		f.odd("version_odd", "EI_VERSION is %d and e_version %d, not 1", b[6], h.version)
	}
	for _, c := range b[9:16] {
		if c != 0 {
			f.odd("ident_padding", "the padding of e_ident is not zero: %x", b[9:16])
			break
		}
	}
	if h.ehsize != h.wantEhdr {
		f.odd("ehsize_odd", "e_ehsize is %d, not %d", h.ehsize, h.wantEhdr)
	}
	switch id.ObjectType {
	case "exec", "dyn":
	case "rel":
		f.refuse("a relocatable object is not run but linked")
	case "core":
		f.refuse("a core file is the image of a process, not a program")
	default:
		f.odd("type_unknown", "e_type is %#x", h.typ)
		f.refuse(fmt.Sprintf("Linux runs no ELF file of type %#x", h.typ))
	}
	f.reach(0, uint64(h.wantEhdr))
}

func (f *file) refuse(why string) {
	if f.runs == "" {
		f.runs = why
	}
}

func objectType(t uint16) string {
	names := []string{"none", "rel", "exec", "dyn", "core"}
	if int(t) < len(names) {
		return names[t]
	}
	return fmt.Sprintf("%#x", t)
}

var osABIs = map[byte]string{
	0: "SYSV", 1: "HP-UX", 2: "NetBSD", 3: "GNU/Linux", 4: "GNU/Hurd", 6: "Solaris", 7: "AIX", 8: "IRIX",
	9: "FreeBSD", 10: "Tru64", 11: "Modesto", 12: "OpenBSD", 13: "OpenVMS", 14: "NSK", 15: "AROS", 16: "FenixOS",
	17: "CloudABI", 51: "CUDA", 64: "ARM EABI", 65: "ARM FDPIC", 97: "ARM", 255: "standalone",
}

func osABI(b byte) string {
	if s, ok := osABIs[b]; ok {
		return s
	}
	return fmt.Sprintf("unknown %d", b)
}
