// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// TracerOffsets is where the initramfs holds what [KernelOffsets] returns.
const TracerOffsets = "/tracer.json"

// ErrNoBTF says that a kernel does not describe its own types, so that
// [KernelOffsets] cannot serve it.
var ErrNoBTF = errors.New("kernel has no BTF")

// kernelOffsets is the document that guestd's tracer reads
// (cmd/guestd/tracer, type Offsets).
type kernelOffsets struct {
	Schema  string            `json:"schema"` // petri.offsets.v1
	Machine string            `json:"machine"`
	Fields  map[string]uint32 `json:"fields"` // offsets, and sizes as "sizeof NAME"
}

// kernelFields are the fields that the tracer needs, by structure. Those
// behind a ? may be absent in other versions of the kernel.
var kernelFields = []string{
	"task_struct.pid", "task_struct.tgid", "task_struct.group_leader",
	"task_struct.real_parent", "task_struct.start_boottime", "task_struct.thread_pid", "task_struct.signal",
	"task_struct.exit_code", "task_struct.mm", "task_struct.files", "task_struct.fs", "task_struct.flags",
	"task_struct.comm", "task_struct.cred",
	"pid.level", "pid.numbers", "upid.nr",
	"signal_struct.live", "signal_struct.flags", "signal_struct.group_exit_code",
	"mm_struct.arg_start", "mm_struct.arg_end", "mm_struct.env_start", "mm_struct.env_end", "?mm_struct.exe_file",
	"?file.f_inode", "?inode.i_ino", "?inode.i_sb", "?super_block.s_dev", "cred.euid",
	"linux_binprm.filename", "linux_binprm.interp", "linux_binprm.argc", "linux_binprm.envc",
	"fs_struct.pwd", "fs_struct.root", "path.mnt", "path.dentry",
	"?dentry.d_parent", "?dentry.d_name.name", "?mount.mnt", "?mount.mnt_parent", "?mount.mnt_mountpoint",
}

// kernelMachines are those whose kernels are read.
var kernelMachines = map[elf.Machine]string{elf.EM_X86_64: "amd64"}

// KernelOffsets returns, as JSON, where the structures of an ELF kernel hold
// what the tracer in the guest needs to know. It reads the kernel's own BTF,
// with or without section headers, so that nothing has to be parsed in the
// guest. The same kernel gives the same bytes. A kernel without BTF gives an
// error that wraps [ErrNoBTF].
func KernelOffsets(vmlinux []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		return nil, fmt.Errorf("parse kernel: %w", err)
	}
	raw, ok := findBTF(vmlinux)
	if !ok {
		return nil, ErrNoBTF
	}
	return offsetsOf(raw, f.Machine)
}

// btfMagic begins a BTF header of version 1 without flags, and its length
// (include/uapi/linux/btf.h).
var btfMagic = []byte{0x9f, 0xeb, 1, 0, 24, 0, 0, 0}

// minKernelBTF tells the kernel's BTF from a stray one: it has megabytes.
const minKernelBTF = 64 << 10

// findBTF looks for the kernel's types by their header: a trimmed kernel has
// no section table, and the types lie within a segment.
func findBTF(kernel []byte) ([]byte, bool) {
	for off := 0; ; off++ {
		i := bytes.Index(kernel[off:], btfMagic)
		if i < 0 {
			return nil, false
		}
		off += i
		b := kernel[off:]
		if len(b) < 24 {
			return nil, false
		}
		le := binary.LittleEndian
		types, strs, n := le.Uint32(b[12:]), le.Uint32(b[16:]), le.Uint32(b[20:])
		end := 24 + uint64(strs) + uint64(n)
		if types < minKernelBTF || strs < types || end > uint64(len(b)) || n == 0 || b[24+strs] != 0 {
			continue
		}
		return b[:end], true
	}
}

func offsetsOf(raw []byte, machine elf.Machine) ([]byte, error) {
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("parse kernel's BTF: %w", err)
	}
	name, ok := kernelMachines[machine]
	if !ok {
		return nil, fmt.Errorf("the structures of a kernel for %v are not read", machine)
	}
	o := kernelOffsets{Schema: "petri.offsets.v1", Machine: name, Fields: map[string]uint32{}}
	for _, name := range kernelFields {
		name, optional := strings.CutPrefix(name, "?")
		off, err := fieldOffset(spec, name)
		if err != nil && optional {
			continue
		}
		if err != nil {
			return nil, err
		}
		o.Fields[name] = off
	}
	var upid *btf.Struct
	if err := spec.TypeByName("upid", &upid); err != nil {
		return nil, fmt.Errorf("find struct upid in kernel's BTF: %w", err)
	}
	o.Fields["sizeof upid"] = upid.Size
	return json.MarshalIndent(o, "", "\t")
}

// fieldOffset finds a field such as dentry.d_name.name, in bytes.
func fieldOffset(spec *btf.Spec, name string) (uint32, error) {
	parts := strings.Split(name, ".")
	var s *btf.Struct
	if err := spec.TypeByName(parts[0], &s); err != nil {
		return 0, fmt.Errorf("find struct %s in kernel's BTF: %w", parts[0], err)
	}
	var typ btf.Type = s
	off := btf.Bits(0)
	for _, field := range parts[1:] {
		m, at, ok := findMember(typ, field, 0)
		if !ok || m.BitfieldSize != 0 {
			return 0, fmt.Errorf("find field %s in kernel's BTF: there is none", name)
		}
		off += at
		typ = m.Type
	}
	return off.Bytes(), nil
}

// findMember looks in a structure and in the nameless ones within it.
func findMember(t btf.Type, name string, depth int) (btf.Member, btf.Bits, bool) {
	var members []btf.Member
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		members = t.Members
	case *btf.Union:
		members = t.Members
	}
	for _, m := range members {
		if m.Name == name {
			return m, m.Offset, true
		}
	}
	for _, m := range members {
		if m.Name != "" || depth > 8 {
			continue
		}
		if found, off, ok := findMember(m.Type, name, depth+1); ok {
			return found, m.Offset + off, true
		}
	}
	return btf.Member{}, 0, false
}
