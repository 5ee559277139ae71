// SPDX-License-Identifier: Apache-2.0

// Package arrows holds no code: its test enforces the import arrows between
// Petri's directories.
package arrows
