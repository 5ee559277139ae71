// SPDX-License-Identifier: Apache-2.0

// Package sysno knows the system calls of every Linux ABI that Petri can see:
// their numbers and names, what their arguments mean, and the names of errors,
// signals and flags on each CPU.
//
// The same tables tell the tracer in the guest what to capture (see
// [CaptureOf]) and the host how to render it (see [Lookup]). They are generated
// from golang.org/x/sys and calls.txt; the package itself imports the standard
// library only and does no input or output. All functions take numbers as a
// hostile guest may have sent them and are safe for concurrent use.
package sysno

import (
	"slices"
	"strconv"
)

//go:generate go run ../../cmd/internal/sysnogen -header ../../cmd/guestd/tracer/bpf/sysno.h

// An ABI is a calling convention with its own numbers of system calls. One
// kernel may serve several: amd64's also has those of i386 and x32.
type ABI uint16

// X32Bit is set in the number of a call of the x32 ABI, which otherwise looks
// like amd64's (arch/x86/include/uapi/asm/unistd.h).
const X32Bit = 0x40000000

type abiInfo struct {
	name    string
	bits    int
	first   uint64   // number of the first entry of numbers
	numbers []uint16 // indexes into names; 0 is no call
	values  int      // the CPU's index into the tables of values
}

func (a ABI) info() *abiInfo {
	if int(a) >= len(abis) {
		return &abis[0]
	}
	return &abis[a]
}

// Valid reports whether a is an ABI that this package knows.
func (a ABI) Valid() bool { return a.info().bits != 0 }

// String is the ABI's name, Debian's where there is one, or abi_N if it is not
// known.
func (a ABI) String() string {
	if !a.Valid() {
		return "abi_" + strconv.Itoa(int(a))
	}
	return a.info().name
}

// ParseABI returns the ABI of that name.
func ParseABI(name string) (ABI, bool) {
	for i := 1; i < len(abis); i++ {
		if abis[i].name == name {
			return ABI(i), true
		}
	}
	return 0, false
}

// Word is the number of bytes of the ABI's pointers.
func (a ABI) Word() int { return a.info().bits / 8 }

// Long is the number of bytes of a kernel long as the ABI's calls take it in
// structures such as timespec: x32 passes amd64's.
func (a ABI) Long() int {
	if a == X32 {
		return 8
	}
	return a.Word()
}

// Name is the name of the ABI's call of that number.
func (a ABI) Name(number uint64) (string, bool) {
	i := a.index(number)
	return names[i], i != 0
}

// index is the call's index into names, 0 if there is none.
func (a ABI) index(number uint64) uint16 {
	if a == X32 {
		number &^= X32Bit
	}
	t := a.info()
	if number < t.first || number-t.first >= uint64(len(t.numbers)) {
		return 0
	}
	return t.numbers[number-t.first]
}

// Number is the number of the ABI's call of that name.
func (a ABI) Number(name string) (uint64, bool) {
	i, ok := slices.BinarySearch(names[:], name)
	if !ok || i == 0 {
		return 0, false
	}
	t := a.info()
	for n, j := range slices.Backward(t.numbers) { // x32's own are the last
		if int(j) == i {
			number := t.first + uint64(n)
			if a == X32 {
				number |= X32Bit
			}
			return number, true
		}
	}
	return 0, false
}

// Numbers is the range of the ABI's numbers, first and one behind the last.
// Not all in between are calls.
func (a ABI) Numbers() (first, end uint64) {
	t := a.info()
	return t.first, t.first + uint64(len(t.numbers))
}
