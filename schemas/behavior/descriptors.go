// SPDX-License-Identifier: Apache-2.0

package behavior

import (
	"encoding/binary"
	"strconv"

	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// A descriptor is what a number stands for. It is never changed once it is in a
// table, but for its socket's addresses.
type descriptor struct {
	path    string  // absolute; or what it is, if it is no file
	file    bool    // path is one
	sock    *socket // of a socket
	cloexec bool
}

// table is a process' descriptors. Processes that share one refer to the same
// table; after a fork two tables share their map until one of them changes.
type table struct {
	m    map[int]descriptor
	cow  *int // how many tables share m, if any
	refs int  // processes beyond the first
}

func (f *table) get(fd int) (descriptor, bool) {
	d, ok := f.m[fd]
	return d, ok
}

// share gives a child the table of its parent, or a copy.
func (t *Tracker) share(f *table, same bool) *table {
	if same {
		f.refs++
		return f
	}
	if len(f.m) == 0 {
		return &table{}
	}
	if f.cow == nil {
		f.cow = new(int)
		*f.cow = 1
	}
	*f.cow++
	return &table{m: f.m, cow: f.cow}
}

// own makes f's map its own before it is changed.
func (t *Tracker) own(f *table) bool {
	if f.cow != nil && *f.cow > 1 {
		if t.descriptors+len(f.m) > maxDescriptors {
			t.sum.omitted["descriptors"]++
			return false
		}
		m := make(map[int]descriptor, len(f.m))
		for k, v := range f.m {
			m[k] = v
		}
		t.descriptors += len(m)
		*f.cow--
		f.m = m
	}
	f.cow = nil
	if f.m == nil {
		f.m = map[int]descriptor{}
	}
	return true
}

func (t *Tracker) set(f *table, fd int, d descriptor) {
	if fd < 0 || !t.own(f) {
		return
	}
	if _, ok := f.m[fd]; !ok {
		if len(f.m) >= maxPerTable || t.descriptors >= maxDescriptors {
			t.sum.omitted["descriptors"]++
			return
		}
		t.descriptors++
	}
	f.m[fd] = d
}

func (t *Tracker) unset(f *table, fd int) {
	if _, ok := f.m[fd]; ok && t.own(f) {
		delete(f.m, fd)
		t.descriptors--
	}
}

// release ends a process' use of its table.
func (t *Tracker) release(p *process) {
	f := p.fds
	p.fds = &table{}
	switch {
	case f.refs > 0:
		f.refs--
	case f.cow != nil && *f.cow > 1:
		*f.cow--
	default:
		t.descriptors -= len(f.m)
	}
}

// unshareFiles gives a process a table of its own.
func (t *Tracker) unshareFiles(p *process) {
	if p.fds.refs > 0 {
		p.fds.refs--
		p.fds = t.share(p.fds, false)
	}
}

func (t *Tracker) closeOnExec(p *process) {
	var gone []int
	for fd, d := range p.fds.m {
		if d.cloexec {
			gone = append(gone, fd)
		}
	}
	for _, fd := range gone {
		t.unset(p.fds, fd)
	}
}

func (c *call) fd(fd int) (descriptor, bool) { return c.p.fds.get(fd) }

// anonymous is a new descriptor that is no file.
func (c *call) anonymous(fd int, what string, flags uint64, s sysno.Set) {
	if c.done() {
		c.t.set(c.p.fds, fd, descriptor{path: what, cloexec: s != 0 && c.has(flags, s, "O_CLOEXEC")})
	}
}

// pair is two new descriptors that argument i points to.
func (c *call) pair(i int, what string, flags uint64) {
	b := c.bytes(i, trace.Struct)
	if !c.done() || len(b) < 8 {
		return
	}
	d := descriptor{path: what, cloexec: c.has(flags, sysno.SetOpen, "O_CLOEXEC")}
	if what == "socket" {
		d.sock = &socket{family: c.r.ABI.Enum(sysno.SetAf, c.u64(0)), typ: c.socketType(c.u64(1))}
	}
	order := c.r.Order.Bytes()
	c.t.set(c.p.fds, int(int32(order.Uint32(b))), d)
	c.t.set(c.p.fds, int(int32(order.Uint32(b[4:]))), d)
}

func (c *call) close() {
	// Whatever close says, the descriptor is gone, unless there was none.
	if c.r.Finished() && c.errno != "EBADF" {
		c.t.unset(c.p.fds, c.int(0))
	}
}

func (c *call) closeRange() {
	const closeRangeUnshare, closeRangeCloexec = 2, 4 // linux/close_range.h
	if !c.done() {
		return
	}
	if c.u64(2)&closeRangeUnshare != 0 {
		c.t.unshareFiles(c.p)
	}
	first, last := uint64(uint32(c.u64(0))), uint64(uint32(c.u64(1)))
	var in []int
	for fd := range c.p.fds.m {
		if uint64(fd) >= first && uint64(fd) <= last {
			in = append(in, fd)
		}
	}
	for _, fd := range in {
		if c.u64(2)&closeRangeCloexec != 0 {
			d, _ := c.fd(fd)
			d.cloexec = true
			c.t.set(c.p.fds, fd, d)
		} else {
			c.t.unset(c.p.fds, fd)
		}
	}
}

// dup makes the result the same as another descriptor.
func (c *call) dup(from int, cloexec bool) {
	to := c.result()
	if !c.done() || to == from {
		return
	}
	if d, ok := c.fd(from); ok {
		d.cloexec = cloexec
		c.t.set(c.p.fds, to, d)
	} else {
		c.t.unset(c.p.fds, to)
	}
}

func (c *call) fcntl() {
	switch c.r.ABI.Enum(sysno.SetFcntl, c.u64(1)) {
	case "F_DUPFD":
		c.dup(c.int(0), false)
	case "F_DUPFD_CLOEXEC":
		c.dup(c.int(0), true)
	case "F_SETFD":
		if d, ok := c.fd(c.int(0)); ok && c.done() {
			d.cloexec = c.u64(2)&1 != 0 // FD_CLOEXEC
			c.t.set(c.p.fds, c.int(0), d)
		}
	}
}

func (c *call) unshare() {
	if !c.done() {
		return
	}
	if c.has(c.u64(0), sysno.SetClone, "CLONE_FILES") {
		c.t.unshareFiles(c.p)
	}
	if c.has(c.u64(0), sysno.SetClone, "CLONE_FS") || c.has(c.u64(0), sysno.SetClone, "CLONE_NEWNS") {
		d := *c.p.dirs
		c.p.dirs = &d
	}
}

// number renders a descriptor of which nothing is known.
func number(fd int) string { return "fd:" + strconv.Itoa(fd) }

// u64At reads a word of a structure; 0 behind its end.
func u64At(b []byte, off int, order binary.ByteOrder) uint64 {
	if off+8 > len(b) {
		return 0
	}
	return order.Uint64(b[off:])
}
