// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

func TestFindArtifacts(t *testing.T) {
	t.Parallel()
	b := start(t)
	digests := map[byte][]schemas.Digest{} // by first byte
	first, second := newAnalysis(t, b), newAnalysis(t, b)
	for i := range 40 {
		a := first
		if i%2 == 1 {
			a = second
		}
		d := a.artifact(schemas.KindDropped, fmt.Sprint(i), 0)
		digests[d[0]] = append(digests[d[0]], d)
		second.artifact(schemas.KindDropped, fmt.Sprint(i), 1) // the same bytes again
	}
	for first, want := range digests {
		got, err := b.FindArtifacts(t.Context(), "default", fmt.Sprintf("%02x", first))
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Errorf("%02x: %v, not %v", first, got, want)
		}
		for _, d := range want {
			got, err := b.FindArtifacts(t.Context(), "default", d.String()[:12])
			if diff := cmp.Diff([]bus.Found{{SHA256: d, Analysis: second.id}}, got); err != nil || diff != "" {
				t.Errorf("%s: %v (-want +got):\n%s", d, err, diff)
			}
		}
	}
	if got, err := b.FindArtifacts(t.Context(), "other", ""); err != nil || len(got) != 0 {
		t.Errorf("another tenant's: %v, %v", got, err)
	}
}
