// SPDX-License-Identifier: Apache-2.0

package internet

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/petri-sandbox/petri/sandboxd/internet/dhcp4"
)

// An outcome is what became of a frame from the guest.
type outcome int

const (
	answered outcome = iota
	handled
	malformed
	oversized
	foreign
	unanswered
)

// broadcast is 255.255.255.255.
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// handle acts on a whole frame.
func (n *Network) handle(frame []byte) outcome {
	e, ok := parseEther(frame)
	if !ok {
		return malformed
	}
	if !e.dst.Group() && e.dst != n.o.MAC {
		return foreign
	}
	o := unanswered
	switch e.typ {
	case typeARP:
		o = n.arp(e)
	case typeIPv4:
		o = n.ipv4(e)
	}
	if o == unanswered && n.o.Handler != nil && n.o.Handler.Handle(n, frame) {
		return handled
	}
	return o
}

// ours reports whether the network itself has the address a.
func (n *Network) ours(a netip.Addr) bool { return a == n.o.Gateway || a == n.o.DNS }

// arp answers who has the network's addresses (RFC 826).
func (n *Network) arp(e ether) outcome {
	const (
		size         = 28
		request      = 1
		senderMAC    = 8
		senderIP     = 14
		targetMAC    = 18
		targetIP     = 24
		ethernetIPv4 = "\x00\x01\x08\x00\x06\x04"
	)
	b := e.payload
	if len(b) < size || string(b[:len(ethernetIPv4)]) != ethernetIPv4 {
		return malformed
	}
	target := netip.AddrFrom4([4]byte(b[targetIP:]))
	if binary.BigEndian.Uint16(b[6:]) != request || !n.ours(target) || e.dst != n.o.MAC && e.dst != dhcp4.Broadcast {
		return unanswered
	}
	reply := make([]byte, headerLen+size)
	copy(reply, e.src[:])
	copy(reply[6:], n.o.MAC[:])
	binary.BigEndian.PutUint16(reply[12:], typeARP)
	r := reply[headerLen:]
	copy(r, ethernetIPv4)
	r[7] = 2 // reply
	copy(r[senderMAC:], n.o.MAC[:])
	copy(r[senderIP:], b[targetIP:targetIP+4])
	copy(r[targetMAC:], b[senderMAC:senderMAC+10]) // and the target's IP address
	n.Send(reply)
	return answered
}

func (n *Network) ipv4(e ether) outcome {
	p, ok := parseIPv4(e.payload)
	if !ok {
		return malformed
	}
	if p.fragment {
		return unanswered
	}
	switch p.proto {
	case protoICMP:
		return n.echo(e, p)
	case protoUDP:
		_, port, payload, ok := parseUDP(p)
		if !ok {
			return malformed
		}
		direct := e.dst == n.o.MAC && p.dst == n.o.Gateway
		if port == dhcp4.ServerPort && (direct || e.dst == dhcp4.Broadcast && p.dst == broadcast) {
			return n.dhcp(p, payload)
		}
	}
	return unanswered
}

// echo answers a ping (RFC 792) of the network's own addresses, if the answer
// is no larger than a frame on a cable may be.
func (n *Network) echo(e ether, p ipv4) outcome {
	const (
		size    = 8
		request = 8
		largest = 1500
	)
	b := p.payload
	if len(b) < size || checksum(b) != 0 {
		return malformed
	}
	if b[0] != request || b[1] != 0 || e.dst != n.o.MAC || !n.ours(p.dst) ||
		!n.o.Guest.Contains(p.src) || n.ours(p.src) || ipLen+len(b) > largest {
		return unanswered
	}
	b = bytes.Clone(b)
	b[0] = 0 // reply
	b[2], b[3] = 0, 0
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	n.Send(n.frameIPv4(e.src, p.dst, p.src, protoICMP, b))
	return answered
}
