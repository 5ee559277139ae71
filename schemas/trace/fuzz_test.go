// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"bytes"
	"io"
	"runtime"
	"testing"

	"github.com/petri-sandbox/petri/schemas/trace"
)

// FuzzRecord holds the decoder to its word: what it accepts, it encodes to the
// same bytes.
func FuzzRecord(f *testing.F) {
	for _, r := range sample() {
		f.Add(r.Append(nil, trace.LittleEndian), true)
		f.Add(r.Append(nil, trace.BigEndian), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, little bool) {
		order := trace.BigEndian
		if little {
			order = trace.LittleEndian
		}
		var r trace.Record
		n, err := r.Decode(b, order)
		if err != nil {
			return
		}
		if got := r.Append(nil, order); !bytes.Equal(got, b[:n]) {
			t.Errorf("accepted %x, encoded %x", b[:n], got)
		}
	})
}

// FuzzReader feeds a stream: whatever it is, each byte is accounted for once,
// and the memory that reading takes does not depend on it.
func FuzzReader(f *testing.F) {
	one := encode(f, trace.LittleEndian, sample())
	f.Add(one)
	f.Add(append(encode(f, trace.BigEndian, sample()), one[:100]...))
	f.Add(append([]byte("PtrBPtrB"), one...))
	f.Fuzz(func(t *testing.T, b []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		r := trace.NewReader(bytes.NewReader(b))
		records := uint64(0)
		for {
			_, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("reading from memory: %v", err)
			}
			records++
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20+uint64(len(b)) {
			t.Errorf("%d bytes were allocated to read %d", n, len(b))
		}
		got := r.Totals()
		if got.Records != records || got.Skipped > uint64(len(b)) || got.Blocks*trace.HeaderLen > uint64(len(b)) ||
			got.Records*trace.RecordLen > uint64(len(b)) {
			t.Errorf("%d bytes, %d records read, totals %+v", len(b), records, got)
		}
		if !bytes.Contains(b, []byte("PtrB")) && got.Skipped != uint64(len(b)) {
			t.Errorf("%d of %d bytes without a block were skipped", got.Skipped, len(b))
		}
	})
}

// FuzzBlock checks the cutter: blocks that it returns are those that were
// there, and it ends.
func FuzzBlock(f *testing.F) {
	one := encode(f, trace.LittleEndian, sample())
	f.Add(append(bytes.Clone(one), one...))
	f.Fuzz(func(t *testing.T, b []byte) {
		rest := b
		for {
			h, block, next, err := trace.NextBlock(rest)
			if err != nil || block == nil {
				return
			}
			if len(block)+len(next) != len(rest) || len(block) > trace.MaxBlock || len(block) < trace.HeaderLen {
				t.Fatalf("block of %d and rest of %d bytes out of %d", len(block), len(next), len(rest))
			}
			if got := h.Append(nil); !bytes.Equal(got, block[:trace.HeaderLen]) {
				t.Errorf("accepted header %x, encoded %x", block[:trace.HeaderLen], got)
			}
			rest = next
		}
	})
}
