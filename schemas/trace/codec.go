// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"encoding/binary"
	"fmt"

	"github.com/petri-sandbox/petri/schemas/sysno"
)

// A Header begins a block.
type Header struct {
	Order      Order     // of the records
	Machine    sysno.ABI // native ABI of the guest's kernel
	Length     uint32    // of the records in bytes
	Count      uint32    // of the records, without those of type [Task]
	First      uint64    // number of the first record
	Produced   uint64    // records that the tracer had made until now, with those lost
	Lost       uint64    // of those, how many found no room
	Unreadable uint64    // attachments that could not be read until now
}

// Append appends the header's encoding to dst.
func (h Header) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, magic...)
	dst = append(dst, Version, byte(h.Order))
	dst = le.AppendUint16(dst, uint16(h.Machine))
	dst = le.AppendUint32(dst, h.Length)
	dst = le.AppendUint32(dst, h.Count)
	dst = le.AppendUint64(dst, h.First)
	dst = le.AppendUint64(dst, h.Produced)
	dst = le.AppendUint64(dst, h.Lost)
	return le.AppendUint64(dst, h.Unreadable)
}

// ParseHeader reads a header, for which b must hold at least [HeaderLen] bytes.
// A header that it returns has a Length within [MaxBlock].
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderLen {
		return Header{}, fmt.Errorf("%w: block header of %d bytes", ErrFormat, len(b))
	}
	if string(b[:4]) != magic {
		return Header{}, fmt.Errorf("%w: no block begins with %q", ErrFormat, b[:4])
	}
	if b[4] != Version {
		return Header{}, fmt.Errorf("%w: version %d, not %d", ErrFormat, b[4], Version)
	}
	le := binary.LittleEndian
	h := Header{
		Order: Order(b[5]), Machine: sysno.ABI(le.Uint16(b[6:])),
		Length: le.Uint32(b[8:]), Count: le.Uint32(b[12:]), First: le.Uint64(b[16:]),
		Produced: le.Uint64(b[24:]), Lost: le.Uint64(b[32:]), Unreadable: le.Uint64(b[40:]),
	}
	switch {
	case h.Order != LittleEndian && h.Order != BigEndian:
		return Header{}, fmt.Errorf("%w: byte order %d", ErrFormat, h.Order)
	case h.Length > MaxBlock-HeaderLen || h.Length%recordUnit != 0:
		return Header{}, fmt.Errorf("%w: block of %d bytes", ErrFormat, h.Length)
	case h.Count > h.Length/RecordLen || h.Count == 0 && h.Length > 0:
		return Header{}, fmt.Errorf("%w: %d records in %d bytes", ErrFormat, h.Count, h.Length)
	case h.First+uint64(h.Count) < h.First:
		return Header{}, fmt.Errorf("%w: block begins with record %d", ErrFormat, h.First)
	}
	return h, nil
}

// NextBlock takes the first block off b. If b ends before the block does, block
// is nil and the error too: read more. Records are not looked at.
func NextBlock(b []byte) (h Header, block, rest []byte, err error) {
	if len(b) < HeaderLen {
		return Header{}, nil, b, nil
	}
	if h, err = ParseHeader(b); err != nil {
		return Header{}, nil, b, err
	}
	n := HeaderLen + int(h.Length)
	if len(b) < n {
		return h, nil, b, nil
	}
	return h, b[:n:n], b[n:], nil
}

// Append appends the record's encoding in the given order to dst. The caller
// keeps attachments within [MaxAttach] and [MaxRecord].
func (r *Record) Append(dst []byte, order Order) []byte {
	o := order.Bytes().(interface {
		binary.ByteOrder
		binary.AppendByteOrder
	})
	start := len(dst)
	n := min(int(r.N), len(r.Args))
	dst = append(dst, 0, 0, byte(r.Type), byte(r.ABI), byte(r.Flags), r.Mux, byte(n), byte(len(r.Attachments)))
	dst = o.AppendUint32(dst, r.TID)
	dst = o.AppendUint32(dst, r.Call)
	dst = o.AppendUint64(dst, r.Begin)
	dst = o.AppendUint64(dst, r.End)
	dst = o.AppendUint64(dst, uint64(r.Result))
	dst = o.AppendUint64(dst, r.IP)
	for _, v := range r.Args[:n] {
		dst = o.AppendUint64(dst, v)
	}
	for _, a := range r.Attachments {
		dst = append(dst, a.Arg, byte(a.Kind))
		dst = o.AppendUint16(dst, uint16(a.Flags))
		dst = o.AppendUint32(dst, uint32(len(a.Data)))
		dst = append(dst, a.Data...)
		dst = append(dst, make([]byte, -len(a.Data)&(recordUnit-1))...)
	}
	o.PutUint16(dst[start:], uint16(len(dst)-start))
	return dst
}

// size is how many bytes Append appends.
func (r *Record) size() int {
	n := RecordLen + 8*min(int(r.N), len(r.Args))
	for _, a := range r.Attachments {
		n += attachLen + (len(a.Data)+recordUnit-1)&^(recordUnit-1)
	}
	return n
}

// Decode reads the record at the beginning of b into r and returns its length.
// The attachments' bytes are b's own. What Decode accepts, [Record.Append]
// gives back byte for byte. r.Number, r.Who and r.Untold are left alone.
func (r *Record) Decode(b []byte, order Order) (int, error) {
	if len(b) < RecordLen {
		return 0, fmt.Errorf("%w: record of %d bytes", ErrFormat, len(b))
	}
	o := order.Bytes()
	n := int(o.Uint16(b))
	r.Order = order
	r.Type, r.ABI, r.Flags, r.Mux, r.N = Type(b[2]), sysno.ABI(b[3]), Flags(b[4]), b[5], b[6]
	count := int(b[7])
	if int(r.N) > len(r.Args) || count > MaxAttach || n < RecordLen+8*int(r.N) || n > len(b) || n > MaxRecord || n%recordUnit != 0 {
		return 0, fmt.Errorf("%w: record of length %d, %d arguments and %d attachments in %d bytes", ErrFormat, n, r.N, count, len(b))
	}
	r.TID, r.Call = o.Uint32(b[8:]), o.Uint32(b[12:])
	r.Begin, r.End = o.Uint64(b[16:]), o.Uint64(b[24:])
	r.Result, r.IP = int64(o.Uint64(b[32:])), o.Uint64(b[40:])
	rest := b[RecordLen:n]
	r.Args = [6]uint64{}
	for i := range r.Args[:r.N] {
		r.Args[i] = o.Uint64(rest[8*i:])
	}
	var err error
	r.Attachments, err = decodeAttachments(r.Attachments[:0], rest[8*int(r.N):], count, o)
	return n, err
}

func decodeAttachments(into []Attachment, b []byte, count int, o binary.ByteOrder) ([]Attachment, error) {
	for i := range count {
		if len(b) < attachLen {
			return into, fmt.Errorf("%w: attachment %d lies outside of its record", ErrFormat, i)
		}
		a := Attachment{Arg: b[0], Kind: Kind(b[1]), Flags: AttachFlags(o.Uint16(b[2:]))}
		n := uint64(o.Uint32(b[4:]))
		padded := (n + recordUnit - 1) &^ (recordUnit - 1)
		b = b[attachLen:]
		if padded > uint64(len(b)) || n > 0 && a.Flags&Unreadable != 0 {
			return into, fmt.Errorf("%w: attachment of %d bytes in %d", ErrFormat, n, len(b))
		}
		for _, c := range b[n:padded] {
			if c != 0 {
				return into, fmt.Errorf("%w: padding is not zero", ErrFormat)
			}
		}
		a.Data, b = b[:n:n], b[padded:]
		into = append(into, a)
	}
	if len(b) > 0 {
		return into, fmt.Errorf("%w: %d bytes behind the attachments", ErrFormat, len(b))
	}
	return into, nil
}
