// SPDX-License-Identifier: Apache-2.0

// Package faults has no code of its own: its tests break a running bus in the
// ways that machines, disks, networks and strangers do, and count what that
// cost. docs/faults.md lists them.
//
// The server, the clerk and the analyzers are processes, so that they can be
// killed and stopped as a machine would; the test program is all of them.
package faults
