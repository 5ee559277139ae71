// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// TestProgressExplains says what takes long before the first step, once, and
// only if it is so.
func TestProgressExplains(t *testing.T) {
	event := func(data schemas.Typed) schemas.Event {
		t.Helper()
		e, err := schemas.NewEvent(schemas.DefaultTenant, schemas.NewID(testTime), "1", testTime, schemas.OriginHost, data)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	for _, making := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "out"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			p := newProgress(f)
			asked := 0
			p.making = func() bool { asked++; return making && asked >= 3 }
			p.event(event(schemas.AnalysisClaimed{Worker: "w"}))
			p.event(event(schemas.Receipt{})) // of the sample, as an analyzer is fast
			time.Sleep(4 * time.Second)
			p.event(event(schemas.PrePoweron{}))
			time.Sleep(4 * time.Second)
			p.done()
			b, err := os.ReadFile(f.Name())
			if err != nil {
				t.Fatal(err)
			}
			want := 0
			if making {
				want = 1
			}
			if got := strings.Count(string(b), "preparing a warm snapshot, once per guest image"); got != want {
				t.Errorf("making %v: said %d times:\n%s", making, got, b)
			}
		})
	}
}
