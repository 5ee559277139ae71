// SPDX-License-Identifier: Apache-2.0

package petrifile_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/petri-sandbox/petri/bus/petrifile"
	"github.com/petri-sandbox/petri/schemas"
)

const magic = "\x89PETRI\r\n"

// record makes a record of whatever.
func record(typ byte, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{typ}, uint32(len(payload))), payload...)
}

// object makes a record of JSON.
func object(typ byte, format string, args ...any) []byte {
	return record(typ, fmt.Appendf(nil, format, args...))
}

var encoder = func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	return e
}()

func packed(b []byte) []byte { return encoder.EncodeAll(b, nil) }

// entries packs events as a log record has them.
func entries(list ...petrifile.Entry) []byte {
	var b []byte
	for _, e := range list {
		b = binary.BigEndian.AppendUint64(b, e.Seq)
		b = binary.BigEndian.AppendUint16(b, uint16(len(e.Subject)))
		b = binary.BigEndian.AppendUint32(b, uint32(len(e.Body)))
		b = append(append(b, e.Subject...), e.Body...)
	}
	return b
}

// short is the log of an analysis that ended at once, with one sample.
func short(t testing.TB, sample []byte) *story {
	s := &story{t: t, objects: map[schemas.Digest][]byte{}}
	s.event(schemas.AnalysisSubmitted{})
	s.artifact(schemas.KindSample, sample)
	s.event(schemas.AnalysisCancelled{By: "test"})
	return s
}

// sealed puts a right trailer behind records.
func (s *story) sealed(objects, absent int, records ...[]byte) []byte {
	b := append([]byte(magic), bytes.Join(records, nil)...)
	t := petrifile.Trailer{
		Events: uint64(len(s.entries)), Context: s.context, Root: s.tree.Root(), Objects: objects, Absent: absent, SHA256: schemas.Sum(b),
	}
	j, err := json.Marshal(t)
	if err != nil {
		s.t.Fatal(err)
	}
	return append(b, record('T', j)...)
}

// TestHostile offers files that are made to break a reader, all with a right
// trailer.
func TestHostile(t *testing.T) {
	sample := []byte("the sample")
	s := short(t, sample)
	d := schemas.Sum(sample)
	head := object('H', `{"format":1,"tenant":"default","analysis":%q}`, id)
	log := record('L', packed(entries(s.entries...)))
	obj := object('O', `{"sha256":%q,"size":%d,"kinds":["sample"]}`, d, len(sample))
	frame := record('F', packed(sample))
	gone := object('A', `{"sha256":%q,"size":%d,"kinds":["sample"],"reason":"left out"}`, d, len(sample))
	zeros := packed(make([]byte, 1<<20))
	foreign := schemas.Sum([]byte("foreign"))

	if _, err := read(s.sealed(1, 0, head, log, obj, frame)); err != nil {
		t.Fatal("the file that the others are made of:", err)
	}
	if _, err := read(s.sealed(1, 0, head, record('x', []byte("anything")), log, obj, record('z', nil), frame)); err != nil {
		t.Error("records that may be skipped:", err)
	}
	for _, tt := range []struct {
		name string
		file []byte
		want error
		says string
	}{
		{"no_header", s.sealed(1, 0, log, obj, frame), petrifile.ErrFormat, "no header"},
		{"newer", s.sealed(1, 0, object('H', `{"format":2,"tenant":"default","analysis":%q}`, id), log), petrifile.ErrVersion, "reads up to 1"},
		{"format_0", s.sealed(1, 0, object('H', `{"tenant":"default","analysis":%q}`, id), log), petrifile.ErrFormat, "format 0"},
		{"path_as_analysis", s.sealed(1, 0, object('H', `{"format":1,"tenant":"default","analysis":"../../etc/passwd"}`), log), petrifile.ErrFormat, "not an analysis id"},
		{"wildcard_tenant", s.sealed(1, 0, object('H', `{"format":1,"tenant":"*","analysis":%q}`, id), log), petrifile.ErrFormat, "must begin with a-z"},
		{"long_header", s.sealed(1, 0, object('H', `{"format":1,"tenant":"default","analysis":%q,"x":%q}`, id, strings.Repeat("x", 70_000)), log), petrifile.ErrLimit, "are allowed"},
		{"unknown_type", s.sealed(1, 0, head, record('X', nil), log, obj, frame), petrifile.ErrFormat, "newer Petri"},
		{"binary_type", s.sealed(1, 0, head, record(0, nil), log, obj, frame), petrifile.ErrFormat, "newer Petri"},
		{"long_record", append([]byte(magic), 'H', 0xff, 0xff, 0xff, 0xff), petrifile.ErrLimit, "are allowed"},
		{"two_headers", s.sealed(1, 0, head, head, log, obj, frame), petrifile.ErrFormat, "out of place"},
		{"bomb_log", s.sealed(1, 0, head, record('L', packed(make([]byte, 5<<20)))), petrifile.ErrFormat, "decompressed"},
		{"bomb_frame", s.sealed(1, 0, head, log, obj, record('F', packed(make([]byte, 64<<20)))), petrifile.ErrFormat, "decompressed"},
		{"no_zstd", s.sealed(1, 0, head, record('L', []byte("text"))), petrifile.ErrFormat, "decompressed"},
		{"empty_log", s.sealed(1, 0, head, record('L', packed(nil))), petrifile.ErrFormat, "empty"},
		{"half_entry", s.sealed(1, 0, head, record('L', packed(entries(s.entries...)[:50]))), petrifile.ErrFormat, "longer than its record"},
		{"long_object", s.sealed(1, 0, head, log, obj, frame, frame), petrifile.ErrFormat, "out of place"},
		{"long_frame", s.sealed(1, 0, head, log, obj, record('F', zeros)), petrifile.ErrFormat, "more than its"},
		{"short_object", s.sealed(1, 0, head, log, obj, record('F', packed(sample[1:]))), petrifile.ErrFormat, "missing"},
		{"other_bytes", s.sealed(1, 0, head, log, obj, record('F', packed([]byte("The sample")))), petrifile.ErrFormat, "another digest"},
		{"other_size", s.sealed(1, 0, head, log, object('O', `{"sha256":%q,"size":11,"kinds":["sample"]}`, d), frame), petrifile.ErrFormat, "in the place of"},
		{"negative_size", s.sealed(1, 0, head, log, object('O', `{"sha256":%q,"size":-1,"kinds":["sample"]}`, d), frame), petrifile.ErrFormat, "in the place of"},
		{"foreign_object", s.sealed(2, 0, head, log, obj, frame, object('O', `{"sha256":%q,"size":7,"kinds":["dropped"]}`, foreign), record('F', packed([]byte("foreign")))), petrifile.ErrFormat, "not one that the log names"},
		{"other_object", s.sealed(1, 0, head, log, object('O', `{"sha256":%q,"size":10,"kinds":["dropped"]}`, foreign), frame), petrifile.ErrFormat, "in the place of"},
		{"twice_object", s.sealed(2, 0, head, log, obj, frame, obj, frame), petrifile.ErrFormat, "not one that the log names"},
		{"no_object", s.sealed(0, 0, head, log), petrifile.ErrFormat, "neither in it nor said to be absent"},
		{"absent_why", s.sealed(0, 1, head, log, object('A', `{"sha256":%q,"size":10,"kinds":["sample"],"reason":"\u001b[2J"}`, d)), petrifile.ErrFormat, "absent because of"},
		{"events_late", s.sealed(0, 1, head, log, gone, log), petrifile.ErrFormat, "behind objects"},
		{"stray_frame", s.sealed(0, 1, head, log, frame, gone), petrifile.ErrFormat, "out of place"},
		{"thin_with_bytes", s.sealed(1, 0, object('H', `{"format":1,"tenant":"default","analysis":%q,"thin":true}`, id), log, obj, frame), petrifile.ErrFormat, "thin"},
		{"wrong_count", s.sealed(0, 0, head, log, obj, frame), petrifile.ErrFormat, "counts other"},
		{"two_trailers", append(s.sealed(1, 0, head, log, obj, frame), record('T', []byte("{}"))...), petrifile.ErrFormat, "follows its end"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := read(tt.file)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("the error is %v, not %q that says %q", err, tt.want, tt.says)
			}
		})
	}
}

// TestEventWithoutData has an event whose data ends before it begins: that is
// not the end of the file.
func TestEventWithoutData(t *testing.T) {
	s := short(t, []byte("x"))
	s.entries[1].Body = bytes.Replace(s.entries[1].Body, []byte(`"data":`), []byte(`"else":`), 1)
	head := object('H', `{"format":1,"tenant":"default","analysis":%q}`, id)
	if _, err := read(s.sealed(0, 0, head, record('L', packed(entries(s.entries...))))); !errors.Is(err, petrifile.ErrFormat) {
		t.Errorf("the error is %v", err)
	}
}

// TestRatio gives a reader a file that is far larger than it looks.
func TestRatio(t *testing.T) {
	const size = 4 << 30
	s := &story{t: t, objects: map[schemas.Digest][]byte{}}
	s.event(schemas.AnalysisSubmitted{})
	d := schemas.Sum([]byte("no matter"))
	a := schemas.Artifact{Kind: schemas.KindMemory, SHA256: d, Size: size}
	s.add("artifact.memory."+d.Token()+".0", a.ID(id), a)
	s.event(schemas.AnalysisCancelled{By: "test"})
	zeros := record('F', packed(make([]byte, 1<<20)))
	frames := &repeated{b: zeros, n: size >> 20}
	r, err := petrifile.NewReader(io.MultiReader(
		strings.NewReader(magic),
		bytes.NewReader(object('H', `{"format":1,"tenant":"default","analysis":%q}`, id)),
		bytes.NewReader(record('L', packed(entries(s.entries...)))),
		bytes.NewReader(object('O', `{"sha256":%q,"size":%d,"kinds":["memory"]}`, d, size)),
		frames), "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for err == nil {
		_, err = r.Next()
	}
	if !errors.Is(err, petrifile.ErrLimit) {
		t.Errorf("the error is %v", err)
	}
	if given := size>>20 - frames.n; given > 1200 {
		t.Errorf("it took %d MiB before it noticed", given)
	}
}

// TestStrangeTypes has more types than there are, and long ones: what they
// amount to in memory must not grow with the file.
func TestStrangeTypes(t *testing.T) {
	l, err := petrifile.NewLog("default", id, "")
	if err != nil {
		t.Fatal(err)
	}
	s := short(t, []byte("x"))
	const events = 1500
	for i := range events {
		s.add("strange."+strconv.Itoa(i), id+"/strange/"+strconv.Itoa(i), strange(fmt.Sprintf("petri.s%d.%s", i, strings.Repeat("x", 1000))))
	}
	for _, e := range s.entries {
		if _, err := l.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	c, n, size := l.Coverage(), uint64(0), 0
	for typ, count := range c.Uncovered {
		n += count
		size += len(typ)
	}
	if n != c.Events || n != uint64(len(s.entries)) {
		t.Errorf("%d of %d events are counted", n, c.Events)
	}
	if len(c.Uncovered) > 1001 || size > 130_000 {
		t.Errorf("%d types of %d bytes are kept", len(c.Uncovered), size)
	}
}

// strange is the data of an event of whatever type.
type strange string

func (s strange) EventType() string { return string(s) }

// repeated gives the same bytes n times.
type repeated struct {
	b    []byte
	n    int
	rest []byte
}

func (r *repeated) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		if r.n == 0 {
			return 0, io.EOF
		}
		r.n--
		r.rest = r.b
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// FuzzEntries reads a log that anybody made up, in a file that is right
// otherwise. What it accepts it can write, and reads again as it was.
func FuzzEntries(f *testing.F) {
	f.Add(entries(tell(f).entries...))
	f.Add(entries(short(f, []byte("x")).entries...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		file := append([]byte(magic), object('H', `{"format":1,"tenant":"default","analysis":%q}`, id)...)
		c, err := read(append(file, record('L', packed(b))...))
		if err == nil {
			t.Fatal("without a trailer it passes for whole")
		}
		var buf bytes.Buffer
		w, err := petrifile.NewWriter(&buf, petrifile.Header{Tenant: "default", Analysis: id, Thin: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range c.Entries {
			if len(e.Body) > petrifile.MaxEvent || len(e.Subject) > petrifile.MaxSubject || !strings.HasPrefix(e.Subject, "petri.default."+id+".") {
				t.Fatalf("it gave an event of %d bytes under %q", len(e.Body), e.Subject)
			}
			if _, err := w.Event(e); err != nil {
				t.Fatal("what was read cannot be written:", err)
			}
		}
		if _, err := w.Close(); errors.Is(err, petrifile.ErrUnfinished) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		again, err := read(buf.Bytes())
		if err != nil {
			t.Fatal("what was written is refused:", err)
		}
		if diff := cmp.Diff(c.Entries, again.Entries); diff != "" {
			t.Fatal(diff)
		}
	})
}
