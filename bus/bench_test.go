// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/petri-sandbox/petri/schemas"
)

// BenchmarkPutSmall stores what a sample drops: many small files, new ones and
// such as the store has.
func BenchmarkPutSmall(b *testing.B) {
	for name, again := range map[string]bool{"new": false, "known": true} {
		b.Run(name, func(b *testing.B) {
			st := start(b).Artifacts()
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
