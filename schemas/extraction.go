// SPDX-License-Identifier: Apache-2.0

package schemas

// KindExtracted is what the analyzer archive takes out of an archive.
const KindExtracted Kind = "extracted"

// ArchiveContents is the data of a finding archive_contents, and of those about
// what was wrong with an archive. All names are the archive's own and untrusted.
type ArchiveContents struct {
	Format    string   `json:"format"`              // zip, tar, gzip, xz, zstd or bzip2
	Entries   int      `json:"entries"`             // that were looked at
	Files     int      `json:"files"`               // regular files with bytes
	Extracted int      `json:"extracted"`           // that are artifacts now
	Bytes     int64    `json:"bytes"`               // of those
	Empty     int      `json:"empty,omitempty"`     // files without bytes
	Dirs      int      `json:"dirs,omitempty"`      // directories
	Links     int      `json:"links,omitempty"`     // symbolic and hard links; not followed
	Special   int      `json:"special,omitempty"`   // devices, pipes and the like; not made
	Encrypted int      `json:"encrypted,omitempty"` // files that are, whether a password opened them or not
	Locked    int      `json:"locked,omitempty"`    // of those, that no password opened
	Password  string   `json:"password,omitempty"`  // that opened one
	LeftOut   int      `json:"left_out,omitempty"`  // files over a limit
	Unknown   int      `json:"unknown,omitempty"`   // files compressed in a way that is not known here
	Damaged   int      `json:"damaged,omitempty"`   // files of which only the beginning could be read, if that
	Damage    string   `json:"damage,omitempty"`    // the first damage
	Names     []string `json:"names,omitempty"`     // of the first files
	Unnamed   int      `json:"unnamed,omitempty"`   // files beyond those
}
