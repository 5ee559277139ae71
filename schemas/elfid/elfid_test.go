// SPDX-License-Identifier: Apache-2.0

package elfid_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/elfid"
	"github.com/petri-sandbox/petri/schemas/elfid/elftest"
)

func read(t *testing.T, b []byte) *schemas.ELFIdentity {
	t.Helper()
	id, err := elfid.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func classify(t *testing.T, b []byte) schemas.SampleType {
	t.Helper()
	typ, err := elfid.Classify(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return typ
}

func anomalies(id *schemas.ELFIdentity) []string {
	var out []string
	for _, a := range id.Anomalies {
		out = append(out, a.Name)
	}
	return out
}

var pie = elftest.File{
	Wide: true, Type: elftest.Dyn, Machine: 62, Interpreter: "/lib64/ld-linux-x86-64.so.2",
	Needed: []string{"libc.so.6", "libz.so.1"}, RunPath: "$ORIGIN/../lib", PIE: true, BuildID: []byte{0xde, 0xad, 0xbe, 0xef},
	Sections: true, Symbols: true, Payload: []byte("code"),
}

func TestRead(t *testing.T) {
	id := read(t, pie.Bytes())
	yes := false
	want := &schemas.ELFIdentity{
		Class: 64, Endianness: "little", Machine: "EM_X86_64", Arch: "amd64", OSABI: "SYSV", ObjectType: "dyn",
		Entry: id.Entry, Linkage: "dynamic", Interpreter: "/lib64/ld-linux-x86-64.so.2",
		Needed: []string{"libc.so.6", "libz.so.1"}, RunPath: []string{"$ORIGIN/../lib"}, PIE: true, Stripped: &yes,
		BuildID: "deadbeef", Segments: id.Segments, Sections: id.Sections,
	}
	if !reflect.DeepEqual(id, want) {
		got, _ := json.MarshalIndent(id, "", " ")
		t.Errorf("got %s", got)
	}
	if len(id.Segments) != 5 || id.Segments[1].Type != "PT_LOAD" || id.Segments[1].Flags != "r-x" {
		t.Errorf("segments %+v", id.Segments)
	}
	if len(id.Sections) != 5 || id.Sections[1].Name != ".text" || id.Sections[1].Flags != "ax" {
		t.Errorf("sections %+v", id.Sections)
	}
}

func TestClassify(t *testing.T) {
	static := elftest.File{Type: elftest.Exec, Machine: 8, Flags: 0x50001007, Payload: []byte("x")}
	bigMIPS := static
	bigMIPS.Big = true
	for _, tc := range []struct {
		name string
		in   []byte
		want schemas.SampleType
	}{
		{"pie", pie.Bytes(), schemas.SampleType{Format: "elf", Arch: "amd64", Description: "ELF 64-bit LSB pie executable, x86-64, dynamically linked, not stripped", Class: 64, Endianness: "little", Machine: "EM_X86_64", ObjectType: "dyn"}},
		{"static_pie", elftest.File{Wide: true, Type: elftest.Dyn, Machine: 183, PIE: true, Sections: true, Payload: []byte("x")}.Bytes(), schemas.SampleType{Format: "elf", Arch: "arm64", Description: "ELF 64-bit LSB pie executable, ARM aarch64, static-pie linked, stripped", Class: 64, Endianness: "little", Machine: "EM_AARCH64", ObjectType: "dyn"}},
		{"mipsel", static.Bytes(), schemas.SampleType{Format: "elf", Arch: "mipsel", Description: "ELF 32-bit LSB executable, MIPS, statically linked", Class: 32, Endianness: "little", Machine: "EM_MIPS", ObjectType: "exec"}},
		{"mips", bigMIPS.Bytes(), schemas.SampleType{Format: "elf", Arch: "mips", Description: "ELF 32-bit MSB executable, MIPS, statically linked", Class: 32, Endianness: "big", Machine: "EM_MIPS", ObjectType: "exec"}},
		{"library", elftest.File{Wide: true, Type: elftest.Dyn, Machine: 22, Big: true, SOName: "libx.so.1", Needed: []string{"libc.so.6"}}.Bytes(), schemas.SampleType{Format: "elf", Arch: "s390x", Description: "ELF 64-bit MSB shared object, IBM S/390, dynamically linked", Class: 64, Endianness: "big", Machine: "EM_S390", ObjectType: "dyn"}},
		{"module", elftest.File{Wide: true, Type: elftest.Rel, Machine: 62, Sections: true, Modinfo: true}.Bytes(), schemas.SampleType{Format: "elf", Arch: "amd64", Description: "ELF 64-bit LSB kernel module, x86-64", Class: 64, Endianness: "little", Machine: "EM_X86_64", ObjectType: "rel"}},
		{"no_cpu", elftest.File{Type: elftest.Exec, Machine: 75}.Bytes(), schemas.SampleType{Format: "elf", Description: "ELF 32-bit LSB executable, VAX, statically linked", Unsupported: "no Debian architecture runs 32-bit little-endian programs for EM_VAX", Class: 32, Endianness: "little", Machine: "EM_VAX", ObjectType: "exec"}},
		{"header_only", pie.Bytes()[:64], schemas.SampleType{Format: "elf", Arch: "amd64", Description: "ELF 64-bit LSB shared object, x86-64", Unsupported: "truncated: the file ends before its program headers do", Class: 64, Endianness: "little", Machine: "EM_X86_64", ObjectType: "dyn"}},
		{"half_header", pie.Bytes()[:32], schemas.SampleType{Format: "elf", Arch: "amd64", Description: "ELF 64-bit LSB shared object, x86-64", Unsupported: "truncated: the file ends within the ELF header", Class: 64, Endianness: "little", Machine: "EM_X86_64", ObjectType: "dyn"}},
		{"script", []byte("#! /bin/sh -e\necho hi\n"), schemas.SampleType{Format: "script", Description: `script for "/bin/sh"`, Interpreter: "/bin/sh -e"}},
		{"script_crlf", []byte("#!/bin/sh\r\necho hi\r\n"), schemas.SampleType{Format: "script", Description: `script for "/bin/sh\r", with CRLF line ends, which Linux takes as part of the interpreter line`, Interpreter: "/bin/sh\r"}},
		{"script_of_nothing", []byte("#! \n/bin/sh"), schemas.SampleType{Format: "script", Description: "script without an interpreter", Unsupported: "there is nothing behind #!"}},
		{"text", []byte("echo hi\n"), schemas.SampleType{Format: "unknown", Description: "ASCII text", Unsupported: "ASCII text: neither an ELF file nor a script with an interpreter line"}},
		{"utf8", []byte("größer\n"), schemas.SampleType{Format: "unknown", Description: "UTF-8 text", Unsupported: "UTF-8 text: neither an ELF file nor a script with an interpreter line"}},
		{"empty", nil, schemas.SampleType{Format: "unknown", Description: "empty file", Unsupported: "empty file: neither an ELF file nor a script with an interpreter line"}},
		{"magic_alone", []byte("\x7fEL"), schemas.SampleType{Format: "unknown", Description: "data", Unsupported: "data: neither an ELF file nor a script with an interpreter line"}},
		{"pe", []byte("MZ\x90\x00"), schemas.SampleType{Format: "unknown", Description: "DOS or Windows program", Unsupported: "DOS or Windows program: neither an ELF file nor a script with an interpreter line"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := classify(t, tc.in); got != tc.want {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
		})
	}
}

func TestArch(t *testing.T) {
	for _, tc := range []struct {
		want    string
		class   int
		big     bool
		machine uint16
		flags   uint32
	}{
		{"amd64", 64, false, 62, 0}, {"x32", 32, false, 62, 0}, {"", 64, true, 62, 0},
		{"i386", 32, false, 3, 0}, {"i386", 32, false, 6, 0}, {"", 64, false, 3, 0},
		{"arm64", 64, false, 183, 0}, {"", 64, true, 183, 0}, {"", 32, false, 183, 0},
		{"armhf", 32, false, 40, 0x05000400}, {"armel", 32, false, 40, 0x05000200}, {"armel", 32, false, 40, 0x05000002},
		{"armel", 32, false, 40, 0x04000002}, {"arm", 32, false, 40, 0x02}, {"armeb", 32, true, 40, 0x05800000},
		{"mips", 32, true, 8, 0x1007}, {"mipsel", 32, false, 8, 0x1007}, {"mips64el", 64, false, 8, 0}, {"mips64", 64, true, 8, 0},
		{"mipsn32", 32, true, 8, 0x20}, {"mipsn32el", 32, false, 8, 0x20}, {"mipsr6el", 32, false, 8, 0x90000000}, {"mips64r6", 64, true, 8, 0xa0000000},
		{"powerpc", 32, true, 20, 0}, {"ppc64el", 64, false, 21, 2}, {"ppc64", 64, true, 21, 1},
		{"s390x", 64, true, 22, 0}, {"s390", 32, true, 22, 0}, {"riscv64", 64, false, 243, 5}, {"", 32, false, 243, 0},
		{"loong64", 64, false, 258, 0x43}, {"m68k", 32, true, 4, 0}, {"sh4", 32, false, 42, 9}, {"sh4eb", 32, true, 42, 9}, {"sh3", 32, false, 42, 3},
		{"sparc", 32, true, 2, 0}, {"sparc", 32, true, 18, 0}, {"sparc64", 64, true, 43, 0}, {"hppa", 32, true, 15, 0},
		{"alpha", 64, false, 0x9026, 0}, {"ia64", 64, false, 50, 0}, {"arc", 32, false, 195, 0}, {"", 32, false, 75, 0},
	} {
		if got := elfid.Arch(tc.class, tc.big, tc.machine, tc.flags); got != tc.want {
			t.Errorf("Arch(%d, big %v, %d, %#x) is %q, want %q", tc.class, tc.big, tc.machine, tc.flags, got, tc.want)
		}
	}
	hard := read(t, elftest.File{Type: elftest.Dyn, Machine: 40, Flags: 0x05000000, Interpreter: "/lib/ld-linux-armhf.so.3", Needed: []string{"libc.so.6"}}.Bytes())
	if hard.Arch != "armhf" {
		t.Errorf("a program for ld-linux-armhf is %q", hard.Arch)
	}
}

// TestMachineNames checks our table against the standard library's.
func TestMachineNames(t *testing.T) {
	ours := map[uint16]string{0xabc7: "EM_XTENSA_OLD", 0xbaab: "EM_MICROBLAZE", 0x18ad: "EM_AVR32", 0xa390: "EM_S390", 252: "EM_CSKY", 6: "EM_486", 23: "EM_SPU"}
	for m := range 1 << 16 {
		name := elfid.MachineName(uint16(m))
		if std := elf.Machine(m).String(); name != std && ours[uint16(m)] != name && !strings.HasPrefix(name, "EM_"+itoa(m)) {
			t.Errorf("machine %d is %s; debug/elf says %s", m, name, std)
		}
	}
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

// TestLenient breaks what Linux does not look at; the file must stay what it is.
func TestLenient(t *testing.T) {
	whole := read(t, pie.Bytes())
	for name, tc := range map[string]struct {
		edit func([]byte)
		odd  []string
	}{
		"class":           {func(b []byte) { b[elftest.EIClass] = 1 }, []string{"class_mismatch"}},
		"class_zero":      {func(b []byte) { b[elftest.EIClass] = 0 }, []string{"class_mismatch"}},
		"data":            {func(b []byte) { b[elftest.EIData] = 2 }, []string{"data_mismatch"}},
		"data_zero":       {func(b []byte) { b[elftest.EIData] = 0 }, []string{"data_mismatch"}},
		"class_and_data":  {func(b []byte) { b[elftest.EIClass], b[elftest.EIData] = 9, 9 }, []string{"class_mismatch", "data_mismatch"}},
		"version":         {func(b []byte) { b[6] = 0 }, []string{"version_odd"}},
		"padding":         {func(b []byte) { copy(b[9:], "pwned") }, []string{"ident_padding"}},
		"ehsize":          {func(b []byte) { b[52] = 0 }, []string{"ehsize_odd"}},
		"shoff":           {func(b []byte) { binary.LittleEndian.PutUint64(b[40:], 1<<60) }, []string{"shdr_outside"}},
		"shoff_negative":  {func(b []byte) { binary.LittleEndian.PutUint64(b[40:], 1<<64-64) }, []string{"shdr_outside"}},
		"shnum":           {func(b []byte) { binary.LittleEndian.PutUint16(b[60:], 0xfffe) }, []string{"shdr_outside"}},
		"shnum_zero":      {func(b []byte) { binary.LittleEndian.PutUint16(b[60:], 0) }, []string{"shnum_zero"}},
		"shentsize":       {func(b []byte) { binary.LittleEndian.PutUint16(b[58:], 1) }, []string{"shentsize_odd"}},
		"shstrndx":        {func(b []byte) { binary.LittleEndian.PutUint16(b[62:], 99) }, []string{"shstrndx_outside"}},
		"no_table_at_all": {func(b []byte) { clear(b[40:48]); clear(b[58:64]) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := pie.Bytes()
			tc.edit(b)
			id := read(t, b)
			if got := anomalies(id); !slices.Equal(got, tc.odd) {
				t.Errorf("anomalies %v, want %v", id.Anomalies, tc.odd)
			}
			if id.Arch != whole.Arch || id.Class != whole.Class || id.Interpreter != whole.Interpreter || !slices.Equal(id.Needed, whole.Needed) || id.BuildID != whole.BuildID {
				t.Errorf("it is no longer what it was: %+v", id)
			}
			if typ := classify(t, b); typ.Unsupported != "" {
				t.Errorf("unsupported: %s", typ.Unsupported)
			}
		})
	}
}

// TestAnomalies breaks what matters.
func TestAnomalies(t *testing.T) {
	le := binary.LittleEndian
	const phdr = 64 // where pie's program headers begin: interp, load, dynamic, note, stack
	for name, tc := range map[string]struct {
		edit        func([]byte)
		odd         []string
		unsupported string
	}{
		"no_program_headers": {func(b []byte) { le.PutUint16(b[56:], 0) }, []string{"phnum_zero"}, "no program headers"},
		"phentsize":          {func(b []byte) { le.PutUint16(b[54:], 57) }, []string{"phentsize_odd"}, "57 bytes each"},
		"phoff":              {func(b []byte) { le.PutUint64(b[32:], 1<<62) }, []string{"phdr_outside"}, "truncated"},
		"phnum_huge":         {func(b []byte) { le.PutUint16(b[56:], 0xfff0) }, []string{"phnum_huge", "phdr_outside"}, "65520 program headers"},
		"interp_unended":     {func(b []byte) { le.PutUint64(b[phdr+32:], 5) }, []string{"interp_unterminated"}, "does not end"},
		"interp_huge":        {func(b []byte) { le.PutUint64(b[phdr+32:], 1<<40) }, []string{"segment_outside", "interp_size"}, "length of its interpreter"},
		"load_truncated":     {func(b []byte) { le.PutUint64(b[phdr+56+32:], 1<<20); le.PutUint64(b[phdr+56+40:], 1<<20) }, []string{"segment_outside"}, ""},
		"load_filesz":        {func(b []byte) { le.PutUint64(b[phdr+56+40:], 16) }, []string{"segment_filesz", "entry_outside"}, "more bytes in the file"},
		"load_wraps":         {func(b []byte) { le.PutUint64(b[phdr+56+40:], 1<<64-1); le.PutUint64(b[phdr+56+16:], 4096) }, []string{"segment_wraps", "dynamic_unmapped", "dynstr_unmapped"}, ""},
		"load_wx":            {func(b []byte) { b[phdr+56+4] = 7 }, []string{"segment_wx"}, ""},
		"entry_outside":      {func(b []byte) { le.PutUint64(b[24:], 1<<40) }, []string{"entry_outside"}, ""},
		"not_executable":     {func(b []byte) { b[phdr+56+4] = 4 }, []string{"entry_not_executable"}, ""},
		"dynamic_elsewhere":  {func(b []byte) { le.PutUint64(b[phdr+112+8:], 0) }, []string{"dynamic_offset"}, ""},
		"type":               {func(b []byte) { le.PutUint16(b[16:], 0x77) }, []string{"type_unknown"}, "type 0x77"},
	} {
		t.Run(name, func(t *testing.T) {
			b := pie.Bytes()
			tc.edit(b)
			id := read(t, b)
			got := anomalies(id)
			for _, want := range tc.odd {
				if !slices.Contains(got, want) {
					t.Errorf("anomalies %v lack %s", id.Anomalies, want)
				}
			}
			typ := classify(t, b)
			if tc.unsupported == "" && typ.Unsupported != "" || !strings.Contains(typ.Unsupported, tc.unsupported) {
				t.Errorf("unsupported: %q, want %q", typ.Unsupported, tc.unsupported)
			}
		})
	}
}

// TestDynamicByAddress moves PT_DYNAMIC's offset: the loader goes by the
// address, and so must we, or a scanner sees other libraries than the loader.
func TestDynamicByAddress(t *testing.T) {
	b := pie.Bytes()
	binary.LittleEndian.PutUint64(b[64+112+8:], 0)
	if id := read(t, b); !slices.Equal(id.Needed, []string{"libc.so.6", "libz.so.1"}) {
		t.Errorf("needed %q", id.Needed)
	}
}

func TestOverlay(t *testing.T) {
	b := pie.Bytes()
	n := int64(len(b))
	id := read(t, append(b, "appended"...))
	if id.Overlay == nil || *id.Overlay != (schemas.ELFRange{Offset: n, Size: 8}) {
		t.Errorf("overlay %+v", id.Overlay)
	}
}

// counter counts what is read from a ReaderAt.
type counter struct {
	io.ReaderAt
	n int
}

func (c *counter) ReadAt(b []byte, off int64) (int, error) {
	c.n += len(b)
	return c.ReaderAt.ReadAt(b, off)
}

// hostile is a file that asks for everything at once: the most program
// headers, each of which is read for, and strings that are as long as can be.
func hostile() []byte {
	f := pie
	for range 5000 {
		f.Needed = append(f.Needed, strings.Repeat("a", 300))
	}
	b := append(f.Bytes(), bytes.Repeat([]byte("b"), 4<<20)...)
	return b
}

func TestReadsLittle(t *testing.T) {
	b := hostile()
	c := &counter{ReaderAt: bytes.NewReader(b)}
	id, err := elfid.Read(c, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if c.n > elfid.MaxRead {
		t.Errorf("%d bytes were read", c.n)
	}
	if id.Omitted == nil || id.Omitted.Needed == 0 || len(id.Needed) > 256 {
		t.Errorf("%d libraries, omitted %+v", len(id.Needed), id.Omitted)
	}
}

func TestReadError(t *testing.T) {
	broken := errors.New("disk on fire")
	for n := range 5 {
		r := &failing{ReaderAt: bytes.NewReader(pie.Bytes()), after: n, err: broken}
		if _, err := elfid.Classify(r, int64(len(pie.Bytes()))); !errors.Is(err, broken) {
			t.Errorf("after %d reads: %v", n, err)
		}
	}
	if _, err := elfid.Read(strings.NewReader("#!/bin/sh"), 9); !errors.Is(err, elfid.ErrNotELF) {
		t.Errorf("not ELF: %v", err)
	}
}

type failing struct {
	io.ReaderAt
	after int
	err   error
}

func (f *failing) ReadAt(b []byte, off int64) (int, error) {
	if f.after--; f.after < 0 {
		return 0, f.err
	}
	return f.ReaderAt.ReadAt(b, off)
}

// agree compares with the standard library where that can read the file.
func agree(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{ReaderAt: f}
	id, err := elfid.Read(c, st.Size())
	if errors.Is(err, elfid.ErrNotELF) {
		return
	} else if err != nil {
		t.Fatal(err)
	}
	if c.n > elfid.MaxRead {
		t.Errorf("%d bytes were read", c.n)
	}
	std, err := elf.NewFile(f)
	if err != nil {
		t.Logf("debug/elf does not read it (%v); we say %s, %v", err, elfid.Describe(id), id.Anomalies)
		return
	}
	if want := map[elf.Class]int{elf.ELFCLASS32: 32, elf.ELFCLASS64: 64}[std.Class]; id.Class != want {
		t.Errorf("class %d, want %d", id.Class, want)
	}
	if got, want := id.Endianness == "big", std.ByteOrder == binary.BigEndian; got != want {
		t.Errorf("big-endian %v, want %v", got, want)
	}
	if id.Machine != std.Machine.String() && !strings.HasPrefix(id.Machine, "EM_"+itoa(int(std.Machine))) {
		t.Errorf("machine %s, want %s", id.Machine, std.Machine)
	}
	if id.Entry != std.Entry {
		t.Errorf("entry %#x, want %#x", id.Entry, std.Entry)
	}
	if libs, err := std.ImportedLibraries(); err == nil && len(std.Progs) > 0 && !slices.Equal(id.Needed, libs) && id.Omitted == nil {
		t.Errorf("needed %q, want %q", id.Needed, libs)
	}
	if i := slices.IndexFunc(std.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }); i >= 0 {
		b, _ := io.ReadAll(std.Progs[i].Open())
		if s, _, _ := strings.Cut(string(b), "\x00"); s != id.Interpreter {
			t.Errorf("interpreter %q, want %q", id.Interpreter, s)
		}
	}
	if id.Stripped != nil {
		if want := std.SectionByType(elf.SHT_SYMTAB) == nil; *id.Stripped != want {
			t.Errorf("stripped %v, want %v", *id.Stripped, want)
		}
	}
}

func TestOwnBinary(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	agree(t, exe)
	f, err := os.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, _ := f.Stat()
	typ, err := elfid.Classify(f, st.Size())
	if err != nil || typ.Arch == "" || typ.Unsupported != "" || runtime.GOARCH == "amd64" && typ.Arch != "amd64" {
		t.Errorf("%+v, %v", typ, err)
	}
}

// TestCorpus compares with the standard library on other people's files: the
// programs and libraries of this machine, and those in the directory that
// PETRI_ELF_CORPUS names, some of which should be malformed.
func TestCorpus(t *testing.T) {
	const enough = 300 // of one directory
	for _, dir := range []string{"/usr/bin", "/usr/lib", os.Getenv("PETRI_ELF_CORPUS")} {
		if dir == "" {
			continue
		}
		files := 0
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			switch {
			case errors.Is(err, os.ErrPermission):
				return nil
			case err != nil:
				return err
			case !d.Type().IsRegular():
				return nil
			case dir != os.Getenv("PETRI_ELF_CORPUS") && files == enough:
				return filepath.SkipAll
			}
			files++
			t.Run(strings.TrimPrefix(path, "/"), func(t *testing.T) { agree(t, path) })
			return nil
		})
		if err != nil || files == 0 {
			t.Errorf("%s: %d files, %v", dir, files, err)
		}
	}
}

func TestInterpreter(t *testing.T) {
	for line, want := range map[string][2]string{
		"/bin/sh -e": {"/bin/sh", ""}, "/usr/bin/python3\t-u": {"/usr/bin/python3", ""}, "": {"", ""},
		"/usr/bin/env python3": {"/usr/bin/env", "python3"}, "/usr/bin/env \tperl": {"/usr/bin/env", "perl"},
		"/usr/bin/env python3 -u": {"/usr/bin/env", "python3 -u"}, "/usr/bin/env": {"/usr/bin/env", ""},
		"/usr/bin/env -S python3 -u": {"/usr/bin/env", ""}, "/usr/bin/env A=1 sh": {"/usr/bin/env", ""},
		"/usr/bin/env /bin/sh": {"/usr/bin/env", ""}, "/usr/bin/env python3\r": {"/usr/bin/env", "python3\r"},
	} {
		if path, program := elfid.Interpreter(line); path != want[0] || program != want[1] {
			t.Errorf("%q: %q, %q, not %q", line, path, program, want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(pie.Bytes())
	f.Add(pie.Bytes()[:100])
	f.Add(elftest.File{Type: elftest.Exec, Machine: 8, Big: true, Flags: 0x1007, Needed: []string{"libc.so.0"}, Interpreter: "/lib/ld-uClibc.so.0", Sections: true, Symbols: true}.Bytes())
	f.Add(elftest.File{Type: elftest.Rel, Machine: 40, Sections: true, Modinfo: true}.Bytes())
	f.Add(elftest.File{Wide: true, Type: elftest.Core, Machine: 62}.Bytes())
	f.Add([]byte("#!/bin/sh\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &counter{ReaderAt: bytes.NewReader(b)}
		id, err := elfid.Read(c, int64(len(b)))
		if c.n > elfid.MaxRead {
			t.Fatalf("%d bytes were read", c.n)
		}
		if (err == nil) != bytes.HasPrefix(b, []byte("\x7fELF")) || (id == nil) != (err != nil) {
			t.Fatalf("identity %v, error %v", id != nil, err)
		}
		typ, err := elfid.Classify(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		if (id != nil) != (typ.Format == elfid.FormatELF) || typ.Description == "" || (typ.Format == elfid.FormatELF && typ.Unsupported == "" && typ.Arch == "") {
			t.Fatalf("type %+v", typ)
		}
		if id == nil {
			return
		}
		again, err := elfid.Read(bytes.NewReader(b), int64(len(b)))
		if err != nil || !reflect.DeepEqual(id, again) {
			t.Fatal("the second reading differs")
		}
		j, err := json.Marshal(id)
		if err != nil || len(j) > 8*elfid.MaxRead {
			t.Fatalf("%d bytes of JSON, %v", len(j), err)
		}
		if o := id.Overlay; o != nil && (o.Offset <= 0 || o.Size <= 0 || o.Offset+o.Size != int64(len(b))) {
			t.Fatalf("overlay %+v of %d bytes", o, len(b))
		}
		if len(id.Segments) > 128 || len(id.Sections) > 256 || len(id.Needed) > 256 || len(id.Anomalies) > 64 {
			t.Fatal("a list is too long")
		}
	})
}

func BenchmarkClassify(b *testing.B) {
	data := pie.Bytes()
	for b.Loop() {
		elfid.Classify(bytes.NewReader(data), int64(len(data)))
	}
}

// TestVersions reads which versions of their libraries' symbols programs need, of
// either class and byte order.
func TestVersions(t *testing.T) {
	want := []string{"libc.so.6 GLIBC_2.38", "libc.so.6 GLIBC_2.2.5", "libz.so.1 ZLIB_1.2.9"}
	for _, f := range []elftest.File{{Wide: true, Machine: 62}, {Machine: 8, Big: true}} {
		f.Type, f.Interpreter, f.Needed, f.Versions = elftest.Dyn, "/lib/ld.so.1", []string{"libc.so.6", "libz.so.1"}, want
		if id := read(t, f.Bytes()); !slices.Equal(id.Versions, want) || id.Omitted != nil {
			t.Errorf("machine %d: versions %q, omitted %+v", f.Machine, id.Versions, id.Omitted)
		}
	}
}

// TestManyVersions is of more than are listed, and of a table that leads outside.
func TestManyVersions(t *testing.T) {
	f := elftest.File{Wide: true, Type: elftest.Dyn, Machine: 62, Needed: []string{"libc.so.6"}}
	for i := range 300 {
		f.Versions = append(f.Versions, fmt.Sprintf("libc.so.6 V_%d", i))
	}
	if id := read(t, f.Bytes()); len(id.Versions) != 256 || id.Omitted == nil || id.Omitted.Versions == 0 {
		t.Errorf("%d versions, omitted %+v", len(id.Versions), id.Omitted)
	}
	f.Versions = f.Versions[:2]
	b := f.Bytes()
	at := bytes.Index(b, []byte{1, 0, 1, 0}) // the first of the table
	binary.LittleEndian.PutUint32(b[at+12:], 1<<31)
	if id := read(t, b); !slices.Equal(id.Versions, f.Versions[:1]) || id.Omitted == nil || id.Omitted.Versions != 1 {
		t.Errorf("versions %q, omitted %+v", id.Versions, id.Omitted)
	}
}

// TestSplitsArgument is of env's option -S.
func TestSplitsArgument(t *testing.T) {
	for line, want := range map[string]bool{
		"/usr/bin/env -S python3 -u": true, "/bin/env \t-vS sh": true, "/usr/bin/env --split-string=sh -x": true, "/usr/bin/env -Ssh": true,
		"/usr/bin/env sh": false, "/usr/bin/env -i": false, "/usr/bin/env S=1 sh": false, "/bin/sh -S": false, "": false,
	} {
		if got := elfid.SplitsArgument(line); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
}
