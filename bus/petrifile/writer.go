// SPDX-License-Identifier: Apache-2.0

package petrifile

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/petri-sandbox/petri/schemas"
)

// A Writer writes one file: the events in the log's order, then each object
// that they name, in the order of [Writer.Due], then the trailer. The same log
// and objects give the same bytes. What it is given it checks as a reader
// would, so that nothing is written that cannot be read. It is for one
// goroutine; after an error the file is of no use.
type Writer struct {
	w       io.Writer
	sum     hash.Hash
	header  Header
	log     *Log
	enc     *zstd.Encoder
	block   []byte // entries that wait for their record
	packed  []byte
	head    [recordHead]byte
	ended   bool // the log has
	next    int  // object that is due
	trailer Trailer
}

// NewWriter begins a file. The caller closes w, after [Writer.Close].
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	h.Format = Version
	log, err := NewLog(h.Tenant, h.Analysis, "")
	if err != nil {
		return nil, err
	}
	enc, err := newEncoder()
	if err != nil {
		return nil, err
	}
	f := &Writer{sum: sha256.New(), header: h, log: log, enc: enc}
	f.w = io.MultiWriter(w, f.sum)
	if _, err := io.WriteString(f.w, magic); err != nil {
		return nil, err
	}
	return f, f.json(recHeader, h)
}

func newEncoder() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(true), zstd.WithEncoderConcurrency(1))
}

func (f *Writer) record(typ byte, payload []byte) error {
	f.head[0] = typ
	binary.BigEndian.PutUint32(f.head[1:], uint32(len(payload)))
	if _, err := f.w.Write(f.head[:]); err != nil {
		return err
	}
	_, err := f.w.Write(payload)
	return err
}

func (f *Writer) json(typ byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return f.record(typ, b)
}

// Log is what has been written so far.
func (f *Writer) Log() *Log { return f.log }

// Event writes the next event.
func (f *Writer) Event(e Entry) (schemas.Event, error) {
	if f.ended {
		return schemas.Event{}, errors.New("write an event behind the log's end")
	}
	ev, err := f.log.Add(e)
	if err != nil {
		return schemas.Event{}, err
	}
	if len(f.block)+entryHead+len(e.Subject)+len(e.Body) > frameSize {
		if err := f.flush(); err != nil {
			return schemas.Event{}, err
		}
	}
	f.block = appendEntry(f.block, e)
	return ev, nil
}

// flush writes the entries that wait.
func (f *Writer) flush() error {
	if len(f.block) == 0 {
		return nil
	}
	f.packed = f.enc.EncodeAll(f.block, f.packed[:0])
	f.block = f.block[:0]
	return f.record(recLog, f.packed)
}

// endLog writes, once, the entries that wait and how much was left out.
func (f *Writer) endLog() error {
	if f.ended {
		return nil
	}
	f.ended = true
	if err := f.flush(); err != nil {
		return err
	}
	if n := f.log.Foreign(); n > 0 {
		return f.json(recForeign, foreign{n})
	}
	return nil
}

// Due is the object that the file must have next, if any is left.
func (f *Writer) Due() (o Object, ok bool) {
	if list := f.log.Objects(); f.next < len(list) {
		return list[f.next], true
	}
	return Object{}, false
}

var errNoObject = errors.New("no object is due")

// Object writes the bytes of the object that is due. If r does not give just
// these it is an error.
func (f *Writer) Object(r io.Reader) error {
	o, ok := f.Due()
	if !ok || f.header.Thin {
		return errNoObject
	}
	if err := f.endLog(); err != nil {
		return err
	}
	if err := f.json(recObject, o); err != nil {
		return err
	}
	sum, size := sha256.New(), int64(0)
	frame := make([]byte, min(frameSize, o.Size+1)) // one more than there are shows that there are more
	for {
		n, err := io.ReadFull(r, frame)
		if n > 0 {
			size += int64(n)
			sum.Write(frame[:n])
			f.packed = f.enc.EncodeAll(frame[:n], f.packed[:0])
			if err := f.record(recFrame, f.packed); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read object %s: %w", o.SHA256, err)
		}
		if size > o.Size {
			break
		}
	}
	if size != o.Size || schemas.Digest(sum.Sum(nil)) != o.SHA256 {
		return fmt.Errorf("object %s: its bytes are others than the log names", o.SHA256)
	}
	f.next++
	f.trailer.Objects++
	return nil
}

// Absent says why the bytes of the object that is due are not in the file.
func (f *Writer) Absent(reason string) error {
	o, ok := f.Due()
	if !ok {
		return errNoObject
	}
	if err := f.endLog(); err != nil {
		return err
	}
	if err := f.json(recAbsent, absent{o, reason}); err != nil {
		return err
	}
	f.next++
	f.trailer.Absent++
	return nil
}

// Close writes the trailer. Of a thin file it first says of each object that it
// is elsewhere.
func (f *Writer) Close() (Trailer, error) {
	if f.log.Ending() == "" {
		return Trailer{}, ErrUnfinished
	}
	for f.header.Thin {
		if _, ok := f.Due(); !ok {
			break
		}
		if err := f.Absent(AbsentElsewhere); err != nil {
			return Trailer{}, err
		}
	}
	if o, ok := f.Due(); ok {
		return Trailer{}, fmt.Errorf("object %s is due", o.SHA256)
	}
	if err := f.endLog(); err != nil {
		return Trailer{}, err
	}
	t := &f.trailer
	t.Events, t.Context, t.Root = f.log.Events(), f.log.Context(), f.log.Root()
	t.SHA256, t.Foreign = schemas.Digest(f.sum.Sum(nil)), f.log.Foreign()
	return *t, f.json(recTrailer, *t)
}
