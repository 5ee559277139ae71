// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"os/exec"
	"time"
)

// maxKernel bounds an unpacked kernel; Debian's amd64 one is 66 MB.
const maxKernel = 256 << 20

// unpackBzImage takes the ELF kernel out of an x86 bzImage, so that QEMU can
// enter it by the PVH note at once: on an emulated CPU decompressing the kernel
// costs half of the boot. Offsets: Documentation/arch/x86/boot.rst, the
// real-mode kernel header (setup_sects, payload_offset, payload_length).
func unpackBzImage(vmlinuz []byte) ([]byte, error) {
	if len(vmlinuz) < 0x260 || string(vmlinuz[0x202:0x206]) != "HdrS" {
		return nil, fmt.Errorf("not a bzImage: no HdrS magic")
	}
	if v := binary.LittleEndian.Uint16(vmlinuz[0x206:]); v < 0x208 {
		return nil, fmt.Errorf("bzImage boot protocol %#x is older than 2.08", v)
	}
	sects := int(vmlinuz[0x1f1])
	if sects == 0 {
		sects = 4
	}
	base := (sects + 1) * 512
	off := base + int(binary.LittleEndian.Uint32(vmlinuz[0x248:]))
	end := off + int(binary.LittleEndian.Uint32(vmlinuz[0x24c:]))
	if off > end || end > len(vmlinuz) {
		return nil, fmt.Errorf("bzImage payload [%d:%d] lies outside of the file of %d bytes", off, end, len(vmlinuz))
	}
	payload := vmlinuz[off:end]
	if !bytes.HasPrefix(payload, []byte("\xfd7zXZ\x00")) {
		return nil, fmt.Errorf("bzImage payload is not xz (starts with % x)", payload[:min(6, len(payload))])
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// The payload uses xz's x86 filter and ends in four bytes of size, which
	// --single-stream ignores.
	cmd := exec.CommandContext(ctx, "xz", "-dc", "--single-stream")
	cmd.Stdin = bytes.NewReader(payload)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("unpack kernel: %w (is xz-utils installed? make setup)", err)
	}
	kernel, err := io.ReadAll(io.LimitReader(out, maxKernel+1))
	if len(kernel) > maxKernel {
		cancel() // and with it xz
		_ = cmd.Wait()
		return nil, fmt.Errorf("unpacked kernel has more than %d bytes", maxKernel)
	}
	if werr := cmd.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		return nil, fmt.Errorf("unpack kernel: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return kernel, nil
}

// trimSegments moves the zeros at the end of each loadable segment out of the
// file: QEMU reads this file at every start of a guest, and a third of it is
// .bss that the linker script spelled out.
func trimSegments(kernel []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(kernel))
	if err != nil {
		return nil, fmt.Errorf("parse unpacked kernel: %w", err)
	}
	if f.Class != elf.ELFCLASS64 || f.ByteOrder != binary.LittleEndian {
		return nil, fmt.Errorf("unpacked kernel is %v %v, not 64-bit little-endian", f.Class, f.ByteOrder)
	}
	phoff := binary.LittleEndian.Uint64(kernel[0x20:])
	have, end := uint64(len(kernel)), uint64(64) // the ELF header's length
	if n := binary.LittleEndian.Uint16(kernel[0x36:]); n != 56 {
		return nil, fmt.Errorf("unpacked kernel has program headers of %d bytes, not 56", n)
	}
	end = max(end, phoff+uint64(len(f.Progs))*56) // elf has read them
	for i, p := range f.Progs {
		ph := kernel[phoff+uint64(i)*56:]
		size := p.Filesz
		if p.Off > have || size > have-p.Off {
			return nil, fmt.Errorf("segment %d of the unpacked kernel lies outside of it", i)
		}
		if p.Type == elf.PT_LOAD {
			seg := kernel[p.Off : p.Off+p.Filesz]
			size = uint64(len(bytes.TrimRight(seg, "\x00")))
			binary.LittleEndian.PutUint64(ph[0x20:], size)
		}
		end = max(end, p.Off+size)
	}
	// The section table lies behind what was cut; nobody needs it to boot.
	binary.LittleEndian.PutUint64(kernel[0x28:], 0) // e_shoff
	binary.LittleEndian.PutUint16(kernel[0x3c:], 0) // e_shnum
	binary.LittleEndian.PutUint16(kernel[0x3e:], 0) // e_shstrndx
	return kernel[:end], nil
}
