// SPDX-License-Identifier: Apache-2.0

package sysno

import "slices"

// A Class is a set of classes of system calls, an or of Class…; calls.txt says
// which calls are in which.
type Class uint16

// ParseClass returns the class of that name.
func ParseClass(name string) (Class, bool) {
	i := slices.Index(classNames[:], name)
	if i < 0 {
		return 0, false
	}
	return 1 << i, true
}

// ClassNames are the names of all classes.
func ClassNames() []string { return slices.Clone(classNames[:]) }

// ClassOf returns the classes that a call is in. ok is false if no ABI has a call
// of that name.
func ClassOf(call string) (c Class, ok bool) {
	i, ok := slices.BinarySearch(names[:], call)
	if !ok || i == 0 {
		return 0, false
	}
	return classes[i], true
}
