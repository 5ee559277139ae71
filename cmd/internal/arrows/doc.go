// SPDX-License-Identifier: Apache-2.0

// Package arrows holds no code: its tests enforce the import arrows between
// Petri's directories, the licence line of every file, and a tidy go.mod.
package arrows
