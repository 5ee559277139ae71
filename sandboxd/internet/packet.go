// SPDX-License-Identifier: Apache-2.0

package internet

import (
	"encoding/binary"
	"net/netip"

	"github.com/petri-sandbox/petri/sandboxd/internet/dhcp4"
)

const (
	headerLen = 14 // Ethernet
	minFrame  = 60 // what a cable carries at least, without the checksum
	ipLen     = 20 // IPv4, without options
	udpLen    = 8

	typeIPv4 = 0x0800
	typeARP  = 0x0806

	protoICMP = 1
	protoUDP  = 17

	ttl = 64
)

// An ether is a parsed Ethernet frame. Its payload may be padded.
type ether struct {
	dst, src MAC
	typ      uint16
	payload  []byte
}

func parseEther(frame []byte) (ether, bool) {
	if len(frame) < headerLen {
		return ether{}, false
	}
	e := ether{
		dst: MAC(frame[0:6]), src: MAC(frame[6:12]),
		typ: binary.BigEndian.Uint16(frame[12:]), payload: frame[headerLen:],
	}
	return e, e.src.Unicast()
}

// An ipv4 is a parsed IPv4 packet, or a fragment of one.
type ipv4 struct {
	src, dst netip.Addr
	proto    byte
	fragment bool
	payload  []byte
}

func parseIPv4(b []byte) (ipv4, bool) {
	if len(b) < ipLen || b[0]>>4 != 4 {
		return ipv4{}, false
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < ipLen || total < header || len(b) < total || checksum(b[:header]) != 0 {
		return ipv4{}, false
	}
	return ipv4{
		src: netip.AddrFrom4([4]byte(b[12:])), dst: netip.AddrFrom4([4]byte(b[16:])),
		proto:    b[9],
		fragment: binary.BigEndian.Uint16(b[6:])&0x3fff != 0, // more to come, or an offset
		payload:  b[header:total],
	}, true
}

// parseUDP returns the ports and the payload of p's datagram.
func parseUDP(p ipv4) (src, dst uint16, payload []byte, ok bool) {
	b := p.payload
	if len(b) < udpLen {
		return 0, 0, nil, false
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	if n < udpLen || n > len(b) {
		return 0, 0, nil, false
	}
	b = b[:n]
	if binary.BigEndian.Uint16(b[6:]) != 0 && checksum(pseudo(p.src, p.dst, n), b) != 0 {
		return 0, 0, nil, false
	}
	return binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), b[udpLen:], true
}

// frameIPv4 returns a frame from the gateway's MAC with an IPv4 packet.
func (n *Network) frameIPv4(to MAC, src, dst netip.Addr, proto byte, payload []byte) []byte {
	size := ipLen + len(payload)
	n.packetID++
	b := make([]byte, 0, headerLen+size)
	b = append(b, to[:]...)
	b = append(b, n.o.MAC[:]...)
	b = binary.BigEndian.AppendUint16(b, typeIPv4)
	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(size))
	b = binary.BigEndian.AppendUint16(b, n.packetID)
	b = append(b, 0, 0, ttl, proto, 0, 0)
	b = appendAddr(b, src)
	b = appendAddr(b, dst)
	binary.BigEndian.PutUint16(b[headerLen+10:], checksum(b[headerLen:]))
	return append(b, payload...)
}

// frameDHCP returns a frame that carries m from the server to the client.
func (n *Network) frameDHCP(to MAC, dst netip.Addr, m dhcp4.Message) []byte {
	udp := m.Append(make([]byte, udpLen, 512))
	binary.BigEndian.PutUint16(udp, dhcp4.ServerPort)
	binary.BigEndian.PutUint16(udp[2:], dhcp4.ClientPort)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	sum := checksum(pseudo(n.o.Gateway, dst, len(udp)), udp)
	if sum == 0 {
		sum = 0xffff // zero says that there is none (RFC 768)
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
	return n.frameIPv4(to, n.o.Gateway, dst, protoUDP, udp)
}

// pseudo returns the header that a UDP checksum begins with (RFC 768).
func pseudo(src, dst netip.Addr, n int) []byte {
	b := make([]byte, 0, 12)
	b = appendAddr(b, src)
	b = appendAddr(b, dst)
	b = append(b, 0, protoUDP)
	return binary.BigEndian.AppendUint16(b, uint16(n))
}

func appendAddr(b []byte, a netip.Addr) []byte {
	v := a.As4()
	return append(b, v[:]...)
}

// checksum is the Internet's (RFC 1071), over parts of which all but the last
// have an even length. Over bytes that hold their own checksum it is zero.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for ; len(b) >= 2; b = b[2:] {
			sum += uint32(b[0])<<8 | uint32(b[1])
		}
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
