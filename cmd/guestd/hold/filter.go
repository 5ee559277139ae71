// SPDX-License-Identifier: Apache-2.0

//go:build linux

package hold

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/schemas/sysno"
)

// Calls are those that are held: by them root can change the kernel, its devices or
// another process.
var Calls = []string{
	"bpf", "delete_module", "finit_module", "init_module", "ioperm", "iopl", "kexec_file_load", "kexec_load", "process_vm_writev", "ptrace",
}

// Of ptrace, the requests that make a process a tracer are held. All others
// take one, and go on at their usual speed (include/uapi/linux/ptrace.h).
var traceRequests = []uint32{unix.PTRACE_TRACEME, unix.PTRACE_ATTACH, unix.PTRACE_SEIZE}

// arch is what a kernel says of a call's ABI, and which tables have its numbers.
type arch struct {
	audit uint32
	abis  []sysno.ABI
}

// arches are those that a kernel of Go's CPU may serve. The calls of one that is
// not listed are all held.
var arches = map[string][]arch{
	"386":      {{unix.AUDIT_ARCH_I386, []sysno.ABI{sysno.I386}}},
	"amd64":    {{unix.AUDIT_ARCH_X86_64, []sysno.ABI{sysno.AMD64, sysno.X32}}, {unix.AUDIT_ARCH_I386, []sysno.ABI{sysno.I386}}},
	"arm":      {{unix.AUDIT_ARCH_ARM, []sysno.ABI{sysno.ARM}}},
	"arm64":    {{unix.AUDIT_ARCH_AARCH64, []sysno.ABI{sysno.ARM64}}, {unix.AUDIT_ARCH_ARM, []sysno.ABI{sysno.ARM}}},
	"loong64":  {{unix.AUDIT_ARCH_LOONGARCH64, []sysno.ABI{sysno.LOONG64}}},
	"mips":     {{unix.AUDIT_ARCH_MIPS, []sysno.ABI{sysno.MIPSO32}}},
	"mipsle":   {{unix.AUDIT_ARCH_MIPSEL, []sysno.ABI{sysno.MIPSO32}}},
	"mips64":   {{unix.AUDIT_ARCH_MIPS64, []sysno.ABI{sysno.MIPSN64}}, {unix.AUDIT_ARCH_MIPS, []sysno.ABI{sysno.MIPSO32}}},
	"mips64le": {{unix.AUDIT_ARCH_MIPSEL64, []sysno.ABI{sysno.MIPSN64}}, {unix.AUDIT_ARCH_MIPSEL, []sysno.ABI{sysno.MIPSO32}}},
	"ppc64":    {{unix.AUDIT_ARCH_PPC64, []sysno.ABI{sysno.PPC64}}, {unix.AUDIT_ARCH_PPC, []sysno.ABI{sysno.PPC}}},
	"ppc64le":  {{unix.AUDIT_ARCH_PPC64LE, []sysno.ABI{sysno.PPC64}}},
	"riscv64":  {{unix.AUDIT_ARCH_RISCV64, []sysno.ABI{sysno.RISCV64}}},
	// Both ABIs have these calls at the same numbers (syscall.tbl).
	"s390x": {{unix.AUDIT_ARCH_S390X, []sysno.ABI{sysno.S390X}}, {unix.AUDIT_ARCH_S390, []sysno.ABI{sysno.S390X}}},
}

// name is what the call of that number does, and in which ABI; ok is false if
// it is none that this program knows.
func name(cpu string, audit, number uint32) (abi sysno.ABI, call string, ok bool) {
	for _, a := range arches[cpu] {
		if a.audit != audit {
			continue
		}
		abi = a.abis[0]
		if len(a.abis) > 1 && number&sysno.X32Bit != 0 {
			abi = a.abis[1]
		}
		call, ok = abi.Name(uint64(number))
		return abi, call, ok
	}
	return 0, "", false
}

// numbers are those of an ABI's calls for which is holds.
func numbers(abi sysno.ABI, is func(name string) bool) (out []uint32) {
	first, end := abi.Numbers()
	bit := uint64(0)
	if abi == sysno.X32 {
		bit = sysno.X32Bit
	}
	for n := first; n < end; n++ {
		if call, ok := abi.Name(n); ok && is(call) {
			out = append(out, uint32(n|bit))
		}
	}
	return out
}

// Where struct seccomp_data has what (include/uapi/linux/seccomp.h).
const (
	dataNumber = 0
	dataArch   = 4
	dataArg0   = 16 // of 64 bits; of them the lower half is a ptrace request
)

// filter is the program that says of each call whether it is held. What it lets
// pass by its number alone the kernel remembers, and asks no more.
func filter(cpu string, bigEndian bool) []unix.SockFilter {
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		answer = unix.BPF_RET | unix.BPF_K
	)
	// Jumps go forward to one of two places behind all of it.
	type jump struct {
		at    int
		trace bool
	}
	var p []unix.SockFilter
	var jumps []jump
	when := func(value uint32, trace bool) {
		jumps = append(jumps, jump{len(p), trace})
		p = append(p, unix.SockFilter{Code: equal, K: value})
	}
	p = append(p, unix.SockFilter{Code: load, K: dataArch})
	for _, a := range arches[cpu] {
		other := len(p)
		p = append(p, unix.SockFilter{Code: equal, K: a.audit}, unix.SockFilter{Code: load, K: dataNumber})
		for _, abi := range a.abis {
			for _, n := range numbers(abi, func(s string) bool { return s != "ptrace" && slices.Contains(Calls, s) }) {
				when(n, false)
			}
			for _, n := range numbers(abi, func(s string) bool { return s == "ptrace" }) {
				when(n, true)
			}
		}
		p = append(p, unix.SockFilter{Code: answer, K: unix.SECCOMP_RET_ALLOW})
		p[other].Jf = uint8(len(p) - other - 1)
	}
	p = append(p, unix.SockFilter{Code: answer, K: unix.SECCOMP_RET_USER_NOTIF})
	trace, lower := len(p), uint32(dataArg0)
	if bigEndian {
		lower += 4
	}
	p = append(p, unix.SockFilter{Code: load, K: lower})
	for _, r := range traceRequests {
		when(r, false)
	}
	p = append(p, unix.SockFilter{Code: answer, K: unix.SECCOMP_RET_ALLOW}, unix.SockFilter{Code: answer, K: unix.SECCOMP_RET_USER_NOTIF})
	for _, j := range jumps {
		to := len(p) - 1
		if j.trace {
			to = trace
		}
		p[j.at].Jt = uint8(to - j.at - 1)
	}
	return p
}
