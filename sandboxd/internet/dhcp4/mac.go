// SPDX-License-Identifier: Apache-2.0

package dhcp4

import (
	"encoding/hex"
	"fmt"
)

// MAC is an Ethernet address. Like netip.Addr it is a comparable value.
type MAC [6]byte

// Broadcast is the address of every station.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ParseMAC reads the form that [MAC.String] writes.
func ParseMAC(s string) (MAC, error) {
	var m MAC
	if len(s) != 17 {
		return MAC{}, fmt.Errorf("parse Ethernet address %q: not of the form 02:00:5e:10:00:00", s)
	}
	for i := range m {
		if _, err := hex.Decode(m[i:i+1], []byte(s[3*i:3*i+2])); err != nil || i < 5 && s[3*i+2] != ':' {
			return MAC{}, fmt.Errorf("parse Ethernet address %q: not of the form 02:00:5e:10:00:00", s)
		}
	}
	return m, nil
}

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// Group reports whether m is the address of several stations.
func (m MAC) Group() bool { return m[0]&1 == 1 }

// Unicast reports whether m can be the address of one station.
func (m MAC) Unicast() bool { return m != MAC{} && !m.Group() }
