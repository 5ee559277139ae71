// SPDX-License-Identifier: Apache-2.0

package examples

import (
	"strconv"
	"strings"

	"github.com/petri-sandbox/petri/schemas"
)

// behaviorFacts is one example of each thing that a sample can do.
func behaviorFacts() []fact {
	const child = pid + 1
	type deed struct {
		action, syscall string
		result          *int64 // none: the call had not returned
		errno           string
		object          any
	}
	ok := ptr(int64(0))
	list := []deed{
		{"process.fork", "clone", ptr(int64(child)), "", schemas.ProcessBehavior{PID: child, Start: 4_411_020_114}},
		{"process.exec", "execve", ok, "", schemas.ProcessBehavior{Path: "/bin/sh", Argv: []string{"sh", "-c", "id > /tmp/out"}}},
		{"process.exit", "exit_group", nil, "", schemas.ProcessBehavior{ExitCode: ptr(0)}},
		{"process.signal", "kill", ok, "", schemas.ProcessBehavior{PID: child, Signal: "SIGKILL"}},
		{"process.ptrace", "ptrace", ok, "", schemas.ProcessBehavior{PID: child, Request: "PTRACE_ATTACH"}},
		{"process.setuid", "setuid", ok, "", schemas.ProcessBehavior{UID: ptr(0)}},
		{"process.rename", "prctl", ok, "", schemas.ProcessBehavior{Name: "kworker/0:1"}},

		{"file.open", "openat", ptr(int64(-2)), "ENOENT", schemas.FileBehavior{Path: "/etc/ld.so.preload", Flags: "O_RDONLY|O_CLOEXEC"}},
		{"file.create", "openat", ptr(int64(3)), "", schemas.FileBehavior{Path: "/etc/cron.d/hello", Raw: "../etc/cron.d/hello", FD: ptr(3), Flags: "O_WRONLY|O_CREAT|O_TRUNC", Mode: "0644"}},
		{"file.write", "write", ptr(int64(26)), "", schemas.FileBehavior{Path: "/etc/cron.d/hello", FD: ptr(3), Bytes: 26, Data: []byte("* * * * * root /root/hello")}},
		{"file.delete", "unlink", ok, "", schemas.FileBehavior{Path: path}},
		{"file.rename", "rename", ok, "", schemas.FileBehavior{Path: "/tmp/a", Target: "/tmp/b"}},
		{"file.chmod", "fchmodat", ok, "", schemas.FileBehavior{Path: "/tmp/b", Mode: "04755"}},
		{"file.chown", "fchownat", ptr(int64(-1)), "EPERM", schemas.FileBehavior{Path: "/tmp/b", Owner: "0:0"}},
		{"file.link", "symlink", ok, "", schemas.FileBehavior{Path: "/tmp/link", Target: "/etc/passwd"}},
		{"file.mkdir", "mkdir", ok, "", schemas.FileBehavior{Path: "/tmp/.x", Mode: "0700"}},
		{"file.mount", "mount", ok, "", schemas.FileBehavior{Path: "/mnt", Target: "tmpfs"}},

		{"network.socket", "socket", ptr(int64(4)), "", schemas.NetworkBehavior{Family: "AF_INET", Type: "SOCK_STREAM", FD: ptr(4)}},
		{"network.connect", "connect", ptr(int64(-115)), "EINPROGRESS", schemas.NetworkBehavior{Family: "AF_INET", Address: "203.0.113.9", Port: 23, FD: ptr(4)}},
		{"network.bind", "bind", ok, "", schemas.NetworkBehavior{Family: "AF_UNIX", Path: "@control", FD: ptr(5)}},
		{"network.listen", "listen", ok, "", schemas.NetworkBehavior{FD: ptr(5)}},
		{"network.accept", "accept4", ptr(int64(6)), "", schemas.NetworkBehavior{Family: "AF_INET6", Address: "2001:db8::7", Port: 40112, FD: ptr(5)}},
		{"network.send", "sendto", ptr(int64(4)), "", schemas.NetworkBehavior{Family: "AF_INET", Address: "203.0.113.9", Port: 53, FD: ptr(7), Bytes: 4, Data: []byte{0x12, 0x34, 1, 0}}},

		{"memory.mmap_rwx", "mmap", ptr(int64(0x7f0000000000)), "", schemas.MemoryBehavior{Address: 0x7f0000000000, Length: 4096, Prot: "PROT_READ|PROT_WRITE|PROT_EXEC"}},
		{"memory.process_write", "process_vm_writev", ptr(int64(64)), "", schemas.MemoryBehavior{PID: child, Address: 0x400000, Length: 64}},
		{"memory.memfd", "memfd_create", ptr(int64(8)), "", schemas.MemoryBehavior{Name: "stage2"}},

		{"kernel.module_load", "finit_module", ptr(int64(-1)), "EPERM", schemas.KernelBehavior{Name: "rootkit.ko", Params: "hide=1", Length: 18232}},
		{"kernel.module_unload", "delete_module", ptr(int64(-2)), "ENOENT", schemas.KernelBehavior{Name: "rootkit"}},
		{"kernel.bpf", "bpf", ptr(int64(9)), "", schemas.KernelBehavior{Command: "BPF_PROG_LOAD"}},
		{"kernel.kexec", "kexec_load", ptr(int64(-1)), "EPERM", schemas.KernelBehavior{}},
		{"kernel.reboot", "reboot", nil, "", schemas.KernelBehavior{Command: "LINUX_REBOOT_CMD_RESTART"}},
		{"kernel.io_uring", "io_uring_setup", ptr(int64(10)), "", schemas.KernelBehavior{Length: 256}},
	}
	var facts []fact
	for i, d := range list {
		category, action, _ := strings.Cut(d.action, ".")
		b := schemas.Behavior{
			Category: category, Action: action, Record: uint64(i), At: 4_410_000_000 + uint64(i)*1_250_000,
			Actor:   schemas.Actor{PID: pid, TID: pid, Start: 4_398_103_552, Comm: "hello"},
			Syscall: d.syscall, ABI: "amd64", Result: d.result, Errno: d.errno,
		}
		switch o := d.object.(type) {
		case schemas.ProcessBehavior:
			b.Process = &o
		case schemas.FileBehavior:
			b.File = &o
		case schemas.NetworkBehavior:
			b.Network = &o
		case schemas.MemoryBehavior:
			b.Memory = &o
		case schemas.KernelBehavior:
			b.Kernel = &o
		}
		id := "behavior/" + strconv.FormatUint(b.Record, 10) + "/" + d.action
		facts = append(facts, fact{data: b, id: id, at: at(12346 + i), origin: schemas.OriginGuest})
	}
	return facts
}
