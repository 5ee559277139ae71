// SPDX-License-Identifier: Apache-2.0

package catalogue_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/sandboxd/catalogue"
	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/elfid"
)

// header is an executable's ELF header with one program header.
func header(class int, order binary.AppendByteOrder, machine uint16, flags uint32) []byte {
	data, wide := byte(1), class == 64
	if order == binary.BigEndian {
		data = 2
	}
	b := append([]byte("\x7fELF"), byte(class/32), data, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	word := func(v uint64) {
		if wide {
			b = order.AppendUint64(b, v)
		} else {
			b = order.AppendUint32(b, uint32(v))
		}
	}
	b = order.AppendUint16(b, 2) // ET_EXEC
	b = order.AppendUint16(b, machine)
	b = order.AppendUint32(b, 1)
	ehsize, phsize := uint16(52), uint16(32)
	if wide {
		ehsize, phsize = 64, 56
	}
	word(0x10000)
	word(uint64(ehsize))
	word(0)
	b = order.AppendUint32(b, flags)
	for _, v := range []uint16{ehsize, phsize, 1, 0, 0, 0} {
		b = order.AppendUint16(b, v)
	}
	return append(b, make([]byte, phsize)...)
}

// TestGuest goes over what programs can be for. Every guest must be some
// program's, and what is for none must say why.
func TestGuest(t *testing.T) {
	type order = binary.AppendByteOrder
	var le, be order = binary.LittleEndian, binary.BigEndian
	served := map[string]bool{}
	for _, c := range []struct {
		name    string
		class   int
		order   order
		machine uint16
		flags   uint32
		want    string // the guest, or what is said
	}{
		{"amd64", 64, le, 62, 0, "amd64"},
		{"x32", 32, le, 62, 0, "x32 ABI"},
		{"i386", 32, le, 3, 0, "i386"},
		{"i486", 32, le, 6, 0, "i386"},
		{"arm64", 64, le, 183, 0, "arm64"},
		{"arm64 big-endian", 64, be, 183, 0, "EM_AARCH64, 64-bit big-endian"},
		{"arm64 ilp32", 32, le, 183, 0, "EM_AARCH64, 32-bit little-endian"},
		{"armhf", 32, le, 40, 0x05000400, "armhf"},
		{"armel", 32, le, 40, 0x05000200, "armhf"},
		{"arm EABI 4", 32, le, 40, 0x04000002, "armhf"},
		{"arm before EABI", 32, le, 40, 0x00000202, "before the EABI"},
		{"arm EABI 2", 32, le, 40, 0x02000016, "before the EABI"},
		{"arm BE8", 32, be, 40, 0x05800400, "BE8"},
		{"arm BE32", 32, be, 40, 0x05000200, "BE32"},
		{"mipsel o32", 32, le, 8, 0x70001007, "mipsel"},
		{"mipsel 1, no ABI said", 32, le, 8, 0x00000007, "mipsel"},
		{"mips o32", 32, be, 8, 0x70001007, "mips"},
		{"mips 1", 32, be, 8, 0x00001005, "mips"},
		{"mips64el n64", 64, le, 8, 0x80000007, "mips64el"},
		{"mips64 n64", 64, be, 8, 0x80000007, "no guest runs a program for mips64 "},
		{"mipsel n32", 32, le, 8, 0x80000027, "n32"},
		{"mips n32", 32, be, 8, 0x80000027, "n32"},
		{"mipsel release 6", 32, le, 8, 0x90001407, "release 6"},
		{"mips64el release 6", 64, le, 8, 0xa0000407, "release 6"},
		{"mipsel NaN 2008", 32, le, 8, 0x70001407, "NaN of 2008"},
		{"mipsel microMIPS", 32, le, 8, 0x72001007, "microMIPS"},
		{"mipsel o64", 32, le, 8, 0x20002007, "one that Linux does not run"},
		{"mipsel eabi32", 32, le, 8, 0x70003007, "one that Linux does not run"},
		{"mipsel eabi64", 32, le, 8, 0x70004007, "one that Linux does not run"},
		{"mipsel o32 for a 64-bit CPU", 32, le, 8, 0x60001107, "needs a 64-bit CPU"},
		{"mips64el that says o32", 64, le, 8, 0x80001007, "o32"},
		{"mips of no CPU", 32, le, 8, 0xf0001007, "name no MIPS CPU"},
		{"mips64el Octeon", 64, le, 8, 0x808b0007, "Cavium Octeon,"},
		{"mips64el Octeon III", 64, le, 8, 0x808e0007, "Octeon III"},
		{"mips64el Loongson", 64, le, 8, 0x80a20007, "Loongson GS464,"},
		{"mipsel R3900", 32, le, 8, 0x00811007, "R3900"},
		{"mips interAptiv", 32, be, 8, 0x70931007, "interAptiv MR2"},
		{"mipsel of a CPU that nobody knows", 32, le, 8, 0x70891007, "mipsel"},
		{"mips64el of a CPU that nobody knows", 64, le, 8, 0x80010007, "mips64el"},
		{"ppc64el", 64, le, 21, 2, "ppc64el"},
		{"ppc64el, no ABI said", 64, le, 21, 0, "ppc64el"},
		{"ppc64el of ABI 1", 64, le, 21, 1, "ELFv1"},
		{"ppc64 of ABI 1", 64, be, 21, 1, "ppc64"},
		{"ppc64, no ABI said", 64, be, 21, 0, "ppc64"},
		{"ppc64 of ABI 2", 64, be, 21, 2, "ELFv2"},
		{"ppc64 of no ABI", 64, be, 21, 3, "neither"},
		{"powerpc", 32, be, 20, 0, "ppc64"},
		{"powerpc embedded", 32, be, 20, 0x80000000, "ppc64"},
		{"powerpc little-endian", 32, le, 20, 0, "no guest runs a program for powerpcel "},
		{"s390x", 64, be, 22, 0, "s390x"},
		{"s390", 32, be, 22, 0, "no guest runs a program for s390 "},
		{"riscv64", 64, le, 243, 5, "riscv64"},
		{"riscv64 embedded", 64, le, 243, 8, "RV64E"},
		{"riscv32", 32, le, 243, 5, "EM_RISCV, 32-bit little-endian"},
		{"loong64", 64, le, 258, 3, "no guest runs a program for loong64 "},
		{"sparc64", 64, be, 43, 0, "no guest runs a program for sparc64 "},
		{"sh4", 32, le, 42, 9, "no guest runs a program for sh4 "},
		{"m68k", 32, be, 4, 0, "no guest runs a program for m68k "},
		{"vax", 32, le, 75, 0, "EM_VAX"},
		{"a number", 32, le, 4711, 0, "EM_4711"},
	} {
		b := header(c.class, c.order, c.machine, c.flags)
		id, err := elfid.Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		got, why := catalogue.Guest(id)
		if got != "" {
			served[got] = true
		}
		if _, isGuest := shapes[c.want]; isGuest && slices.Contains(catalogue.Names(), c.want) {
			if got != c.want || why != "" {
				t.Errorf("%s: guest %q (%s), want %s", c.name, got, why, c.want)
			}
		} else if got != "" || !strings.Contains(why, c.want) {
			t.Errorf("%s: guest %q, and %q does not say %q", c.name, got, why, c.want)
		}
	}
	for _, name := range catalogue.Names() {
		if !served[name] {
			t.Errorf("no program is for the guest %s", name)
		}
	}
}

// FuzzGuest gives any machine, class, order and flags either a guest that there
// is and that has the program's class and byte order, or a reason.
func FuzzGuest(f *testing.F) {
	f.Add(true, true, uint16(62), uint32(0))
	f.Add(false, true, uint16(40), uint32(0x05000400))
	f.Add(false, false, uint16(8), uint32(0x70001007))
	f.Add(true, false, uint16(22), uint32(0))
	f.Add(false, false, uint16(20), uint32(0))
	f.Fuzz(func(t *testing.T, wide, little bool, machine uint16, flags uint32) {
		class, order := 32, binary.AppendByteOrder(binary.BigEndian)
		if wide {
			class = 64
		}
		if little {
			order = binary.LittleEndian
		}
		b := header(class, order, machine, flags)
		id, err := elfid.Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		name, why := catalogue.Guest(id)
		if (name == "") == (why == "") {
			t.Fatalf("guest %q, reason %q", name, why)
		}
		if name == "" {
			return
		}
		shape, ok := shapes[name]
		if cpu, err := catalogue.Lookup(name); err == nil && id.Arch != "" && id.Arch == cpu.Also.Name {
			shape.class = 32
		}
		if !ok || shape != (shapeOf{id.Class, id.Endianness}) {
			t.Fatalf("guest %s for a %d-bit %s-endian program", name, id.Class, id.Endianness)
		}
	})
}

type shapeOf struct {
	class int
	order string
}

var shapes = map[string]shapeOf{
	"amd64": {64, "little"}, "i386": {32, "little"}, "arm64": {64, "little"}, "armhf": {32, "little"}, "mipsel": {32, "little"},
	"mips": {32, "big"}, "mips64el": {64, "little"}, "ppc64el": {64, "little"}, "s390x": {64, "big"},
	"riscv64": {64, "little"}, "ppc64": {64, "big"},
}

func TestEmpty(t *testing.T) {
	if name, why := catalogue.Guest(&schemas.ELFIdentity{}); name != "" || why == "" {
		t.Errorf("guest %q, reason %q", name, why)
	}
}

// TestExtra names guests that have something besides.
func TestExtra(t *testing.T) {
	c, err := catalogue.Lookup("amd64+python3")
	if err != nil || c.Name != "amd64" || c.Guest() != "amd64+python3" || len(c.With.Packages) == 0 {
		t.Errorf("amd64+python3: %s, %+v, %v", c.Guest(), c.With, err)
	}
	if c, err := catalogue.Lookup("amd64"); err != nil || c.Guest() != "amd64" || c.With.Name != "" {
		t.Errorf("amd64: %s, %+v, %v", c.Guest(), c.With, err)
	}
	for name, want := range map[string]string{
		"amd64+": `can have python3 besides, not ""`, "amd64+perl": `can have python3 besides, not "perl"`,
		"amd64+python3+python3": "python3 besides", "vax+python3": "there are: amd64", "mips+python3": "Debian has no port to mips",
	} {
		if _, err := catalogue.Lookup(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v does not say %q", name, err, want)
		}
	}
	for program, want := range map[string]string{
		"python3": "python3", "/usr/bin/python3": "python3", "/bin/python3.11": "python3",
		"/usr/local/bin/python3": "", "python": "", "python3.9": "", "bin/python3": "", "/bin/sh": "", "": "",
	} {
		if got := catalogue.ExtraFor(program); got != want {
			t.Errorf("%q is part of %q, not of %q", program, got, want)
		}
	}
}

func TestLookup(t *testing.T) {
	if names := catalogue.Names(); names[0] != catalogue.Default {
		t.Errorf("the first guest is %s, not the default one", names[0])
	}
	if _, err := catalogue.Lookup("vax"); err == nil || !strings.Contains(err.Error(), `"vax" (there are: amd64, `) {
		t.Errorf("unknown: %v", err)
	}
}
