// SPDX-License-Identifier: Apache-2.0

// Package elftest builds small ELF files for tests: regular ones, of any class,
// byte order and machine, which a test then breaks as it likes. Nothing in them
// does anything when run.
package elftest

import (
	"bytes"
	"encoding/binary"
	"strings"
)

// File says what to build. The zero value is a 32-bit little-endian file of
// type and machine 0 with one segment.
type File struct {
	Wide    bool // 64-bit
	Big     bool // big-endian
	Type    uint16
	Machine uint16
	Flags   uint32
	OSABI   byte

	Interpreter string
	Needed      []string
	Versions    []string // of the libraries' symbols: "libc.so.6 GLIBC_2.38"
	SOName      string
	RunPath     string
	RPath       string
	PIE         bool   // DF_1_PIE
	Dynamic     bool   // a dynamic section even if nothing above asks for it
	BuildID     []byte // in a PT_NOTE
	Sections    bool   // a section table
	Symbols     bool   // with a symbol table
	Modinfo     bool   // with a .modinfo section
	Payload     []byte // what the entry points at
}

// Types of files.
const (
	Rel  = 1
	Exec = 2
	Dyn  = 3
	Core = 4
)

// Offsets of fields of the ELF header, for tests that overwrite them.
const (
	EIClass = 4
	EIData  = 5
)

type writer struct {
	bytes.Buffer
	o    binary.ByteOrder
	wide bool
}

func (w *writer) u16(v ...uint16) {
	for _, v := range v {
		var b [2]byte
		w.o.PutUint16(b[:], v)
		w.Write(b[:])
	}
}

func (w *writer) u32(v ...uint32) {
	for _, v := range v {
		var b [4]byte
		w.o.PutUint32(b[:], v)
		w.Write(b[:])
	}
}

func (w *writer) word(v ...uint64) {
	for _, v := range v {
		if !w.wide {
			w.u32(uint32(v))
			continue
		}
		var b [8]byte
		w.o.PutUint64(b[:], v)
		w.Write(b[:])
	}
}

func (w *writer) prog(typ, flags uint32, off, vaddr, size, align uint64) {
	w.u32(typ)
	if w.wide {
		w.u32(flags)
	}
	w.word(off, vaddr, vaddr, size, size)
	if !w.wide {
		w.u32(flags)
	}
	w.word(align)
}

func (w *writer) section(name, typ uint32, flags, addr, off, size uint64, link, info uint32, entry uint64) {
	w.u32(name, typ)
	w.word(flags, addr, off, size)
	w.u32(link, info)
	w.word(1, entry)
}

// versions writes the table of the needed versions, behind its strings, and returns
// where it is. start is where the body begins in the file, and strtab its strings.
func (w *writer) versions(versions []string, start int, strtab uint64) uint64 {
	here := func() uint64 { return uint64(start + w.Len()) }
	at := func(s string) uint32 {
		off := uint32(here() - strtab)
		w.WriteString(s + "\x00")
		return off
	}
	var names [][2]uint32
	for _, v := range versions {
		library, version, _ := strings.Cut(v, " ")
		names = append(names, [2]uint32{at(library), at(version)})
	}
	for here()%4 != 0 {
		w.WriteByte(0)
	}
	table := here()
	for i, n := range names {
		next := uint32(32)
		if i == len(names)-1 {
			next = 0
		}
		w.u16(1, 1) // the format's version, and one of the library's
		w.u32(n[0], 16, next)
		w.u32(0, 0, n[1], 0)
	}
	return table
}

// Bytes builds the file.
func (f File) Bytes() []byte {
	var o binary.ByteOrder = binary.LittleEndian
	if f.Big {
		o = binary.BigEndian
	}
	ehsize, phsize, shsize, word := 52, 32, 40, 4
	if f.Wide {
		ehsize, phsize, shsize, word = 64, 56, 64, 8
	}
	var base uint64
	if f.Type == Exec {
		base = 0x400000
	}
	dynamic := f.Dynamic || len(f.Needed) > 0 || f.SOName != "" || f.RunPath != "" || f.RPath != "" || f.PIE
	phnum := 0
	if f.Type != Rel {
		phnum = 2 // PT_LOAD, PT_GNU_STACK
		for _, has := range []bool{f.Interpreter != "", dynamic, f.BuildID != nil} {
			if has {
				phnum++
			}
		}
	}

	// The body lies behind the headers; its parts' offsets are of the file.
	body := &writer{o: o, wide: f.Wide}
	start := ehsize + phnum*phsize
	here := func() uint64 { return uint64(start + body.Len()) }
	align := func(n int) {
		for int(here())%n != 0 {
			body.WriteByte(0)
		}
	}
	interp := here()
	if f.Interpreter != "" {
		body.WriteString(f.Interpreter + "\x00")
	}
	align(4)
	note := here()
	if f.BuildID != nil {
		body.u32(4, uint32(len(f.BuildID)), 3)
		body.WriteString("GNU\x00")
		body.Write(f.BuildID)
		align(4)
	}
	noteEnd := here()
	strtab := here()
	var dyn []uint64
	if dynamic {
		body.WriteByte(0)
		add := func(tag uint64, s string) {
			if s != "" {
				dyn = append(dyn, tag, here()-strtab)
				body.WriteString(s + "\x00")
			}
		}
		for _, n := range f.Needed {
			add(1, n)
		}
		add(14, f.SOName)
		add(15, f.RPath)
		add(29, f.RunPath)
		dyn = append(dyn, 5, base+strtab, 10, here()-strtab)
		if len(f.Versions) > 0 {
			dyn = append(dyn, 0x6ffffffe, base+body.versions(f.Versions, start, strtab), 0x6fffffff, uint64(len(f.Versions)))
		}
		if f.PIE {
			dyn = append(dyn, 0x6ffffffb, 0x08000000)
		}
		dyn = append(dyn, 0, 0)
	}
	align(word)
	dynOff := here()
	body.word(dyn...)
	align(16)
	entry := here()
	body.Write(f.Payload)
	align(16)
	loadEnd := here()

	var shoff uint64
	shnum := 0
	if f.Sections {
		names := "\x00.text\x00.shstrtab\x00.symtab\x00.strtab\x00.modinfo\x00"
		at := func(s string) uint32 { return uint32(bytes.Index([]byte(names), []byte("\x00"+s+"\x00")) + 1) }
		nameOff := here()
		body.WriteString(names)
		align(word)
		symOff := here()
		symSize := uint64(0)
		if f.Symbols {
			symSize = 16
			if f.Wide {
				symSize = 24
			}
			body.Write(make([]byte, symSize))
		}
		symStr := here()
		body.WriteByte(0)
		align(8)
		shoff = here()
		body.section(0, 0, 0, 0, 0, 0, 0, 0, 0)
		body.section(at(".text"), 1, 6, base+entry, entry, loadEnd-entry, 0, 0, 0)
		body.section(at(".shstrtab"), 3, 0, 0, nameOff, uint64(len(names)), 0, 0, 0)
		shnum = 3
		if f.Symbols {
			body.section(at(".symtab"), 2, 0, 0, symOff, symSize, 4, 1, symSize)
			body.section(at(".strtab"), 3, 0, 0, symStr, 1, 0, 0, 0)
			shnum += 2
		}
		if f.Modinfo {
			body.section(at(".modinfo"), 1, 2, 0, entry, loadEnd-entry, 0, 0, 0)
			shnum++
		}
	}

	w := &writer{o: o, wide: f.Wide}
	w.WriteString("\x7fELF")
	class, data := byte(1), byte(1)
	if f.Wide {
		class = 2
	}
	if f.Big {
		data = 2
	}
	w.Write([]byte{class, data, 1, f.OSABI, 0, 0, 0, 0, 0, 0, 0, 0})
	w.u16(f.Type, f.Machine)
	w.u32(1)
	if f.Type == Rel {
		w.word(0, 0, shoff)
	} else {
		w.word(base+entry, uint64(ehsize), shoff)
	}
	w.u32(f.Flags)
	w.u16(uint16(ehsize), uint16(phsize), uint16(phnum), uint16(shsize), uint16(shnum))
	if f.Sections {
		w.u16(2)
	} else {
		w.u16(0)
	}
	if f.Type != Rel {
		if f.Interpreter != "" {
			w.prog(3, 4, interp, base+interp, uint64(len(f.Interpreter)+1), 1)
		}
		w.prog(1, 5, 0, base, loadEnd, 4096)
		if dynamic {
			w.prog(2, 6, dynOff, base+dynOff, uint64(len(dyn)*word), uint64(word))
		}
		if f.BuildID != nil {
			w.prog(4, 4, note, base+note, noteEnd-note, 4)
		}
		w.prog(0x6474e551, 6, 0, 0, 0, 16)
	}
	w.Write(body.Bytes())
	return w.Bytes()
}
