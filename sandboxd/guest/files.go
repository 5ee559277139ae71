// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
)

// The stream of collected files is a sequence of records: a type byte, a
// little-endian uint32 length, and the payload.
const (
	recordFile = 'F' // JSON [schemas.DroppedFile]; data follows if Stored
	recordData = 'D'
	recordEnd  = 'E' // JSON [wire.Status]
)

// maxRecord bounds one record's payload.
const maxRecord = wire.MaxPayload

// A FilesWriter writes collected files in the form that the Client reads. It
// gathers small records, since each write to the port costs a round trip to the
// host; Flush comes after the last.
type FilesWriter struct{ w *bufio.Writer }

// NewFilesWriter returns a FilesWriter over the stream's writer.
func NewFilesWriter(w io.Writer) *FilesWriter {
	return &FilesWriter{w: bufio.NewWriterSize(w, maxRecord/2)}
}

// Flush writes what has been gathered.
func (fw *FilesWriter) Flush() error { return fw.w.Flush() }

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
	head := [5]byte{typ}
	binary.LittleEndian.PutUint32(head[1:], uint32(len(payload)))
	if _, err := fw.w.Write(head[:]); err != nil {
		return err
	}
	_, err := fw.w.Write(payload)
	return err
}

// A FilesSink takes the stream apart again and hands the files to an observer.
// Whoever sends more than was asked for breaks the protocol.
type FilesSink struct {
	observer machine.Observer
	limits   machine.Collect
	buf      []byte
	file     machine.FileWriter
	err      error
	done     chan struct{}

	listed, stored int
	size, total    int64 // bytes of this file, and of all
}

// NewFilesSink returns a sink for one stream of files, the answer to q.
func NewFilesSink(o machine.Observer, q machine.Collect) *FilesSink {
	return &FilesSink{observer: o, limits: q, done: make(chan struct{})}
}

// Write implements [wire.Sink]. Pieces need not end where records do.
func (r *FilesSink) Write(p []byte) {
	if r.err == nil {
		_ = r.feed(p)
	}
}

// End implements [wire.Sink].
func (r *FilesSink) End(st wire.Status) {
	switch {
	case r.err != nil:
	case st.Error != "":
		_ = r.fail(fmt.Errorf("in the guest: %s", clip(st.Error, maxReason)))
	case r.file != nil || len(r.buf) > 0:
		_ = r.fail(io.ErrUnexpectedEOF)
	}
	close(r.done)
}

// Wait returns when the stream has ended, and how.
func (r *FilesSink) Wait(ctx context.Context) error {
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("collect files: %w", ctx.Err())
	}
}

func (r *FilesSink) feed(p []byte) error {
	r.buf = append(r.buf, p...)
	rest := r.buf
	for len(rest) >= 5 {
		n := binary.LittleEndian.Uint32(rest[1:])
		if n > maxRecord {
			return r.fail(fmt.Errorf("%w: file record of %d bytes", wire.ErrProtocol, n))
		}
		if len(rest) < 5+int(n) {
			break
		}
		if err := r.record(rest[0], rest[5:5+n]); err != nil {
			return r.fail(err)
		}
		rest = rest[5+n:]
	}
	// The same memory again: a guest may send a byte at a time.
	r.buf = r.buf[:copy(r.buf, rest)]
	return nil
}

func (r *FilesSink) record(typ byte, payload []byte) error {
	switch {
	case typ == recordFile && r.file == nil:
		var f schemas.DroppedFile
		if err := json.Unmarshal(payload, &f); err != nil {
			return fmt.Errorf("%w: file record: %v", wire.ErrProtocol, err)
		}
		f, err := checkFile(f)
		if err != nil {
			return fmt.Errorf("%w: file record: %v", wire.ErrProtocol, err)
		}
		if r.listed++; r.listed > r.limits.MaxList {
			return fmt.Errorf("%w: more than %d files", wire.ErrProtocol, r.limits.MaxList)
		}
		if f.Stored {
			if r.stored++; r.stored > r.limits.MaxFiles {
				return fmt.Errorf("%w: bytes of more than %d files", wire.ErrProtocol, r.limits.MaxFiles)
			}
		}
		w := r.observer.File(f)
		if f.Stored {
			r.file, r.size = w, 0
		}
		return nil
	case typ == recordData && r.file != nil:
		r.size += int64(len(payload))
		r.total += int64(len(payload))
		if r.size > r.limits.MaxFile || r.total > r.limits.MaxTotal {
			return fmt.Errorf("%w: %d bytes of a file, %d in all, which is more than was asked for", wire.ErrProtocol, r.size, r.total)
		}
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

func (r *FilesSink) end(s wire.Status) {
	var err error
	if s.Error != "" {
		err = fmt.Errorf("in the guest: %s", clip(s.Error, maxReason))
	}
	r.file.Close(max(0, s.Cut), err)
	r.file = nil
}

func (r *FilesSink) fail(err error) error {
	r.err = err
	if r.file != nil {
		r.file.Close(0, err)
		r.file = nil
	}
	return err
}
