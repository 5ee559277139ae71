// SPDX-License-Identifier: Apache-2.0

package sysno

import (
	"slices"
	"strconv"
)

// A Type says what an argument is.
type Type uint8

// Types of arguments. calls.txt says what each means.
const (
	Hex Type = iota
	Int
	Uint
	Ptr
	Size
	Off
	Mode
	Dev
	UID
	GID
	PID
	Sig
	FD
	DirFD
	Path
	Str
	In
	Out
	Struct
	OutStruct
	Sockaddr
	OutSockaddr
	Iov
	OutIov
	Msg
	OutMsg
	Mmsg
	OutMmsg
	Timespec
	Timespec64
	Argv
	Envp
	OutFDs
	OutInt
	Prctl
	Enum
	Flags
)

// Pointer reports whether such an argument only points to what matters.
func (t Type) Pointer() bool {
	return t == Ptr || t >= Path && t <= Prctl
}

// An Arg is an argument of a call.
type Arg struct {
	Type Type
	Ref  uint8 // of In, Out, Sockaddr, OutSockaddr, Iov, OutIov: the argument that has the length; of Struct, OutStruct: bytes
	Set  Set   // of Enum and Flags
}

// A Call describes a system call. It is shared: callers must not change it.
type Call struct {
	Name     string
	Args     []Arg
	Entry    bool // the tracer also emits it when it begins
	NoReturn bool // it returns only if it fails
}

type scope uint8 // an ABI, or one of:

const (
	scopeAny scope = 0xff
	scope32  scope = 0xfe
)

func (s scope) has(a ABI) bool {
	return s == scopeAny || s == scope(a) || s == scope32 && a.info().bits == 32
}

type callInfo struct {
	name  uint16
	scope scope
	call  Call
}

var unknownArgs = []Arg{{}, {}, {}, {}, {}, {}}

// Lookup describes the call of that number. Of a call that is not known, the
// name is syscall_N and there are six arguments of type [Hex].
//
// mux is 0, or the sub-call of a multiplexed call (socketcall); its arguments
// are then those of the sub-call.
func Lookup(a ABI, number uint64, mux uint8) Call {
	i := a.index(number)
	if i == 0 {
		return Call{Name: "syscall_" + strconv.FormatUint(number, 10), Args: unknownArgs}
	}
	if mux != 0 {
		if sub := a.nameIn(SetSocketcall, uint64(mux)); sub != "" && names[i] == "socketcall" {
			return callNamed(a, sub)
		}
		return Call{Name: names[i] + "_" + strconv.FormatUint(uint64(mux), 10), Args: unknownArgs}
	}
	return callOf(a, i)
}

func callNamed(a ABI, name string) Call {
	i, _ := slices.BinarySearch(names[:], name)
	return callOf(a, uint16(i))
}

func callOf(a ABI, name uint16) Call {
	at, ok := slices.BinarySearchFunc(calls[:], name, func(c callInfo, n uint16) int { return int(c.name) - int(n) })
	for ; ok && at < len(calls) && calls[at].name == name; at++ {
		if calls[at].scope.has(a) {
			return calls[at].call
		}
	}
	return Call{Name: names[name], Args: unknownArgs}
}

// Socketcalls is how many sub-calls socketcall has; their numbers are 1 to
// this.
const Socketcalls = 20
