// SPDX-License-Identifier: Apache-2.0

package elfid

import "fmt"

// Numbers of the machines that more than the table below refers to.
const (
	em386       = 3
	emMIPS      = 8
	emMIPSRS3LE = 10
	emPARISC    = 15
	emPPC64     = 21
	emARM       = 40
	emSH        = 42
	emIA64      = 50
	emX8664     = 62
	emRISCV     = 243
	emLoongArch = 258
)

const (
	c32 = 1 << iota
	c64
	little
	big
)

// machine is an e_machine that an ELF file may state.
type machine struct {
	name string // as in elf.h
	text string // for people
	can  int    // classes and byte orders that it comes in
}

// machines are the ones that Linux runs on, and some that turn up besides.
var machines = map[uint16]machine{
	2:           {"EM_SPARC", "SPARC", c32 | big},
	em386:       {"EM_386", "Intel i386", c32 | little},
	4:           {"EM_68K", "Motorola m68k", c32 | big},
	6:           {"EM_486", "Intel i486", c32 | little},
	emMIPS:      {"EM_MIPS", "MIPS", c32 | c64 | little | big},
	9:           {"EM_S370", "IBM System/370", c32 | big},
	emMIPSRS3LE: {"EM_MIPS_RS3_LE", "MIPS R3000", c32 | little},
	emPARISC:    {"EM_PARISC", "PA-RISC", c32 | c64 | big},
	18:          {"EM_SPARC32PLUS", "SPARC32PLUS", c32 | big},
	20:          {"EM_PPC", "PowerPC", c32 | little | big},
	emPPC64:     {"EM_PPC64", "64-bit PowerPC", c64 | little | big},
	22:          {"EM_S390", "IBM S/390", c32 | c64 | big},
	23:          {"EM_SPU", "Cell SPU", c32 | big},
	emARM:       {"EM_ARM", "ARM", c32 | little | big},
	41:          {"EM_ALPHA_STD", "Alpha", c64 | little},
	emSH:        {"EM_SH", "Renesas SH", c32 | little | big},
	43:          {"EM_SPARCV9", "SPARC V9", c64 | big},
	44:          {"EM_TRICORE", "Siemens Tricore", c32 | little},
	emIA64:      {"EM_IA_64", "IA-64", c32 | c64 | little | big},
	emX8664:     {"EM_X86_64", "x86-64", c32 | c64 | little},
	75:          {"EM_VAX", "VAX", c32 | little},
	76:          {"EM_CRIS", "CRIS", c32 | little},
	83:          {"EM_AVR", "Atmel AVR", c32 | little},
	87:          {"EM_V850", "NEC V850", c32 | little},
	88:          {"EM_M32R", "Mitsubishi M32R", c32 | little | big},
	92:          {"EM_OPENRISC", "OpenRISC", c32 | big},
	93:          {"EM_ARC_COMPACT", "ARCompact", c32 | little | big},
	94:          {"EM_XTENSA", "Xtensa", c32 | little | big},
	105:         {"EM_MSP430", "TI MSP430", c32 | little},
	106:         {"EM_BLACKFIN", "Blackfin", c32 | little},
	113:         {"EM_ALTERA_NIOS2", "Nios II", c32 | little},
	140:         {"EM_TI_C6000", "TI C6000", c32 | little | big},
	164:         {"EM_QDSP6", "Qualcomm Hexagon", c32 | little},
	183:         {"EM_AARCH64", "ARM aarch64", c32 | c64 | little | big},
	185:         {"EM_AVR32", "AVR32", c32 | big},
	188:         {"EM_TILEPRO", "TILEPro", c32 | little},
	189:         {"EM_MICROBLAZE", "MicroBlaze", c32 | little | big},
	190:         {"EM_CUDA", "NVIDIA CUDA", c32 | c64 | little},
	191:         {"EM_TILEGX", "TILE-Gx", c32 | c64 | little | big},
	195:         {"EM_ARC_COMPACT2", "ARCv2", c32 | little | big},
	emRISCV:     {"EM_RISCV", "RISC-V", c32 | c64 | little},
	247:         {"EM_BPF", "eBPF", c64 | little | big},
	252:         {"EM_CSKY", "C-SKY", c32 | little},
	emLoongArch: {"EM_LOONGARCH", "LoongArch", c32 | c64 | little},
	0x18ad:      {"EM_AVR32", "AVR32", c32 | big}, // as Linux knows it
	0x9026:      {"EM_ALPHA", "Alpha", c64 | little},
	0xa390:      {"EM_S390", "IBM S/390", c32 | c64 | big},
	0xabc7:      {"EM_XTENSA_OLD", "Xtensa", c32 | little | big},
	0xbaab:      {"EM_MICROBLAZE", "MicroBlaze", c32 | little | big},
}

// MachineName is the name of an e_machine in elf.h, or EM_ and its number.
func MachineName(m uint16) string {
	if k, ok := machines[m]; ok {
		return k.name
	}
	return fmt.Sprintf("EM_%d", m)
}

// Arch names the Debian architecture that runs such files, as dpkg's tables
// spell it; it is empty if there is none. class is 32 or 64. EI_OSABI plays no
// part, as Linux does not look at it.
func Arch(class int, bigEndian bool, m uint16, flags uint32) string {
	pick := func(le, be string) string {
		if bigEndian {
			return be
		}
		return le
	}
	wide := class == 64
	switch m {
	case emX8664:
		if !wide {
			return pick("x32", "")
		}
		return pick("amd64", "")
	case em386, 6:
		return only(!wide, pick("i386", ""))
	case 183:
		return only(wide, pick("arm64", ""))
	case emARM:
		return only(!wide, armArch(bigEndian, flags))
	case emMIPS, emMIPSRS3LE:
		return mipsArch(wide, bigEndian, flags)
	case 20:
		return only(!wide, pick("powerpcel", "powerpc"))
	case emPPC64:
		return only(wide, pick("ppc64el", "ppc64"))
	case 22, 0xa390:
		if wide {
			return pick("", "s390x")
		}
		return pick("", "s390")
	case emRISCV:
		return only(wide, pick("riscv64", ""))
	case emLoongArch:
		return only(wide, pick("loong64", ""))
	case 4:
		return only(!wide, pick("", "m68k"))
	case emSH:
		if mach := flags & 0x1f; mach == 3 || mach == 8 { // EF_SH3, EF_SH3E
			return only(!wide, pick("sh3", "sh3eb"))
		}
		return only(!wide, pick("sh4", "sh4eb"))
	case 2, 18:
		return only(!wide, pick("", "sparc"))
	case 43:
		return only(wide, pick("", "sparc64"))
	case emPARISC:
		return only(!wide, pick("", "hppa"))
	case 41, 0x9026:
		return only(wide, pick("alpha", ""))
	case emIA64:
		return only(wide, pick("ia64", ""))
	case 93, 195:
		return only(!wide, pick("arc", ""))
	case 92:
		return only(!wide, pick("", "or1k"))
	case 113:
		return only(!wide, pick("nios2", ""))
	case 88:
		return only(!wide, pick("", "m32r"))
	case 0x18ad, 185:
		return only(!wide, pick("", "avr32"))
	case 191:
		return only(wide, pick("tilegx", ""))
	}
	return ""
}

func only(ok bool, s string) string {
	if ok {
		return s
	}
	return ""
}

// Flags of ARM: include/uapi/linux/elf-em.h does not have them, binutils'
// elf/arm.h does.
const (
	armHard = 0x400
	armSoft = 0x200
	armBE8  = 0x00800000
)

// armArch tells the calling conventions apart. A program without a float flag
// and without an interpreter runs under both of the EABI ones.
func armArch(bigEndian bool, flags uint32) string {
	switch eabi := flags >> 24; {
	case bigEndian:
		return "armeb"
	case eabi < 4:
		return "arm" // the ABI before EABI; Debian's kernels do not run it
	case eabi >= 5 && flags&armHard != 0:
		return "armhf"
	}
	return "armel"
}

func mipsArch(wide, bigEndian bool, flags uint32) string {
	cpu := flags >> 28
	r6 := only(cpu == 9 || cpu == 10, "r6")
	el := only(!bigEndian, "el")
	switch {
	case wide:
		return "mips64" + r6 + el
	case flags&0x20 != 0: // EF_MIPS_ABI2
		return "mipsn32" + r6 + el
	}
	return "mips" + r6 + el
}

// flagNames spells out e_flags where they say which calling convention or CPU
// a program is for.
func flagNames(m uint16, flags uint32) []string {
	var out []string
	add := func(ok bool, name string) {
		if ok {
			out = append(out, name)
		}
	}
	switch m {
	case emARM:
		add(true, fmt.Sprintf("eabi%d", flags>>24))
		add(flags&armHard != 0, "hard-float")
		add(flags&armSoft != 0, "soft-float")
		add(flags&armBE8 != 0, "be8")
	case emMIPS, emMIPSRS3LE:
		cpus := []string{"mips1", "mips2", "mips3", "mips4", "mips5", "mips32", "mips64", "mips32r2", "mips64r2", "mips32r6", "mips64r6"}
		if cpu := int(flags >> 28); cpu < len(cpus) {
			add(true, cpus[cpu])
		}
		abis := []string{"", "o32", "o64", "eabi32", "eabi64"}
		if abi := int(flags >> 12 & 0xf); abi < len(abis) {
			add(abi > 0, abis[abi])
		}
		add(flags&0x20 != 0, "n32")
		add(flags&0x2 != 0, "pic")
		add(flags&0x4 != 0, "cpic")
		add(flags&0x400 != 0, "nan2008")
		add(flags&0x02000000 != 0, "micromips")
		add(flags&0x04000000 != 0, "mips16")
	case emRISCV:
		add(flags&1 != 0, "rvc")
		add(true, []string{"soft-float", "single-float", "double-float", "quad-float"}[flags>>1&3])
		add(flags&8 != 0, "rve")
	case emPPC64:
		add(flags&3 != 0, fmt.Sprintf("elfv%d", flags&3))
	case emLoongArch:
		if abi := flags & 7; abi >= 1 && abi <= 3 {
			add(true, []string{"soft-float", "single-float", "double-float"}[abi-1])
		}
	}
	return out
}
