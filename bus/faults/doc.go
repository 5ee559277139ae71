// SPDX-License-Identifier: Apache-2.0

// Package faults counts what a fault has cost a bus, in the figures that every
// row of docs/faults.md has. Its own tests break a running bus in the ways that
// machines, disks, networks and strangers do; those of other packages that do so
// count by it too.
//
// In its tests the server, the clerk and the analyzers are processes, so that
// they can be killed and stopped as a machine would; the test program is all of
// them.
package faults
