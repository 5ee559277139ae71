// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tracer

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Limits of bpf/record.h.
const (
	maxCPUs   = 64
	maxArmers = 8
)

// controlData is struct control of bpf/record.h, shared with the BPF programs.
type controlData struct {
	Armers  [maxArmers]uint32
	Asleep  uint32
	Engaged uint32
	Slots   uint64
	_       [4]uint32
	CPU     [maxCPUs]cpuData
}

type cpuData struct {
	Produced, Lost, Unreadable, Untracked uint64
	Bytes                                 uint64
	_                                     [3]uint64
}

type control struct {
	mem  []byte
	data *controlData
}

func newControl(m *ebpf.Map) (*control, error) {
	if m == nil || int(m.ValueSize()) != int(unsafe.Sizeof(controlData{})) {
		return nil, fmt.Errorf("map BPF control data: the object does not have it as expected")
	}
	n := (int(m.ValueSize()) + pageSize - 1) &^ (pageSize - 1)
	mem, err := unix.Mmap(m.FD(), 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map BPF control data: %w", err)
	}
	return &control{mem: mem, data: (*controlData)(unsafe.Pointer(&mem[0]))}, nil
}

func (c *control) close() error {
	c.data = nil
	return unix.Munmap(c.mem)
}

func (c *control) arm(tid uint32) error {
	for i := range c.data.Armers {
		if atomic.LoadUint32(&c.data.Armers[i]) == tid || atomic.CompareAndSwapUint32(&c.data.Armers[i], 0, tid) {
			return nil
		}
	}
	return fmt.Errorf("arm thread %d: %d others are armed", tid, maxArmers)
}

func (c *control) disarm(tid uint32) {
	for i := range c.data.Armers {
		atomic.CompareAndSwapUint32(&c.data.Armers[i], tid, 0)
	}
}

// sleep tells the BPF programs whether the next record must wake the reader.
func (c *control) sleep(on bool) {
	v := uint32(0)
	if on {
		v = 1
	}
	atomic.StoreUint32(&c.data.Asleep, v)
}

// slots is how many slots were ever in use.
func (c *control) slots() int { return int(atomic.LoadUint64(&c.data.Slots)) }

func (c *control) stats() []CPUStats {
	out := make([]CPUStats, maxCPUs)
	for i := range out {
		d := &c.data.CPU[i]
		out[i] = CPUStats{
			CPU: i, Produced: atomic.LoadUint64(&d.Produced), Lost: atomic.LoadUint64(&d.Lost),
			Unreadable: atomic.LoadUint64(&d.Unreadable), Untracked: atomic.LoadUint64(&d.Untracked),
		}
	}
	return out
}
