// SPDX-License-Identifier: Apache-2.0

package schemas

import "time"

// Checkpoint is a sandbox's signature under the log of an analysis as far as it
// went: whoever has the log can prove which events were there by then.
type Checkpoint struct {
	At     string `json:"at"`     // name of the context event that it follows: start_analysis, or the ending
	Events uint64 `json:"events"` // how many events it covers, from the analysis' first, in the log's order
	// Root is the Merkle tree hash over these events' bytes as the log has them.
	// https://www.rfc-editor.org/rfc/rfc9162#section-2.1.1
	Root      Digest `json:"root"`
	Key       string `json:"key"`       // the sandbox's Ed25519 public key, hexadecimal
	Signature []byte `json:"signature"` // over the text that package bus/petrifile defines
}

// EventType implements [Typed].
func (Checkpoint) EventType() string { return "petri.checkpoint.signed.v1" }

// Tombstone says that an analysis was deleted. It is all that is left of it.
type Tombstone struct {
	Tenant   string `json:"tenant"`
	Analysis string `json:"analysis"`
	By       string `json:"by"`               // untrusted text
	Reason   string `json:"reason,omitempty"` // untrusted text
	Events   uint64 `json:"events"`           // that the log and the archive had
}

// EventType implements [Typed].
func (Tombstone) EventType() string { return "petri.tombstone.written.v1" }

// ArchiveEntry says where an analysis is that the log has no longer, or never
// had.
type ArchiveEntry struct {
	Tenant   string    `json:"tenant"`
	Analysis string    `json:"analysis"`
	File     Digest    `json:"file"`   // of the .petri file, in the bucket ARC
	Size     int64     `json:"size"`   // of the file
	Events   uint64    `json:"events"` // that it holds
	Context  int       `json:"context"`
	Foreign  uint64    `json:"foreign,omitempty"`  // messages under its subjects that are no events of it, and were left out
	Imported bool      `json:"imported,omitempty"` // from elsewhere: it was never in this log
	Archived time.Time `json:"archived"`

	Root      Digest    `json:"root"`           // Merkle tree hash over the events
	Last      uint64    `json:"last,omitempty"` // sequence up to which the file has what the log had of it; 0: the log had nothing
	Submitted time.Time `json:"submitted"`

	// Artifacts lists what the analysis announced, for whoever looks for
	// artifacts and need not read the file. More counts those that found no room.
	Artifacts []ArchivedArtifact `json:"artifacts"`
	More      int                `json:"more,omitempty"`
	Derived   int                `json:"derived,omitempty"` // artifacts that runs have derived, which are not in the list
}

// MaxArchivedArtifacts bounds the list of an [ArchiveEntry].
const MaxArchivedArtifacts = 2000

// ArchivedArtifact is one line of an [ArchiveEntry]: all announcements of the
// same bytes under the same kind.
type ArchivedArtifact struct {
	Kind        Kind   `json:"kind"`
	SHA256      Digest `json:"sha256"`
	Size        int64  `json:"size"`
	Occurrences int    `json:"occurrences"`
	Depth       int    `json:"depth,omitempty"` // of the first announcement
}
