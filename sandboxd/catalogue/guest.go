// SPDX-License-Identifier: Apache-2.0

package catalogue

import (
	"fmt"
	"slices"
	"strings"

	"github.com/petri-sandbox/petri/schemas"
)

// Guest names the guest that runs a program, or says why none does. It goes by
// what the kernel and the CPU go by: class, byte order, machine and flags.
// Whether Linux would take the file for a program at all is not asked here.
func Guest(id *schemas.ELFIdentity) (name, unsupported string) {
	name, why := id.Arch, ""
	switch id.Machine {
	case "EM_X86_64":
		if name == "x32" {
			why = "the x32 ABI is switched off in Debian's kernels"
		}
	case "EM_ARM":
		name, why = arm(id)
	case "EM_MIPS", "EM_MIPS_RS3_LE":
		name, why = mips(id)
	case "EM_PPC64":
		why = ppc64(id)
	case "EM_RISCV":
		if id.Flags&8 != 0 { // EF_RISCV_RVE
			why = "it is for RV32E or RV64E, which Linux does not run on"
		}
	}
	if i := slices.IndexFunc(cpus, func(c CPU) bool { return name != "" && c.Also.Name == name }); i >= 0 {
		name = cpus[i].Name
	}
	if why == "" && !slices.Contains(Names(), name) {
		why = fmt.Sprintf("there are guests for %s", strings.Join(Names(), ", "))
	}
	if why == "" {
		return name, ""
	}
	return "", fmt.Sprintf("no guest runs a program for %s: %s", target(id), why)
}

// target names what a program is for.
func target(id *schemas.ELFIdentity) string {
	s := fmt.Sprintf("%s, %d-bit %s-endian", id.Machine, id.Class, id.Endianness)
	if id.Arch != "" {
		s = id.Arch + " (" + s + ")"
	}
	return s
}

// Flags of ARM (binutils, include/elf/arm.h).
const armBE8 = 0x00800000

// arm tells the ARM programs apart.
func arm(id *schemas.ELFIdentity) (name, why string) {
	switch {
	case id.Endianness == "big" && id.Flags&armBE8 != 0:
		return "", "its data is big-endian (BE8), and Debian has no such ARM"
	case id.Endianness == "big":
		return "", "it is big-endian (BE32), and Debian has no such ARM"
	case id.Flags>>24 < 4:
		return "", "it makes its system calls as before the EABI, which Debian's kernels do not know"
	}
	return id.Arch, ""
}

// Flags of MIPS (binutils, include/elf/mips.h).
const (
	mipsABI2     = 0x00000020
	mipsNaN2008  = 0x00000400
	mipsMicro    = 0x02000000
	mipsVendor   = 0x00ff0000 // EF_MIPS_MACH
	mipsABIShift = 12
	mipsCPUShift = 28
)

// mipsVendors are the CPUs with instructions of their own that a program's flags can
// name. Flags that name none of them say nothing: the kernel does not look.
var mipsVendors = map[uint32]string{
	0x00810000: "Toshiba R3900", 0x00820000: "LSI R4010", 0x00830000: "NEC VR4100", 0x00840000: "Sony Allegrex",
	0x00850000: "IDT R4650", 0x00870000: "NEC VR4120", 0x00880000: "NEC VR4111", 0x008a0000: "Broadcom SB-1",
	0x008b0000: "Cavium Octeon", 0x008c0000: "RMI XLR", 0x008d0000: "Cavium Octeon II", 0x008e0000: "Cavium Octeon III",
	0x00910000: "NEC VR5400", 0x00920000: "Sony R5900", 0x00930000: "Imagination interAptiv MR2", 0x00980000: "NEC VR5500",
	0x00990000: "PMC-Sierra RM9000", 0x00a00000: "Loongson 2E", 0x00a10000: "Loongson 2F", 0x00a20000: "Loongson GS464",
	0x00a30000: "Loongson GS464E", 0x00a40000: "Loongson GS264E",
}

// mips tells the MIPS programs apart. The kernel looks at the ABI and at the
// kind of NaN; instructions that the guest's CPU lacks would kill the program.
func mips(id *schemas.ELFIdentity) (name, why string) {
	const (
		mips3, mips5 = 2, 4
		mips64       = 6
		mips64r2     = 8
		mips32r6     = 9
		mips64r6     = 10
		abiO32       = 1
		abiO64       = 2
		abiEABI32    = 3
		knownABIs    = 5
	)
	cpu, abi := id.Flags>>mipsCPUShift, id.Flags>>mipsABIShift&0xf
	narrow := id.Class == 32
	switch {
	case cpu == mips32r6 || cpu == mips64r6:
		return "", "it is for release 6 of the CPU, and the guests have release 2"
	case cpu > mips64r6:
		return "", fmt.Sprintf("its flags %#x name no MIPS CPU", id.Flags)
	case id.Flags&mipsMicro != 0:
		return "", "its code is microMIPS, which the guests' CPUs do not know"
	case id.Flags&mipsNaN2008 != 0:
		return "", "its numbers have the NaN of 2008, and the guests' CPUs the older one"
	case narrow && id.Flags&mipsABI2 != 0:
		return "", "its ABI is n32, and the guests are for o32 and n64"
	case abi == abiO64 || abi == abiEABI32 || abi >= knownABIs-1:
		return "", "its ABI is one that Linux does not run"
	case !narrow && abi == abiO32:
		return "", "it says of itself to be of the 32-bit ABI o32 and is a 64-bit file"
	case narrow && (cpu >= mips3 && cpu <= mips5 || cpu == mips64 || cpu == mips64r2):
		return "", "it needs a 64-bit CPU in the ABI o32, and the guest for o32 has a 32-bit one"
	}
	if vendor := mipsVendors[id.Flags&mipsVendor]; vendor != "" {
		return "", "its code is for the CPU " + vendor + ", whose own instructions the guests' CPUs do not know"
	}
	return id.Arch, ""
}

// ppc64 tells the two ABIs apart: Debian's ppc64el is the second, its ppc64 the
// first. A file may leave it open.
func ppc64(id *schemas.ELFIdentity) string {
	abi := id.Flags & 3
	switch {
	case id.Endianness == "little" && abi == 1:
		return "its ABI is ELFv1, and little-endian Debian is ELFv2"
	case id.Endianness == "big" && abi == 2:
		return "its ABI is ELFv2, and big-endian Debian is ELFv1"
	case abi == 3:
		return "its ABI is neither ELFv1 nor ELFv2"
	}
	return ""
}
