// SPDX-License-Identifier: Apache-2.0

package schemas

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// crockford is the alphabet of ULIDs. https://github.com/ulid/spec
const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// NewID returns a ULID: 48 bits of milliseconds and 80 random ones, as 26
// characters that sort by time.
func NewID(at time.Time) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], uint64(at.UnixMilli())<<16)
	rand.Read(b[6:]) // never fails: crypto/rand aborts the program instead
	return encodeID(b)
}

// AttemptID names attempt n of a submission, from 1. The first has the
// submission's own id; a later one has its time and bits derived from both, so
// that whoever takes over a submission finds its attempts without an index.
func AttemptID(submission string, n int) string {
	if n <= 1 {
		return submission
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", submission, n))
	var b [16]byte
	copy(b[6:], sum[:])
	return submission[:10] + encodeID(b)[10:]
}

// encodeID writes the 128 bits as 26 digits of 5 bits, two zero bits first.
func encodeID(b [16]byte) string {
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	var out [26]byte
	for i := 25; i >= 0; i-- {
		out[i] = crockford[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return string(out[:])
}

// ValidID reports whether s is a ULID in its canonical upper-case form.
func ValidID(s string) bool {
	if len(s) != 26 || s[0] > '7' {
		return false
	}
	return strings.Trim(s, crockford) == ""
}
