// SPDX-License-Identifier: Apache-2.0

package internet_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/petri-sandbox/petri/sandboxd/capture"
	"github.com/petri-sandbox/petri/sandboxd/internet"
)

// Addresses of the tests' network, which is the default one.
var (
	guestMAC   = internet.MAC{0x52, 0x54, 0, 1, 2, 3}
	gatewayMAC = internet.MAC{0x50, 0xc7, 0xbf, 0x3a, 0x91, 0x5e}
	otherMAC   = internet.MAC{0x52, 0x54, 0, 9, 9, 9}
	everyone   = internet.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

	guestIP   = netip.MustParseAddr("10.0.2.15")
	gatewayIP = netip.MustParseAddr("10.0.2.2")
	dnsIP     = netip.MustParseAddr("10.0.2.3")
	otherIP   = netip.MustParseAddr("10.0.2.77")
	noIP      = netip.IPv4Unspecified()
	allIP     = netip.MustParseAddr("255.255.255.255")
)

// A seen frame is what Options.Frame was shown.
type seen struct {
	dir    capture.Direction
	frame  []byte
	length int
}

// A recorder keeps what a network shows.
type recorder struct {
	mu     sync.Mutex
	frames []seen
	leases []internet.Lease
}

func (r *recorder) frame(dir capture.Direction, _ time.Time, frame []byte, length int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frames = append(r.frames, seen{dir, bytes.Clone(frame), length})
}

func (r *recorder) lease(l internet.Lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leases = append(r.leases, l)
}

// replies are the frames to the guest.
func (r *recorder) replies() (out [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.frames {
		if f.dir == capture.Inbound {
			out = append(out, f.frame)
		}
	}
	return out
}

// stream is what QEMU sends: frames with their lengths.
func stream(frames ...[]byte) []byte {
	var b []byte
	for _, f := range frames {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	return b
}

// tape is a link that plays a recording and then ends.
type tape struct {
	io.Reader
	io.Writer
}

func (tape) Close() error { return nil }

// play runs a network over a whole recording.
func play(t testing.TB, o internet.Options, recording []byte) (internet.Stats, *recorder) {
	t.Helper()
	r := &recorder{}
	o.Frame, o.Lease = r.frame, r.lease
	n, err := internet.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Run(t.Context(), tape{bytes.NewReader(recording), io.Discard}); err != nil {
		t.Fatalf("run: %v", err)
	}
	return n.Stats(), r
}

// socketpair is what QEMU and the switch share.
func socketpair(t testing.TB) (a, b *os.File) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return a, b
}

// receive reads one frame.
func receive(r io.Reader) ([]byte, error) {
	var prefix [4]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return nil, err
	}
	frame := make([]byte, binary.BigEndian.Uint32(prefix[:]))
	_, err := io.ReadFull(r, frame)
	return frame, err
}

// Frames are built and read with gopacket, which is not what the switch uses.

func build(t testing.TB, parts ...gopacket.SerializableLayer) []byte {
	t.Helper()
	for i, p := range parts {
		if udp, ok := p.(*layers.UDP); ok {
			udp.SetNetworkLayerForChecksum(parts[i-1].(*layers.IPv4))
		}
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, parts...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(b.Bytes())
}

func eth(src, dst internet.MAC, typ layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: src[:], DstMAC: dst[:], EthernetType: typ}
}

func arp(t testing.TB, src, dst internet.MAC, sender, target netip.Addr) []byte {
	return build(t, eth(src, dst, layers.EthernetTypeARP), &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
		Operation: layers.ARPRequest, SourceHwAddress: src[:], SourceProtAddress: sender.AsSlice(),
		DstHwAddress: make([]byte, 6), DstProtAddress: target.AsSlice(),
	})
}

func ip(src, dst netip.Addr, proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
}

func ping(t testing.TB, dstMAC internet.MAC, src, dst netip.Addr, size int) []byte {
	return build(t, eth(guestMAC, dstMAC, layers.EthernetTypeIPv4), ip(src, dst, layers.IPProtocolICMPv4),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: 7, Seq: 9},
		gopacket.Payload(bytes.Repeat([]byte{0xab}, size)))
}

func udp(t testing.TB, dstMAC internet.MAC, src, dst netip.Addr, port uint16, payload []byte) []byte {
	return build(t, eth(guestMAC, dstMAC, layers.EthernetTypeIPv4), ip(src, dst, layers.IPProtocolUDP),
		&layers.UDP{SrcPort: 68, DstPort: layers.UDPPort(port)}, gopacket.Payload(payload))
}

// dhcp is a client's message, with the fields that its server looks at.
type dhcp struct {
	typ                       layers.DHCPMsgType
	mac                       internet.MAC
	client, requested, server netip.Addr
	unicast                   bool // flag of the message
	op                        layers.DHCPOp
	relay                     netip.Addr
}

func (d dhcp) bytes(t testing.TB) []byte {
	if d.mac == (internet.MAC{}) {
		d.mac = guestMAC
	}
	m := &layers.DHCPv4{
		Operation: layers.DHCPOpRequest, HardwareType: layers.LinkTypeEthernet, HardwareLen: 6, Xid: 0x1234,
		ClientHWAddr: d.mac[:],
		Options:      layers.DHCPOptions{layers.NewDHCPOption(layers.DHCPOptMessageType, []byte{byte(d.typ)})},
	}
	if d.op != 0 {
		m.Operation = d.op
	}
	if !d.unicast {
		m.Flags = 0x8000
	}
	if d.client.IsValid() {
		m.ClientIP = d.client.AsSlice()
	}
	if d.relay.IsValid() {
		m.RelayAgentIP = d.relay.AsSlice()
	}
	if d.requested.IsValid() {
		m.Options = append(m.Options, layers.NewDHCPOption(layers.DHCPOptRequestIP, d.requested.AsSlice()))
	}
	if d.server.IsValid() {
		m.Options = append(m.Options, layers.NewDHCPOption(layers.DHCPOptServerID, d.server.AsSlice()))
	}
	m.Options = append(m.Options, layers.NewDHCPOption(layers.DHCPOptEnd, nil))
	return build(t, m)
}

func (d dhcp) frame(t testing.TB) []byte { return udp(t, everyone, noIP, allIP, 67, d.bytes(t)) }

// describe says in one line what a frame to the guest is; it checks its
// lengths and checksums.
func describe(t testing.TB, frame []byte) string {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if e := p.ErrorLayer(); e != nil {
		t.Fatalf("decode % x: %v", frame, e.Error())
	}
	if udp, ok := p.TransportLayer().(*layers.UDP); ok {
		udp.SetNetworkLayerForChecksum(p.NetworkLayer())
	}
	if err, bad := p.VerifyChecksums(); err != nil || len(bad) > 0 {
		t.Fatalf("checksums of % x: %v %v", frame, err, bad)
	}
	e := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	s := fmt.Sprintf("%s>%s", e.SrcMAC, e.DstMAC)
	for _, l := range p.Layers() {
		switch l := l.(type) {
		case *layers.ARP:
			s += fmt.Sprintf(" arp op=%d %s=%s for %s=%s", l.Operation,
				net.IP(l.SourceProtAddress), net.HardwareAddr(l.SourceHwAddress), net.IP(l.DstProtAddress), net.HardwareAddr(l.DstHwAddress))
		case *layers.IPv4:
			s += fmt.Sprintf(" %s>%s", l.SrcIP, l.DstIP)
		case *layers.ICMPv4:
			s += fmt.Sprintf(" icmp %s id=%d seq=%d %d bytes", l.TypeCode, l.Id, l.Seq, len(l.Payload))
		case *layers.UDP:
			s += fmt.Sprintf(" udp %d>%d", l.SrcPort, l.DstPort)
		case *layers.DHCPv4:
			s += fmt.Sprintf(" dhcp xid=%x for %s your=%s", l.Xid, l.ClientHWAddr, l.YourClientIP)
			for _, o := range l.Options {
				switch o.Type {
				case layers.DHCPOptMessageType:
					s += fmt.Sprintf(" %s", layers.DHCPMsgType(o.Data[0]))
				case layers.DHCPOptLeaseTime:
					s += fmt.Sprintf(" LeaseTime=%d", binary.BigEndian.Uint32(o.Data))
				default:
					s += fmt.Sprintf(" %s=%s", o.Type, net.IP(o.Data))
				}
			}
		}
	}
	return s
}

func closedOrEOF(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
