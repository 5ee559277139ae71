// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package dhcp brings up the network of a guest: an Ethernet address, a lease
// from sandboxd's switch, and the routes that follow from it.
//
// It is what a guest has in place of ip(8), dhclient and a C library. It takes
// one lease and never renews it: no guest lives that long.
package dhcp

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/internet/dhcp4"
)

// A Lease is what the server gave.
type Lease struct {
	Address netip.Prefix // and the network around it
	Gateway netip.Addr   // zero if there is none
	DNS     []netip.Addr
	Server  netip.Addr
	Time    time.Duration
}

// Configure gives the network interface name a new Ethernet address, such as
// "50:c7:bf:00:00:01", switches IPv6 off on it, takes a lease and sets address,
// network and default route by it. It also brings up the loopback interface.
// It retransmits until ctx is done.
func Configure(ctx context.Context, name, mac string) (Lease, error) {
	hw, err := dhcp4.ParseMAC(mac)
	if err != nil {
		return Lease{}, err
	}
	if !hw.Unicast() {
		return Lease{}, fmt.Errorf("configure %s: %s is no station's Ethernet address", name, mac)
	}
	nl, err := openNetlink()
	if err != nil {
		return Lease{}, err
	}
	defer nl.Close()
	if err := nl.start(loopback, nil); err != nil {
		return Lease{}, err
	}
	if err := disableIPv6(name); err != nil {
		return Lease{}, fmt.Errorf("switch off IPv6 on %s: %w", name, err)
	}
	if err := nl.start(name, &hw); err != nil {
		return Lease{}, err
	}
	conn, err := listen(name)
	if err != nil {
		return Lease{}, fmt.Errorf("open DHCP socket on %s: %w", name, err)
	}
	lease, err := Acquire(ctx, conn, hw)
	conn.Close()
	if err != nil {
		return Lease{}, err
	}
	return lease, nl.apply(name, lease)
}

// Conn carries whole DHCP messages: Write to every server, Read from any. A
// Read that waits returns [os.ErrDeadlineExceeded] at its deadline, also one
// that is set while it waits.
type Conn interface {
	io.ReadWriter
	SetReadDeadline(time.Time) error
}

const (
	firstWait = 100 * time.Millisecond // doubles with each retransmission
	lastWait  = 1600 * time.Millisecond
	requests  = 4 // unanswered, until the offer is taken for void
)

// ErrNoLease says that no server gave a lease in time.
var ErrNoLease = errors.New("no DHCP lease")

// Acquire takes a lease for the Ethernet address mac. It retransmits until ctx
// is done; the error then wraps [ErrNoLease] and ctx's.
func Acquire(ctx context.Context, conn Conn, mac dhcp4.MAC) (Lease, error) {
	joined := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		conn.SetReadDeadline(time.Unix(1, 0))
		close(joined)
	})
	defer func() {
		if !stop() {
			<-joined
		}
	}()
	for {
		c := client{conn: conn, mac: mac}
		if err := binary.Read(rand.Reader, binary.NativeEndian, &c.xid); err != nil {
			return Lease{}, err
		}
		lease, err := c.acquire(ctx)
		if !errors.Is(err, errAgain) {
			return lease, err
		}
	}
}

// errAgain says that an offer came to nothing.
var errAgain = errors.New("begin again")

// client is one exchange: DISCOVER, OFFER, REQUEST, ACK (RFC 2131, 3.1).
type client struct {
	conn Conn
	mac  dhcp4.MAC
	xid  uint32
}

func (c client) acquire(ctx context.Context) (Lease, error) {
	offer, err := c.ask(ctx, dhcp4.Message{Type: dhcp4.Discover}, 0, func(m dhcp4.Message) bool {
		return m.Type == dhcp4.Offer && m.Your.IsValid() && m.Server.IsValid()
	})
	if err != nil {
		return Lease{}, err
	}
	request := dhcp4.Message{Type: dhcp4.Request, Requested: offer.Your, Server: offer.Server}
	ack, err := c.ask(ctx, request, requests, func(m dhcp4.Message) bool {
		return m.Server == offer.Server && (m.Type == dhcp4.NAK || m.Type == dhcp4.ACK && m.Your.IsValid() && m.Bits > 0)
	})
	if err != nil {
		return Lease{}, err
	}
	if ack.Type == dhcp4.NAK {
		return Lease{}, c.pause(ctx)
	}
	return Lease{
		Address: netip.PrefixFrom(ack.Your, ack.Bits), Gateway: ack.Router, DNS: ack.DNS,
		Server: ack.Server, Time: ack.Lease,
	}, nil
}

// ask sends m until an answer comes that fits, but no more than tries times
// unless that is 0.
func (c client) ask(ctx context.Context, m dhcp4.Message, tries int, fits func(dhcp4.Message) bool) (dhcp4.Message, error) {
	m.XID, m.MAC, m.Broadcast = c.xid, c.mac, true
	packet := m.Append(nil)
	wait := firstWait
	for n := 1; ; n++ {
		if _, err := c.conn.Write(packet); err != nil && !transient(err) {
			return dhcp4.Message{}, fmt.Errorf("send DHCP message: %w", err)
		}
		answer, err := c.receive(ctx, time.Now().Add(wait), fits)
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return answer, err
		}
		if n == tries {
			return dhcp4.Message{}, errAgain
		}
		wait = min(2*wait, lastWait)
	}
}

// receive waits until the deadline for an answer that fits; it skips all else.
func (c client) receive(ctx context.Context, deadline time.Time, fits func(dhcp4.Message) bool) (dhcp4.Message, error) {
	if err := c.conn.SetReadDeadline(deadline); err != nil {
		return dhcp4.Message{}, err
	}
	buf := make([]byte, 2048)
	for {
		// After the deadline has been set: from here on the end of ctx moves
		// it, see Acquire.
		if err := ctx.Err(); err != nil {
			return dhcp4.Message{}, fmt.Errorf("%w: %w", ErrNoLease, context.Cause(ctx))
		}
		n, err := c.conn.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
			continue
		}
		if err != nil {
			return dhcp4.Message{}, fmt.Errorf("receive DHCP message: %w", err)
		}
		m, err := dhcp4.Parse(buf[:n])
		if err == nil && m.Reply && m.XID == c.xid && m.MAC == c.mac && fits(m) {
			return m, nil
		}
	}
}

// pause keeps a server that refuses what it offers from being flooded.
func (c client) pause(ctx context.Context) error {
	_, err := c.receive(ctx, time.Now().Add(lastWait), func(dhcp4.Message) bool { return false })
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errAgain
	}
	return err
}
