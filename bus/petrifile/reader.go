// SPDX-License-Identifier: Apache-2.0

package petrifile

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/petri-sandbox/petri/schemas"
)

// An Item is what a file holds next: an event, or an object.
type Item struct {
	Entry  *Entry        // of an event; its body is valid until the next call of Next
	Event  schemas.Event // the same, parsed
	Object *Object       // none: it is an event
	Absent string        // why the object's bytes are not in the file; empty: they follow
}

// A Reader reads a file from front to end. It gives nothing that it has not
// checked, but only [io.EOF] from Next says that the file is whole. Use it as
// archive/tar's: Next, then Read for the bytes of an object. It is for one
// goroutine; the caller calls Close.
type Reader struct {
	in      *bufio.Reader
	sum     hash.Hash // of what was read before the record that is being read
	header  Header
	log     *Log
	dec     *zstd.Decoder
	payload []byte // of the last record
	raw     []byte // uncompressed contents of the last log record or frame
	entries []byte // of raw, not given yet
	next    int    // object that is due
	counts  Trailer
	stored  int64 // bytes of records
	total   int64 // bytes of their contents
	trailer *Trailer

	object *Object // whose bytes are being read
	osum   hash.Hash
	size   int64
	rest   []byte // of raw, not read yet
	err    error  // that ended the reading
}

// NewReader reads a file's beginning. key is as in [NewLog].
func NewReader(r io.Reader, key string) (*Reader, error) {
	f := &Reader{in: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(f.in, head); err != nil || string(head) != magic {
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: it does not begin as one", ErrFormat)
	}
	f.sum.Write(head)
	typ, err := f.record()
	if err != nil {
		return nil, err
	}
	if typ != recHeader {
		return nil, fmt.Errorf("%w: its first record is no header", ErrFormat)
	}
	if err := f.json(&f.header); err != nil {
		return nil, err
	}
	if f.header.Format > Version {
		return nil, fmt.Errorf("%w: %d; this Petri reads up to %d", ErrVersion, f.header.Format, Version)
	}
	if f.header.Format != Version {
		return nil, fmt.Errorf("%w: format %d", ErrFormat, f.header.Format)
	}
	if f.log, err = NewLog(f.header.Tenant, f.header.Analysis, key); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	f.dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*frameSize))
	return f, err
}

// Header is the file's.
func (f *Reader) Header() Header { return f.header }

// Log is what has been read so far.
func (f *Reader) Log() *Log { return f.log }

// Trailer is the file's, once Next has returned [io.EOF].
func (f *Reader) Trailer() Trailer {
	if f.trailer == nil {
		return Trailer{}
	}
	return *f.trailer
}

// Close frees what the reader holds.
func (f *Reader) Close() {
	if f.dec != nil {
		f.dec.Close()
	}
}

// record reads the next record into payload and returns its type. Of an unknown
// type it refuses an upper-case one and skips a lower-case one.
func (f *Reader) record() (byte, error) {
	for {
		var head [recordHead]byte
		if err := f.full(head[:]); err != nil {
			return 0, err
		}
		typ, n := head[0], binary.BigEndian.Uint32(head[1:])
		skip := typ >= 'a' && typ <= 'z'
		switch typ {
		case recHeader, recLog, recObject, recFrame, recAbsent, recTrailer:
		case recForeign:
			skip = false
		default:
			if !skip {
				return 0, fmt.Errorf("%w: a record has the type %q (a newer Petri may know it)", ErrFormat, typ)
			}
		}
		if n > maxRecord {
			return 0, fmt.Errorf("%w: a record has %d bytes; %d are allowed", ErrLimit, n, maxRecord)
		}
		f.payload = slices.Grow(f.payload[:0], int(n))[:n]
		if err := f.full(f.payload); err != nil {
			return 0, err
		}
		f.stored += int64(n)
		if typ != recTrailer { // its digest is of what comes before it
			f.sum.Write(head[:])
			f.sum.Write(f.payload)
		}
		if !skip {
			return typ, nil
		}
	}
}

func (f *Reader) full(b []byte) error {
	_, err := io.ReadFull(f.in, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it is cut off", ErrFormat)
	}
	return err
}

// json reads the payload.
func (f *Reader) json(v any) error {
	if len(f.payload) > maxJSON {
		return fmt.Errorf("%w: a record has %d bytes; %d are allowed", ErrLimit, len(f.payload), maxJSON)
	}
	if err := json.Unmarshal(f.payload, v); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}

// unpack decompresses the payload into raw.
func (f *Reader) unpack() error {
	var err error
	if f.raw, err = f.dec.DecodeAll(f.payload, f.raw[:0]); err != nil || len(f.raw) > frameSize {
		return fmt.Errorf("%w: a record cannot be decompressed (%v)", ErrFormat, err)
	}
	if len(f.raw) == 0 {
		return fmt.Errorf("%w: a record is empty", ErrFormat)
	}
	f.total += int64(len(f.raw))
	if f.total-ratioFree > f.stored*maxRatio {
		return fmt.Errorf("%w: it is compressed more than %d times", ErrLimit, maxRatio)
	}
	return nil
}

// Next returns the next item, or [io.EOF] behind the last one of a whole file.
// Bytes of an object that have not been read are read, and checked, first.
func (f *Reader) Next() (Item, error) {
	if f.err != nil {
		return Item{}, f.err
	}
	item, err := f.item()
	if f.trailer == nil && errors.Is(err, io.EOF) {
		// The end of something inside, such as of an event's JSON: whoever
		// takes that for the end of the file takes a part for the whole.
		err = fmt.Errorf("%w: %v", ErrFormat, err)
	}
	if err != nil {
		f.err = err
	}
	return item, err
}

func (f *Reader) item() (Item, error) {
	if f.object != nil {
		if _, err := io.Copy(io.Discard, readerFunc(f.read)); err != nil {
			return Item{}, err
		}
		f.object = nil
	}
	for len(f.entries) == 0 {
		typ, err := f.record()
		if err != nil {
			return Item{}, err
		}
		switch typ {
		case recLog:
			if f.next > 0 {
				return Item{}, fmt.Errorf("%w: events come behind objects", ErrFormat)
			}
			if err := f.unpack(); err != nil {
				return Item{}, err
			}
			f.entries = f.raw
		case recObject, recAbsent:
			return f.due(typ)
		case recForeign:
			if f.next > 0 {
				return Item{}, fmt.Errorf("%w: a record %q is out of place", ErrFormat, typ)
			}
			if err := f.foreign(); err != nil {
				return Item{}, err
			}
		case recTrailer:
			return Item{}, f.end()
		default:
			return Item{}, fmt.Errorf("%w: a record %q is out of place", ErrFormat, typ)
		}
	}
	e, rest, err := cutEntry(f.entries)
	if err != nil {
		return Item{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	f.entries = rest
	ev, err := f.log.Add(e)
	if err != nil {
		return Item{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return Item{Entry: &e, Event: ev}, nil
}

// foreign reads how much was left out.
func (f *Reader) foreign() error {
	var r foreign
	if err := f.json(&r); err != nil {
		return err
	}
	if f.log.Foreign() > 0 || r.Messages == 0 || r.Messages > maxForeign {
		return fmt.Errorf("%w: it says more than once, or cannot, that %d messages were left out", ErrFormat, r.Messages)
	}
	f.log.SetForeign(r.Messages)
	return nil
}

// maxForeign is more than any log holds, and no less than JSON's readers count to.
const maxForeign = 1 << 53

// due reads the record of an object, which must be the next that the log names.
func (f *Reader) due(typ byte) (Item, error) {
	var a absent
	if err := f.json(&a); err != nil {
		return Item{}, err
	}
	list := f.log.Objects()
	if f.next >= len(list) {
		return Item{}, fmt.Errorf("%w: object %s is not one that the log names", ErrFormat, a.SHA256)
	}
	o := list[f.next]
	if a.SHA256 != o.SHA256 || a.Size != o.Size {
		return Item{}, fmt.Errorf("%w: object %s of %d bytes is in the place of %s of %d", ErrFormat, a.SHA256, a.Size, o.SHA256, o.Size)
	}
	f.next++
	if typ == recAbsent {
		switch a.Reason {
		case AbsentElsewhere, AbsentLeftOut, AbsentMissing:
		default:
			return Item{}, fmt.Errorf("%w: object %s is absent because of %.40q", ErrFormat, a.SHA256, a.Reason)
		}
		f.counts.Absent++
		return Item{Object: &o, Absent: a.Reason}, nil
	}
	if f.header.Thin {
		return Item{}, fmt.Errorf("%w: it is thin, and has an object's bytes", ErrFormat)
	}
	f.counts.Objects++
	f.object, f.osum, f.size, f.rest = &o, sha256.New(), 0, nil
	return Item{Object: &o}, nil
}

// Read gives the bytes of the object that Next returned last, and [io.EOF] only
// if they are the ones that its digest names.
func (f *Reader) Read(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	if f.object == nil {
		return 0, io.EOF
	}
	n, err := f.read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}

type readerFunc func([]byte) (int, error)

func (r readerFunc) Read(p []byte) (int, error) { return r(p) }

func (f *Reader) read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		if f.size == f.object.Size {
			if schemas.Digest(f.osum.Sum(nil)) != f.object.SHA256 {
				return 0, fmt.Errorf("%w: the bytes of object %s have another digest", ErrFormat, f.object.SHA256)
			}
			return 0, io.EOF
		}
		typ, err := f.record()
		if err != nil {
			return 0, err
		}
		if typ != recFrame {
			return 0, fmt.Errorf("%w: bytes of object %s are missing", ErrFormat, f.object.SHA256)
		}
		if err := f.unpack(); err != nil {
			return 0, err
		}
		f.size += int64(len(f.raw))
		if f.size > f.object.Size {
			return 0, fmt.Errorf("%w: object %s has more than its %d bytes", ErrFormat, f.object.SHA256, f.object.Size)
		}
		f.osum.Write(f.raw)
		f.rest = f.raw
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// end compares the trailer with what was read. Nothing may follow it.
func (f *Reader) end() error {
	t := new(Trailer)
	if err := f.json(t); err != nil {
		return err
	}
	want := f.counts
	want.Events, want.Context, want.Root = f.log.Events(), f.log.Context(), f.log.Root()
	want.SHA256, want.Foreign = schemas.Digest(f.sum.Sum(nil)), f.log.Foreign()
	t.Foreign = want.Foreign // the trailer does not say
	// No digest covers the trailer itself: it has one form.
	if b, err := json.Marshal(t); err != nil || !bytes.Equal(b, f.payload) {
		return fmt.Errorf("%w: its trailer is damaged", ErrFormat)
	}
	switch {
	case t.SHA256 != want.SHA256:
		return fmt.Errorf("%w: its bytes are not those that were written", ErrFormat)
	case *t != want:
		return fmt.Errorf("%w: its trailer counts other events or objects than it holds", ErrFormat)
	case f.log.Ending() == "":
		return fmt.Errorf("%w: %w", ErrFormat, ErrUnfinished)
	case f.next < len(f.log.Objects()):
		return fmt.Errorf("%w: object %s is neither in it nor said to be absent", ErrFormat, f.log.Objects()[f.next].SHA256)
	}
	if _, err := f.in.ReadByte(); !errors.Is(err, io.EOF) {
		if err != nil {
			return err
		}
		return fmt.Errorf("%w: something follows its end", ErrFormat)
	}
	f.trailer = t
	return io.EOF
}

// Verify reads a whole file and returns the header, the trailer and what its
// checkpoints cover. key is as in [NewLog].
func Verify(r io.Reader, key string) (Header, Trailer, Coverage, error) {
	f, err := NewReader(r, key)
	if err != nil {
		return Header{}, Trailer{}, Coverage{}, err
	}
	defer f.Close()
	for {
		if _, err := f.Next(); errors.Is(err, io.EOF) {
			return f.header, f.Trailer(), f.log.Coverage(), nil
		} else if err != nil {
			return f.header, Trailer{}, f.log.Coverage(), err
		}
	}
}

// Events gives fn the events of a file that was checked before, and reads it to
// its end: an error may come after the last event, and says that the file is
// damaged. What the events say is not looked at. fn's entry has a body of its
// own.
func Events(r io.Reader, fn func(Entry, schemas.Event) error) error {
	f, err := NewReader(r, "")
	if err != nil {
		return err
	}
	defer f.Close()
	n := uint64(0)
	for {
		typ, err := f.record()
		if err != nil {
			return err
		}
		switch typ {
		case recLog:
			if err := f.unpack(); err != nil {
				return err
			}
		case recTrailer:
			var t Trailer
			if err := f.json(&t); err != nil {
				return err
			}
			if t.Events != n || t.SHA256 != schemas.Digest(f.sum.Sum(nil)) {
				return fmt.Errorf("%w: its bytes are not those that were written", ErrFormat)
			}
			return nil
		default:
			continue
		}
		for rest := bytes.Clone(f.raw); len(rest) > 0; n++ {
			var e Entry
			if e, rest, err = cutEntry(rest); err != nil {
				return fmt.Errorf("%w: %w", ErrFormat, err)
			}
			ev, err := schemas.ParseEvent(e.Body)
			if err != nil {
				return fmt.Errorf("%w: %w", ErrFormat, err)
			}
			if err := fn(e, ev); err != nil {
				return err
			}
		}
	}
}
