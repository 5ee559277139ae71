// SPDX-License-Identifier: Apache-2.0

package dhcp4_test

import (
	"bytes"
	"errors"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/petri-sandbox/petri/sandboxd/internet/dhcp4"
)

var offer = dhcp4.Message{
	Reply: true, XID: 0xdeadbeef, Broadcast: true, MAC: dhcp4.MAC{0x52, 0x54, 0, 1, 2, 3},
	Your: netip.MustParseAddr("10.0.2.15"), Relay: netip.MustParseAddr("10.0.2.9"),
	Type: dhcp4.Offer, Server: netip.MustParseAddr("10.0.2.2"), Lease: 24 * time.Hour, Bits: 24,
	Router: netip.MustParseAddr("10.0.2.2"), DNS: []netip.Addr{netip.MustParseAddr("10.0.2.3"), netip.MustParseAddr("10.0.2.4")},
}

var request = dhcp4.Message{
	XID: 1, MAC: dhcp4.MAC{2}, Client: netip.MustParseAddr("10.0.2.15"), Type: dhcp4.Request,
	Requested: netip.MustParseAddr("10.0.2.16"), Server: netip.MustParseAddr("10.0.2.2"),
}

// with returns a bare message with options.
func with(options ...byte) []byte {
	b := dhcp4.Message{XID: 7}.Append(nil)
	return append(b[:240], options...)
}

func TestRoundTrip(t *testing.T) {
	for _, want := range []dhcp4.Message{{}, offer, request} {
		b := want.Append([]byte("prefix"))
		if len(b) < 300+6 || !bytes.HasPrefix(b, []byte("prefix")) {
			t.Errorf("appended % x", b)
		}
		got, err := dhcp4.Parse(b[6:])
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

// gopacket reads what Append writes.
func TestOtherReader(t *testing.T) {
	var got layers.DHCPv4
	if err := got.DecodeFromBytes(offer.Append(nil), gopacket.NilDecodeFeedback); err != nil {
		t.Fatal(err)
	}
	if got.Operation != layers.DHCPOpReply || got.Xid != 0xdeadbeef || got.Flags != 0x8000 || got.YourClientIP.String() != "10.0.2.15" ||
		got.RelayAgentIP.String() != "10.0.2.9" || got.ClientHWAddr.String() != "52:54:00:01:02:03" || len(got.Options) != 6 {
		t.Errorf("%+v", got)
	}
}

func TestParse(t *testing.T) {
	bare := dhcp4.Message{XID: 7}
	change := func(f func(*dhcp4.Message)) *dhcp4.Message {
		m := bare
		f(&m)
		return &m
	}
	long := bytes.Repeat([]byte{43, 255}, 1)
	long = append(long, make([]byte, 255)...)
	for _, tt := range []struct {
		name string
		in   []byte
		want *dhcp4.Message // nil: malformed
	}{
		{"no_end", with(53, 1, 1), change(func(m *dhcp4.Message) { m.Type = dhcp4.Discover })},
		{"no_options", with(), &bare},
		{"padding", with(0, 0, 53, 1, 3, 0, 255), change(func(m *dhcp4.Message) { m.Type = dhcp4.Request })},
		{"after_end", with(255, 53, 1, 3), &bare},
		{"first_counts", with(53, 1, 1, 53, 1, 3), change(func(m *dhcp4.Message) { m.Type = dhcp4.Discover })},
		{"repeat_of_any_length", with(53, 1, 1, 53, 0), change(func(m *dhcp4.Message) { m.Type = dhcp4.Discover })},
		{"unknown", with(append(long, 53, 1, 1, 255)...), change(func(m *dhcp4.Message) { m.Type = dhcp4.Discover })},
		{"no_address", with(50, 4, 0, 0, 0, 0), &bare},
		{"infinite_lease", with(51, 4, 255, 255, 255, 255), change(func(m *dhcp4.Message) { m.Lease = (1<<32 - 1) * time.Second })},
		{"host_mask", with(1, 4, 255, 255, 255, 255), change(func(m *dhcp4.Message) { m.Bits = 32 })},
		{"empty_mask", with(1, 4, 0, 0, 0, 0), &bare},
		{"mask_with_hole", with(1, 4, 255, 0, 255, 0), nil},
		{"option_over_end", with(53, 2, 1), nil},
		{"option_without_length", with(53), nil},
		{"type_too_long", with(53, 2, 1, 1), nil},
		{"type_empty", with(53, 0), nil},
		{"address_too_short", with(50, 3, 1, 1, 1), nil},
		{"dns_uneven", with(6, 5, 1, 1, 1, 1, 1), nil},
		{"dns_empty", with(6, 0), nil},
		{"nothing", nil, nil},
		{"short", with()[:239], nil},
		{"cookie", append(with()[:239], 0), nil},
		{"operation", append([]byte{3}, with()[1:]...), nil},
		{"token_ring", append([]byte{1, 6}, with()[2:]...), nil},
		{"long_address", append([]byte{1, 1, 16}, with()[3:]...), nil},
	} {
		got, err := dhcp4.Parse(tt.in)
		if tt.want == nil {
			if !errors.Is(err, dhcp4.ErrMalformed) {
				t.Errorf("%s: got %+v, %v", tt.name, got, err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, *tt.want) {
			t.Errorf("%s: got %+v, %v", tt.name, got, err)
		}
	}
}

func TestAppendLeavesOut(t *testing.T) {
	m := dhcp4.Message{Router: netip.IPv6LinkLocalAllNodes(), DNS: make([]netip.Addr, 100)}
	for i := range m.DNS {
		if i > 10 {
			m.DNS[i] = netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		}
	}
	got, err := dhcp4.Parse(m.Append(nil))
	if err != nil || got.Router.IsValid() || !reflect.DeepEqual(got.DNS, m.DNS[11:11+63]) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestMAC(t *testing.T) {
	m, err := dhcp4.ParseMAC("52:54:00:aB:cd:0f")
	if err != nil || m.String() != "52:54:00:ab:cd:0f" || !m.Unicast() || m.Group() {
		t.Errorf("got %s, %v", m, err)
	}
	for _, s := range []string{"", "52:54:00:ab:cd", "52-54-00-ab-cd-0f", "52:54:00:ab:cd:0g", "52:54:00:ab:cd:0f:", "5254.00ab.cd0f"} {
		if m, err := dhcp4.ParseMAC(s); err == nil {
			t.Errorf("%q is %s", s, m)
		}
	}
	if (dhcp4.MAC{}).Unicast() || dhcp4.Broadcast.Unicast() || !dhcp4.Broadcast.Group() {
		t.Error("zero or broadcast is one station")
	}
}

// FuzzParse: what is accepted says the same after it has been written again.
func FuzzParse(f *testing.F) {
	f.Add(offer.Append(nil))
	f.Add(request.Append(nil))
	f.Add(with(53, 1, 1, 0, 55, 3, 1, 3, 6, 255))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := dhcp4.Parse(b)
		if err != nil {
			if !errors.Is(err, dhcp4.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		again, err := dhcp4.Parse(m.Append(nil))
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Fatalf("%+v, then %+v, %v", m, again, err)
		}
	})
}
