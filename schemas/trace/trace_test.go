// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"bytes"
	"encoding/hex"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

var (
	first  = trace.Identity{TGID: 100, NSTID: 3, NSPID: 2, Start: 5e9}
	second = trace.Identity{TGID: 7, NSTID: 1, NSPID: 1, Start: 4e9}
)

// sample is one record of each sort.
func sample() []trace.Record {
	return []trace.Record{
		{
			Type: trace.Syscall, ABI: sysno.AMD64, TID: 101, Begin: 6e9, End: 6e9 + 1200, Who: first,
			Call: 257, Result: -2, IP: 0x401000, N: 4, Args: [6]uint64{0xffffff9c, 0x402000, 0x241, 0o644},
			Attachments: []trace.Attachment{{Arg: 1, Kind: trace.String, Data: []byte("/etc/passwd")}},
		},
		{
			Type: trace.Syscall, ABI: sysno.I386, Flags: trace.Entry, TID: 7, Begin: 1, Call: 102, Mux: 3, N: 3, Who: second,
			Attachments: []trace.Attachment{
				{Arg: 1, Kind: trace.Sockaddr, Flags: trace.AtExit, Data: []byte{2, 0, 0, 80, 127, 0, 0, 1}},
				{Arg: 2, Kind: trace.String, Flags: trace.Unreadable},
			},
		},
		{
			Type: trace.Exec, ABI: sysno.AMD64, TID: 7, N: 6, Args: [6]uint64{7, 1234, 0x800001, 2, 1, 0}, Who: second,
			Attachments: []trace.Attachment{
				{Arg: trace.NoArg, Kind: trace.String, Data: []byte("/bin/sh")},
				{Arg: trace.NoArg, Kind: trace.Argv, Data: []byte("sh\x00-c\x00")},
			},
		},
		{Type: trace.Exit, ABI: sysno.AMD64, TID: 7, N: 3, Args: [6]uint64{9, 0, 9}, Who: second},
		{Type: trace.Stats, ABI: sysno.AMD64, N: 5, Args: [6]uint64{0, 5, 0, 1, 0}},
	}
}

func who(tid uint32) trace.Identity {
	if tid == 101 {
		return first
	}
	return second
}

func encode(t testing.TB, order trace.Order, records []trace.Record) []byte {
	t.Helper()
	var out bytes.Buffer
	e := trace.NewEncoder(sysno.AMD64, order, who, func(b []byte) error { out.Write(b); return nil })
	for i := range records {
		if err := e.Add(&records[i]); err != nil {
			t.Fatal(err)
		}
	}
	e.Counters = func() (uint64, uint64, uint64) { return uint64(len(records)), 0, 1 }
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func decode(t testing.TB, r io.Reader) ([]trace.Record, trace.Totals) {
	t.Helper()
	tr := trace.NewReader(r)
	var out []trace.Record
	for {
		rec, err := tr.Next()
		if err == io.EOF {
			return out, tr.Totals()
		}
		if err != nil {
			t.Fatal(err)
		}
		c := *rec
		c.Attachments = nil
		for _, a := range rec.Attachments {
			a.Data = bytes.Clone(a.Data)
			c.Attachments = append(c.Attachments, a)
		}
		out = append(out, c)
	}
}

func TestRoundTrip(t *testing.T) {
	for name, order := range map[string]trace.Order{"little_endian": trace.LittleEndian, "big_endian": trace.BigEndian} {
		t.Run(name, func(t *testing.T) {
			want := sample()
			got, totals := decode(t, iotest.OneByteReader(bytes.NewReader(encode(t, order, want))))
			for i := range want {
				want[i].Number, want[i].Order = uint64(i), order
				for j := range want[i].Attachments {
					if want[i].Attachments[j].Data == nil {
						want[i].Attachments[j].Data = []byte{}
					}
				}
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(trace.Totals{Blocks: 1, Records: 5, Produced: 5, Unreadable: 1}, totals); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestLayout pins the bytes: old traces must stay readable.
func TestLayout(t *testing.T) {
	got := hex.Dump(encode(t, trace.LittleEndian, sample()[:1]))
	want := `00000000  50 74 72 42 01 01 01 00  b8 00 00 00 01 00 00 00  |PtrB............|
00000010  00 00 00 00 00 00 00 00  01 00 00 00 00 00 00 00  |................|
00000020  00 00 00 00 00 00 00 00  01 00 00 00 00 00 00 00  |................|
00000030  50 00 06 01 00 00 04 00  65 00 00 00 00 00 00 00  |P.......e.......|
00000040  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|
00000050  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|
00000060  64 00 00 00 00 00 00 00  03 00 00 00 00 00 00 00  |d...............|
00000070  02 00 00 00 00 00 00 00  00 f2 05 2a 01 00 00 00  |...........*....|
00000080  68 00 01 01 00 00 04 01  65 00 00 00 01 01 00 00  |h.......e.......|
00000090  00 bc a0 65 01 00 00 00  b0 c0 a0 65 01 00 00 00  |...e.......e....|
000000a0  fe ff ff ff ff ff ff ff  00 10 40 00 00 00 00 00  |..........@.....|
000000b0  9c ff ff ff 00 00 00 00  00 20 40 00 00 00 00 00  |......... @.....|
000000c0  41 02 00 00 00 00 00 00  a4 01 00 00 00 00 00 00  |A...............|
000000d0  01 01 00 00 0b 00 00 00  2f 65 74 63 2f 70 61 73  |......../etc/pas|
000000e0  73 77 64 00 00 00 00 00                           |swd.....|
`
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestBlocksStayBelowLimit(t *testing.T) {
	var blocks [][]byte
	e := trace.NewEncoder(sysno.AMD64, trace.LittleEndian, who, func(b []byte) error {
		blocks = append(blocks, bytes.Clone(b))
		return nil
	})
	rec := sample()[0]
	for i := range 1000 {
		rec.Attachments[0].Data = bytes.Repeat([]byte{'x'}, i%4096)
		if err := e.Add(&rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	next := uint64(0)
	for _, b := range blocks {
		if len(b) > trace.MaxBlock {
			t.Fatalf("block of %d bytes", len(b))
		}
		h, block, rest, err := trace.NextBlock(b)
		if err != nil || len(rest) != 0 || len(block) != len(b) || h.First != next {
			t.Fatalf("block %+v, %d bytes, rest %d, error %v; want it to begin with %d", h, len(block), len(rest), err, next)
		}
		next += uint64(h.Count)
	}
	if next != 1000 || e.Records() != 1000 {
		t.Errorf("%d records in blocks, %d by the encoder, want 1000", next, e.Records())
	}
	rec.Attachments[0].Data = make([]byte, trace.MaxRecord)
	if err := e.Add(&rec); err == nil {
		t.Error("a record larger than a block was taken")
	}
}

// TestIdentity: every block says who its threads are, and a number that comes
// again is somebody else.
func TestIdentity(t *testing.T) {
	var out bytes.Buffer
	asked := 0
	e := trace.NewEncoder(sysno.AMD64, trace.LittleEndian, func(tid uint32) trace.Identity {
		asked++
		return trace.Identity{TGID: tid, Start: uint64(asked)}
	}, func(b []byte) error { out.Write(b); return nil })
	add := func(tid uint32) {
		if err := e.Add(&trace.Record{Type: trace.Syscall, TID: tid}); err != nil {
			t.Fatal(err)
		}
	}
	add(5)
	add(6)
	add(5)
	e.Forget(5)
	add(5)
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	add(5)
	add(0)
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	got, totals := decode(t, &out)
	var starts []uint64
	for _, r := range got {
		starts = append(starts, r.Who.Start)
	}
	if d := cmp.Diff([]uint64{1, 2, 1, 3, 4, 0}, starts); d != "" || totals.Records != 6 || totals.Bad != 0 {
		t.Errorf("%+v %s", totals, d)
	}
}

func TestDamage(t *testing.T) {
	one := encode(t, trace.LittleEndian, sample())
	damaged := func(f func(b []byte)) []byte {
		b := bytes.Clone(one)
		f(b)
		return b
	}
	// A block begins with the first thread's identity, of 80 bytes.
	const record = trace.HeaderLen + 80
	tests := map[string]struct {
		in   []byte
		want trace.Totals
	}{
		"junk_between":     {append(append(bytes.Clone(one), "PtPtrPtrPt"...), one...), trace.Totals{Blocks: 2, Records: 10, Skipped: 10}},
		"cut_in_record":    {one[:len(one)-8], trace.Totals{Blocks: 1, Records: 4, Bad: 1}},
		"cut_in_header":    {append(bytes.Clone(one), one[:20]...), trace.Totals{Blocks: 1, Records: 5, Skipped: 20}},
		"only_header":      {one[:trace.HeaderLen], trace.Totals{Blocks: 1, Bad: 5}},
		"record_too_long":  {append(damaged(func(b []byte) { b[record+1] = 0xff }), one...), trace.Totals{Blocks: 2, Records: 5, Bad: 5}},
		"padding_not_zero": {append(damaged(func(b []byte) { b[record+103] = 1 }), one...), trace.Totals{Blocks: 2, Records: 5, Bad: 5}},
		"seven_arguments":  {append(damaged(func(b []byte) { b[record+6] = 7 }), one...), trace.Totals{Blocks: 2, Records: 5, Bad: 5}},
		"too_few_counted":  {damaged(func(b []byte) { b[12] = 3 }), trace.Totals{Blocks: 1, Records: 3, Bad: 1}},
		"too_many_counted": {append(damaged(func(b []byte) { b[12] = 7 }), one...), trace.Totals{Blocks: 2, Records: 10, Bad: 2}},
		"huge_count":       {append(damaged(func(b []byte) { b[14] = 7 }), one...), trace.Totals{Blocks: 1, Records: 5, Skipped: uint64(len(one))}},
		"huge_block":       {append(damaged(func(b []byte) { b[10] = 0xff }), one...), trace.Totals{Blocks: 1, Records: 5, Skipped: uint64(len(one))}},
		"other_version":    {damaged(func(b []byte) { b[4] = 2 }), trace.Totals{Skipped: uint64(len(one))}},
		"gap":              {append(bytes.Clone(one), damaged(func(b []byte) { b[16] = 10 })...), trace.Totals{Blocks: 2, Records: 10, Missing: 5}},
		"empty":            {nil, trace.Totals{}},
		"text":             {[]byte(strings.Repeat("no trace at all ", 10000)), trace.Totals{Skipped: 160000}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, got := decode(t, iotest.HalfReader(bytes.NewReader(test.in)))
			got.Produced, got.Unreadable = 0, 0
			if d := cmp.Diff(test.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestStrings(t *testing.T) {
	for in, want := range map[string][]string{
		"":                     nil,
		"sh\x00-c\x00":         {"sh", "-c"},
		"a\x00\x00b":           {"a", "", "b"},
		"a\x00b\x00c\x00d\x00": {"a", "b", "c"},
	} {
		if d := cmp.Diff(want, (&trace.Attachment{Data: []byte(in)}).Strings(3)); d != "" {
			t.Errorf("%q: %s", in, d)
		}
	}
}
