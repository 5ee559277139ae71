// SPDX-License-Identifier: Apache-2.0

// Package dhcp4 encodes and decodes DHCPv4 messages (RFC 2131, RFC 2132), for
// the switch's server and for guestd's client.
//
// It owns the bytes of a message and knows nothing of its transport. It keeps
// the dozen fields that the two ends use and skips every other option. It
// imports no package that can open a socket, and neither may its importer
// package internet.
package dhcp4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"time"
)

// Ports of the two ends.
const (
	ServerPort = 67
	ClientPort = 68
)

// Type is a message's type (option 53).
type Type byte

// The types of RFC 2131.
const (
	Discover Type = 1 + iota
	Offer
	Request
	Decline
	ACK
	NAK
	Release
	Inform
)

// ErrMalformed says that bytes are no DHCPv4 message over Ethernet.
var ErrMalformed = errors.New("malformed DHCP message")

// A Message is a DHCPv4 message. A zero field is absent.
type Message struct {
	Reply     bool       // from a server
	XID       uint32     // pairs requests and replies
	Broadcast bool       // the client cannot take unicast yet
	Client    netip.Addr // ciaddr: the client uses this address
	Your      netip.Addr // yiaddr: the server gives the client this address
	Relay     netip.Addr // giaddr
	MAC       MAC        // chaddr: of the client

	Type      Type
	Requested netip.Addr    // option 50: the client asks for this address
	Server    netip.Addr    // option 54
	Lease     time.Duration // option 51, whole seconds
	Bits      int           // option 1: length of the network's prefix
	Router    netip.Addr    // option 3, its first
	DNS       []netip.Addr  // option 6
}

const (
	headerLen = 240 // the fixed fields of RFC 2131 figure 1, and the cookie
	minLen    = 300 // some BOOTP clients and relays drop shorter messages (RFC 1542, 2.1)
	cookie    = 0x63825363

	bootRequest, bootReply = 1, 2
	ethernet               = 1
	broadcastFlag          = 0x8000
)

// Options of RFC 2132.
const (
	optPad       = 0
	optMask      = 1
	optRouter    = 3
	optDNS       = 6
	optRequested = 50
	optLease     = 51
	optType      = 53
	optServer    = 54
	optEnd       = 255
)

// Parse decodes the payload of a UDP datagram. It takes any bytes, and keeps
// none of them; an error wraps [ErrMalformed]. An option that comes twice
// counts once, the first time.
func Parse(b []byte) (Message, error) {
	if len(b) < headerLen {
		return Message{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	if b[0] != bootRequest && b[0] != bootReply || b[1] != ethernet || b[2] != byte(len(MAC{})) ||
		binary.BigEndian.Uint32(b[headerLen-4:]) != cookie {
		return Message{}, fmt.Errorf("%w: not DHCP over Ethernet", ErrMalformed)
	}
	m := Message{
		Reply:     b[0] == bootReply,
		XID:       binary.BigEndian.Uint32(b[4:]),
		Broadcast: binary.BigEndian.Uint16(b[10:])&broadcastFlag != 0,
		Client:    addr(b[12:]),
		Your:      addr(b[16:]),
		Relay:     addr(b[24:]),
		MAC:       MAC(b[28:34]),
	}
	var seen [256]bool
	for b = b[headerLen:]; len(b) > 0 && b[0] != optEnd; {
		code := b[0]
		if code == optPad {
			b = b[1:]
			continue
		}
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return Message{}, fmt.Errorf("%w: option %d runs over the end", ErrMalformed, code)
		}
		v := b[2 : 2+int(b[1])]
		b = b[len(v)+2:]
		if seen[code] {
			continue
		}
		seen[code] = true
		if !m.option(code, v) {
			return Message{}, fmt.Errorf("%w: option %d of %d bytes", ErrMalformed, code, len(v))
		}
	}
	return m, nil
}

// option takes one option and reports whether its value can be.
func (m *Message) option(code byte, v []byte) bool {
	switch code {
	case optType:
		if len(v) != 1 {
			return false
		}
		m.Type = Type(v[0])
	case optRequested, optServer, optLease, optMask:
		if len(v) != 4 {
			return false
		}
		switch n := binary.BigEndian.Uint32(v); code {
		case optRequested:
			m.Requested = addr(v)
		case optServer:
			m.Server = addr(v)
		case optLease:
			m.Lease = time.Duration(n) * time.Second
		case optMask:
			m.Bits = bits.LeadingZeros32(^n)
			return n<<m.Bits == 0 // ones, then zeros only
		}
	case optRouter, optDNS:
		if len(v) == 0 || len(v)%4 != 0 {
			return false
		}
		if code == optRouter {
			m.Router = addr(v)
			return true
		}
		for ; len(v) > 0; v = v[4:] {
			if a := addr(v); a.IsValid() {
				m.DNS = append(m.DNS, a)
			}
		}
	}
	return true
}

// Append appends m's bytes to dst. Addresses that are not IPv4 are left out,
// and so are resolvers beyond the 63 that fit.
func (m Message) Append(dst []byte) []byte {
	start := len(dst)
	b := append(dst, make([]byte, headerLen)...)
	h := b[start:]
	h[0], h[1], h[2] = bootRequest, ethernet, byte(len(MAC{}))
	if m.Reply {
		h[0] = bootReply
	}
	binary.BigEndian.PutUint32(h[4:], m.XID)
	if m.Broadcast {
		binary.BigEndian.PutUint16(h[10:], broadcastFlag)
	}
	putAddr(h[12:], m.Client)
	putAddr(h[16:], m.Your)
	putAddr(h[24:], m.Relay)
	copy(h[28:], m.MAC[:])
	binary.BigEndian.PutUint32(h[headerLen-4:], cookie)

	if m.Type != 0 {
		b = append(b, optType, 1, byte(m.Type))
	}
	b = appendAddrs(b, optServer, m.Server)
	b = appendAddrs(b, optRequested, m.Requested)
	if m.Lease != 0 {
		b = append(b, optLease, 4)
		b = binary.BigEndian.AppendUint32(b, uint32(m.Lease/time.Second))
	}
	if m.Bits != 0 {
		b = append(b, optMask, 4)
		b = binary.BigEndian.AppendUint32(b, ^uint32(0)<<(32-m.Bits))
	}
	b = appendAddrs(b, optRouter, m.Router)
	b = appendAddrs(b, optDNS, m.DNS...)
	b = append(b, optEnd)
	if short := minLen - (len(b) - start); short > 0 {
		b = append(b, make([]byte, short)...)
	}
	return b
}

// addr reads an address; 0.0.0.0 is none.
func addr(b []byte) netip.Addr {
	a := netip.AddrFrom4([4]byte(b))
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

func putAddr(b []byte, a netip.Addr) {
	if a.Is4() {
		v := a.As4()
		copy(b, v[:])
	}
}

// appendAddrs appends an option of the addresses that are there, if any is.
func appendAddrs(b []byte, code byte, addrs ...netip.Addr) []byte {
	start := len(b)
	b = append(b, code, 0)
	for _, a := range addrs {
		if a.Is4() && len(b)-start <= 252 {
			v := a.As4()
			b = append(b, v[:]...)
		}
	}
	n := len(b) - start - 2
	if n == 0 {
		return b[:start]
	}
	b[start+1] = byte(n)
	return b
}
