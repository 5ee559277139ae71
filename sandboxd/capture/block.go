// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"
	"math"
	"time"
)

// The blocks of pcapng, by the sections of draft-ietf-opsawg-pcapng-03, "PCAP
// Next Generation (pcapng) Capture File Format". All numbers are little-endian.
const (
	blockSection    = 0x0a0d0d0a // section 4.1
	blockInterface  = 1          // section 4.2
	blockPacket     = 6          // section 4.3, enhanced packet block
	blockStatistics = 5          // section 4.6

	byteOrderMagic   = 0x1a2b3c4d
	linkTypeEthernet = 1
	lengthUnknown    = math.MaxUint64
)

// Options, section 3.5 and those of each block.
const (
	optEnd          = 0
	optComment      = 1
	sectionHardware = 2
	sectionOS       = 3
	sectionUserAppl = 4

	interfaceName  = 2
	interfaceTsRes = 9 // here a power of ten

	packetFlags = 2 // bits 0 and 1 are a [Direction]

	statisticsStart    = 2
	statisticsEnd      = 3
	statisticsReceived = 4
	statisticsDropped  = 5

	maxOption = math.MaxUint16
)

const (
	blockOverhead = 12                         // type, and the length twice
	packetFixed   = blockOverhead + 20 + 8 + 4 // fields, flags, end of options
	// statisticsLen is the size of the last block: fields, four options of
	// eight bytes, end of options.
	statisticsLen = blockOverhead + 12 + 4*12 + 4
)

func appendSection(b []byte, o Options) []byte {
	b, start := begin(b, blockSection)
	b = u32(b, byteOrderMagic)
	b = binary.LittleEndian.AppendUint16(b, 1) // version 1.0
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = binary.LittleEndian.AppendUint64(b, lengthUnknown)
	b = text(b, optComment, o.Comment)
	b = text(b, sectionHardware, o.Hardware)
	b = text(b, sectionOS, o.OS)
	b = text(b, sectionUserAppl, o.Application)
	return end(u32(b, optEnd), start)
}

func appendInterface(b []byte, o Options, snapLen int) []byte {
	b, start := begin(b, blockInterface)
	b = u32(b, linkTypeEthernet)
	b = u32(b, uint32(snapLen))
	b = text(b, interfaceName, o.Interface)
	b = option(b, interfaceTsRes, []byte{9}) // nanoseconds
	return end(u32(b, optEnd), start)
}

// packetLen is how many bytes appendPacket appends for n bytes of a frame.
func packetLen(n int) int { return packetFixed + pad(n) }

func appendPacket(b []byte, dir Direction, t time.Time, frame []byte, length int) []byte {
	b, start := begin(b, blockPacket)
	b = u32(b, 0) // the only interface
	b = timestamp(b, t)
	b = u32(b, uint32(len(frame)))
	b = u32(b, uint32(length))
	b = padded(b, frame)
	b = u32(b, packetFlags|4<<16) // the option's code and length
	b = u32(b, uint32(dir))
	return end(u32(b, optEnd), start)
}

// appendStatistics closes the file. Whatever is not stored was dropped.
func appendStatistics(b []byte, first, last time.Time, s Stats) []byte {
	b, start := begin(b, blockStatistics)
	b = u32(b, 0)
	b = timestamp(b, last)
	b = option(b, statisticsStart, timestamp(nil, first))
	b = option(b, statisticsEnd, timestamp(nil, last))
	b = option(b, statisticsReceived, binary.LittleEndian.AppendUint64(nil, s.Received))
	b = option(b, statisticsDropped, binary.LittleEndian.AppendUint64(nil, s.Received-s.Stored))
	return end(u32(b, optEnd), start)
}

// begin starts a block (section 3.1); its length is filled in by end.
func begin(b []byte, typ uint32) ([]byte, int) {
	return u32(u32(b, typ), 0), len(b)
}

func end(b []byte, start int) []byte {
	n := uint32(len(b) - start + 4)
	binary.LittleEndian.PutUint32(b[start+4:], n)
	return u32(b, n)
}

func text(b []byte, code uint16, s string) []byte {
	if s == "" {
		return b
	}
	return option(b, code, []byte(s))
}

// option appends an option, whose value is padded to 32 bits (section 3.5).
func option(b []byte, code uint16, value []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, code)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	return padded(b, value)
}

// timestamp appends t in nanoseconds, the high 32 bits first (section 4.3).
// A time before 1970 is zero.
func timestamp(b []byte, t time.Time) []byte {
	n := uint64(max(t.UnixNano(), 0))
	if t.IsZero() {
		n = 0
	}
	return u32(u32(b, uint32(n>>32)), uint32(n))
}

func padded(b, value []byte) []byte {
	b = append(b, value...)
	return append(b, make([]byte, pad(len(value))-len(value))...)
}

func pad(n int) int { return (n + 3) &^ 3 }

func u32(b []byte, n uint32) []byte { return binary.LittleEndian.AppendUint32(b, n) }
