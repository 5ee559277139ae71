// SPDX-License-Identifier: Apache-2.0

package schemas

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
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
	if printed, ok := printEvent(e); !ok || string(printed) != string(b) {
		f.Fatalf("an event of Petri's own is not written the short way: %s", printed)
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

// FuzzPrintEvent: what the short way writes is what the long way writes.
func FuzzPrintEvent(f *testing.F) {
	f.Add("x/1", "default", "a", int64(1), `{"a":1}`)
	f.Add("x/<1>", "\"", "\\", int64(-1), `{"a":"<"}`)
	f.Add("x/\x00", "é", "", int64(1e18), `null`)
	f.Fuzz(func(t *testing.T, id, tenant, analysis string, at int64, data string) {
		var compact bytes.Buffer
		if json.Compact(&compact, []byte(data)) != nil || strings.ContainsAny(data, "<>&\u2028\u2029") {
			return // NewEvent makes no such thing
		}
		e := Event{SpecVersion: SpecVersion, ID: id, Source: "/petri/" + tenant, Type: "petri.custom.x.v1", Time: time.Unix(0, at), Tenant: tenant, Analysis: analysis, Origin: OriginHost, Data: compact.Bytes()}
		got, ok := printEvent(e)
		if !ok {
			return
		}
		want, err := json.Marshal(e)
		if err != nil || string(got) != string(want) {
			t.Errorf("%v\n%s\n%s", err, got, want)
		}
	})
}
