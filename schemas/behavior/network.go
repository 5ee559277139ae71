// SPDX-License-Identifier: Apache-2.0

package behavior

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"strings"

	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// socket is what is known of one.
type socket struct {
	family, typ string
	local, peer *address
}

// address is a socket address in words.
type address struct {
	family  string
	address string
	port    int
	path    string
}

// decodeAddress reads a struct sockaddr, nil if it is none.
func decodeAddress(b []byte, abi sysno.ABI, order binary.ByteOrder) *address {
	if len(b) < 2 {
		return nil
	}
	family := uint64(order.Uint16(b))
	a := &address{family: abi.Enum(sysno.SetAf, family)}
	switch a.family {
	case "AF_INET": // family, port, address
		if len(b) >= 8 {
			a.port = int(binary.BigEndian.Uint16(b[2:]))
			a.address = netip.AddrFrom4([4]byte(b[4:8])).String()
		}
	case "AF_INET6": // family, port, flow, address, scope
		if len(b) >= 24 {
			a.port = int(binary.BigEndian.Uint16(b[2:]))
			a.address = netip.AddrFrom16([16]byte(b[8:24])).String()
		}
	case "AF_UNIX": // family, path; one that begins with NUL is abstract
		p := b[2:]
		if len(p) > 0 && p[0] == 0 {
			a.path = "@" + Printable(string(p[1:]))
		} else {
			text, _, _ := strings.Cut(string(p), "\x00")
			a.path = Printable(text)
		}
	case "AF_NETLINK": // family, padding, port, groups
		if len(b) >= 12 {
			a.port = int(order.Uint32(b[4:]))
			a.address = "groups 0x" + strconv.FormatUint(uint64(order.Uint32(b[8:])), 16)
		}
	case "AF_PACKET": // family, protocol, interface
		if len(b) >= 8 {
			a.port = int(binary.BigEndian.Uint16(b[2:]))
			a.address = "interface " + strconv.Itoa(int(int32(order.Uint32(b[4:]))))
		}
	}
	return a
}

// sockaddr is the address attached to argument i, or nil.
func (c *call) sockaddr(i int) *address {
	return decodeAddress(c.bytes(i, trace.Sockaddr), c.r.ABI, c.r.Order.Bytes())
}

func (c *call) socketType(v uint64) string {
	name, _, _ := strings.Cut(c.r.ABI.FlagNames(sysno.SetSock, v), "|")
	return name
}

// socketOf returns what is known of a descriptor's socket, and nothing of one
// that was made before the trace began.
func (c *call) socketOf(fd int) *socket {
	if d, ok := c.fd(fd); ok && d.sock != nil {
		return d.sock
	}
	s := &socket{}
	c.t.set(c.p.fds, fd, descriptor{path: "socket", sock: s})
	return s
}

// network gives the event of a call on a socket and sums it up.
func (c *call) network(action string, fd int, s *socket, at *address, n schemas.NetworkBehavior) {
	n.FD, n.Family, n.Type = &fd, s.family, s.typ
	if at != nil {
		n.Address, n.Port, n.Path = at.address, at.port, at.path
		if n.Family == "" {
			n.Family = at.family
		}
	}
	b := c.event("network", action)
	b.Network = &n
	c.t.emit(b)
	if action != "socket" {
		c.t.sum.network(c.p, action, n, c.errno, c.again)
	}
}

func (c *call) socket() {
	s := &socket{family: c.r.ABI.Enum(sysno.SetAf, c.u64(0)), typ: c.socketType(c.u64(1))}
	fd := c.result()
	if c.done() {
		// SOCK_CLOEXEC is O_CLOEXEC on every CPU.
		cloexec := c.has(c.u64(1), sysno.SetSock, "SOCK_CLOEXEC")
		c.t.set(c.p.fds, fd, descriptor{path: "socket", sock: s, cloexec: cloexec})
	} else {
		fd = -1
	}
	c.network("socket", fd, s, nil, schemas.NetworkBehavior{})
}

func (c *call) connect() {
	s, at := c.socketOf(c.int(0)), c.sockaddr(1)
	s.peer = at
	c.network("connect", c.int(0), s, at, schemas.NetworkBehavior{})
}

func (c *call) bind() {
	s, at := c.socketOf(c.int(0)), c.sockaddr(1)
	if c.done() {
		s.local = at
	}
	c.network("bind", c.int(0), s, at, schemas.NetworkBehavior{})
}

func (c *call) listen() {
	s := c.socketOf(c.int(0))
	c.network("listen", c.int(0), s, s.local, schemas.NetworkBehavior{})
}

func (c *call) accept(flags uint64) {
	s, peer := c.socketOf(c.int(0)), c.sockaddr(1)
	if c.done() {
		d := descriptor{path: "socket", sock: &socket{family: s.family, typ: s.typ, local: s.local, peer: peer}}
		d.cloexec = c.has(flags, sysno.SetSock, "SOCK_CLOEXEC")
		c.t.set(c.p.fds, c.result(), d)
	}
	if peer == nil {
		peer = s.local // nobody has come yet: where it waits
	}
	c.network("accept", c.int(0), s, peer, schemas.NetworkBehavior{})
}

// send is a call that sends what argument i points to, to the address at
// argument to, if any.
func (c *call) send(i, to int) {
	fd := c.int(0)
	d, ok := c.fd(fd)
	if !ok || d.sock == nil {
		d = descriptor{sock: c.socketOf(fd)}
	}
	var at *address
	if to >= 0 {
		at = c.sockaddr(to)
	}
	c.sent(fd, d, at, c.bytes(i, trace.Bytes))
}

func (c *call) sent(fd int, d descriptor, at *address, data []byte) {
	if at == nil {
		at = d.sock.peer
	}
	n := schemas.NetworkBehavior{Data: append([]byte(nil), data...)}
	if c.done() {
		n.Bytes = c.r.Result
		if c.desc.Name == "sendmmsg" {
			n.Bytes = int64(len(data)) // the result counts messages, of which the first is here
			c.t.sum.omitted["messages"] += int(min(max(c.r.Result-1, 0), 1<<20))
		}
	}
	c.network("send", fd, d.sock, at, n)
}
