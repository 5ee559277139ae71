// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"
	"testing"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// announced is a server as it serves.
func announced(b *testing.B) *bus.Store {
	c, s := startAt(b, b.TempDir())
	if err := s.Announce(); err != nil {
		b.Fatal(err)
	}
	return c.Artifacts()
}

// BenchmarkPutSmall stores what a sample drops: many small files, new ones and
// such as the store has.
func BenchmarkPutSmall(b *testing.B) {
	for name, again := range map[string]bool{"new": false, "known": true} {
		b.Run(name, func(b *testing.B) {
			st := announced(b)
			data := noise(4 << 10)
			if _, _, err := st.Put(b.Context(), schemas.KindDropped, bytes.NewReader(data)); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if !again {
					binary.LittleEndian.PutUint64(data, uint64(i))
				}
				if _, _, err := st.Put(b.Context(), schemas.KindDropped, bytes.NewReader(data)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPutMany stores small files as many analyses at a time do.
func BenchmarkPutMany(b *testing.B) {
	st := announced(b)
	var n atomic.Uint64
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		data := noise(4 << 10)
		for pb.Next() {
			binary.LittleEndian.PutUint64(data, n.Add(1))
			if _, _, err := st.PutBytes(b.Context(), schemas.KindDropped, data); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
