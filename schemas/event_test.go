// SPDX-License-Identifier: Apache-2.0

package schemas_test

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/schemas"
)

const someID = "01M7WWPJGHX01836292GCV681K"

func TestEventRoundTrip(t *testing.T) {
	zone := time.FixedZone("", 2*60*60)
	want := schemas.SampleExited{Reason: "killed", Signal: "SIGSEGV", Ran: schemas.Duration(1500 * time.Millisecond), Left: 2}
	e, err := schemas.NewEvent("default", someID, someID+"/context/8", time.Date(2026, 11, 20, 18, 30, 11, 5, zone), schemas.OriginGuest, want)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	got, err := schemas.ParseEvent(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(e, got); diff != "" {
		t.Errorf("parsed (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(schemas.Event{
		SpecVersion: "1.0", ID: someID + "/context/8", Source: "/petri/default/" + someID, Type: "petri.context.sample_exited.v1",
		Time: time.Date(2026, 11, 20, 16, 30, 11, 5, time.UTC), DataContentType: "application/json",
		DataSchema: "urn:petri:schema:petri.context.sample_exited.v1", Tenant: "default", Analysis: someID, Origin: schemas.OriginGuest,
		Data: json.RawMessage(`{"reason":"killed","signal":"SIGSEGV","ran":"1.5s","left":2}`),
	}, got); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
	var data schemas.SampleExited
	if err := got.Decode(&data); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, data); diff != "" {
		t.Errorf("data (-want +got):\n%s", diff)
	}
}

func TestEventOfNoAnalysis(t *testing.T) {
	e, err := schemas.NewEvent("_registry", "", "static/1", time.Unix(1, 0), schemas.OriginHost, schemas.Unregistration{Name: "static"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	if e.Source != "/petri/_registry" || bytes.Contains(b, []byte(`"analysis"`)) {
		t.Errorf("source %q, event %s", e.Source, b)
	}
}

func TestNewEventRefusesWhatIsNoJSON(t *testing.T) {
	f := schemas.FindingCommitted{Finding: schemas.Finding{Kind: "a", Title: "a", Data: json.RawMessage("{")}}
	if _, err := schemas.NewEvent("default", someID, "1", time.Unix(1, 0), schemas.OriginHost, f); err == nil || !strings.Contains(err.Error(), "petri.finding.committed.v1") {
		t.Errorf("error %v", err)
	}
}

func TestNameAndFamily(t *testing.T) {
	for _, tt := range []struct{ typ, name, family string }{
		{"petri.context.pre_poweron.v1", "pre_poweron", "context"},
		{"petri.behavior.file.open.v1", "open", "behavior"},
		{"petri.artifact.announced.v2", "announced", "artifact"},
		{"petri.context", "", ""},
		{"", "", ""},
	} {
		e := schemas.Event{Type: tt.typ}
		if e.Name() != tt.name || e.Family() != tt.family {
			t.Errorf("%q: name %q, family %q", tt.typ, e.Name(), e.Family())
		}
	}
}

func TestDecode(t *testing.T) {
	e := schemas.Event{ID: "1", Type: "petri.context.post_pause.v1", Data: json.RawMessage(`{"from":"running","to":"paused","added_later":[1]}`)}
	var tr schemas.Transition
	if err := e.Decode(&tr); err != nil || tr.To != "paused" {
		t.Errorf("a type of many names: %+v, %v", tr, err)
	}
	if err := e.Decode(&schemas.Transition{Verb: "pre_pause"}); err == nil {
		t.Error("a transition of another name was decoded")
	}
	if err := e.Decode(&schemas.PrePoweron{}); err == nil || !strings.Contains(err.Error(), "petri.context.post_pause.v1") {
		t.Errorf("another type: %v", err)
	}
	for _, data := range []string{``, `[]`, `"x"`, `{"from":1}`} {
		e.Data = json.RawMessage(data)
		if err := e.Decode(&schemas.Transition{}); err == nil {
			t.Errorf("data %q was decoded", data)
		}
	}
	bad := schemas.Event{ID: "1", Type: "petri.context.sample_started.v1", Data: json.RawMessage(`{"sha256":"0"}`)}
	if err := bad.Decode(&schemas.SampleStarted{}); err == nil {
		t.Error("a short digest was decoded")
	}
}

func TestParseEventRefuses(t *testing.T) {
	good := map[string]any{
		"specversion": "1.0", "id": "1", "source": "/petri/default", "type": "petri.context.fault.v1", "time": "2026-11-20T16:30:11Z",
		"datacontenttype": "application/json", "dataschema": "urn:petri:schema:petri.context.fault.v1", "tenant": "default",
		"origin": "host", "data": map[string]any{"text": "x"},
	}
	encode := func(change map[string]any) []byte {
		m := map[string]any{}
		for k, v := range good {
			m[k] = v
		}
		for k, v := range change {
			if m[k] = v; v == nil {
				delete(m, k)
			}
		}
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if _, err := schemas.ParseEvent(encode(nil)); err != nil {
		t.Fatalf("a good event: %v", err)
	}
	envelope := compiled(t)[schemas.EnvelopeSchema]
	for _, tt := range []struct {
		change map[string]any
		want   string
	}{
		{map[string]any{"specversion": "0.3"}, "specversion"},
		{map[string]any{"specversion": nil}, "specversion"},
		{map[string]any{"id": ""}, "id or source"},
		{map[string]any{"id": nil}, "id or source"},
		{map[string]any{"source": nil}, "id or source"},
		{map[string]any{"type": "org.example.x"}, "does not begin with \"petri.\""},
		{map[string]any{"type": nil}, "does not begin with \"petri.\""},
		{map[string]any{"time": nil}, "time is missing"},
		{map[string]any{"time": "20 November 2026"}, "parse event"},
		{map[string]any{"origin": "elsewhere"}, "origin"},
		{map[string]any{"origin": nil}, "origin"},
		{map[string]any{"id": 1}, "parse event"},
	} {
		b := encode(tt.change)
		if _, err := schemas.ParseEvent(b); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: error %v, want one with %q", tt.change, err, tt.want)
		}
		if envelope.Validate(parseJSON(t, b)) == nil {
			t.Errorf("%v: the schema of the envelope takes it", tt.change)
		}
	}
	for _, b := range []string{"", "null", "[]", "{", `{}`, "\x00", `{"specversion":"1.0"} x`} {
		if _, err := schemas.ParseEvent([]byte(b)); err == nil {
			t.Errorf("%q was parsed", b)
		}
	}
}

// FuzzParseEvent checks that what is taken is written and read again the same,
// and never breaks whoever asks it for its name.
func FuzzParseEvent(f *testing.F) {
	for _, name := range []string{"petri.event.v1", "petri.finding.committed.v1", "petri.registry.registered.v1"} {
		b, err := os.ReadFile("json/examples/" + name + ".json")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"specversion":"1.0","id":"1","source":"s","type":"petri.","time":"2026-11-20T16:30:11+05:00","origin":"host"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := schemas.ParseEvent(b)
		if err != nil {
			return
		}
		_, _ = e.Name(), e.Family()
		once, err := json.Marshal(e)
		if err != nil {
			t.Fatalf("write what was parsed: %v", err)
		}
		again, err := schemas.ParseEvent(once)
		if err != nil {
			t.Fatalf("parse what was written: %v", err)
		}
		twice, err := json.Marshal(again)
		if err != nil || !bytes.Equal(once, twice) {
			t.Errorf("written twice:\n%s\n%s\n%v", once, twice, err)
		}
	})
}
