// SPDX-License-Identifier: Apache-2.0

// Package internet is the network of one guest: an Ethernet switch in user
// space with the guest on its only cable, and what answers behind it.
//
// It owns the socket to QEMU's "-netdev stream" and answers DHCP, ARP for the
// gateway and the resolver, and echo requests to them. Every other frame is
// shown to the capture, counted and dropped, unless a [Handler] takes it. It
// refuses to reach a real network: it links no package that can open a socket,
// which a test holds it to.
//
// The guest is an enemy: a frame may be of any size and hold anything, and
// there may be any number of them. Nothing that the guest sends is an error,
// and nothing that it sends is kept.
package internet

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/capture"
	"github.com/petri-sandbox/petri/sandboxd/internet/dhcp4"
)

const (
	// MaxFrame is how many bytes of a frame the switch takes: the largest IPv4
	// packet and its Ethernet header. The rest of a longer frame is read and
	// counted, and the frame dropped.
	MaxFrame = headerLen + 64<<10

	queueLen  = 256 // frames on their way to the guest
	maxLeases = 64  // announced to Options.Lease
)

// MAC is an Ethernet address.
type MAC = dhcp4.MAC

// Options of a [Network]. The zero value is the production default.
type Options struct {
	// Guest is the address that DHCP gives, and its network. The default is
	// 10.0.2.15/24.
	Guest netip.Prefix
	// Gateway is the router and DHCP server, DNS the resolver; both lie in
	// the guest's network. The defaults are 10.0.2.2 and 10.0.2.3.
	Gateway, DNS netip.Addr
	// MAC is the Ethernet address of both. The default is in the range of a
	// maker of home routers.
	MAC MAC
	// LeaseTime is rounded to seconds. The default is a day, so that no guest
	// lives to renew.
	LeaseTime time.Duration

	// Frame sees every frame, of both directions, before anything acts on it;
	// it is called by one goroutine at a time, and the guest waits for it. A
	// frame was length bytes long, of which frame is the beginning or all. It
	// must not keep frame. [capture.Writer.Packet] fits.
	Frame func(dir capture.Direction, t time.Time, frame []byte, length int)
	// Lease is told of each new pair of Ethernet and IP address when its
	// lease has been acknowledged, at most 64 times. The guest waits for it.
	Lease func(Lease)
	// Handler takes the frames that the switch does not answer itself.
	Handler Handler
}

// A Lease is the address that the guest took.
type Lease struct {
	MAC     MAC
	Address netip.Prefix
	Time    time.Time
}

// A Handler is what lies behind the switch.
type Handler interface {
	// Handle takes a frame that is addressed to the gateway's MAC, to a group
	// or to all, and has at least an Ethernet header; an IPv4 packet in it has
	// a sound header and is whole. It reports whether it took the frame. It
	// must neither block nor keep frame. It answers with [Network.Send], also
	// later and from other goroutines.
	Handle(n *Network, frame []byte) bool
}

// A Network is the network of one guest. Its methods are safe for concurrent
// use.
type Network struct {
	o     Options
	start time.Time
	out   chan []byte // length prefix and frame; only Send writes, never closed

	tapMu sync.Mutex // held during Options.Frame, and until its frame is in out

	mu     sync.Mutex
	stats  Stats
	leases map[MAC]bool

	packetID uint16 // of the next IPv4 packet; Run's goroutine only
}

// New returns a network that does nothing until [Network.Run].
func New(o Options) (*Network, error) {
	if !o.Guest.IsValid() {
		o.Guest = netip.MustParsePrefix("10.0.2.15/24")
	}
	if !o.Gateway.IsValid() {
		o.Gateway = netip.AddrFrom4([4]byte{10, 0, 2, 2})
	}
	if !o.DNS.IsValid() {
		o.DNS = netip.AddrFrom4([4]byte{10, 0, 2, 3})
	}
	if o.MAC == (MAC{}) {
		o.MAC = MAC{0x50, 0xc7, 0xbf, 0x3a, 0x91, 0x5e}
	}
	if o.LeaseTime == 0 {
		o.LeaseTime = 24 * time.Hour
	}
	switch {
	case !o.Guest.Addr().Is4() || o.Guest.Bits() < 1:
		return nil, fmt.Errorf("set up the guest's network: %s is no IPv4 address and network", o.Guest)
	case !o.Guest.Contains(o.Gateway) || !o.Guest.Contains(o.DNS):
		return nil, fmt.Errorf("set up the guest's network: gateway %s or DNS %s lies outside %s", o.Gateway, o.DNS, o.Guest.Masked())
	case o.Guest.Addr() == o.Gateway || o.Guest.Addr() == o.DNS:
		return nil, fmt.Errorf("set up the guest's network: %s is both the guest's and the network's", o.Guest.Addr())
	case !o.MAC.Unicast():
		return nil, fmt.Errorf("set up the guest's network: %s is no station's Ethernet address", o.MAC)
	case o.LeaseTime < time.Second:
		return nil, errors.New("set up the guest's network: a lease of less than a second")
	}
	return &Network{o: o, start: time.Now(), out: make(chan []byte, queueLen), leases: map[MAC]bool{}}, nil
}

// Stats count frames and their bytes, without length prefixes. A frame In is
// Answered, Handled or one of the drops up to Unanswered; it is counted when
// the switch is done with it, which may be after its reply.
type Stats struct {
	In, InBytes   uint64 // from the guest
	Out, OutBytes uint64 // to the guest: put on the queue

	Answered uint64 // the switch acted on it, though not every one has a reply
	Handled  uint64 // the Handler took it

	Malformed  uint64 // not what its headers say, or cut off by the end of the link
	Oversized  uint64 // longer than MaxFrame
	Foreign    uint64 // to the Ethernet address of nobody on this network
	Unanswered uint64 // sound, but nobody here answers it

	QueueFull   uint64 // frames to the guest that it did not take fast enough
	Refused     uint64 // of Send: frames that are no Ethernet frame
	Unannounced uint64 // leases beyond those that Options.Lease is told of
}

// Stats returns the counts so far.
func (n *Network) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stats
}

func (n *Network) count(f func(*Stats)) {
	n.mu.Lock()
	f(&n.stats)
	n.mu.Unlock()
}

// now is the time by a clock that nobody steps while the guest runs.
func (n *Network) now() time.Time { return n.start.Add(time.Since(n.start)) }

// tap is called with tapMu held.
func (n *Network) tap(dir capture.Direction, frame []byte, length int) {
	if n.o.Frame != nil {
		n.o.Frame(dir, n.now(), frame, length)
	}
}
