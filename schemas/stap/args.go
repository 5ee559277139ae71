// SPDX-License-Identifier: Apache-2.0

package stap

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"

	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

const (
	atFDCWD  = -100
	maxParts = 1024 // strings of a list
)

// parseArgs reads the arguments as far as they can be understood; of the others
// the record says that they are not known.
func parseArgs(r *trace.Record, c sysno.Call, text string) {
	parts, ok := split(text)
	if !ok || len(parts) > len(c.Args) {
		parts = nil // it is not clear which is which
	}
	for i := range c.Args {
		if i >= len(parts) {
			// Whatever opens a file takes a mode only if it may create one.
			if c.Args[i].Type != sysno.Mode || i == 0 || c.Args[i-1].Set != sysno.SetOpen || r.Untold.Arg(i-1) || creates(r, r.Args[i-1]) {
				r.Untold |= 1 << i
			}
			continue
		}
		if !parseArg(r, c.Args[i], i, strings.TrimSpace(parts[i])) {
			r.Untold |= 1 << i
		}
	}
}

func creates(r *trace.Record, flags uint64) bool {
	tmp := r.ABI.Value(sysno.SetOpen, "O_TMPFILE")
	return flags&r.ABI.Value(sysno.SetOpen, "O_CREAT") != 0 || flags&tmp == tmp
}

// split cuts a list at its commas, but not those within quotes and brackets. ok
// is false if they do not match.
func split(text string) (parts []string, ok bool) {
	var depth, from int
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			n := quotedLen(text[i:])
			if n == 0 {
				return nil, false
			}
			i += n - 1
		case '{', '[', '(':
			depth++
		case '}', ']', ')':
			depth--
		case ',':
			if depth == 0 && len(parts) < maxParts {
				parts = append(parts, text[from:i])
				from = i + 1
			}
		}
		if depth < 0 {
			return nil, false
		}
	}
	if text != "" {
		parts = append(parts, text[from:])
	}
	return parts, depth == 0
}

// quotedLen is the length of the string in quotes that s begins with, 0 if it has
// no end.
func quotedLen(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return 0
}

// parseArg reads argument i, and reports whether its value, or what it points to,
// is known.
func parseArg(r *trace.Record, g sysno.Arg, i int, s string) bool {
	var ok bool
	switch g.Type {
	case sysno.Flags, sysno.Enum:
		r.Args[i], ok = r.ABI.ParseNames(g.Set, s)
		return ok
	case sysno.Sig:
		n, ok := r.ABI.ParseSignal(s)
		r.Args[i] = uint64(n)
		return ok || parseNumber(r, i, s)
	case sysno.DirFD:
		if s == "AT_FDCWD" {
			at := atFDCWD
			r.Args[i] = uint64(at)
			return true
		}
		return parseNumber(r, i, s)
	}
	if s == "NULL" {
		return true
	}
	if parseNumber(r, i, s) {
		return true
	}
	a, ok := parseMemory(r, g, s)
	if !ok {
		return false
	}
	for j := range a {
		a[j].Arg = uint8(i)
	}
	r.Attachments = append(r.Attachments, a...)
	return true
}

func parseNumber(r *trace.Record, i int, s string) bool {
	if n, err := strconv.ParseInt(s, 0, 64); err == nil {
		r.Args[i] = uint64(n)
		return true
	}
	n, err := strconv.ParseUint(s, 0, 64)
	if err == nil {
		r.Args[i] = n
	}
	return err == nil
}

// parseMemory reads what an argument points to. Unless ok, it means nothing.
func parseMemory(r *trace.Record, g sysno.Arg, s string) (_ []trace.Attachment, ok bool) {
	kind := trace.Bytes
	switch g.Type {
	case sysno.Path, sysno.Str, sysno.Prctl:
		kind = trace.String
	case sysno.In, sysno.Out, sysno.Iov, sysno.OutIov:
	case sysno.Argv:
		return list(s)
	case sysno.Sockaddr, sysno.OutSockaddr:
		b, ok := address(r.ABI, s)
		return []trace.Attachment{{Kind: trace.Sockaddr, Data: b}}, ok
	case sysno.Msg, sysno.OutMsg, sysno.Mmsg, sysno.OutMmsg:
		return message(r.ABI, s)
	case sysno.Struct, sysno.OutStruct, sysno.OutFDs, sysno.OutInt, sysno.Timespec, sysno.Timespec64:
		b, ok := structure(r.ABI, g, s)
		return []trace.Attachment{{Kind: trace.Struct, Data: b}}, ok
	default:
		return nil, false
	}
	a, ok := quoted(s, kind)
	return []trace.Attachment{a}, ok
}

// quoted reads "text", or "text"... if there was more.
func quoted(s string, kind trace.Kind) (trace.Attachment, bool) {
	a := trace.Attachment{Kind: kind}
	if rest, ok := strings.CutSuffix(s, "..."); ok {
		s, a.Flags = rest, trace.Truncated
	}
	if len(s) < 2 || s[0] != '"' || quotedLen(s) != len(s) {
		return a, false
	}
	s = s[1 : len(s)-1]
	// SystemTap puts the dots within the quotes if it is the text that it cuts.
	if rest, ok := strings.CutSuffix(s, "..."); ok && a.Flags == 0 && len(rest) >= 40 {
		s, a.Flags = rest, trace.Truncated
	}
	a.Data = []byte(unescape(s))
	return a, true
}

// unescape undoes the escapes of C and Go; what is none stays.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		if s[0] != '\\' || len(s) == 1 {
			b.WriteByte(s[0])
			s = s[1:]
			continue
		}
		if s[1] == '"' || s[1] == '\'' {
			b.WriteByte(s[1])
			s = s[2:]
			continue
		}
		c, multi, rest, err := strconv.UnquoteChar(s, 0)
		switch {
		case err != nil && s[1] >= '0' && s[1] <= '7': // C's may be short
			n := 2
			for n < len(s) && n < 4 && s[n] >= '0' && s[n] <= '7' {
				n++
			}
			v, _ := strconv.ParseUint(s[1:n], 8, 16)
			b.WriteByte(byte(v))
			rest = s[n:]
		case err != nil:
			b.WriteByte('\\')
			rest = s[1:]
		case multi:
			b.WriteRune(c)
		default:
			b.WriteByte(byte(c))
		}
		s = rest
	}
	return b.String()
}

// list reads ["one", "two"], or with ... for what was left out.
func list(s string) ([]trace.Attachment, bool) {
	inner, ok := within(s, "[", "]")
	if !ok {
		return nil, false
	}
	parts, ok := split(inner)
	a := trace.Attachment{Kind: trace.Argv}
	for _, p := range parts {
		p = strings.TrimSpace(p)
		if p == "..." {
			a.Flags |= trace.Truncated
			continue
		}
		q, isText := quoted(p, trace.String)
		if !isText {
			return nil, false
		}
		a.Flags |= q.Flags
		a.Data = append(append(a.Data, strings.ReplaceAll(string(q.Data), "\x00", "")...), 0)
	}
	return []trace.Attachment{a}, ok
}

func within(s, left, right string) (string, bool) {
	s, ok1 := strings.CutPrefix(s, left)
	s, ok2 := strings.CutSuffix(s, right)
	return s, ok1 && ok2
}

// message reads {ADDRESS, "text"}, or one of the two alone.
func message(abi sysno.ABI, s string) ([]trace.Attachment, bool) {
	if a, ok := quoted(s, trace.Bytes); ok {
		return []trace.Attachment{a}, true
	}
	if inner, ok := within(s, "{", "}"); ok && strings.HasPrefix(inner, "{") {
		if parts, ok := split(inner); ok && len(parts) == 2 {
			to, ok1 := address(abi, parts[0])
			text, ok2 := quoted(strings.TrimSpace(parts[1]), trace.Bytes)
			return []trace.Attachment{{Kind: trace.Sockaddr, Data: to}, text}, ok1 && ok2
		}
	}
	to, ok := address(abi, s)
	return []trace.Attachment{{Kind: trace.Sockaddr, Data: to}}, ok
}

// address reads {AF_INET, 192.0.2.1, 80}, {AF_INET, 192.0.2.1:80},
// {AF_INET6, [2001:db8::1]:80}, {AF_UNIX, "/path"} or a family alone, into a
// little-endian struct sockaddr.
func address(abi sysno.ABI, s string) ([]byte, bool) {
	inner, ok := within(s, "{", "}")
	parts, matched := split(inner)
	if !ok || !matched || len(parts) == 0 {
		return nil, false
	}
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	family, ok := abi.ParseNames(sysno.SetAf, parts[0])
	if !ok || family > 0xffff {
		return nil, false
	}
	b := binary.LittleEndian.AppendUint16(nil, uint16(family))
	name := abi.Enum(sysno.SetAf, family)
	switch {
	case len(parts) == 1:
		return b, true
	case name == "AF_UNIX":
		q, ok := quoted(parts[1], trace.String)
		return append(b, q.Data...), ok && len(parts) == 2
	case name != "AF_INET" && name != "AF_INET6" || len(parts) > 3:
		return nil, false
	}
	at, err := netip.ParseAddrPort(strings.Join(parts[1:], ":"))
	if len(parts) == 3 && err != nil {
		ip, err1 := netip.ParseAddr(parts[1])
		port, err2 := strconv.ParseUint(parts[2], 10, 16)
		if at, err = netip.AddrPortFrom(ip, uint16(port)), err1; err == nil {
			err = err2
		}
	}
	if err != nil || at.Addr().Zone() != "" || at.Addr().Is4() != (name == "AF_INET") {
		return nil, false
	}
	b = binary.BigEndian.AppendUint16(b, at.Port())
	if name == "AF_INET" {
		return append(append(b, at.Addr().AsSlice()...), make([]byte, 8)...), true
	}
	return append(append(append(b, 0, 0, 0, 0), at.Addr().AsSlice()...), 0, 0, 0, 0), true
}

// structure reads [3, 4], [3], {1 s, 2 ns} or {HEX}.
func structure(abi sysno.ABI, g sysno.Arg, s string) ([]byte, bool) {
	le := binary.LittleEndian
	if inner, ok := within(s, "[", "]"); ok {
		var b []byte
		for word := range strings.SplitSeq(inner, ",") {
			n, err := strconv.ParseInt(strings.TrimSpace(word), 10, 32)
			if err != nil {
				return nil, false
			}
			b = le.AppendUint32(b, uint32(n))
		}
		return b, g.Type == sysno.OutFDs && len(b) == 8 || g.Type == sysno.OutInt && len(b) == 4
	}
	inner, ok := within(s, "{", "}")
	if !ok {
		return nil, false
	}
	if sec, nsec, ok := strings.Cut(strings.TrimSuffix(inner, " ns"), " s, "); ok {
		a, err1 := strconv.ParseInt(sec, 10, 64)
		b, err2 := strconv.ParseInt(nsec, 10, 64)
		if err1 != nil || err2 != nil || g.Type != sysno.Timespec && g.Type != sysno.Timespec64 {
			return nil, false
		}
		if g.Type == sysno.Timespec && abi.Long() == 4 {
			return le.AppendUint32(le.AppendUint32(nil, uint32(a)), uint32(b)), int64(int32(a)) == a && int64(int32(b)) == b
		}
		return le.AppendUint64(le.AppendUint64(nil, uint64(a)), uint64(b)), true
	}
	// Of other structures the bytes; but what their order is the text does not say.
	b, err := hex.DecodeString(inner)
	return b, err == nil && (g.Type == sysno.Struct || g.Type == sysno.OutStruct)
}
