// SPDX-License-Identifier: Apache-2.0

package analyzers

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/petri-sandbox/petri/analyzers/internal/jail"
	"github.com/petri-sandbox/petri/schemas"
)

// What a child writes is a sequence of frames: a byte for the type, the length
// of the payload as a big-endian uint32, the payload. The first is a hello,
// the last an end; a result or derived frame is followed by data frames and a
// commit or an abort.
const (
	frameHello   = 'H' // helloFrame
	frameFinding = 'F' // schemas.Finding
	frameResult  = 'R' // schemas.ResultRef
	frameDerived = 'D' // schemas.Derived
	frameData    = 'B' // bytes
	frameCommit  = 'C' // nothing
	frameAbort   = 'A' // nothing
	frameEnd     = 'E' // endFrame
)

// dataSize is how many bytes a data frame holds at most.
const dataSize = 64 << 10

// frameLimits bound the payloads, by type; others are not known.
var frameLimits = map[byte]uint32{
	frameHello:   1 << 10,
	frameFinding: schemas.MaxFindingData + 192<<10,
	frameResult:  1 << 10,
	frameDerived: 32 << 10,
	frameData:    dataSize,
	frameCommit:  0,
	frameAbort:   0,
	frameEnd:     16 << 10,
}

type helloFrame struct {
	Jail jail.Status `json:"jail"`
}

type endFrame struct {
	Status string           `json:"status"`
	Error  string           `json:"error,omitempty"`
	Cut    *schemas.TaskCut `json:"cut,omitempty"`
}

// limits are what a task may hand in. The child keeps to them; the parent
// checks.
type limits struct {
	Findings     int   `json:"findings"`
	FindingBytes int   `json:"finding_bytes"` // of all findings' JSON
	Result       int64 `json:"result"`        // bytes
	Derived      int   `json:"derived"`
	DerivedBytes int   `json:"derived_bytes"` // of all derived artifacts' announcements' JSON
	DerivedEach  int64 `json:"derived_each"`  // bytes
	DerivedAll   int64 `json:"derived_all"`   // bytes
}

// request is what the parent writes to a child's standard input. The files
// follow the output in the child's descriptors, in the order of the fields.
type request struct {
	Analyzer string           `json:"analyzer"` // empty: only say hello
	Version  string           `json:"version"`
	Config   []byte           `json:"config,omitempty"` // of an analyzer that a [Maker] makes
	Jail     jail.Limits      `json:"jail"`
	Threads  int              `json:"threads"`
	Deadline schemas.Duration `json:"deadline"` // of Analyze's context
	Limits   limits           `json:"limits"`
	Task     schemas.TaskRef  `json:"task"`
	Input    *inputRef        `json:"input,omitempty"`
	Others   []inputRef       `json:"others,omitempty"`
	Omitted  int              `json:"omitted,omitempty"`
	Events   int64            `json:"events,omitempty"` // bytes of JSON lines; -1: none, not even a file
}

// inputRef is a file that a child inherits.
type inputRef struct {
	Artifact schemas.Artifact  `json:"artifact"`
	Manifest *schemas.Manifest `json:"manifest,omitempty"`
	Size     int64             `json:"size"`
}

// maxRequest bounds a request; a manifest is the largest part.
const maxRequest = 64 << 20

func writeFrame(w io.Writer, typ byte, payload []byte) error {
	var head [5]byte
	head[0] = typ
	binary.BigEndian.PutUint32(head[1:], uint32(len(payload)))
	if _, err := w.Write(head[:]); err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	if _, err := w.Write(payload); err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	return nil
}

func writeJSONFrame(w io.Writer, typ byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	return writeFrame(w, typ, b)
}

var errGarbage = errors.New("garbage")

// readFrame reads one frame into buf, which it may grow, and returns the
// payload as part of it. The error is io.EOF at the end between two frames,
// and wraps errGarbage for what is no frame.
func readFrame(r io.Reader, buf *[]byte) (byte, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, nil, fmt.Errorf("%w: half a frame", errGarbage)
		}
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	limit, ok := frameLimits[head[0]]
	if !ok {
		return 0, nil, fmt.Errorf("%w: no frame begins with %q", errGarbage, head[:])
	}
	if n > limit {
		return 0, nil, fmt.Errorf("%w: frame %q of %d bytes; %d are allowed", errGarbage, head[0], n, limit)
	}
	if uint32(cap(*buf)) < n {
		*buf = make([]byte, n)
	}
	b := (*buf)[:n]
	if _, err := io.ReadFull(r, b); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, nil, fmt.Errorf("%w: half a frame", errGarbage)
		}
		return 0, nil, err
	}
	return head[0], b, nil
}
