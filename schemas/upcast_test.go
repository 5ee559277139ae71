// SPDX-License-Identifier: Apache-2.0

package schemas_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/schemas"
)

// recorded is an event as a log of 2026 has it.
const recorded = `{"specversion":"1.0","id":"01M7WX710XASFVWC389T7KY0M3/context/16","source":"/petri/default/01M7WX710XASFVWC389T7KY0M3",
"type":"petri.context.wait_analysis.v1","time":"2026-11-20T16:39:14.25Z","datacontenttype":"application/json",
"dataschema":"urn:petri:schema:petri.context.wait_analysis.v1","tenant":"default","analysis":"01M7WX710XASFVWC389T7KY0M3","origin":"host",
"data":{"deadline":"2026-11-20T16:40:14.25Z","expected":["behavior","static"]}}`

func TestDecodeReadsOldVersions(t *testing.T) {
	e, err := schemas.ParseEvent([]byte(recorded))
	if err != nil {
		t.Fatal(err)
	}
	var got schemas.WaitAnalysis
	if err := e.Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := schemas.WaitAnalysis{Timeout: schemas.Duration(time.Minute), Expected: []string{"behavior", "static"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Who wants the old words has them.
	var old schemas.WaitAnalysisV1
	if err := e.Decode(&old); err != nil || len(old.Expected) != 2 {
		t.Errorf("as it was written: %+v, %v", old, err)
	}
	var other schemas.StartAnalysis
	if err := e.Decode(&other); err == nil || !strings.Contains(err.Error(), "wait_analysis.v1") {
		t.Errorf("as another event: %v", err)
	}
}

// TestUpcast holds every older version in the list of types to its successor.
func TestUpcast(t *testing.T) {
	names := map[string]bool{}
	for _, info := range schemas.Types() {
		names[info.Name] = true
	}
	upcast := 0
	for name := range names {
		old := schemas.Event{Type: name, Time: time.Unix(1, 0), Data: []byte(`{}`)}
		up, err := schemas.Upcast(old)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if up.Type == name {
			continue
		}
		upcast++
		if !names[up.Type] || up.Name() != old.Name() || up.Family() != old.Family() {
			t.Errorf("%s became %s", name, up.Type)
		}
		if up.DataSchema != schemas.SchemaURI(up.Type) {
			t.Errorf("%s says that its schema is %s", up.Type, up.DataSchema)
		}
	}
	if upcast == 0 {
		t.Error("no type has an older version")
	}
	bad := schemas.Event{Type: schemas.WaitAnalysisV1{}.EventType(), Data: []byte(`{"deadline": 5}`)}
	if _, err := schemas.Upcast(bad); err == nil || !strings.Contains(err.Error(), "wait_analysis.v2") {
		t.Errorf("data of another form: %v", err)
	}
}
