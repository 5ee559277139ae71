// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tracer

import (
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/schemas/sysno"
)

// registers says where a kernel's struct pt_regs holds what belongs to a system
// call.
type registers struct {
	Args   [6]uint32
	Compat [6]uint32
	IP     uint32
	IP32   uint32 // of a 32-bit call: the lower half
	Number uint32
	// SP is the stack pointer where there may be arguments on the stack.
	SP uint32
}

// size is how much of the structure holds all of that.
func (r registers) size() uint32 {
	last := max(slices.Max(r.Args[:]), slices.Max(r.Compat[:]), r.IP)
	if r.SP != offNone {
		last = max(last, r.SP)
	}
	return last + word
}

// A guestCPU is what the tracer must know of a CPU that no kernel says.
type guestCPU struct {
	native, compat sysno.ABI
	compatMask     uint32 // of a field of struct thread_info
	compatAt       uint32 // which begins struct task_struct
	compatFirst    uint32 // or these numbers mark a call of the other ABI
	numberMask     uint32
	regs           registers
}

// cpus are the CPUs by Go's names. The layouts are those of
// arch/*/include/asm/ptrace.h, the marks of arch/*/include/asm/thread_info.h.
var cpus = map[string]guestCPU{
	"386": {
		native: sysno.I386, numberMask: ^uint32(0),
		regs: registers{Args: [6]uint32{0, 4, 8, 12, 16, 20}, IP: 48, Number: 44, SP: offNone},
	},
	"amd64": {
		native: sysno.AMD64, compat: sysno.I386, numberMask: ^uint32(0),
		compatMask: 2, compatAt: 16, // TS_COMPAT of status
		regs: registers{
			Args: [6]uint32{112, 104, 96, 56, 72, 64}, Compat: [6]uint32{40, 88, 96, 104, 112, 32},
			IP: 128, IP32: 128, Number: 120, SP: offNone,
		},
	},
	"arm": {
		native: sysno.ARM, numberMask: ^uint32(0),
		regs: registers{Args: [6]uint32{68, 4, 8, 12, 16, 20}, IP: 60, Number: 28, SP: offNone},
	},
	"arm64": {
		native: sysno.ARM64, compat: sysno.ARM, numberMask: ^uint32(0),
		compatMask: 1 << 22, // TIF_32BIT of flags
		regs: registers{
			Args: [6]uint32{272, 8, 16, 24, 32, 40}, Compat: [6]uint32{272, 8, 16, 24, 32, 40},
			IP: 256, IP32: 256, Number: 280, SP: offNone,
		},
	},
	"mips": mipsO32, "mipsle": mipsO32,
	"mips64le": {
		native: sysno.MIPSN64, compat: sysno.MIPSO32, compatFirst: 4000, numberMask: ^uint32(0),
		regs: registers{
			Args: [6]uint32{32, 40, 48, 56, 64, 72}, Compat: [6]uint32{32, 40, 48, 56, 64, 72},
			IP: 296, IP32: 296, Number: offNone, SP: 232,
		},
	},
	"ppc64": {
		native: sysno.PPC64, compat: sysno.PPC, numberMask: ^uint32(0),
		compatMask: 1 << 20, compatAt: 128 + 4, // TIF_32BIT of flags, which begins a cache line
		regs: registers{
			Args: [6]uint32{272, 32, 40, 48, 56, 64}, Compat: [6]uint32{276, 36, 44, 52, 60, 68},
			IP: 256, IP32: 260, SP: offNone,
		},
	},
	"ppc64le": {
		native: sysno.PPC64, numberMask: ^uint32(0),
		regs: registers{Args: [6]uint32{272, 32, 40, 48, 56, 64}, IP: 256, SP: offNone},
	},
	"riscv64": {
		native: sysno.RISCV64, numberMask: ^uint32(0),
		regs: registers{Args: [6]uint32{280, 88, 96, 104, 112, 120}, Number: 136, SP: offNone},
	},
	"s390x": {
		native: sysno.S390X, numberMask: 0xffff,
		regs: registers{Args: [6]uint32{152, 48, 56, 64, 72, 80}, IP: 16, Number: 160, SP: offNone},
	},
}

// mipsO32 does not keep a call's number for its end.
var mipsO32 = guestCPU{
	native: sysno.MIPSO32, numberMask: ^uint32(0),
	regs: registers{Args: [6]uint32{48, 52, 56, 60}, IP: 180, Number: offNone, SP: 148},
}

// thisCPU is the CPU that this program was built for, which is the guest's.
func thisCPU() (guestCPU, bool) {
	c, ok := cpus[runtime.GOARCH]
	return c, ok
}

// notSocket is the number of an error that MIPS has its own for.
const notSocket = uint32(unix.ENOTSOCK)
