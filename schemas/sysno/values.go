// SPDX-License-Identifier: Apache-2.0

package sysno

import (
	"math/bits"
	"strconv"
	"strings"
)

// MaxErrno is the largest error number that a call can return
// (include/linux/err.h).
const MaxErrno = 4095

// internalErrnos never reach a program: the kernel restarts the call or turns
// them into EINTR behind the tracer (include/linux/errno.h).
var internalErrnos = map[int]string{
	512: "ERESTARTSYS", 513: "ERESTARTNOINTR", 514: "ERESTARTNOHAND", 515: "ENOIOCTLCMD",
	516: "ERESTART_RESTARTBLOCK", 524: "ENOTSUPP",
}

// Errno names the error of a call's result, "" if the result is none.
func (a ABI) Errno(result int64) string {
	if result >= 0 || result < -MaxErrno {
		return ""
	}
	n := int(-result)
	if t := errnoNames[errnoTable[a.info().values]]; n < len(t) && t[n] != "" {
		return t[n]
	}
	if s := internalErrnos[n]; s != "" {
		return s
	}
	return "E" + strconv.Itoa(n)
}

// ErrnoText describes an error by its name, for people; "" if it is unknown.
func ErrnoText(name string) string { return errnoTexts[name] }

// Signal names a signal: SIGKILL, or SIGRT_2 for the third real-time signal,
// or SIG99.
func (a ABI) Signal(n int) string {
	if t := signalNames[signalTable[a.info().values]]; n > 0 && n < len(t) && t[n] != "" {
		return t[n]
	}
	if n >= 32 && n <= 128 {
		return "SIGRT_" + strconv.Itoa(n-32)
	}
	return "SIG" + strconv.Itoa(n)
}

// ParseErrno returns the number of an error's name, the reverse of [ABI.Errno].
func (a ABI) ParseErrno(name string) (int, bool) {
	for n := 1; n <= MaxErrno; n++ {
		if a.Errno(int64(-n)) == name {
			return n, true
		}
	}
	return 0, false
}

// ParseSignal returns the number of a signal's name, the reverse of
// [ABI.Signal].
func (a ABI) ParseSignal(name string) (int, bool) {
	for n := range 256 { // as many as clone's flags can hold
		if a.Signal(n) == name {
			return n, true
		}
	}
	return 0, false
}

// A Set is a set of named values, such as the flags of open.
type Set uint8

const (
	kindMask   = 1 // value: the bits that are one number
	kindSignal = 2 // value: the bits that are a signal
)

type member struct {
	name  string
	value uint64
	kind  uint8
}

func (a ABI) members(s Set) []member {
	if s == 0 || int(s) >= len(setTable) {
		return nil
	}
	return setMembers[setTable[s][a.info().values]]
}

// Value is the value of a set's member on the ABI's CPU, 0 if it has none.
func (a ABI) Value(s Set, name string) uint64 {
	for _, m := range a.members(s) {
		if m.name == name {
			return m.value
		}
	}
	return 0
}

// Enum renders a value that has one name. A value without a name is a number.
func (a ABI) Enum(s Set, v uint64) string {
	if n := a.nameIn(s, v); n != "" {
		return n
	}
	return formatHex(v)
}

func (a ABI) nameIn(s Set, v uint64) string {
	for _, m := range a.members(s) {
		if m.kind == 0 && m.value == v {
			return m.name
		}
	}
	return ""
}

// FlagNames renders flags: A|B|0x40, or 0.
func (a ABI) FlagNames(s Set, v uint64) string {
	var out []string
	members := a.members(s)
	for i, m := range members {
		switch m.kind {
		case kindMask:
			out = append(out, maskName(members[:i], v&m.value))
			v &^= m.value
			members = members[i+1:]
		case kindSignal:
			if n := v & m.value; n != 0 {
				out = append(out, a.Signal(int(n)))
			}
			v &^= m.value
			members = members[i+1:]
		}
		if m.kind != 0 {
			break
		}
	}
	// A flag that holds the bits of another, such as O_SYNC, comes before it.
	for _, m := range members {
		if m.kind == 0 && m.value != 0 && v&m.value == m.value {
			out = append(out, m.name)
			v &^= m.value
		}
	}
	if v != 0 || len(out) == 0 {
		out = append(out, formatHex(v))
	}
	return strings.Join(out, "|")
}

// ParseNames returns the value of names and numbers that are or-ed, the reverse
// of [ABI.FlagNames] and [ABI.Enum]. ok is false if one of them the set does not
// have on the ABI's CPU.
func (a ABI) ParseNames(s Set, text string) (v uint64, ok bool) {
	for word := range strings.SplitSeq(text, "|") {
		n, ok := a.parseName(s, word)
		if !ok {
			return 0, false
		}
		v |= n
	}
	return v, true
}

func (a ABI) parseName(s Set, word string) (uint64, bool) {
	signals := false
	for _, m := range a.members(s) {
		if m.kind == 0 && m.name == word {
			return m.value, true
		}
		signals = signals || m.kind == kindSignal
	}
	if n, err := strconv.ParseUint(word, 0, 64); err == nil {
		return n, true
	}
	if !signals {
		return 0, false
	}
	n, ok := a.ParseSignal(word)
	return uint64(n), ok
}

func maskName(members []member, v uint64) string {
	for _, m := range members {
		if m.value == v {
			return m.name
		}
	}
	return formatHex(v)
}

func formatHex(v uint64) string {
	if bits.Len64(v) <= 3 { // 0 to 7 look the same either way
		return strconv.FormatUint(v, 10)
	}
	return "0x" + strconv.FormatUint(v, 16)
}
