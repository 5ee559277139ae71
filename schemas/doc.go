// SPDX-License-Identifier: Apache-2.0

// Package schemas holds the words that all parts of Petri share: the event
// envelope, the types of every event, artifact, finding and report, and the
// names that they are addressed by. JSON Schemas in json/ are generated from
// these types, so a program in any language can read what Petri writes.
//
// Types are versioned and add-only: a field may be added, never changed or
// removed; a new meaning gets a new version. The package imports the standard
// library only, does no input or output, and knows nothing of NATS.
package schemas

//go:generate go run ../cmd/internal/schemagen -o json
