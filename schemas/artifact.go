// SPDX-License-Identifier: Apache-2.0

package schemas

import (
	"strconv"
	"strings"
	"time"
)

// Artifact announces bytes in the store. The same bytes may be announced more
// than once in an analysis: each occurrence is a fact of its own.
type Artifact struct {
	Kind       Kind      `json:"kind"`
	SHA256     Digest    `json:"sha256"`
	Size       int64     `json:"size"`                 // bytes, uncompressed
	Occurrence int       `json:"occurrence"`           // from 0, per kind and digest
	MediaType  string    `json:"media_type,omitempty"` // of the bytes
	Name       string    `json:"name,omitempty"`       // a path or title for people; untrusted text
	File       *FileMeta `json:"file,omitempty"`       // of a dropped file
	Cut        int64     `json:"cut,omitempty"`        // bytes left out because of a limit
	Event      string    `json:"event,omitempty"`      // context event that it was made at
	Parent     *Digest   `json:"parent,omitempty"`     // artifact that it was derived from
	Depth      int       `json:"depth,omitempty"`      // derivations from what sandboxd announced
	Analyzer   string    `json:"analyzer,omitempty"`   // who derived it
	Run        string    `json:"run,omitempty"`        // replay or hunt that it was derived in; none: it was announced
}

// EventType implements [Typed].
func (Artifact) EventType() string { return "petri.artifact.announced.v1" }

// ID is the id of the announcement's event.
func (a *Artifact) ID(analysis string) string {
	return strings.Join([]string{analysis, "artifact", string(a.Kind), a.SHA256.Token(), strconv.Itoa(a.Occurrence)}, "/")
}

// Derivation is an artifact that an analyzer derived in a run. It is no
// announcement: but for the run's own analyzers, nobody has a task for it.
type Derivation struct {
	Task     TaskRef  `json:"task"` // that it was derived in
	Artifact Artifact `json:"artifact"`
}

// EventType implements [Typed].
func (Derivation) EventType() string { return "petri.derivation.committed.v1" }

// ID is the id of the derivation's event.
func (d *Derivation) ID() string {
	a := &d.Artifact
	return strings.Join([]string{d.Task.Analysis, "derivation", d.Task.Run, string(a.Kind), a.SHA256.Token(), strconv.Itoa(a.Occurrence)}, "/")
}

// FileMeta is what the guest's file system said of a file.
type FileMeta struct {
	Path     string    `json:"path"`
	Mode     uint32    `json:"mode"` // permission bits, and set-id and sticky as in stat(2)
	UID      int       `json:"uid"`
	GID      int       `json:"gid"`
	Modified time.Time `json:"modified"`
	// Change is created, modified or deleted; attributes, where only mode, owner
	// or times are others than in the image. A deleted file that has bytes was kept
	// from before its deletion.
	Change string `json:"change"`
	Target string `json:"target,omitempty"` // of a symbolic link
	// From is the image's path of a deleted file that has the bytes of this one: it
	// was renamed, or copied and deleted.
	From string `json:"from,omitempty"`
	// Before is what the image has there.
	Before *FileBefore `json:"before,omitempty"`
	// OpenIn are processes that have it open or run it, although it has no name.
	OpenIn []int `json:"open_in,omitempty"`
}

// FileBefore is a file of the image's.
type FileBefore struct {
	SHA256 *Digest `json:"sha256,omitempty"` // of a regular file
	Size   int64   `json:"size"`
	Mode   uint32  `json:"mode"`
	UID    int     `json:"uid"`
	GID    int     `json:"gid"`
}

// FileChanges are the changes of a [FileMeta].
var FileChanges = []string{"created", "modified", "attributes", "deleted"}

// Source names a high-volume stream of an analysis.
type Source string

// The streams of an analysis.
const (
	SourceTrace  Source = "trace"  // system calls, package trace
	SourcePcap   Source = "pcap"   // frames of the guest's network, pcapng
	SourceStdout Source = "stdout" // of the sample
	SourceStderr Source = "stderr"
	SourceSerial Source = "serial" // the guest kernel's console
	// SourceDropped is no stream: it counts the files that the sample changed.
	SourceDropped Source = "dropped"
)

// Segment is one piece of a source, published while the guest runs. Small
// sources carry their bytes in the event; of large ones the store holds them.
type Segment struct {
	Source   Source    `json:"source"`
	N        int       `json:"n"`               // from 0
	SHA256   Digest    `json:"sha256"`          // of the bytes
	Size     int64     `json:"size"`            // bytes
	First    uint64    `json:"first"`           // number of its first record
	Records  uint64    `json:"records"`         // how many it holds
	Produced uint64    `json:"produced"`        // records that the source has made until its end
	Lost     uint64    `json:"lost"`            // of those, never seen
	Prev     *Digest   `json:"prev,omitempty"`  // the predecessor's sha256
	Data     []byte    `json:"data,omitempty"`  // the bytes, if they are here
	From     time.Time `json:"from"`            // when its first byte arrived
	Final    bool      `json:"final,omitempty"` // none follows
}

// EventType implements [Typed].
func (Segment) EventType() string { return "petri.segment.published.v1" }

// ID is the id of the segment's event.
func (s *Segment) ID(analysis string) string {
	return strings.Join([]string{analysis, "segment", string(s.Source), strconv.Itoa(s.N)}, "/")
}

// Manifest is an artifact that stands for a source's segments: their bytes one
// after the other are the source's. Its media type is [ManifestMediaType].
type Manifest struct {
	Schema    string            `json:"schema"` // petri.manifest.v1
	Source    Source            `json:"source"`
	MediaType string            `json:"media_type"` // of the bytes
	Segments  []ManifestSegment `json:"segments"`
	Size      int64             `json:"size"` // bytes in all
	Coverage  SourceCoverage    `json:"coverage"`
}

// ManifestSegment is one line of a [Manifest].
type ManifestSegment struct {
	SHA256  Digest `json:"sha256"`
	Size    int64  `json:"size"`
	First   uint64 `json:"first"`
	Records uint64 `json:"records"`
}

// ManifestSchema is the schema field of a [Manifest].
const ManifestSchema = "petri.manifest.v1"

// Media types of artifacts.
const (
	ManifestMediaType = "application/vnd.petri.manifest+json"
	TraceMediaType    = "application/vnd.petri.trace"
	PcapMediaType     = "application/x-pcapng"
	DropsMediaType    = "application/vnd.petri.drops+json"
	TemplateMediaType = "application/vnd.petri.template+json"
	CoreMediaType     = "application/x-coredump"
)

// DropList is the artifact that lists everything that the sample changed in
// the guest's file system, also what was too much or too large to collect.
type DropList struct {
	Schema  string        `json:"schema"` // petri.drops.v1
	Files   []DroppedFile `json:"files"`
	Omitted int64         `json:"omitted,omitempty"` // files beyond the list's own limit
}

// DropsSchema is the schema field of a [DropList].
const DropsSchema = "petri.drops.v1"

// DroppedFile is one line of a [DropList].
type DroppedFile struct {
	FileMeta
	Type   string  `json:"type"` // file, directory, link, device, fifo, socket or, where it was deleted, none
	Size   int64   `json:"size"`
	SHA256 *Digest `json:"sha256,omitempty"` // of files that were read; by the guest's word where they were not collected
	Stored bool    `json:"stored"`           // an artifact holds the bytes
	Reason string  `json:"reason,omitempty"` // why not
}

// DroppedTypes are the types of a [DroppedFile].
var DroppedTypes = []string{"file", "directory", "link", "device", "fifo", "socket", "none"}

// Template is the artifact that says what warm machines are restored from.
type Template struct {
	Schema    string   `json:"schema"`  // petri.template.v1
	Version   string   `json:"version"` // of QEMU
	Command   []string `json:"command"`
	Image     string   `json:"image"`
	Kernel    Digest   `json:"kernel"`
	Initramfs Digest   `json:"initramfs"`
	RAM       Digest   `json:"ram"`
	State     Digest   `json:"state"`
}

// TemplateSchema is the schema field of a [Template].
const TemplateSchema = "petri.template.v1"
