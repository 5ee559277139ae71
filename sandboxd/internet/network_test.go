// SPDX-License-Identifier: Apache-2.0

package internet_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/petri-sandbox/petri/sandboxd/capture"
	"github.com/petri-sandbox/petri/sandboxd/internet"
)

// damaged returns frame with a byte changed.
func damaged(frame []byte, offset int) []byte {
	frame = bytes.Clone(frame)
	frame[offset] ^= 0x40
	return frame
}

const (
	fromGateway = "50:c7:bf:3a:91:5e>52:54:00:01:02:03"
	toEveryone  = "50:c7:bf:3a:91:5e>ff:ff:ff:ff:ff:ff 10.0.2.2>255.255.255.255 udp 67>68 dhcp xid=1234 for 52:54:00:01:02:03"
	leaseOf     = " ServerID=10.0.2.2 LeaseTime=86400 SubnetMask=255.255.255.0 Router=10.0.2.2 DNS=10.0.2.3"
)

// TestFrames gives the switch one frame, and says what becomes of it: which
// counter it goes to, and the reply if there is one.
func TestFrames(t *testing.T) {
	request := dhcp{typ: layers.DHCPMsgTypeRequest, requested: guestIP, server: gatewayIP}
	renew := dhcp{typ: layers.DHCPMsgTypeRequest, client: guestIP, unicast: true}.bytes(t)
	whole := ping(t, gatewayMAC, guestIP, gatewayIP, 56)
	reply := arp(t, guestMAC, everyone, guestIP, gatewayIP)
	reply[21] = layers.ARPReply
	for _, tt := range []struct {
		name  string
		frame []byte
		count string
		reply string
	}{
		{"arp_gateway", arp(t, guestMAC, everyone, guestIP, gatewayIP), "answered",
			fromGateway + " arp op=2 10.0.2.2=50:c7:bf:3a:91:5e for 10.0.2.15=52:54:00:01:02:03"},
		{"arp_dns", arp(t, guestMAC, everyone, guestIP, dnsIP), "answered",
			fromGateway + " arp op=2 10.0.2.3=50:c7:bf:3a:91:5e for 10.0.2.15=52:54:00:01:02:03"},
		{"arp_refresh", arp(t, guestMAC, gatewayMAC, guestIP, gatewayIP), "answered",
			fromGateway + " arp op=2 10.0.2.2=50:c7:bf:3a:91:5e for 10.0.2.15=52:54:00:01:02:03"},
		{"arp_probe", arp(t, guestMAC, everyone, noIP, gatewayIP), "answered",
			fromGateway + " arp op=2 10.0.2.2=50:c7:bf:3a:91:5e for 0.0.0.0=52:54:00:01:02:03"},
		{"arp_neighbour", arp(t, guestMAC, everyone, guestIP, otherIP), "unanswered", ""},
		{"arp_own_address", arp(t, guestMAC, everyone, noIP, guestIP), "unanswered", ""},
		{"arp_to_group", arp(t, guestMAC, internet.MAC{1, 0, 0x5e, 0, 0, 1}, guestIP, gatewayIP), "unanswered", ""},
		{"arp_to_other", arp(t, guestMAC, otherMAC, guestIP, gatewayIP), "foreign", ""},
		{"arp_reply", reply, "unanswered", ""},
		{"arp_cut", arp(t, guestMAC, everyone, guestIP, gatewayIP)[:41], "malformed", ""},
		{"arp_of_what", damaged(arp(t, guestMAC, everyone, guestIP, gatewayIP), 17), "malformed", ""},
		{"arp_other_operation", damaged(arp(t, guestMAC, everyone, guestIP, gatewayIP), 20), "unanswered", ""},

		{"ping_gateway", whole, "answered", fromGateway + " 10.0.2.2>10.0.2.15 icmp EchoReply id=7 seq=9 56 bytes"},
		{"ping_dns", ping(t, gatewayMAC, guestIP, dnsIP, 0), "answered", fromGateway + " 10.0.2.3>10.0.2.15 icmp EchoReply id=7 seq=9 0 bytes"},
		{"ping_odd", ping(t, gatewayMAC, guestIP, dnsIP, 1), "answered", fromGateway + " 10.0.2.3>10.0.2.15 icmp EchoReply id=7 seq=9 1 bytes"},
		{"ping_largest", ping(t, gatewayMAC, guestIP, gatewayIP, 1472), "answered", fromGateway + " 10.0.2.2>10.0.2.15 icmp EchoReply id=7 seq=9 1472 bytes"},
		{"ping_too_large", ping(t, gatewayMAC, guestIP, gatewayIP, 1473), "unanswered", ""},
		{"ping_world", ping(t, gatewayMAC, guestIP, netip.MustParseAddr("8.8.8.8"), 56), "unanswered", ""},
		{"ping_by_broadcast", ping(t, everyone, guestIP, gatewayIP, 56), "unanswered", ""},
		{"ping_from_world", ping(t, gatewayMAC, netip.MustParseAddr("8.8.8.8"), gatewayIP, 56), "unanswered", ""},
		{"ping_from_gateway", ping(t, gatewayMAC, gatewayIP, gatewayIP, 56), "unanswered", ""},
		{"ping_fragment", fragment(t), "unanswered", ""},
		{"ping_bad_checksum", damaged(whole, 50), "malformed", ""},
		{"ip_bad_checksum", damaged(whole, 22), "malformed", ""},
		{"ip_version", damaged(whole, 14), "malformed", ""},
		{"ip_cut", whole[:40], "malformed", ""},

		{"discover", dhcp{typ: layers.DHCPMsgTypeDiscover}.frame(t), "answered", toEveryone + " your=10.0.2.15 Offer" + leaseOf},
		{"discover_unicast", dhcp{typ: layers.DHCPMsgTypeDiscover, unicast: true}.frame(t), "answered",
			fromGateway + " 10.0.2.2>10.0.2.15 udp 67>68 dhcp xid=1234 for 52:54:00:01:02:03 your=10.0.2.15 Offer" + leaseOf},
		{"request", request.frame(t), "answered", toEveryone + " your=10.0.2.15 Ack" + leaseOf},
		{"reboot", dhcp{typ: layers.DHCPMsgTypeRequest, requested: guestIP}.frame(t), "answered", toEveryone + " your=10.0.2.15 Ack" + leaseOf},
		{"renew", udp(t, gatewayMAC, guestIP, gatewayIP, 67, renew), "answered",
			fromGateway + " 10.0.2.2>10.0.2.15 udp 67>68 dhcp xid=1234 for 52:54:00:01:02:03 your=10.0.2.15 Ack" + leaseOf},
		{"request_foreign", dhcp{typ: layers.DHCPMsgTypeRequest, requested: otherIP, unicast: true}.frame(t), "answered",
			toEveryone + " your=0.0.0.0 Nak ServerID=10.0.2.2"},
		{"request_nothing", dhcp{typ: layers.DHCPMsgTypeRequest}.frame(t), "answered",
			toEveryone + " your=0.0.0.0 Nak ServerID=10.0.2.2"},
		{"renew_foreign", udp(t, gatewayMAC, otherIP, gatewayIP, 67, dhcp{typ: layers.DHCPMsgTypeRequest, client: otherIP}.bytes(t)), "answered",
			toEveryone + " your=0.0.0.0 Nak ServerID=10.0.2.2"},
		{"request_of_other_server", dhcp{typ: layers.DHCPMsgTypeRequest, requested: guestIP, server: otherIP}.frame(t), "unanswered", ""},
		{"inform", udp(t, everyone, otherIP, allIP, 67, dhcp{typ: layers.DHCPMsgTypeInform, client: otherIP}.bytes(t)), "answered",
			fromGateway + " 10.0.2.2>10.0.2.77 udp 67>68 dhcp xid=1234 for 52:54:00:01:02:03 your=0.0.0.0 Ack" +
				" ServerID=10.0.2.2 SubnetMask=255.255.255.0 Router=10.0.2.2 DNS=10.0.2.3"},
		{"inform_for_other", udp(t, everyone, guestIP, allIP, 67, dhcp{typ: layers.DHCPMsgTypeInform, client: otherIP}.bytes(t)), "unanswered", ""},
		{"release", udp(t, gatewayMAC, guestIP, gatewayIP, 67, dhcp{typ: layers.DHCPMsgTypeRelease, client: guestIP, server: gatewayIP}.bytes(t)), "answered", ""},
		{"decline", dhcp{typ: layers.DHCPMsgTypeDecline, requested: guestIP, server: gatewayIP}.frame(t), "answered", ""},
		{"dhcp_relayed", dhcp{typ: layers.DHCPMsgTypeDiscover, relay: otherIP}.frame(t), "unanswered", ""},
		{"dhcp_of_server", dhcp{typ: layers.DHCPMsgTypeOffer, op: layers.DHCPOpReply}.frame(t), "unanswered", ""},
		{"dhcp_offer_as_client", dhcp{typ: layers.DHCPMsgTypeOffer}.frame(t), "unanswered", ""},
		{"dhcp_group_mac", dhcp{typ: layers.DHCPMsgTypeDiscover, mac: everyone}.frame(t), "malformed", ""},
		{"dhcp_to_dns", udp(t, gatewayMAC, guestIP, dnsIP, 67, renew), "unanswered", ""},
		{"dhcp_cut", udp(t, everyone, noIP, allIP, 67, renew[:200]), "malformed", ""},
		{"dhcp_to_other", udp(t, otherMAC, noIP, allIP, 67, renew), "foreign", ""},
		{"udp_bad_checksum", damaged(request.frame(t), 60), "malformed", ""},
		{"dns_query", udp(t, gatewayMAC, guestIP, dnsIP, 53, []byte("?")), "unanswered", ""},

		{"empty", nil, "malformed", ""},
		{"no_header", make([]byte, 13), "malformed", ""},
		{"zero", make([]byte, 60), "malformed", ""},
		{"from_group", build(t, eth(everyone, gatewayMAC, 0x86dd)), "malformed", ""},
		{"ipv6", build(t, eth(guestMAC, internet.MAC{0x33, 0x33, 0, 0, 0, 1}, 0x86dd)), "unanswered", ""},
		{"to_zero", build(t, eth(guestMAC, internet.MAC{}, 0x0800)), "foreign", ""},
		{"unknown_type", build(t, eth(guestMAC, gatewayMAC, 0x88b5)), "unanswered", ""},
		{"largest", append(build(t, eth(guestMAC, gatewayMAC, 0x88b5)), make([]byte, internet.MaxFrame-60)...), "unanswered", ""},
		{"oversized", make([]byte, internet.MaxFrame+1), "oversized", ""},
		{"oversized_by_far", make([]byte, 10<<20), "oversized", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, r := play(t, internet.Options{}, stream(tt.frame))
			if got := counted(s); got != tt.count || s.In != 1 || s.InBytes != uint64(len(tt.frame)) {
				t.Errorf("counted as %s, want %s: %+v", got, tt.count, s)
			}
			reply := ""
			if out := r.replies(); len(out) > 0 {
				reply = describe(t, out[0])
				if len(out) > 1 || s.Out != 1 || s.OutBytes != uint64(len(out[0])) || len(out[0]) < 60 {
					t.Errorf("%d replies, first of %d bytes, counted as %+v", len(out), len(out[0]), s)
				}
			}
			if reply != tt.reply {
				t.Errorf("got  %q\nwant %q", reply, tt.reply)
			}
			first := r.frames[0]
			if first.dir != capture.Outbound || first.length != len(tt.frame) || !bytes.Equal(first.frame, tt.frame[:min(len(tt.frame), internet.MaxFrame)]) {
				t.Errorf("captured %d bytes of %d first", len(first.frame), first.length)
			}
		})
	}
}

// fragment is a ping whose second half is to come.
func fragment(t *testing.T) []byte {
	header := ip(guestIP, gatewayIP, layers.IPProtocolICMPv4)
	header.Flags = layers.IPv4MoreFragments
	return build(t, eth(guestMAC, gatewayMAC, layers.EthernetTypeIPv4), header,
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0)})
}

// counted names the one counter that a frame went to.
func counted(s internet.Stats) string {
	name, n := "", uint64(0)
	for k, v := range outcomes(s) {
		if v > 0 {
			name = k
		}
		n += v
	}
	if n != s.In || n != 1 {
		return "not once"
	}
	return name
}

func outcomes(s internet.Stats) map[string]uint64 {
	return map[string]uint64{
		"answered": s.Answered, "handled": s.Handled, "malformed": s.Malformed,
		"oversized": s.Oversized, "foreign": s.Foreign, "unanswered": s.Unanswered,
	}
}

func TestLease(t *testing.T) {
	request := dhcp{typ: layers.DHCPMsgTypeRequest, requested: guestIP}
	other := request
	other.mac = otherMAC
	refused := dhcp{typ: layers.DHCPMsgTypeRequest, requested: otherIP, mac: internet.MAC{2}}
	inform := udp(t, everyone, otherIP, allIP, 67, dhcp{typ: layers.DHCPMsgTypeInform, client: otherIP}.bytes(t))
	_, r := play(t, internet.Options{}, stream(
		dhcp{typ: layers.DHCPMsgTypeDiscover}.frame(t), refused.frame(t), inform,
		request.frame(t), request.frame(t), other.frame(t), request.frame(t)))
	if len(r.leases) != 2 {
		t.Fatalf("leases %v", r.leases)
	}
	want := netip.MustParsePrefix("10.0.2.15/24")
	for i, mac := range []internet.MAC{guestMAC, otherMAC} {
		if l := r.leases[i]; l.MAC != mac || l.Address != want || time.Since(l.Time).Abs() > time.Minute {
			t.Errorf("lease %d: %+v", i, l)
		}
	}
}

// A guest that makes up addresses does not make the switch remember them.
func TestLeasesAreBounded(t *testing.T) {
	var frames [][]byte
	for i := range 200 {
		frames = append(frames, dhcp{typ: layers.DHCPMsgTypeRequest, requested: guestIP, mac: internet.MAC{2, byte(i)}}.frame(t))
	}
	s, r := play(t, internet.Options{}, stream(frames...))
	if announced := uint64(len(r.leases)); announced > 64 || announced+s.Unannounced+s.QueueFull != 200 {
		t.Errorf("%d leases, stats %+v", len(r.leases), s)
	}
}

func TestOptions(t *testing.T) {
	o := internet.Options{
		Guest: netip.MustParsePrefix("192.168.1.100/16"), Gateway: netip.MustParseAddr("192.168.0.1"),
		DNS: netip.MustParseAddr("192.168.0.1"), MAC: otherMAC, LeaseTime: time.Hour,
	}
	_, r := play(t, o, stream(dhcp{typ: layers.DHCPMsgTypeDiscover}.frame(t)))
	want := "52:54:00:09:09:09>ff:ff:ff:ff:ff:ff 192.168.0.1>255.255.255.255 udp 67>68 dhcp xid=1234 for 52:54:00:01:02:03 your=192.168.1.100" +
		" Offer ServerID=192.168.0.1 LeaseTime=3600 SubnetMask=255.255.0.0 Router=192.168.0.1 DNS=192.168.0.1"
	if got := describe(t, r.replies()[0]); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for name, o := range map[string]internet.Options{
		"ipv6":            {Guest: netip.MustParsePrefix("fd00::2/64")},
		"no_network":      {Guest: netip.MustParsePrefix("10.0.2.15/0")},
		"gateway_outside": {Gateway: netip.MustParseAddr("10.0.3.2")},
		"dns_outside":     {DNS: netip.MustParseAddr("8.8.8.8")},
		"gateway_is_us":   {Gateway: guestIP},
		"group_mac":       {MAC: everyone},
		"short_lease":     {LeaseTime: time.Millisecond},
	} {
		if _, err := internet.New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// echoHandler takes frames of one type and sends them back.
type echoHandler struct{ got [][]byte }

func (h *echoHandler) Handle(n *internet.Network, frame []byte) bool {
	h.got = append(h.got, bytes.Clone(frame))
	return frame[12] == 0x88 && n.Send(frame)
}

func TestHandler(t *testing.T) {
	h := &echoHandler{}
	mine := build(t, eth(guestMAC, gatewayMAC, 0x88b5))
	query := udp(t, gatewayMAC, guestIP, dnsIP, 53, []byte("?"))
	s, r := play(t, internet.Options{Handler: h}, stream(
		mine, query, arp(t, guestMAC, everyone, guestIP, gatewayIP), arp(t, guestMAC, otherMAC, guestIP, otherIP), make([]byte, 3)))
	if len(h.got) != 2 || !bytes.Equal(h.got[0], mine) || !bytes.Equal(h.got[1], query) {
		t.Errorf("handler got %x", h.got)
	}
	if s.Handled != 1 || s.Unanswered != 1 || s.Answered != 1 || s.Foreign != 1 || s.Malformed != 1 {
		t.Errorf("stats %+v", s)
	}
	if out := r.replies(); len(out) != 2 || !bytes.Equal(out[0], append(mine, make([]byte, 60-len(mine))...)) {
		t.Errorf("replies %x", out)
	}
}

func TestSendRefuses(t *testing.T) {
	n, err := internet.New(internet.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 13, internet.MaxFrame + 1} {
		if n.Send(make([]byte, size)) {
			t.Errorf("sent %d bytes", size)
		}
	}
	if s := n.Stats(); s.Refused != 3 || s.Out != 0 {
		t.Errorf("stats %+v", s)
	}
}

// links are the kinds of connection that Run is given.
var links = map[string]func(t *testing.T) (ours, guests io.ReadWriteCloser){
	"files": func(t *testing.T) (io.ReadWriteCloser, io.ReadWriteCloser) {
		a, b := socketpair(t)
		return a, b
	},
	"pipe": func(t *testing.T) (io.ReadWriteCloser, io.ReadWriteCloser) {
		a, b := net.Pipe()
		return a, b
	},
	"conns": func(t *testing.T) (io.ReadWriteCloser, io.ReadWriteCloser) {
		a, b := socketpair(t)
		conn := func(f *os.File) net.Conn {
			c, err := net.FileConn(f)
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			t.Cleanup(func() { c.Close() })
			return c
		}
		return conn(a), conn(b)
	},
}

func TestRun(t *testing.T) {
	for name, link := range links {
		t.Run(name+"/peer_closes", func(t *testing.T) {
			ours, guests := link(t)
			n, done := run(t, t.Context(), internet.Options{}, ours)
			for range 3 {
				if _, err := guests.Write(stream(arp(t, guestMAC, everyone, guestIP, gatewayIP))); err != nil {
					t.Fatal(err)
				}
				frame, err := receive(guests)
				if err != nil {
					t.Fatal(err)
				}
				if got := describe(t, frame); got != fromGateway+" arp op=2 10.0.2.2=50:c7:bf:3a:91:5e for 10.0.2.15=52:54:00:01:02:03" {
					t.Error(got)
				}
			}
			guests.Close()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
			if s := n.Stats(); s.In != 3 || s.Out != 3 {
				t.Errorf("stats %+v", s)
			}
		})
		t.Run(name+"/context_ends", func(t *testing.T) {
			ours, guests := link(t)
			ctx, cancel := context.WithCancel(t.Context())
			_, done := run(t, ctx, internet.Options{}, ours)
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("run: %v", err)
			}
			if _, err := receive(guests); !closedOrEOF(err) {
				t.Errorf("the link was left open: %v", err)
			}
		})
		t.Run(name+"/context_ends_in_frame", func(t *testing.T) {
			ours, guests := link(t)
			ctx, cancel := context.WithCancel(t.Context())
			n, done := run(t, ctx, internet.Options{}, ours)
			guests.Write([]byte{0, 0, 0, 100, 1, 2, 3})
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("run: %v", err)
			}
			if s := n.Stats(); s.In != s.Malformed {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

// A guest that dies with frames unread resets the connection.
func TestRunPeerDiesUnread(t *testing.T) {
	a, b := socketpair(t)
	frame := stream(arp(t, guestMAC, everyone, guestIP, gatewayIP))
	n, done := run(t, t.Context(), internet.Options{}, a)
	if _, err := b.Write(bytes.Repeat(frame, 50)); err != nil {
		t.Fatal(err)
	}
	if _, err := receive(b); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if err := <-done; err != nil {
		t.Errorf("run: %v, stats %+v", err, n.Stats())
	}
}

func run(t testing.TB, ctx context.Context, o internet.Options, conn io.ReadWriteCloser) (*internet.Network, <-chan error) {
	t.Helper()
	n, err := internet.New(o)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx, conn) }()
	return n, done
}

// A guest that sends and never reads costs a bounded amount of memory, and
// what it does not take is counted. Run can still be ended.
func TestFlood(t *testing.T) {
	const frames = 200_000
	a, b := socketpair(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n, done := run(t, ctx, internet.Options{}, a)
	burst := bytes.Repeat(stream(arp(t, guestMAC, everyone, guestIP, gatewayIP)), 1000)
	before := heap()
	for range frames / 1000 {
		if _, err := b.Write(burst); err != nil {
			t.Fatal(err)
		}
	}
	for n.Stats().In < frames {
		time.Sleep(time.Millisecond)
	}
	if grown := heap() - before; grown > 4<<20 {
		t.Errorf("%d KiB more on the heap", grown>>10)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("run: %v", err)
	}
	s := n.Stats()
	if s.In != frames || s.Answered != frames || s.Out+s.QueueFull != frames || s.QueueFull < frames/2 {
		t.Errorf("stats %+v", s)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestRunJoinsItsGoroutines(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 50 {
		a, _ := socketpair(t)
		ctx, cancel := context.WithCancel(t.Context())
		_, done := run(t, ctx, internet.Options{}, a)
		cancel()
		<-done
	}
	if after := runtime.NumGoroutine(); after > before+2 {
		t.Errorf("%d goroutines, %d before", after, before)
	}
}

// FuzzStream plays any bytes as a guest's traffic.
func FuzzStream(f *testing.F) {
	request := dhcp{typ: layers.DHCPMsgTypeRequest, requested: guestIP}
	f.Add(stream(arp(f, guestMAC, everyone, guestIP, gatewayIP), request.frame(f), ping(f, gatewayMAC, guestIP, gatewayIP, 20)))
	f.Add(stream(arp(f, guestMAC, otherMAC, guestIP, gatewayIP), nil, []byte{1}))
	f.Add(stream(make([]byte, 100))[:50])
	f.Add([]byte{0, 0, 1})
	f.Add([]byte{0, 2, 0, 0, 1})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1, 2, 3})
	f.Fuzz(func(t *testing.T, in []byte) { check(t, in) })
}

// FuzzFrame plays one frame, which the fuzzer finds more in.
func FuzzFrame(f *testing.F) {
	for _, d := range []dhcp{
		{typ: layers.DHCPMsgTypeDiscover}, {typ: layers.DHCPMsgTypeRequest, requested: guestIP}, {typ: layers.DHCPMsgTypeRequest, client: otherIP},
	} {
		frame := d.frame(f)
		f.Add(frame)
		frame[40], frame[41] = 0, 0 // no UDP checksum to stop at
		f.Add(frame)
	}
	f.Add(arp(f, guestMAC, everyone, guestIP, gatewayIP))
	f.Add(ping(f, gatewayMAC, guestIP, gatewayIP, 20))
	f.Fuzz(func(t *testing.T, frame []byte) { check(t, stream(frame)) })
}

// check says what holds for any traffic: each byte is counted, each frame goes
// to one counter, and a reply follows only a frame that is addressed to the
// switch or to all, at most one each.
func check(t *testing.T, in []byte) {
	s, r := play(t, internet.Options{}, in)
	total := uint64(0)
	for _, v := range outcomes(s) {
		total += v
	}
	if s.In != total {
		t.Errorf("frames not counted once: %+v", s)
	}
	if rest := uint64(len(in)) - s.InBytes - 4*s.In; rest > 3 {
		t.Errorf("%d of %d bytes not counted: %+v", rest, len(in), s)
	}
	var last *seen
	for _, f := range r.frames {
		if f.dir == capture.Outbound {
			last = &f
			continue
		}
		if last == nil {
			t.Fatal("a frame to the guest that nothing asked for")
		}
		to := internet.MAC(last.frame[:6])
		if to != gatewayMAC && to != everyone {
			t.Errorf("answered a frame to %s: % x", to, last.frame)
		}
		if internet.MAC(f.frame[6:12]) != gatewayMAC || len(f.frame) < 60 {
			t.Errorf("sent % x", f.frame)
		}
		last = nil
	}
	if uint64(len(r.replies())) != s.Out || s.Out+s.QueueFull > s.Answered {
		t.Errorf("%d replies, stats %+v", len(r.replies()), s)
	}
}

// BenchmarkSwitch moves frames over a socket pair, one write each as QEMU
// does. Its 1/op time is that of a frame.
func BenchmarkSwitch(b *testing.B) {
	big := append(build(b, eth(guestMAC, gatewayMAC, 0x88b5)), make([]byte, 1500)...)
	small := append(build(b, eth(guestMAC, gatewayMAC, 0x88b5)), make([]byte, 46)...)
	for _, bm := range []struct {
		name    string
		frame   []byte
		capture bool
		reads   bool
	}{
		{"drop_60", small, false, false},
		{"drop_1514", big[:1514], false, false},
		{"drop_1514_captured", big[:1514], true, false},
		{"arp_answered", arp(b, guestMAC, everyone, guestIP, gatewayIP), false, true},
		{"arp_answered_captured", arp(b, guestMAC, everyone, guestIP, gatewayIP), true, true},
	} {
		b.Run(bm.name, func(b *testing.B) {
			o := internet.Options{}
			if bm.capture {
				w, err := capture.NewWriter(capture.Options{MaxBytes: 1 << 60}, func([]byte, int) error { return nil })
				if err != nil {
					b.Fatal(err)
				}
				o.Frame = w.Packet
			}
			ours, guest := socketpair(b)
			n, done := run(b, b.Context(), o, ours)
			if bm.reads {
				go io.Copy(io.Discard, guest)
			}
			p := stream(bm.frame)
			b.SetBytes(int64(len(bm.frame)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := guest.Write(p); err != nil {
					b.Fatal(err)
				}
			}
			for n.Stats().In < uint64(b.N) {
				runtime.Gosched()
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
			b.ReportMetric(float64(n.Stats().QueueFull), "queue-full")
			guest.Close()
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkStream takes the sockets out: frames from memory.
func BenchmarkStream(b *testing.B) {
	frame := stream(append(build(b, eth(guestMAC, gatewayMAC, 0x88b5)), make([]byte, 46)...))
	n, err := internet.New(internet.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	if err := n.Run(b.Context(), tape{&repeat{p: frame, n: b.N}, io.Discard}); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
}

// repeat reads as p, n times over.
type repeat struct {
	p []byte
	n int
}

func (r *repeat) Read(b []byte) (int, error) {
	total := 0
	for r.n > 0 && len(b) >= len(r.p) {
		copy(b, r.p)
		b = b[len(r.p):]
		total += len(r.p)
		r.n--
	}
	if total == 0 {
		return 0, io.EOF
	}
	return total, nil
}
