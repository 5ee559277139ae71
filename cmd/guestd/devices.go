// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Character devices that nobody opens any more when the sample runs: memory, by
// which root could change the kernel, the ports of its machine, and the agent's
// port, which is open (Documentation/admin-guide/devices.txt).
const (
	memMajor = 1
	mem      = 1
	kmem     = 2
	ioPort   = 4
)

// forbidDevices has the kernel refuse to open them, to all processes of the guest:
// a root can leave its cgroup. Making a node is allowed. It holds as long as the
// link is not closed, nor forgotten: then it is closed too.
func forbidDevices(port *port) (link.Link, error) {
	var st unix.Stat_t
	if err := unix.Fstat(port.fd, &st); err != nil {
		return nil, err
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "sd_devices", // as systemd calls its own
		Type: ebpf.CGroupDevice, License: "Dual BSD/GPL",
		Instructions: deviceFilter(unix.Major(uint64(st.Rdev))),
	})
	if err != nil {
		return nil, fmt.Errorf("load the filter of devices: %w", err)
	}
	defer prog.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroupDir, Attach: ebpf.AttachCGroupDevice, Program: prog})
	if err != nil {
		return nil, fmt.Errorf("filter devices: %w", err)
	}
	return l, nil
}

// deviceFilter is a program over struct bpf_cgroup_dev_ctx (include/uapi/linux/bpf.h):
// access << 16 | type, major, minor. It gives 0 to refuse.
func deviceFilter(portMajor uint32) asm.Instructions {
	const char, readOrWrite = unix.BPF_DEVCG_DEV_CHAR, (unix.BPF_DEVCG_ACC_READ | unix.BPF_DEVCG_ACC_WRITE) << 16
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word),
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word),
		asm.LoadMem(asm.R4, asm.R1, 8, asm.Word),
		asm.Mov.Imm(asm.R0, 1),
		asm.Mov.Reg(asm.R5, asm.R2),
		asm.And.Imm(asm.R5, 0xffff),
		asm.JNE.Imm(asm.R5, char, "exit"),
		asm.And.Imm(asm.R2, readOrWrite),
		asm.JEq.Imm(asm.R2, 0, "exit"),
		asm.JEq.Imm(asm.R3, int32(portMajor), "refuse"),
		asm.JNE.Imm(asm.R3, memMajor, "exit"),
		asm.JEq.Imm(asm.R4, mem, "refuse"),
		asm.JEq.Imm(asm.R4, kmem, "refuse"),
		asm.JNE.Imm(asm.R4, ioPort, "exit"),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("refuse"),
		asm.Return().WithSymbol("exit"),
	}
}
