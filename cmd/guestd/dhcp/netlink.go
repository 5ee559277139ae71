// SPDX-License-Identifier: Apache-2.0

//go:build linux

package dhcp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/sandboxd/internet/dhcp4"
)

const loopback = "lo"

// A netlink changes interfaces, addresses and routes: rtnetlink(7), as much
// of it as a lease needs.
type netlink struct {
	fd  int
	seq uint32
}

func openNetlink() (*netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &netlink{fd: fd}, nil
}

func (nl *netlink) Close() error { return unix.Close(nl.fd) }

// start brings an interface up, with a new Ethernet address if mac is given.
// For that it goes down first, as not every driver changes it otherwise.
func (nl *netlink) start(name string, mac *dhcp4.MAC) error {
	index, err := nl.index(name)
	if err != nil {
		return err
	}
	var attrs []byte
	if mac != nil {
		if err := nl.do(unix.RTM_NEWLINK, 0, ifinfo(index, 0)); err != nil {
			return fmt.Errorf("set %s down: %w", name, err)
		}
		attrs = attribute(unix.IFLA_ADDRESS, mac[:])
	}
	if err := nl.do(unix.RTM_NEWLINK, 0, ifinfo(index, unix.IFF_UP), attrs); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// apply gives an interface the lease's address, and its routes.
func (nl *netlink) apply(name string, l Lease) error {
	index, err := nl.index(name)
	if err != nil {
		return err
	}
	const replace = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	address := l.Address.Addr().AsSlice()
	ifaddr := []byte{unix.AF_INET, byte(l.Address.Bits()), 0, unix.RT_SCOPE_UNIVERSE}
	ifaddr = binary.NativeEndian.AppendUint32(ifaddr, uint32(index))
	err = nl.do(unix.RTM_NEWADDR, replace, ifaddr,
		attribute(unix.IFA_LOCAL, address), attribute(unix.IFA_ADDRESS, address),
		attribute(unix.IFA_BROADCAST, lastAddress(l.Address)))
	if err != nil {
		return fmt.Errorf("set address %s of %s: %w", l.Address, name, err)
	}
	if !l.Gateway.IsValid() {
		return nil
	}
	rtmsg := []byte{
		unix.AF_INET, 0, 0, 0, // a destination of no bits is the default route
		unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST,
		0, 0, 0, 0,
	}
	err = nl.do(unix.RTM_NEWROUTE, replace, rtmsg,
		attribute(unix.RTA_GATEWAY, l.Gateway.AsSlice()),
		attribute(unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(index))))
	if err != nil {
		return fmt.Errorf("route by %s: %w", l.Gateway, err)
	}
	return nil
}

func (nl *netlink) index(name string) (int32, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("find interface %q: %w", name, err)
	}
	if err := unix.IoctlIfreq(nl.fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, fmt.Errorf("find interface %q: %w", name, err)
	}
	return int32(ifr.Uint32()), nil
}

// do sends one request and waits for the kernel's answer to it.
func (nl *netlink) do(typ, flags uint16, parts ...[]byte) error {
	nl.seq++
	b := make([]byte, unix.SizeofNlMsghdr)
	for _, p := range parts {
		b = append(b, p...)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], typ)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	binary.NativeEndian.PutUint32(b[8:], nl.seq)
	if err := unix.Sendto(nl.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	answer := make([]byte, 8192)
	n, _, err := unix.Recvfrom(nl.fd, answer, 0)
	if err != nil {
		return os.NewSyscallError("recvfrom", err)
	}
	// The kernel answers before sendto returns, with one error message: a
	// header, a negated errno or zero, and the request's header.
	if answer = answer[:n]; n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR ||
		binary.NativeEndian.Uint32(answer[8:]) != nl.seq {
		return fmt.Errorf("netlink: unexpected answer % x", answer[:min(n, unix.SizeofNlMsghdr)])
	}
	if errno := -int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}

// ifinfo is a struct ifinfomsg that changes the flag IFF_UP alone.
func ifinfo(index int32, flags uint32) []byte {
	b := make([]byte, 4, unix.SizeofIfInfomsg) // AF_UNSPEC, any type
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, unix.IFF_UP)
}

// attribute is a struct rtattr with its value, padded to 32 bits.
func attribute(typ uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	return append(b, make([]byte, -len(value)&3)...)
}

// lastAddress is the broadcast address of p's network.
func lastAddress(p netip.Prefix) []byte {
	a := p.Addr().As4()
	n := binary.BigEndian.Uint32(a[:]) | uint32(1<<(32-p.Bits())-1)
	return binary.BigEndian.AppendUint32(nil, n)
}
