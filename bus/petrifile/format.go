// SPDX-License-Identifier: Apache-2.0

package petrifile

import (
	"encoding/binary"
	"errors"

	"github.com/petri-sandbox/petri/schemas"
)

// Version is the format's.
const Version = 1

// magic begins every file: as in PNG, a byte that no text has and a line ending
// that a transfer as text would change.
const magic = "\x89PETRI\r\n"

// Types of records. A reader skips one of a lower-case type that it does not
// know, and refuses one of an upper-case type.
const (
	recHeader  = 'H' // JSON, Header
	recLog     = 'L' // a zstd frame of entries
	recObject  = 'O' // JSON, Object; its frames follow
	recFrame   = 'F' // a zstd frame of an object's bytes
	recAbsent  = 'A' // JSON, absent: an object whose bytes are not here
	recForeign = 'f' // JSON, foreign: what was left out of the log
	recTrailer = 'T' // JSON, Trailer; nothing follows
)

const (
	frameSize  = 1 << 20 // uncompressed bytes of a log record or a frame
	maxRecord  = 2 << 20 // bytes of a record
	maxJSON    = 64 << 10
	recordHead = 1 + 4     // type and length
	entryHead  = 8 + 2 + 4 // sequence, length of the subject, length of the body
)

// A file of what compresses well may be this much smaller than its contents:
// so much in any case, and beyond that by the ratio.
const (
	ratioFree = 1 << 30
	maxRatio  = 1000
)

var (
	// ErrFormat says that the bytes are no .petri file, or a damaged one.
	ErrFormat = errors.New("not a whole .petri file")
	// ErrVersion says that the file is a newer Petri's.
	ErrVersion = errors.New("the .petri file is of a newer version")
	// ErrLimit says that the file holds more than a reader takes.
	ErrLimit = errors.New("the .petri file exceeds a limit")
	// ErrUnfinished says that an analysis has no ending yet.
	ErrUnfinished = errors.New("the analysis has not ended")
)

// A Header says whose log a file is.
type Header struct {
	Format   int    `json:"format"` // [Version]
	Tenant   string `json:"tenant"`
	Analysis string `json:"analysis"`
	// Thin files have no object's bytes: they lie in the store beside it.
	Thin bool `json:"thin,omitempty"`
}

// Why an object's bytes are not in a file.
const (
	AbsentElsewhere = "elsewhere" // of a thin file: in the store
	AbsentLeftOut   = "left out"  // whoever wrote the file did not want them in it
	AbsentMissing   = "missing"   // whoever wrote the file did not have them
)

// absent is the record of an object without bytes.
type absent struct {
	Object
	Reason string `json:"reason"`
}

// foreign is the record of messages that lay in the log under the analysis'
// subjects and are no events of it. There is none if there were none.
type foreign struct {
	Messages uint64 `json:"messages"`
}

// A Trailer ends a file and says what it holds.
type Trailer struct {
	Events  uint64         `json:"events"`
	Context int            `json:"context"` // context events among them
	Root    schemas.Digest `json:"root"`    // Merkle tree hash over the events
	Objects int            `json:"objects"` // whose bytes are in the file
	Absent  int            `json:"absent"`  // objects whose bytes are not
	SHA256  schemas.Digest `json:"sha256"`  // of all bytes of the file before the trailer's record
	Foreign uint64         `json:"-"`       // messages that were left out: see [Log.Foreign]
}

// appendEntry writes an entry as a log record has it.
func appendEntry(b []byte, e Entry) []byte {
	b = binary.BigEndian.AppendUint64(b, e.Seq)
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.Subject)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Body)))
	b = append(b, e.Subject...)
	return append(b, e.Body...)
}

// cutEntry reads the entry that b begins with, and returns what follows.
func cutEntry(b []byte) (e Entry, rest []byte, err error) {
	if len(b) < entryHead {
		return Entry{}, nil, errEntry
	}
	e.Seq = binary.BigEndian.Uint64(b)
	subject, body := int(binary.BigEndian.Uint16(b[8:])), int64(binary.BigEndian.Uint32(b[10:]))
	b = b[entryHead:]
	if int64(subject)+body > int64(len(b)) {
		return Entry{}, nil, errEntry
	}
	e.Subject, e.Body = string(b[:subject]), b[subject:subject+int(body):subject+int(body)]
	return e, b[subject+int(body):], nil
}

var errEntry = errors.New("an entry is longer than its record")
