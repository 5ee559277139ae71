// SPDX-License-Identifier: Apache-2.0

package fold_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/reporters/fold"
	"github.com/petri-sandbox/petri/schemas"
)

// TestTampering: the first call says from when on, whatever comes later, and a
// guest that makes up calls does not fill the report.
func TestTampering(t *testing.T) {
	list := events(t, "completed")
	at := slices.IndexFunc(list, named(schemas.EventSampleExited))
	n := number(t, list, schemas.EventSampleExited)
	insert := func(calls ...string) *schemas.Report {
		t.Helper()
		f := fold.New()
		for i, e := range list {
			if i == at {
				for j, call := range calls {
					f.Add(contextEvent(t, list, n+j, schemas.PossibleTampering{Call: call, PID: 100 + j, Records: uint64(50 + j)}))
				}
			}
			f.Add(e)
		}
		r, err := f.Report(documents{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if got := insert().Coverage.Tampering; got != nil {
		t.Errorf("without any: %+v", got)
	}
	var produced uint64
	for _, s := range insert().Coverage.Sources {
		if s.Source == schemas.SourceTrace {
			produced = s.Produced
		}
	}
	got := insert("ptrace", "bpf", "ptrace").Coverage.Tampering
	if got == nil || got.First.Call != "ptrace" || got.First.PID != 100 || got.Records != produced-50 || got.Since.IsZero() {
		t.Fatalf("%+v, of %d records", got, produced)
	}
	if diff := cmp.Diff(map[string]int{"ptrace": 2, "bpf": 1}, got.Calls); diff != "" {
		t.Error(diff)
	}
	var many []string
	for i := range 1000 {
		many = append(many, fmt.Sprint(i))
	}
	if got := insert(many...).Coverage.Tampering; len(got.Calls) > 33 || got.Calls["others"]+len(got.Calls)-1 != len(many) {
		t.Errorf("%d names of calls, %d others", len(got.Calls), got.Calls["others"])
	}
}
