// SPDX-License-Identifier: Apache-2.0

package elfid

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/petri-sandbox/petri/schemas"
)

// Types of program headers.
const (
	ptLoad        = 1
	ptDynamic     = 2
	ptInterp      = 3
	ptNote        = 4
	ptGNUStack    = 0x6474e551
	ptGNURelro    = 0x6474e552
	pfX           = 1
	pfW           = 2
	maxPhdrBytes  = 64 << 10 // Linux refuses more
	pageSize      = 4096
	maxNoteReads  = 8
	ntGNUBuildID  = 3
	maxBuildIDLen = 64
)

var segmentTypes = map[uint32]string{
	0: "PT_NULL", ptLoad: "PT_LOAD", ptDynamic: "PT_DYNAMIC", ptInterp: "PT_INTERP", ptNote: "PT_NOTE", 5: "PT_SHLIB",
	6: "PT_PHDR", 7: "PT_TLS", 0x6474e550: "PT_GNU_EH_FRAME", ptGNUStack: "PT_GNU_STACK", ptGNURelro: "PT_GNU_RELRO",
	0x6474e553: "PT_GNU_PROPERTY", 0x65041580: "PT_PAX_FLAGS",
}

// prog is a program header.
type prog struct {
	typ, flags                        uint32
	off, vaddr, filesz, memsz, palign uint64
}

func (f *file) decodeProg(b []byte) prog {
	o := f.order
	if f.wide {
		return prog{typ: o.Uint32(b), flags: o.Uint32(b[4:]), off: o.Uint64(b[8:]), vaddr: o.Uint64(b[16:]),
			filesz: o.Uint64(b[32:]), memsz: o.Uint64(b[40:]), palign: o.Uint64(b[48:])}
	}
	w := func(i int) uint64 { return uint64(o.Uint32(b[i:])) }
	return prog{typ: o.Uint32(b), off: w(4), vaddr: w(8), filesz: w(16), memsz: w(20), flags: o.Uint32(b[24:]), palign: w(28)}
}

// readPrograms reads the program header table as Linux does: all of it, or
// nothing runs.
func (f *file) readPrograms() {
	h := &f.hdr
	size := int(h.wantPhdr)
	total := int(h.phnum) * size
	switch {
	case h.phnum == 0:
		if f.id.ObjectType != "rel" {
			f.odd("phnum_zero", "there are no program headers")
		}
		f.refuse("it has no program headers, so that there is nothing to load")
		return
	case h.phentsize != h.wantPhdr:
		f.odd("phentsize_odd", "e_phentsize is %d, not %d", h.phentsize, h.wantPhdr)
		f.refuse(fmt.Sprintf("its program headers are said to have %d bytes each; Linux wants %d", h.phentsize, h.wantPhdr))
	}
	if total > maxPhdrBytes {
		f.odd("phnum_huge", "%d program headers are more than Linux reads", h.phnum)
		if f.id.ObjectType != "core" {
			f.refuse(fmt.Sprintf("it has %d program headers; Linux wants no more than 64 KiB of them", h.phnum))
		}
	}
	b := f.in.at(h.phoff, min(total, maxPhdrBytes))
	if !f.inside(h.phoff, uint64(total)) {
		f.odd("phdr_outside", "the program headers lie at %#x to %#x, the file ends at %#x", h.phoff, h.phoff+uint64(total), f.in.size)
		f.refuse("truncated: the file ends before its program headers do")
	}
	f.reach(h.phoff, uint64(total))
	for ; len(b) >= size; b = b[size:] {
		f.progs = append(f.progs, f.decodeProg(b))
	}
	var prev uint64
	for i, p := range f.progs {
		if p.typ == ptLoad {
			f.loads = append(f.loads, p)
			f.checkLoad(i, p, &prev)
		} else if p.typ != 0 && p.filesz > 0 && !f.inside(p.off, p.filesz) && f.id.ObjectType != "core" {
			f.odd("segment_outside", "segment %d (%s) at %#x with %#x bytes lies outside of the file", i, segmentType(p.typ), p.off, p.filesz)
		}
		switch p.typ {
		case 0:
			continue
		case ptGNUStack:
			f.id.ExecStack = p.flags&pfX != 0
		case ptGNURelro:
			f.id.Relro = "partial"
		}
		f.reach(p.off, min(p.filesz, uint64(max(f.in.size, 0)))) // a segment may lie about its end
	}
	f.cut.Segments = max(0, int(h.phnum)-maxSegments)
	for _, p := range f.progs[:min(len(f.progs), maxSegments)] {
		f.id.Segments = append(f.id.Segments, schemas.ELFSegment{
			Type: segmentType(p.typ), Flags: access(p.flags), Offset: p.off, VAddr: p.vaddr, FileSz: p.filesz, MemSz: p.memsz,
		})
	}
	if len(f.loads) == 0 && (f.id.ObjectType == "exec" || f.id.ObjectType == "dyn") {
		f.odd("no_load", "no segment is loaded")
	}
}

func (f *file) checkLoad(i int, p prog, prev *uint64) {
	if p.filesz > 0 && !f.inside(p.off, p.filesz) {
		f.odd("segment_outside", "segment %d (PT_LOAD) at %#x with %#x bytes lies outside of the file: it is truncated", i, p.off, p.filesz)
	}
	if p.filesz > p.memsz {
		f.odd("segment_filesz", "segment %d has more bytes in the file (%#x) than in memory (%#x)", i, p.filesz, p.memsz)
		f.refuse(fmt.Sprintf("segment %d has more bytes in the file than in memory", i))
	}
	if p.vaddr+p.memsz < p.vaddr {
		f.odd("segment_wraps", "segment %d at %#x with %#x bytes wraps around", i, p.vaddr, p.memsz)
	}
	if p.flags&(pfW|pfX) == pfW|pfX && f.id.ObjectType != "core" {
		f.odd("segment_wx", "segment %d is writable and executable", i)
	}
	if (p.off^p.vaddr)%pageSize != 0 && p.palign > 1 {
		f.odd("segment_unaligned", "segment %d: offset %#x and address %#x differ within the page", i, p.off, p.vaddr)
	}
	if p.vaddr < *prev {
		f.odd("segment_order", "segment %d at %#x comes after one that ends at %#x", i, p.vaddr, *prev)
	}
	*prev = max(*prev, p.vaddr+p.memsz)
}

func segmentType(t uint32) string {
	if s, ok := segmentTypes[t]; ok {
		return s
	}
	return fmt.Sprintf("%#x", t)
}

func access(flags uint32) string {
	b := []byte("---")
	for i, c := range []struct {
		bit uint32
		ch  byte
	}{{4, 'r'}, {pfW, 'w'}, {pfX, 'x'}} {
		if flags&c.bit != 0 {
			b[i] = c.ch
		}
	}
	return string(b)
}

// readInterpreter reads the first PT_INTERP, which the kernel takes from the
// file and wants to end in a NUL.
func (f *file) readInterpreter() {
	n := 0
	for i, p := range f.progs {
		if p.typ != ptInterp {
			continue
		}
		if n++; n > 1 {
			f.odd("interp_twice", "segment %d is another PT_INTERP; Linux goes by the first", i)
			continue
		}
		if p.filesz < 2 || p.filesz > maxString {
			f.odd("interp_size", "PT_INTERP has %d bytes", p.filesz)
			f.refuse("Linux refuses the length of its interpreter's name")
			continue
		}
		b := f.in.at(p.off, int(p.filesz))
		s, _, terminated := strings.Cut(string(b), "\x00")
		if !terminated || len(b) < int(p.filesz) || b[len(b)-1] != 0 {
			f.odd("interp_unterminated", "the name of the interpreter does not end: %.80q", s)
			f.refuse("the name of its interpreter does not end")
		}
		f.id.Interpreter = text(s)
	}
}

// offset maps an address to the file as the kernel maps the file to addresses:
// where segments overlap, the later one covers the earlier, and a page is
// mapped whole.
func (f *file) offset(vaddr uint64) (off, left uint64, ok bool) {
	for i := len(f.loads) - 1; i >= 0; i-- {
		p := f.loads[i]
		if d := vaddr - p.vaddr; d < p.filesz {
			return p.off + d, p.filesz - d, p.off+d >= p.off
		}
	}
	for i := len(f.loads) - 1; i >= 0; i-- {
		p := f.loads[i]
		slack := p.vaddr % pageSize
		if p.filesz == 0 || slack > p.off {
			continue
		}
		length := (slack + p.filesz + pageSize - 1) &^ (pageSize - 1)
		if d := vaddr - (p.vaddr - slack); d < length {
			o := p.off - slack + d
			return o, length - d, o >= d
		}
	}
	return 0, 0, false
}

// readNotes looks for the build id.
func (f *file) readNotes() {
	reads := 0
	for _, p := range f.progs {
		if p.typ != ptNote || f.id.ObjectType == "core" {
			continue
		}
		if reads++; reads > maxNoteReads {
			return
		}
		b := f.in.at(p.off, int(min(p.filesz, pageSize)))
		align := 4
		if p.palign == 8 {
			align = 8
		}
		for len(b) >= 12 {
			namesz, descsz, typ := f.order.Uint32(b), f.order.Uint32(b[4:]), f.order.Uint32(b[8:])
			b = b[12:]
			if namesz > pageSize || descsz > pageSize {
				break
			}
			name := int(namesz)
			desc := (12+name+align-1)&^(align-1) - 12
			end := desc + int(descsz)
			if end > len(b) {
				break
			}
			if typ == ntGNUBuildID && string(b[:name]) == "GNU\x00" && descsz <= maxBuildIDLen {
				f.id.BuildID = hex.EncodeToString(b[desc:end])
				return
			}
			b = b[min(len(b), (12+end+align-1)&^(align-1)-12):]
		}
	}
}
