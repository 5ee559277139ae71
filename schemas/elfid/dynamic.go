// SPDX-License-Identifier: Apache-2.0

package elfid

import "slices"

// Tags of the dynamic section.
const (
	dtNeeded  = 1
	dtStrtab  = 5
	dtSOName  = 14
	dtRPath   = 15
	dtFlags   = 30
	dtRunPath = 29
	dtFlags1  = 0x6ffffffb
	dtBindNow = 24
	dtVerNeed = 0x6ffffffe

	df1Now = 1
	df1PIE = 0x08000000
	dfNow  = 8

	maxDynamic = 32 << 10 // bytes

	verFlagWeak = 2
	// maxStrings bounds the bytes read for strings, so that everything else
	// fits into [MaxRead] besides.
	maxStrings = 512 << 10
)

// readDynamic reads the dynamic section as the loader sees it: at its address
// in memory, not at its offset in the file.
func (f *file) readDynamic() {
	i := slices.IndexFunc(f.progs, func(p prog) bool { return p.typ == ptDynamic })
	if i < 0 {
		return
	}
	p := f.progs[i]
	off, left, ok := f.offset(p.vaddr)
	switch {
	case !ok:
		f.odd("dynamic_unmapped", "the dynamic section's address %#x is in no loaded segment", p.vaddr)
		off, left = p.off, p.filesz
	case off != p.off:
		f.odd("dynamic_offset", "the dynamic section is at %#x in the file, but the loader sees it at %#x", p.off, off)
	}
	word := 4
	if f.wide {
		word = 8
	}
	b := f.in.at(off, int(min(left, maxDynamic)))
	var (
		strtab           uint64
		haveStrtab, ends bool
		flags, flags1    uint64
		bindNow          bool
		needed           []uint64
		rpath, runpath   []uint64
		soname           uint64
		haveSOName       bool
		verneed          uint64
	)
	get := func(b []byte) uint64 {
		if f.wide {
			return f.order.Uint64(b)
		}
		return uint64(f.order.Uint32(b))
	}
	for ; len(b) >= 2*word && !ends; b = b[2*word:] {
		tag, val := get(b), get(b[word:])
		switch tag {
		case 0:
			ends = true
		case dtNeeded:
			needed = append(needed, val)
		case dtStrtab:
			strtab, haveStrtab = val, true
		case dtSOName:
			soname, haveSOName = val, true
		case dtRPath:
			rpath = append(rpath, val)
		case dtRunPath:
			runpath = append(runpath, val)
		case dtFlags:
			flags = val
		case dtFlags1:
			flags1 = val
		case dtBindNow:
			bindNow = true
		case dtVerNeed:
			verneed = val
		}
	}
	if !ends {
		f.odd("dynamic_unterminated", "the dynamic section has no end within %d bytes", min(left, maxDynamic))
	}
	if f.id.Relro != "" && (bindNow || flags&dfNow != 0 || flags1&df1Now != 0) {
		f.id.Relro = "full"
	}
	base, strLeft, ok := f.offset(strtab)
	if !haveStrtab || !ok {
		if len(needed) > 0 || haveStrtab {
			f.odd("dynstr_unmapped", "the dynamic section's strings at %#x are in no loaded segment", strtab)
		}
	}
	str := func(at uint64) (string, bool) {
		if !haveStrtab || !ok || at >= strLeft {
			f.odd("dynstr_outside", "string %#x of the dynamic section lies outside of its strings", at)
			return "", false
		}
		s, whole := f.in.str(base+at, maxString)
		if !whole {
			f.odd("dynstr_unterminated", "string %#x of the dynamic section does not end", at)
		}
		return text(s), whole
	}
	enough := f.in.left - maxStrings
	list := func(at []uint64, limit int, cut *int) (out []string) {
		for i, v := range at {
			if i == limit || f.in.left < enough {
				*cut += len(at) - i
				break
			}
			if s, ok := str(v); ok {
				out = append(out, s)
			}
		}
		return out
	}
	f.id.Needed = list(needed, maxNeeded, &f.cut.Needed)
	f.id.RPath = list(rpath, maxPaths, &f.cut.Needed)
	f.id.RunPath = list(runpath, maxPaths, &f.cut.Needed)
	if verneed != 0 {
		f.readVersions(verneed, enough, str)
	}
	if haveSOName && f.in.left >= enough {
		f.id.SOName, _ = str(soname)
	}
	f.id.PIE = f.id.ObjectType == "dyn" && (flags1&df1PIE != 0 ||
		f.id.SOName == "" && (f.id.Interpreter != "" || f.hdr.entry != 0 && len(f.id.Needed) == 0))
}

// readVersions reads which versions of its libraries' symbols the file needs: where
// a library lacks one, the loader ends the program before any of it runs. enough is
// how much of the budget stays for others.
func (f *file) readVersions(addr uint64, enough int, str func(uint64) (string, bool)) {
	u16 := func(b []byte) uint16 { return f.order.Uint16(b) }
	u32 := func(b []byte) uint64 { return uint64(f.order.Uint32(b)) }
	for range maxNeeded {
		off, left, ok := f.offset(addr)
		b := f.in.at(off, 16) // Elfxx_Verneed: version, count, file, first, next
		if !ok || left < 16 || len(b) < 16 || f.in.left < enough {
			f.cut.Versions++
			return
		}
		library, ok := str(u32(b[4:]))
		for aux, n := off+u32(b[8:]), int(u16(b[2:])); ok && n > 0; n-- {
			v := f.in.at(aux, 16) // Elfxx_Vernaux: hash, flags, other, name, next
			if len(v) < 16 || f.in.left < enough || len(f.id.Versions) == maxNeeded {
				f.cut.Versions += n
				break
			}
			if name, ok := str(u32(v[8:])); ok && u16(v[4:])&verFlagWeak == 0 {
				f.id.Versions = append(f.id.Versions, library+" "+name)
			}
			if u32(v[12:]) == 0 {
				break
			}
			aux += u32(v[12:])
		}
		if u32(b[12:]) == 0 {
			return
		}
		addr += u32(b[12:])
	}
	f.cut.Versions++
}
