// SPDX-License-Identifier: Apache-2.0

package schemas

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// FuzzScanEvent: what the short way reads, the long way reads as the same.
func FuzzScanEvent(f *testing.F) {
	e, err := NewEvent("default", NewID(time.Now()), "x/1", time.Now(), OriginHost, Custom{Name: "seed"})
	if err != nil {
		f.Fatal(err)
	}
	b, err := json.Marshal(e)
	if err != nil {
		f.Fatal(err)
	}
	if got, ok := scanEvent(b); !ok || got.ID != e.ID {
		f.Fatalf("an event of Petri's own is not read the short way: %s", b)
	}
	f.Add(b)
	examples, _ := filepath.Glob("json/examples/*.json")
	for _, name := range examples {
		if b, err := os.ReadFile(name); err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, ok := scanEvent(b)
		if !ok {
			return
		}
		var want Event
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatalf("%v: %s", err, b)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}
