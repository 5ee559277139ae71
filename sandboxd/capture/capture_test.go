// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	"github.com/petri-sandbox/petri/sandboxd/capture"
)

// A file gathers chunks and checks what is promised of each.
type file struct {
	t       testing.TB
	bytes   []byte
	chunks  int
	packets int
}

func (f *file) add(chunk []byte, packets int) error {
	if got := packetBlocks(f.t, chunk); got != packets {
		f.t.Errorf("chunk %d holds %d packets, reported %d", f.chunks, got, packets)
	}
	f.bytes = append(f.bytes, chunk...)
	f.chunks++
	f.packets += packets
	return nil
}

// packetBlocks walks a chunk's blocks, which must end where the chunk does.
func packetBlocks(t testing.TB, b []byte) (n int) {
	t.Helper()
	for len(b) > 0 {
		if len(b) < 12 {
			t.Fatalf("%d bytes after the last block", len(b))
		}
		size := binary.LittleEndian.Uint32(b[4:])
		if size%4 != 0 || int(size) > len(b) || binary.LittleEndian.Uint32(b[size-4:]) != size {
			t.Fatalf("block of %d bytes in the last %d of the chunk", size, len(b))
		}
		if binary.LittleEndian.Uint32(b) == 6 {
			n++
		}
		b = b[size:]
	}
	return n
}

type packet struct {
	Dir    capture.Direction
	Time   time.Time
	Data   []byte
	Length int
}

// read decodes a file with gopacket's reader.
func read(t testing.TB, b []byte) (packets []packet, iface pcapgo.NgInterface, section pcapgo.NgSectionInfo) {
	t.Helper()
	r, err := pcapgo.NewNgReader(bytes.NewReader(b), pcapgo.NgReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, info, options, err := r.ReadPacketDataWithOptions()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if options.Flags == nil {
			t.Fatal("packet has no flags")
		}
		packets = append(packets, packet{capture.Direction(options.Flags.Direction), info.Timestamp.UTC(), data, info.Length})
	}
	iface, err = r.Interface(0)
	if err != nil {
		t.Fatal(err)
	}
	return packets, iface, r.SectionInfo()
}

func newWriter(t testing.TB, o capture.Options, out func([]byte, int) error) *capture.Writer {
	t.Helper()
	w, err := capture.NewWriter(o, out)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

var start = time.Date(2026, 11, 20, 13, 14, 15, 123456789, time.UTC)

// frames returns n frames of growing size.
func frames(n int) []packet {
	var ps []packet
	for i := range n {
		data := bytes.Repeat([]byte{byte(i)}, 14+i)
		ps = append(ps, packet{capture.Direction(1 + i%2), start.Add(time.Duration(i) * 1001 * time.Nanosecond), data, len(data)})
	}
	return ps
}

func TestRoundTrip(t *testing.T) {
	f := &file{t: t}
	w := newWriter(t, capture.Options{
		Hardware: "amd64", OS: "Debian", Application: "petri", Comment: "an analysis: ünïcode",
		Interface: "eth0", ChunkBytes: 4096, SnapLen: 1500,
	}, f.add)
	want := frames(300)
	want[7].Data, want[7].Length = make([]byte, 1501), 70000
	want[8].Data, want[8].Length = []byte{}, 0
	var total uint64
	for _, p := range want {
		w.Packet(p.Dir, p.Time, p.Data, p.Length)
		total += uint64(p.Length)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	want[7].Data = want[7].Data[:1500]

	got, iface, section := read(t, f.bytes)
	if len(got) != len(want) || f.packets != len(want) {
		t.Fatalf("%d packets, %d reported, want %d", len(got), f.packets, len(want))
	}
	for i := range got {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("packet %d: got %v, want %v", i, got[i], want[i])
		}
	}
	if f.chunks < 10 {
		t.Errorf("%d chunks of %d bytes", f.chunks, len(f.bytes))
	}
	wantSection := pcapgo.NgSectionInfo{Hardware: "amd64", OS: "Debian", Application: "petri", Comment: "an analysis: ünïcode"}
	if section != wantSection {
		t.Errorf("section %+v", section)
	}
	s := iface.Statistics
	if iface.Name != "eth0" || iface.SnapLength != 1500 || s.PacketsReceived != 300 || s.PacketsDropped != 0 {
		t.Errorf("interface %+v", iface)
	}
	if !s.StartTime.Equal(want[0].Time) || !s.EndTime.Equal(want[299].Time) {
		t.Errorf("statistics from %s to %s", s.StartTime, s.EndTime)
	}
	wantStats := capture.Stats{Received: 300, ReceivedBytes: total, Stored: 300, StoredBytes: total, FileBytes: int64(len(f.bytes))}
	if w.Stats() != wantStats {
		t.Errorf("stats %+v, want %+v", w.Stats(), wantStats)
	}
}

func TestEmpty(t *testing.T) {
	f := &file{t: t}
	w := newWriter(t, capture.Options{}, f.add)
	if err := w.Flush(); err != nil || f.chunks != 1 {
		t.Errorf("flush of the header: %v, %d chunks", err, f.chunks)
	}
	if err := w.Flush(); err != nil || f.chunks != 1 {
		t.Errorf("flush of nothing: %v, %d chunks", err, f.chunks)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, _, _ := read(t, f.bytes); len(got) != 0 {
		t.Errorf("%d packets", len(got))
	}
}

// Every prefix of the chunks is a file that can be read, so that a crash costs
// the last chunk only.
func TestEachChunkCompletesAFile(t *testing.T) {
	f := &file{t: t}
	w := newWriter(t, capture.Options{ChunkBytes: 512}, func(chunk []byte, packets int) error {
		f.add(chunk, packets)
		if got, _, _ := read(t, f.bytes); len(got) != f.packets {
			t.Errorf("after chunk %d: %d packets, want %d", f.chunks, len(got), f.packets)
		}
		return nil
	})
	for _, p := range frames(50) {
		w.Packet(p.Dir, p.Time, p.Data, p.Length)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// Every limit gives a whole file within it, and counts what is not there.
func TestLimit(t *testing.T) {
	in := frames(20)
	var total uint64
	for _, p := range in {
		total += uint64(p.Length)
	}
	cut := 0
	for limit := int64(0); limit < 2600; limit++ {
		f := &file{t: t}
		w, err := capture.NewWriter(capture.Options{MaxBytes: max(limit, 1), ChunkBytes: 300}, f.add)
		if err != nil {
			if limit > 200 {
				t.Fatalf("limit %d: %v", limit, err)
			}
			continue
		}
		for _, p := range in {
			w.Packet(p.Dir, p.Time, p.Data, p.Length)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		got, iface, _ := read(t, f.bytes)
		s := w.Stats()
		if int64(len(f.bytes)) > limit || s.FileBytes != int64(len(f.bytes)) {
			t.Fatalf("limit %d: file of %d bytes, counted as %d", limit, len(f.bytes), s.FileBytes)
		}
		if int(s.Stored) != len(got) || s.Stored+s.Cut != 20 || s.StoredBytes+s.CutBytes != total || s.Received != 20 || s.Lost != 0 {
			t.Fatalf("limit %d: %d packets in the file, stats %+v", limit, len(got), s)
		}
		if len(got) > 0 && !reflect.DeepEqual(got, in[:len(got)]) {
			t.Fatalf("limit %d: the file is not the beginning of the traffic", limit)
		}
		if is := iface.Statistics; is.PacketsReceived != 20 || is.PacketsDropped != s.Cut {
			t.Fatalf("limit %d: statistics block %+v", limit, is)
		}
		if s.Cut > 0 {
			cut++
		}
	}
	if cut < 1000 {
		t.Errorf("only %d limits cut anything", cut)
	}
}

func TestOutFails(t *testing.T) {
	f := &file{t: t}
	full := errors.New("disk full")
	w := newWriter(t, capture.Options{ChunkBytes: 1000}, func(chunk []byte, packets int) error {
		if f.chunks == 3 {
			return full
		}
		return f.add(chunk, packets)
	})
	for _, p := range frames(100) {
		w.Packet(p.Dir, p.Time, p.Data, p.Length)
	}
	if err := w.Flush(); !errors.Is(err, full) {
		t.Errorf("flush: %v", err)
	}
	if err := w.Close(); !errors.Is(err, full) {
		t.Errorf("close: %v", err)
	}
	s := w.Stats()
	if s.Received != 100 || int(s.Stored) != f.packets || s.Lost != 100-s.Stored || s.StoredBytes+s.LostBytes != s.ReceivedBytes ||
		s.FileBytes != int64(len(f.bytes)) {
		t.Errorf("stats %+v with %d packets passed on in %d bytes", s, f.packets, len(f.bytes))
	}
}

func TestClosed(t *testing.T) {
	f := &file{t: t}
	w := newWriter(t, capture.Options{}, f.add)
	w.Close()
	w.Packet(capture.Inbound, start, make([]byte, 60), 60)
	if s := w.Stats(); s.Lost != 1 || s.LostBytes != 60 {
		t.Errorf("stats %+v", s)
	}
	if err := w.Close(); !errors.Is(err, capture.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
	if got, _, _ := read(t, f.bytes); len(got) != 0 {
		t.Errorf("%d packets", len(got))
	}
}

func TestBadOptions(t *testing.T) {
	for name, o := range map[string]capture.Options{
		"no_room":          {MaxBytes: 100},
		"negative_limit":   {MaxBytes: -1},
		"negative_snaplen": {SnapLen: -1},
		"negative_chunk":   {ChunkBytes: -1},
		"huge_text":        {Comment: strings.Repeat("x", math.MaxUint16+1)},
	} {
		if _, err := capture.NewWriter(o, func([]byte, int) error { return nil }); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	f := &file{t: t}
	w := newWriter(t, capture.Options{ChunkBytes: 2000}, f.add)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i, p := range frames(200) {
				w.Packet(p.Dir, p.Time, p.Data, p.Length)
				if i%50 == 0 {
					w.Flush()
					w.Stats()
				}
			}
		})
	}
	wg.Wait()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, _, _ := read(t, f.bytes); len(got) != 800 {
		t.Errorf("%d packets", len(got))
	}
}

// FuzzWriter cuts its input into frames. Whatever they are, the file can be
// read, holds the first of them unchanged, and the rest is counted.
func FuzzWriter(f *testing.F) {
	f.Add([]byte("\x10some frames\x00\x00 and so on"), uint16(100), uint16(0), uint16(2000))
	f.Add(bytes.Repeat([]byte{9}, 500), uint16(3), uint16(8), uint16(400))
	f.Fuzz(func(t *testing.T, in []byte, chunk, snap, limit uint16) {
		out := &file{t: t}
		w, err := capture.NewWriter(capture.Options{ChunkBytes: int(chunk), SnapLen: int(snap), MaxBytes: int64(limit)}, out.add)
		if err != nil {
			return
		}
		var want []packet
		for len(in) > 0 {
			n := min(int(in[0]), len(in)-1)
			p := packet{capture.Direction(1 + n%2), start.Add(time.Duration(len(in)) * time.Nanosecond), in[1 : 1+n], n}
			w.Packet(p.Dir, p.Time, p.Data, p.Length)
			if snap != 0 {
				p.Data = p.Data[:min(n, int(snap))]
			}
			want = append(want, p)
			in = in[1+n:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		got, iface, _ := read(t, out.bytes)
		s := w.Stats()
		if len(got) != int(s.Stored) || int(s.Received) != len(want) || s.Stored+s.Cut != s.Received ||
			iface.Statistics.PacketsDropped != s.Cut || limit != 0 && len(out.bytes) > int(limit) {
			t.Fatalf("%d packets of %d in %d bytes, stats %+v", len(got), len(want), len(out.bytes), s)
		}
		for i, p := range got {
			if p.Dir != want[i].Dir || !p.Time.Equal(want[i].Time) || !bytes.Equal(p.Data, want[i].Data) || p.Length != want[i].Length {
				t.Fatalf("packet %d: got %v, want %v", i, p, want[i])
			}
		}
	})
}

func BenchmarkPacket(b *testing.B) {
	w := newWriter(b, capture.Options{MaxBytes: math.MaxInt64}, func([]byte, int) error { return nil })
	frame := make([]byte, 1514)
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		w.Packet(capture.Outbound, start, frame, len(frame))
	}
}
