// SPDX-License-Identifier: Apache-2.0

// Package elfid reads what an ELF file says of itself: which CPU it is for,
// which interpreter and libraries it needs, and what is odd about its headers.
// [Classify] says what any sample's first bytes look like.
//
// It is lenient where Linux is: the kernel goes by e_machine and the program
// headers, so that a file with a garbage section table, class or byte order
// may well run. What is irregular becomes an anomaly, never an error. It is
// strict with itself: a file of any size and content costs at most [MaxRead]
// bytes of reading and a few hundred KiB of memory. It executes nothing, does
// not disassemble, and does not read symbols.
package elfid

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/petri-sandbox/petri/schemas"
)

// MaxRead bounds the bytes that one call of [Read] or [Classify] reads.
const MaxRead = 1 << 20

// Limits of what an identity lists.
const (
	maxSegments  = 128
	maxSections  = 256
	maxNeeded    = 256
	maxPaths     = 16
	maxAnomalies = 64
	maxString    = 4096 // PATH_MAX
)

// ErrNotELF says that a file does not begin with the ELF magic.
var ErrNotELF = errors.New("not an ELF file")

var magic = []byte("\x7fELF")

// Read returns the identity of the ELF file of size bytes in r.
//
// The error is [ErrNotELF], or what r failed with; no content makes it fail.
// The same bytes give the same identity.
func Read(r io.ReaderAt, size int64) (*schemas.ELFIdentity, error) {
	f, err := parse(r, size)
	if err != nil {
		return nil, err
	}
	return &f.id, nil
}

// file is an ELF file that is being read.
type file struct {
	in    input
	order binary.ByteOrder
	wide  bool // 64-bit
	hdr   header
	progs []prog
	loads []prog // PT_LOAD, in the file's order
	id    schemas.ELFIdentity
	end   uint64 // behind everything that the headers name
	cut   schemas.ELFOmitted
	runs  string // why Linux will not run it; empty if it may
}

// Library reports whether Linux runs such a file only as part of a program that
// loads it: it is a shared object that names no loader, and either has no entry
// or asks for what only a loader can give it.
func Library(id *schemas.ELFIdentity) bool {
	return id.ObjectType == "dyn" && id.Interpreter == "" && !id.PIE &&
		(id.Entry == 0 || len(id.Needed) > 0 || id.SOName != "")
}

func parse(r io.ReaderAt, size int64) (*file, error) {
	f := &file{in: input{r: r, size: size, left: MaxRead}}
	raw := f.in.at(0, 64)
	if !bytes.HasPrefix(raw, magic) {
		if f.in.err != nil {
			return nil, fmt.Errorf("read ELF header: %w", f.in.err)
		}
		return nil, ErrNotELF
	}
	f.readHeader(raw)
	f.readPrograms()
	f.readInterpreter()
	f.readDynamic()
	f.readNotes()
	f.readSections()
	f.conclude()
	if f.in.err != nil {
		return nil, fmt.Errorf("read ELF file: %w", f.in.err)
	}
	return f, nil
}

// input reads from a file within a budget.
type input struct {
	r    io.ReaderAt
	size int64
	left int
	err  error // of r, other than its end
}

// at returns up to n bytes at off: fewer where the file ends, none outside of
// it or when the budget is used up. n is never taken from the file unchecked.
func (in *input) at(off uint64, n int) []byte {
	if in.err != nil || in.size <= 0 || off >= uint64(in.size) {
		return nil
	}
	n = min(n, in.left)
	if rest := uint64(in.size) - off; uint64(n) > rest {
		n = int(rest)
	}
	b := make([]byte, n)
	in.left -= n
	got, err := in.r.ReadAt(b, int64(off))
	if err != nil && err != io.EOF && got < n {
		in.err = err
	}
	return b[:got]
}

// str returns the NUL-terminated string at off, which has at most max bytes.
func (in *input) str(off uint64, max int) (string, bool) {
	for n := min(256, max+1); ; n = min(4*n, max+1) {
		b := in.at(off, n)
		if i := bytes.IndexByte(b, 0); i >= 0 {
			return string(b[:i]), true
		}
		if len(b) < n || n == max+1 {
			return string(b[:min(len(b), max)]), false
		}
	}
}

// text makes a file's string fit for JSON.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func (f *file) odd(name, format string, args ...any) {
	if len(f.id.Anomalies) >= maxAnomalies {
		f.cut.Anomalies++
		return
	}
	f.id.Anomalies = append(f.id.Anomalies, schemas.ELFAnomaly{Name: name, Detail: fmt.Sprintf(format, args...)})
}

// inside reports whether the file has all n bytes at off.
func (f *file) inside(off, n uint64) bool {
	size := uint64(max(f.in.size, 0))
	return off <= size && n <= size-off
}

// reach notes that the headers name the n bytes at off.
func (f *file) reach(off, n uint64) {
	if n > 0 && off <= math.MaxUint64-n {
		f.end = max(f.end, off+n)
	}
}

// conclude derives what takes all of the headers to know.
func (f *file) conclude() {
	id := &f.id
	switch {
	case id.Interpreter != "" || len(id.Needed) > 0:
		id.Linkage = "dynamic"
	case id.ObjectType == "exec", id.ObjectType == "dyn":
		id.Linkage = "static"
	default:
		id.Linkage = "none"
	}
	id.Arch = Arch(id.Class, f.order == binary.BigEndian, f.hdr.machine, f.hdr.flags)
	if id.Arch == "armel" && strings.Contains(id.Interpreter, "armhf") {
		id.Arch = "armhf"
	}
	f.checkEntry()
	size := uint64(max(f.in.size, 0))
	if f.end > 0 && f.end < size {
		id.Overlay = &schemas.ELFRange{Offset: int64(f.end), Size: int64(size - f.end)}
	}
	if id.Module {
		f.runs = "" // Linux takes it in, if it does not run it
	}
	if f.runs == "" && id.Arch == "" {
		f.runs = fmt.Sprintf("no Debian architecture runs %d-bit %s-endian programs for %s", id.Class, id.Endianness, id.Machine)
	}
	if f.cut != (schemas.ELFOmitted{}) {
		id.Omitted = &f.cut
	}
}

func (f *file) checkEntry() {
	if f.id.ObjectType != "exec" && f.id.ObjectType != "dyn" || len(f.loads) == 0 {
		return
	}
	if f.hdr.entry == 0 && f.id.ObjectType == "dyn" {
		return // a shared library
	}
	for _, p := range f.loads {
		if f.hdr.entry-p.vaddr < p.memsz {
			descriptor := f.hdr.machine == emPPC64 || f.hdr.machine == emIA64 || f.hdr.machine == emPARISC // in a data segment
			if p.flags&pfX == 0 && !descriptor {
				f.odd("entry_not_executable", "entry %#x lies in a segment that is not executable", f.hdr.entry)
			}
			return
		}
	}
	f.odd("entry_outside", "entry %#x lies in no segment", f.hdr.entry)
}
