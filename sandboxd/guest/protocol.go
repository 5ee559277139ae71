// SPDX-License-Identifier: Apache-2.0

// Package guest is the host's side of guestd: the requests that the agent
// understands, as types that both ends share, and the [Client] that makes them.
//
// What a guest answers is testimony. The Client bounds it, checks its form and
// passes it on; it believes none of it.
package guest

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
)

// Preamble is what guestd writes when it boots, before its first frame: a
// host that resets a guest in the middle of a frame finds the new beginning by
// it. No frame can begin so, because it would be too long.
const Preamble = "\xff\xff\xff\xffPETRI\x00\x01\xff"

// Requests of the host.
const (
	ReqPing     = "ping"
	ReqAssign   = "assign"   // [Assign] → nothing
	ReqNetwork  = "network"  // nothing → [Lease]
	ReqRun      = "run"      // [machine.Run], bytes on [StreamSample] → [RunResult]
	ReqExec     = "exec"     // [machine.Exec] → [schemas.Exec]
	ReqCollect  = "collect"  // [machine.Collect] → [machine.Collected], files on [StreamFiles]
	ReqFlush    = "flush"    // nothing → nothing, when the trace is out
	ReqPoweroff = "poweroff" // nothing → nothing; then the guest goes down
)

// Events of the guest.
const (
	EventHello  = "hello"  // [Hello]
	EventExited = "exited" // [schemas.SampleExited]
	EventTree   = "tree"   // [machine.TreeExited]
	EventFault  = "fault"  // [Fault]
)

// Streams of the link, all but StreamSample from the guest.
const (
	StreamStdout uint16 = iota + 1
	StreamStderr
	StreamTrace
	StreamSample
	StreamFiles
)

// Hello is what the agent says first.
type Hello struct {
	Version int            `json:"version"` // [wire.Version]
	Arch    string         `json:"arch"`    // GOARCH of the agent
	Kernel  string         `json:"kernel"`
	Tracer  schemas.Tracer `json:"tracer"`
}

// Assign gives a guest its identity.
type Assign struct {
	machine.Identity
	// TraceStream asks for the trace on [StreamTrace].
	TraceStream bool `json:"trace_stream"`
}

// Lease is what the guest's DHCP client got.
type Lease struct {
	Address string `json:"address"`
	MAC     string `json:"mac"`
}

// Fault is trouble inside the guest that costs coverage.
type Fault struct {
	Text string `json:"text"`
}

// RunResult answers ReqRun: one of the two.
type RunResult struct {
	Started     *machine.Started     `json:"started,omitempty"`
	NotExecuted *machine.NotExecuted `json:"not_executed,omitempty"`
}

// callTimeout is how long the guest may take for what should take
// milliseconds: an emulated guest on a loaded host can be a thousand times
// slower than an idle one.
const callTimeout = 20 * time.Second

// The stream of collected files is a sequence of records: a type byte, a
// little-endian uint32 length, and the payload.
const (
	recordFile = 'F' // JSON [schemas.DroppedFile]; data follows if Stored
	recordData = 'D'
	recordEnd  = 'E' // JSON [wire.Status]
)

// maxRecord bounds one record's payload.
const maxRecord = wire.MaxPayload

// A FilesWriter writes collected files in the form that the Client reads.
type FilesWriter struct{ w io.Writer }

// NewFilesWriter returns a FilesWriter over the stream's writer.
func NewFilesWriter(w io.Writer) *FilesWriter { return &FilesWriter{w: w} }

// File announces a file. If f.Stored is set its bytes and an End must follow.
func (fw *FilesWriter) File(f schemas.DroppedFile) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return fw.record(recordFile, b)
}

// Write sends bytes of the file announced last.
func (fw *FilesWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := min(len(p)-done, maxRecord/2)
		if err := fw.record(recordData, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// End ends the file announced last.
func (fw *FilesWriter) End(s wire.Status) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return fw.record(recordEnd, b)
}

func (fw *FilesWriter) record(typ byte, payload []byte) error {
	if len(payload) > maxRecord {
		return fmt.Errorf("file record has %d bytes, more than %d", len(payload), maxRecord)
	}
	b := make([]byte, 0, 5+len(payload))
	b = append(b, typ)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	_, err := fw.w.Write(append(b, payload...))
	return err
}

// filesReader takes the stream apart again. It is fed by Write, whose calls
// need not end at record boundaries.
type filesReader struct {
	observer machine.Observer
	buf      []byte
	file     machine.FileWriter
	err      error
}

func (r *filesReader) feed(p []byte) error {
	if r.err != nil {
		return r.err
	}
	r.buf = append(r.buf, p...)
	for len(r.buf) >= 5 {
		n := binary.LittleEndian.Uint32(r.buf[1:])
		if n > maxRecord {
			return r.fail(fmt.Errorf("%w: file record of %d bytes", wire.ErrProtocol, n))
		}
		if len(r.buf) < 5+int(n) {
			break
		}
		if err := r.record(r.buf[0], r.buf[5:5+n]); err != nil {
			return r.fail(err)
		}
		r.buf = r.buf[5+n:]
	}
	r.buf = append(make([]byte, 0, maxRecord+5), r.buf...)
	return nil
}

func (r *filesReader) record(typ byte, payload []byte) error {
	switch {
	case typ == recordFile && r.file == nil:
		var f schemas.DroppedFile
		if err := json.Unmarshal(payload, &f); err != nil {
			return fmt.Errorf("%w: file record: %v", wire.ErrProtocol, err)
		}
		w := r.observer.File(f)
		if f.Stored {
			r.file = w
		}
		return nil
	case typ == recordData && r.file != nil:
		_, err := r.file.Write(payload)
		return err
	case typ == recordEnd && r.file != nil:
		var s wire.Status
		if err := json.Unmarshal(payload, &s); err != nil {
			return fmt.Errorf("%w: file record: %v", wire.ErrProtocol, err)
		}
		r.end(s)
		return nil
	}
	return fmt.Errorf("%w: file record %q out of place", wire.ErrProtocol, typ)
}

func (r *filesReader) end(s wire.Status) {
	var err error
	if s.Error != "" {
		err = fmt.Errorf("in the guest: %s", s.Error)
	}
	r.file.Close(s.Cut, err)
	r.file = nil
}

func (r *filesReader) fail(err error) error {
	r.err = err
	if r.file != nil {
		r.file.Close(0, err)
		r.file = nil
	}
	return err
}
