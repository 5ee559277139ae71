// SPDX-License-Identifier: Apache-2.0

// Package petrifile reads and writes .petri files: one ended analysis each, its
// log and, unless the file is thin, the bytes that its log names. It also owns
// what makes a log checkable: the Merkle tree over an analysis' events and the
// checkpoints that a sandbox signs.
//
// Reading and writing take constant memory but for a bounded list of the
// objects and tasks that the log names. A file can come from anybody: every
// length, count and ratio has a cap, every digest is compared, and a reader
// says that a file was whole only at its end. Whoever acts on what it read
// before that must be able to take it back. The package knows neither NATS nor
// any path: names in a file are labels.
//
// docs/petri-file.md describes the format for readers in other languages.
package petrifile
