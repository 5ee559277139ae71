// SPDX-License-Identifier: Apache-2.0

package internet

import (
	"net/netip"

	"github.com/petri-sandbox/petri/sandboxd/internet/dhcp4"
)

// dhcp serves the one address that there is to whoever asks: the guest may
// change its Ethernet address as it likes.
func (n *Network) dhcp(p ipv4, payload []byte) outcome {
	m, err := dhcp4.Parse(payload)
	if err != nil || !m.MAC.Unicast() {
		return malformed
	}
	if m.Reply || m.Relay.IsValid() || m.Server.IsValid() && m.Server != n.o.Gateway {
		return unanswered // not for a server, or not for this one
	}
	reply := dhcp4.Message{
		Reply: true, XID: m.XID, Broadcast: m.Broadcast, Client: m.Client, MAC: m.MAC,
		Server: n.o.Gateway, Bits: n.o.Guest.Bits(), Router: n.o.Gateway, DNS: []netip.Addr{n.o.DNS},
	}
	switch m.Type {
	case dhcp4.Discover:
		reply.Type = dhcp4.Offer
	case dhcp4.Request:
		if wanted(m) != n.o.Guest.Addr() {
			n.sendDHCP(dhcp4.Message{Reply: true, XID: m.XID, Broadcast: true, MAC: m.MAC, Type: dhcp4.NAK, Server: n.o.Gateway})
			return answered
		}
		reply.Type = dhcp4.ACK
	case dhcp4.Inform:
		if m.Client != p.src || !n.o.Guest.Contains(m.Client) {
			return unanswered
		}
		reply.Type = dhcp4.ACK
		n.sendDHCP(reply)
		return answered
	case dhcp4.Release, dhcp4.Decline:
		return answered // there is no other address to keep or to give
	default:
		return unanswered
	}
	reply.Your, reply.Lease = n.o.Guest.Addr(), n.o.LeaseTime
	if n.sendDHCP(reply) && reply.Type == dhcp4.ACK {
		n.announce(m.MAC)
	}
	return answered
}

// wanted is the address that a request is for: the offered or remembered one,
// or the one in use that is to be extended (RFC 2131, 4.3.2).
func wanted(m dhcp4.Message) netip.Addr {
	if m.Requested.IsValid() {
		return m.Requested
	}
	return m.Client
}

// sendDHCP sends m to where RFC 2131, 4.1 says that its client listens.
func (n *Network) sendDHCP(m dhcp4.Message) bool {
	to, dst := m.MAC, m.Your
	switch {
	case m.Client.IsValid():
		dst = m.Client
	case m.Broadcast:
		to, dst = dhcp4.Broadcast, broadcast
	}
	return n.Send(n.frameDHCP(to, dst, m))
}

// announce tells of a new lease. What it remembers is bounded, for a guest can
// make up Ethernet addresses for ever.
func (n *Network) announce(mac MAC) {
	n.mu.Lock()
	told := n.leases[mac]
	tell := !told && len(n.leases) < maxLeases
	if tell {
		n.leases[mac] = true
	} else if !told {
		n.stats.Unannounced++
	}
	n.mu.Unlock()
	if tell && n.o.Lease != nil {
		n.o.Lease(Lease{MAC: mac, Address: n.o.Guest, Time: n.now()})
	}
}
