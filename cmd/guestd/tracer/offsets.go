// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tracer

import (
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/cilium/ebpf"

	"github.com/petri-sandbox/petri/schemas/sysno"
)

// offsets is the document that sandboxd/image makes of a kernel's BTF. Registers
// and ABIs are not in it: guestd knows its CPU ([cpus]).
type offsets struct {
	Schema  string            `json:"schema"`
	Machine string            `json:"machine"`
	Fields  map[string]uint32 `json:"fields"`
	btf     bool              // the kernel has it
}

const offsetsSchema = "petri.offsets.v1"

// maxOffset bounds what is believed to be an offset into a structure.
const maxOffset = 1 << 16

func parseOffsets(b []byte) (*offsets, error) {
	var o offsets
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOffsets, err)
	}
	if o.Schema != offsetsSchema {
		return nil, fmt.Errorf("%w: schema %q is not %q", ErrOffsets, o.Schema, offsetsSchema)
	}
	cpu, _ := thisCPU()
	if native, ok := sysno.ParseABI(o.Machine); !ok || native != cpu.native {
		return nil, fmt.Errorf("%w: of machine %q", ErrOffsets, o.Machine)
	}
	o.btf = true
	return &o, nil
}

// offNone marks what the kernel does not tell; as in bpf/record.h.
const offNone = ^uint32(0)

// config is struct config of bpf/record.h.
type config struct {
	ABI, ABICompat, ABIX32    uint32
	MuxBase                   uint32
	Helpers                   uint32
	Batch, WakeBytes          uint32
	BTF                       uint32
	CompatMask, CompatFirst   uint32
	ENOTSOCK                  uint32
	RegsIP, RegsIP32          uint32
	RegsNr, NrMask            uint32
	RegsSP, RegsSize          uint32
	RegsArgs, RegsCompat      [6]uint32
	TaskStatus                uint32
	TaskPid, TaskTgid         uint32
	TaskLeader, TaskParent    uint32
	TaskStart, TaskThreadPid  uint32
	TaskSignal, TaskExitCode  uint32
	TaskMM, TaskFiles, TaskFS uint32
	TaskFlags, TaskComm       uint32
	PidLevel, PidNumbers      uint32
	UpidSize, UpidNr          uint32
	SignalLive, SignalFlags   uint32
	SignalExitCode            uint32
	MMArgStart, MMArgEnd      uint32
	MMEnvStart, MMEnvEnd      uint32
	MMExeFile                 uint32
	FileInode, InodeIno       uint32
	InodeSB, SBDev            uint32
	BprmFilename, BprmInterp  uint32
	BprmArgc, BprmEnvc        uint32
	TaskCred, CredEuid        uint32
	FSPwd, FSRoot             uint32
	PathMnt, PathDentry       uint32
	DentryParent, DentryName  uint32
	MountMnt, MountParent     uint32
	MountPoint                uint32
}

// wakeBytes is how much may gather before the reader is woken ahead of its time.
const wakeBytes = 1 << 20

// configure fills in the variables of the BPF programs and returns the ABI of
// the kernel.
func configure(spec *ebpf.CollectionSpec, o *offsets, cfg Config) (sysno.ABI, error) {
	cpu, ok := thisCPU()
	if !ok {
		return 0, fmt.Errorf("configure BPF programs: no registers are known of %s", runtime.GOARCH)
	}
	native := cpu.native
	tables := makeSpecs(native, cpu.compat)
	c := config{
		ABI: uint32(native), ABICompat: uint32(cpu.compat), MuxBase: tables.muxBase, WakeBytes: wakeBytes,
		CompatMask: cpu.compatMask, TaskStatus: cpu.compatAt, CompatFirst: cpu.compatFirst, ENOTSOCK: notSocket,
		RegsIP: cpu.regs.IP, RegsIP32: cpu.regs.IP32, RegsNr: cpu.regs.Number, NrMask: cpu.numberMask,
		RegsSP: cpu.regs.SP, RegsSize: cpu.regs.size(), RegsArgs: cpu.regs.Args, RegsCompat: cpu.regs.Compat,
	}
	if native == sysno.AMD64 {
		c.ABIX32 = uint32(sysno.X32)
	}
	if o.btf {
		c.BTF = 1
	}
	if n, err := ebpf.PossibleCPU(); err == nil && n == 1 {
		c.Batch = 1
	}
	if !cfg.NoHelpers {
		c.Helpers = 1
	}
	if err := c.fields(o.Fields); err != nil {
		return 0, err
	}
	for name, value := range map[string]any{"cfg": &c, "native": &tables.native, "compat": &tables.compat, "specs": tables.specs} {
		v := spec.Variables[name]
		if v == nil {
			return 0, fmt.Errorf("configure BPF programs: no variable %s", name)
		}
		if err := v.Set(value); err != nil {
			return 0, fmt.Errorf("configure BPF programs: set %s: %w", name, err)
		}
	}
	ring := cfg.Ring
	if ring == 0 {
		ring = DefaultRing
	}
	spec.Maps["ring"].MaxEntries = uint32(ring)
	return native, nil
}

// fields takes the offsets over. All must be there but those of features that
// can be left out as a whole.
func (c *config) fields(f map[string]uint32) error {
	var err error
	get := func(into *uint32, name string) {
		v, ok := f[name]
		if (!ok || v > maxOffset) && err == nil {
			err = fmt.Errorf("%w: %s is missing", ErrOffsets, name)
		}
		*into = v
	}
	get(&c.TaskPid, "task_struct.pid")
	get(&c.TaskTgid, "task_struct.tgid")
	get(&c.TaskLeader, "task_struct.group_leader")
	get(&c.TaskParent, "task_struct.real_parent")
	get(&c.TaskStart, "task_struct.start_boottime")
	get(&c.TaskThreadPid, "task_struct.thread_pid")
	get(&c.TaskSignal, "task_struct.signal")
	get(&c.TaskExitCode, "task_struct.exit_code")
	get(&c.TaskMM, "task_struct.mm")
	get(&c.TaskFiles, "task_struct.files")
	get(&c.TaskFS, "task_struct.fs")
	get(&c.TaskFlags, "task_struct.flags")
	get(&c.TaskComm, "task_struct.comm")
	get(&c.TaskCred, "task_struct.cred")
	get(&c.PidLevel, "pid.level")
	get(&c.PidNumbers, "pid.numbers")
	get(&c.UpidSize, "sizeof upid")
	get(&c.UpidNr, "upid.nr")
	get(&c.SignalLive, "signal_struct.live")
	get(&c.SignalFlags, "signal_struct.flags")
	get(&c.SignalExitCode, "signal_struct.group_exit_code")
	get(&c.MMArgStart, "mm_struct.arg_start")
	get(&c.MMArgEnd, "mm_struct.arg_end")
	get(&c.MMEnvStart, "mm_struct.env_start")
	get(&c.MMEnvEnd, "mm_struct.env_end")
	get(&c.BprmFilename, "linux_binprm.filename")
	get(&c.BprmInterp, "linux_binprm.interp")
	get(&c.BprmArgc, "linux_binprm.argc")
	get(&c.BprmEnvc, "linux_binprm.envc")
	get(&c.CredEuid, "cred.euid")
	get(&c.FSPwd, "fs_struct.pwd")
	get(&c.FSRoot, "fs_struct.root")
	get(&c.PathMnt, "path.mnt")
	get(&c.PathDentry, "path.dentry")
	if err != nil {
		return err
	}
	get(&c.MMExeFile, "mm_struct.exe_file")
	get(&c.FileInode, "file.f_inode")
	get(&c.InodeIno, "inode.i_ino")
	get(&c.InodeSB, "inode.i_sb")
	get(&c.SBDev, "super_block.s_dev")
	if err != nil {
		c.MMExeFile, err = offNone, nil
	}
	get(&c.DentryParent, "dentry.d_parent")
	get(&c.DentryName, "dentry.d_name.name")
	get(&c.MountMnt, "mount.mnt")
	get(&c.MountParent, "mount.mnt_parent")
	get(&c.MountPoint, "mount.mnt_mountpoint")
	if err != nil {
		c.MountParent, err = offNone, nil
	}
	return nil
}
