// SPDX-License-Identifier: Apache-2.0

package behavior

import (
	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

func (c *call) memfd() {
	name := "memfd:" + c.text(0)
	if c.done() {
		const cloexec = 1 // MFD_CLOEXEC
		c.t.set(c.p.fds, c.result(), descriptor{path: name, cloexec: c.u64(1)&cloexec != 0})
	}
	c.emitMemory("memfd", schemas.MemoryBehavior{Name: Printable(c.text(0))})
}

func (c *call) mmap() {
	addr, length, prot := c.u64(0), c.u64(1), c.u64(2)
	if b := c.bytes(0, trace.Struct); b != nil { // the old call, of i386 and s390x
		order, w := c.r.Order.Bytes(), c.r.ABI.Word()
		at := func(i int) uint64 {
			if w == 4 && len(b) >= 4*i+4 {
				return uint64(order.Uint32(b[4*i:]))
			}
			return u64At(b, 8*i, order)
		}
		addr, length, prot = at(0), at(1), at(2)
	}
	if c.done() {
		addr = uint64(c.r.Result)
	}
	c.writableCode(addr, length, prot)
}

func (c *call) mprotect() { c.writableCode(c.u64(0), c.u64(1), c.u64(2)) }

func (c *call) writableCode(addr, length, prot uint64) {
	if c.has(prot, sysno.SetProt, "PROT_WRITE") && c.has(prot, sysno.SetProt, "PROT_EXEC") {
		c.emitMemory("mmap_rwx", schemas.MemoryBehavior{
			Address: addr, Length: length, Prot: c.r.ABI.FlagNames(sysno.SetProt, prot),
		})
	}
}

func (c *call) processWrite() {
	m := schemas.MemoryBehavior{PID: c.int(0)}
	if c.done() {
		m.Length = uint64(c.r.Result)
	}
	c.emitMemory("process_write", m)
}

func (c *call) initModule() {
	c.emitKernel("module_load", schemas.KernelBehavior{Length: c.u64(1), Params: Printable(c.text(2))})
}

func (c *call) finitModule() {
	c.emitKernel("module_load", schemas.KernelBehavior{
		Name: Printable(c.pathOf(c.int(0)).path), Params: Printable(c.text(1)), Command: c.moduleFlags(),
	})
}

func (c *call) moduleFlags() string {
	if c.u64(2) == 0 {
		return ""
	}
	return c.r.ABI.FlagNames(sysno.SetModule, c.u64(2))
}

func (c *call) kexecFile() {
	c.emitKernel("kexec", schemas.KernelBehavior{Name: Printable(c.pathOf(c.int(0)).path), Params: Printable(c.text(3))})
}

func (c *call) reboot() {
	c.emitKernel("reboot", schemas.KernelBehavior{
		Command: c.r.ABI.Enum(sysno.SetReboot, uint64(uint32(c.u64(2)))), Params: Printable(c.text(3)),
	})
}

func (c *call) ioUring() {
	c.t.sum.gap("io_uring was used: what it does with files and sockets is not in the trace")
	c.emitKernel("io_uring", schemas.KernelBehavior{Length: c.u64(0)})
}
