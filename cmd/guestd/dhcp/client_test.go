// SPDX-License-Identifier: Apache-2.0

//go:build linux

package dhcp_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/petri-sandbox/petri/cmd/guestd/dhcp"
	"github.com/petri-sandbox/petri/sandboxd/internet"
	"github.com/petri-sandbox/petri/sandboxd/internet/dhcp4"
)

var (
	mac = dhcp4.MAC{0x52, 0x54, 0, 1, 2, 3}

	wantLease = dhcp.Lease{
		Address: netip.MustParsePrefix("10.0.2.15/24"), Gateway: netip.MustParseAddr("10.0.2.2"),
		DNS: []netip.Addr{netip.MustParseAddr("10.0.2.3")}, Server: netip.MustParseAddr("10.0.2.2"), Time: 24 * time.Hour,
	}
)

// A cable is the client's [dhcp.Conn]: it puts messages into Ethernet frames
// and these, with their lengths, on a link.
type cable struct {
	t    *testing.T
	link net.Conn
}

func (c cable) SetReadDeadline(d time.Time) error { return c.link.SetReadDeadline(d) }

func (c cable) Write(p []byte) (int, error) {
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IPv4zero, DstIP: net.IPv4bcast}
	udp := &layers.UDP{SrcPort: 68, DstPort: 67}
	udp.SetNetworkLayerForChecksum(ip)
	b := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: mac[:], DstMAC: layers.EthernetBroadcast, EthernetType: layers.EthernetTypeIPv4}, ip, udp, gopacket.Payload(p))
	if err != nil {
		c.t.Fatal(err)
	}
	_, err = c.link.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b.Bytes()))), b.Bytes()...))
	return len(p), err
}

func (c cable) Read(p []byte) (int, error) {
	var prefix [4]byte
	if _, err := io.ReadFull(c.link, prefix[:]); err != nil {
		return 0, err
	}
	frame := make([]byte, binary.BigEndian.Uint32(prefix[:]))
	if _, err := io.ReadFull(c.link, frame); err != nil {
		return 0, err
	}
	packet := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	udp, ok := packet.TransportLayer().(*layers.UDP)
	if !ok || udp.DstPort != 68 {
		c.t.Errorf("got % x", frame)
		return 0, nil
	}
	return copy(p, udp.Payload), nil
}

// The client takes a lease from sandboxd's switch.
func TestAcquireFromSwitch(t *testing.T) {
	leases := make(chan internet.Lease, 10)
	n, err := internet.New(internet.Options{Lease: func(l internet.Lease) { leases <- l }})
	if err != nil {
		t.Fatal(err)
	}
	ours, guests := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- n.Run(t.Context(), ours) }()
	lease, err := dhcp.Acquire(t.Context(), cable{t, guests}, mac)
	if err != nil || !reflect.DeepEqual(lease, wantLease) {
		t.Errorf("lease %+v, %v", lease, err)
	}
	if l := <-leases; l.MAC != mac || l.Address != wantLease.Address {
		t.Errorf("the switch gave %+v", l)
	}
	guests.Close()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	if s := n.Stats(); s.In != 2 || s.Answered != 2 || s.Out != 2 {
		t.Errorf("stats %+v", s)
	}
}

// A server is a [dhcp.Conn] whose other end is a function: it gets each
// message of the client, numbered from 1, and gives the answers.
type server struct {
	answer  func(n int, m dhcp4.Message) []dhcp4.Message
	start   time.Time
	times   []time.Duration // of the client's messages
	types   []dhcp4.Type
	answers chan []byte

	mu       sync.Mutex
	deadline time.Time
	moved    chan struct{} // has room for one: the deadline was set
}

func newServer(answer func(n int, m dhcp4.Message) []dhcp4.Message) *server {
	return &server{answer: answer, start: time.Now(), answers: make(chan []byte, 100), moved: make(chan struct{}, 1)}
}

func (s *server) SetReadDeadline(d time.Time) error {
	s.mu.Lock()
	s.deadline = d
	s.mu.Unlock()
	select {
	case s.moved <- struct{}{}:
	default:
	}
	return nil
}

func (s *server) Write(p []byte) (int, error) {
	m, err := dhcp4.Parse(p)
	if err != nil {
		return 0, err
	}
	s.times = append(s.times, time.Since(s.start))
	s.types = append(s.types, m.Type)
	for _, a := range s.answer(len(s.types), m) {
		s.answers <- a.Append(nil)
	}
	return len(p), nil
}

func (s *server) Read(p []byte) (int, error) {
	for {
		s.mu.Lock()
		left := time.Until(s.deadline)
		s.mu.Unlock()
		select {
		case b := <-s.answers:
			return copy(p, b), nil
		case <-s.moved:
		case <-time.After(left):
			return 0, os.ErrDeadlineExceeded
		}
	}
}

// reply is what a right server answers to m.
func reply(m dhcp4.Message) dhcp4.Message {
	r := dhcp4.Message{
		Reply: true, XID: m.XID, MAC: m.MAC, Type: dhcp4.Offer, Your: wantLease.Address.Addr(), Server: wantLease.Server,
		Bits: 24, Router: wantLease.Gateway, DNS: wantLease.DNS, Lease: wantLease.Time,
	}
	if m.Type == dhcp4.Request {
		r.Type = dhcp4.ACK
	}
	return r
}

const ms = time.Millisecond

// TestAcquire runs the client against servers that lose, refuse and lie. Time
// is simulated.
func TestAcquire(t *testing.T) {
	d, r := dhcp4.Discover, dhcp4.Request
	changed := func(m dhcp4.Message, f func(*dhcp4.Message)) dhcp4.Message {
		m = reply(m)
		f(&m)
		return m
	}
	for _, tt := range []struct {
		name   string
		answer func(n int, m dhcp4.Message) []dhcp4.Message
		times  []time.Duration
		types  []dhcp4.Type
	}{
		{"at_once", func(_ int, m dhcp4.Message) []dhcp4.Message {
			return []dhcp4.Message{reply(m)}
		}, []time.Duration{0, 0}, []dhcp4.Type{d, r}},
		{"lost", func(n int, m dhcp4.Message) []dhcp4.Message {
			if n != 7 && n != 9 {
				return nil
			}
			return []dhcp4.Message{reply(m)}
		}, []time.Duration{0, 100 * ms, 300 * ms, 700 * ms, 1500 * ms, 3100 * ms, 4700 * ms, 4700 * ms, 4800 * ms}, []dhcp4.Type{d, d, d, d, d, d, d, r, r}},
		{"request_ignored", func(n int, m dhcp4.Message) []dhcp4.Message {
			if n < 6 && m.Type == r {
				return nil
			}
			return []dhcp4.Message{reply(m)}
		}, []time.Duration{0, 0, 100 * ms, 300 * ms, 700 * ms, 1500 * ms, 1500 * ms}, []dhcp4.Type{d, r, r, r, r, d, r}},
		{"refused", func(n int, m dhcp4.Message) []dhcp4.Message {
			if n == 2 {
				return []dhcp4.Message{changed(m, func(m *dhcp4.Message) { m.Type = dhcp4.NAK; m.Your = netip.Addr{} })}
			}
			return []dhcp4.Message{reply(m)}
		}, []time.Duration{0, 0, 1600 * ms, 1600 * ms}, []dhcp4.Type{d, r, d, r}},
		{"for_others", func(_ int, m dhcp4.Message) []dhcp4.Message {
			return []dhcp4.Message{
				changed(m, func(m *dhcp4.Message) { m.XID++ }),
				changed(m, func(m *dhcp4.Message) { m.MAC[5]++ }),
				changed(m, func(m *dhcp4.Message) { m.Reply = false }),
				changed(m, func(m *dhcp4.Message) { m.Your = netip.Addr{} }),
				changed(m, func(m *dhcp4.Message) { m.Type = dhcp4.Inform }),
				changed(m, func(m *dhcp4.Message) { m.Server = netip.Addr{} }),
				reply(m),
			}
		}, []time.Duration{0, 0}, []dhcp4.Type{d, r}},
		{"no_mask", func(n int, m dhcp4.Message) []dhcp4.Message {
			if n == 2 {
				return []dhcp4.Message{changed(m, func(m *dhcp4.Message) { m.Bits = 0 })}
			}
			return []dhcp4.Message{reply(m)}
		}, []time.Duration{0, 0, 100 * ms}, []dhcp4.Type{d, r, r}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(tt.answer)
				lease, err := dhcp.Acquire(t.Context(), s, mac)
				if err != nil || !reflect.DeepEqual(lease, wantLease) {
					t.Errorf("lease %+v, %v", lease, err)
				}
				if !reflect.DeepEqual(s.times, tt.times) || !reflect.DeepEqual(s.types, tt.types) {
					t.Errorf("client sent %v at %v, want %v at %v", s.types, s.times, tt.types, tt.times)
				}
			})
		})
	}
}

func TestAcquireEnds(t *testing.T) {
	silent := func(int, dhcp4.Message) []dhcp4.Message { return nil }
	t.Run("deadline", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 1234*ms)
			defer cancel()
			s := newServer(silent)
			_, err := dhcp.Acquire(ctx, s, mac)
			if !errors.Is(err, dhcp.ErrNoLease) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v", err)
			}
			if took := time.Since(s.start); took != 1234*ms {
				t.Errorf("took %s", took)
			}
		})
	})
	t.Run("cancelled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			gone := errors.New("the host has gone")
			time.AfterFunc(55*ms, func() { cancel(gone) })
			s := newServer(silent)
			_, err := dhcp.Acquire(ctx, s, mac)
			if !errors.Is(err, dhcp.ErrNoLease) || !errors.Is(err, gone) {
				t.Errorf("error %v", err)
			}
			if took := time.Since(s.start); took != 55*ms {
				t.Errorf("took %s", took)
			}
		})
	})
	t.Run("link_breaks", func(t *testing.T) {
		ours, guests := net.Pipe()
		ours.Close()
		if _, err := dhcp.Acquire(t.Context(), cable{t, guests}, mac); err == nil || errors.Is(err, dhcp.ErrNoLease) {
			t.Errorf("error %v", err)
		}
	})
}

// FuzzAcquire answers the client with any bytes.
func FuzzAcquire(f *testing.F) {
	f.Add(reply(dhcp4.Message{MAC: mac}).Append(nil), []byte{})
	f.Fuzz(func(t *testing.T, offer, ack []byte) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			var s *server
			s = newServer(func(_ int, m dhcp4.Message) []dhcp4.Message {
				b := offer
				if m.Type == dhcp4.Request {
					b = ack
				}
				b = append([]byte(nil), b...)
				if len(b) >= 34 { // make it an answer to this client
					b[0] = 2
					binary.BigEndian.PutUint32(b[4:], m.XID)
					copy(b[28:], mac[:])
				}
				s.answers <- b
				return nil
			})
			lease, err := dhcp.Acquire(ctx, s, mac)
			if err == nil && (!lease.Address.IsValid() || lease.Address.Bits() < 1 || !lease.Server.IsValid()) {
				t.Errorf("lease %+v", lease)
			}
			if err != nil && !errors.Is(err, dhcp.ErrNoLease) {
				t.Error(err)
			}
		})
	})
}
