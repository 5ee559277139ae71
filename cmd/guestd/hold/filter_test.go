// SPDX-License-Identifier: Apache-2.0

//go:build linux

package hold

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/schemas/sysno"
)

// run is what the kernel does with a filter, of which it needs three
// instructions.
func run(t *testing.T, p []unix.SockFilter, data []byte, order binary.ByteOrder) uint32 {
	t.Helper()
	var a uint32
	for at := 0; at < len(p); at++ {
		switch i := p[at]; i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = order.Uint32(data[i.K:])
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			if a == i.K {
				at += int(i.Jt)
			} else {
				at += int(i.Jf)
			}
		case unix.BPF_RET | unix.BPF_K:
			return i.K
		default:
			t.Fatalf("instruction %d is %#x", at, i.Code)
		}
	}
	t.Fatal("the filter gives no answer")
	return 0
}

// TestFilter asks of every number of every ABI.
func TestFilter(t *testing.T) {
	for cpu, served := range arches {
		t.Run(cpu, func(t *testing.T) {
			order := binary.ByteOrder(binary.LittleEndian)
			if slices.Contains([]string{"mips", "mips64", "ppc64", "s390x"}, cpu) {
				order = binary.BigEndian
			}
			p := filter(cpu, order == binary.BigEndian)
			held := func(audit, number uint32, arg uint64) bool {
				data := make([]byte, 64)
				order.PutUint32(data[dataNumber:], number)
				order.PutUint32(data[dataArch:], audit)
				order.PutUint64(data[dataArg0:], arg)
				switch got := run(t, p, data, order); got {
				case unix.SECCOMP_RET_USER_NOTIF:
					return true
				case unix.SECCOMP_RET_ALLOW:
				default:
					t.Fatalf("answer %#x", got)
				}
				return false
			}
			for _, a := range served {
				for _, abi := range a.abis {
					seen := map[string]bool{}
					for n := range uint32(8000) {
						if abi == sysno.X32 {
							n |= sysno.X32Bit
						}
						call, ok := abi.Name(uint64(n))
						want := ok && slices.Contains(Calls, call)
						if want {
							seen[call] = true
						}
						if got := held(a.audit, n, unix.PTRACE_SEIZE); got != want {
							t.Errorf("%s %d, %s: held %v", abi, n, call, got)
						}
						if _, back, _ := name(cpu, a.audit, n); back != call {
							t.Errorf("%s %d, %s, is told as %q", abi, n, call, back)
						}
						if want && call == "ptrace" && (held(a.audit, n, unix.PTRACE_CONT) || !held(a.audit, n, unix.PTRACE_TRACEME) || !held(a.audit, n, 1<<40|unix.PTRACE_ATTACH)) {
							t.Errorf("%s: requests of ptrace", abi)
						}
					}
					for _, must := range []string{"bpf", "init_module", "finit_module", "delete_module", "ptrace", "process_vm_writev", "kexec_load"} {
						if !seen[must] {
							t.Errorf("%s has no %s", abi, must)
						}
					}
				}
			}
			if !held(0x12345678, 1, 0) {
				t.Error("the calls of an unknown ABI pass")
			}
		})
	}
}
