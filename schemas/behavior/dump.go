// SPDX-License-Identifier: Apache-2.0

package behavior

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// perLine is how many bytes a line of a dump has.
const perLine = 16

// Dump renders the buffers that a record has captured, as strace -e read or
// -e write does, and says where there was more:
//
//	| 00000  7f 45 4c 46 02 01 01 00  00 00 00 00 00 00 00 00  .ELF............ |
//	| 16 of 4096 bytes were captured |
//
// It is empty if the record has none. Several buffers of one argument, such as
// writev's, are one.
func Dump(r *trace.Record) string {
	var s strings.Builder
	c := r.Describe()
	for i := range r.Attachments {
		a := &r.Attachments[i]
		if r.Type != trace.Syscall || a.Kind != trace.Bytes || a.Flags&trace.Unreadable != 0 {
			continue
		}
		for off := 0; off < len(a.Data); off += perLine {
			dumpLine(&s, off, a.Data[off:min(off+perLine, len(a.Data))])
		}
		if a.Flags&trace.Truncated != 0 {
			if n, ok := length(r, c, int(a.Arg)); ok && n > uint64(len(a.Data)) {
				fmt.Fprintf(&s, " | %d of %d bytes were captured |\n", len(a.Data), n)
			} else {
				fmt.Fprintf(&s, " | %d bytes were captured, and there were more |\n", len(a.Data))
			}
		}
	}
	return s.String()
}

func dumpLine(s *strings.Builder, off int, b []byte) {
	var text [perLine]byte
	half := min(len(b), perLine/2)
	spaced := func(b []byte) string {
		var words []string
		for _, c := range b {
			words = append(words, hex.EncodeToString([]byte{c}))
		}
		return strings.Join(words, " ")
	}
	for i := range text {
		text[i] = ' '
		if i < len(b) {
			text[i] = '.'
			if b[i] >= ' ' && b[i] < 0x7f {
				text[i] = b[i]
			}
		}
	}
	const width = 3*perLine/2 - 1
	fmt.Fprintf(s, " | %05x  %-*s  %-*s  %s |\n", off, width, spaced(b[:half]), width, spaced(b[half:]), text[:])
}

// length is how many bytes a buffer had, as far as the call says it.
func length(r *trace.Record, c sysno.Call, i int) (n uint64, ok bool) {
	if i >= len(c.Args) {
		return 0, false
	}
	switch g := c.Args[i]; g.Type {
	case sysno.In:
		return r.Args[g.Ref], true
	case sysno.Out, sysno.Iov, sysno.OutIov, sysno.Msg, sysno.OutMsg:
		return uint64(r.Result), r.Finished() && r.Result >= 0
	}
	return 0, false
}
