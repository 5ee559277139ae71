// SPDX-License-Identifier: Apache-2.0

package schemas_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

type findingCase struct {
	name    string
	finding schemas.Finding
	ok      bool
	onlyGo  bool // JSON Schema cannot say it
}

func findingCases() []findingCase {
	f := func(change func(*schemas.Finding)) schemas.Finding {
		f := schemas.Finding{Kind: "packer", Title: "packed by UPX"}
		change(&f)
		return f
	}
	data := func(n int) json.RawMessage { return json.RawMessage(`"` + strings.Repeat("x", n-2) + `"`) }
	return []findingCase{
		{"plain", f(func(*schemas.Finding) {}), true, false},
		{"no kind", f(func(f *schemas.Finding) { f.Kind = "" }), false, false},
		{"kind with a dash", f(func(f *schemas.Finding) { f.Kind = "a-b" }), false, false},
		{"kind as long as allowed", f(func(f *schemas.Finding) { f.Kind = strings.Repeat("k", 64) }), true, false},
		{"kind too long", f(func(f *schemas.Finding) { f.Kind = strings.Repeat("k", 65) }), false, false},
		{"no title", f(func(f *schemas.Finding) { f.Title = "" }), false, false},
		{"title as long as allowed", f(func(f *schemas.Finding) { f.Title = strings.Repeat("t", 512) }), true, false},
		{"title too long", f(func(f *schemas.Finding) { f.Title = strings.Repeat("t", 513) }), false, false},
		{"title too long in bytes", f(func(f *schemas.Finding) { f.Title = strings.Repeat("é", 257) }), false, true},
		{"every severity", f(func(f *schemas.Finding) { f.Severity = schemas.SeverityCritical }), true, false},
		{"severity of its own", f(func(f *schemas.Finding) { f.Severity = "urgent" }), false, false},
		{"severity in capitals", f(func(f *schemas.Finding) { f.Severity = "High" }), false, false},
		{"whole confidence", f(func(f *schemas.Finding) { f.Confidence = 100 }), true, false},
		{"negative confidence", f(func(f *schemas.Finding) { f.Confidence = -1 }), false, false},
		{"too much confidence", f(func(f *schemas.Finding) { f.Confidence = 101 }), false, false},
		{"32 techniques", f(func(f *schemas.Finding) { f.Techniques = slices.Repeat([]string{"T1027"}, 32) }), true, false},
		{"33 techniques", f(func(f *schemas.Finding) { f.Techniques = slices.Repeat([]string{"T1027"}, 33) }), false, false},
		{"64 pieces of evidence", f(func(f *schemas.Finding) { f.Evidence = make([]schemas.Evidence, 64) }), true, false},
		{"65 pieces of evidence", f(func(f *schemas.Finding) { f.Evidence = make([]schemas.Evidence, 65) }), false, false},
		{"data as long as allowed", f(func(f *schemas.Finding) { f.Data = data(schemas.MaxFindingData) }), true, false},
		{"data too long", f(func(f *schemas.Finding) { f.Data = data(schemas.MaxFindingData + 1) }), false, true},
	}
}

func TestFindingCheck(t *testing.T) {
	for _, tt := range findingCases() {
		err := tt.finding.Check()
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err != nil && len(err.Error()) > 600 {
			t.Errorf("%s: the error has %d bytes", tt.name, len(err.Error()))
		}
	}
}

func TestSeverities(t *testing.T) {
	for _, s := range []schemas.Severity{schemas.SeverityInfo, schemas.SeverityLow, schemas.SeverityMedium, schemas.SeverityHigh, schemas.SeverityCritical} {
		if f := (schemas.Finding{Kind: "a", Title: "a", Severity: s}); !s.Valid() || f.Check() != nil {
			t.Errorf("%s is not valid", s)
		}
	}
	for _, s := range []schemas.Severity{"", "none", "INFO"} {
		if s.Valid() {
			t.Errorf("%q is valid", s)
		}
	}
}

type registrationCase struct {
	name         string
	registration schemas.Registration
	ok           bool
	onlyGo       bool // the schema does not say it
}

func registrationCases() []registrationCase {
	r := func(change func(*schemas.Registration)) schemas.Registration {
		r := schemas.Registration{
			Name: "static", Version: "1.0.0", Kinds: []schemas.Kind{schemas.KindSample}, Scope: schemas.ScopeArtifact,
			Deadline: schemas.Duration(time.Minute),
		}
		change(&r)
		return r
	}
	return []registrationCase{
		{"plain", r(func(*schemas.Registration) {}), true, false},
		{"over the analysis", r(func(r *schemas.Registration) { r.Scope, r.Kinds, r.After = schemas.ScopeAnalysis, nil, "artifacts" }), true, false},
		{"no name", r(func(r *schemas.Registration) { r.Name = "" }), false, false},
		{"name with a dot", r(func(r *schemas.Registration) { r.Name = "a.b" }), false, false},
		{"name that matches all", r(func(r *schemas.Registration) { r.Name = ">" }), false, false},
		{"name too long", r(func(r *schemas.Registration) { r.Name = strings.Repeat("a", 33) }), false, false},
		{"no version", r(func(r *schemas.Registration) { r.Version = "" }), false, false},
		{"version too long", r(func(r *schemas.Registration) { r.Version = strings.Repeat("1", 65) }), false, false},
		{"no scope", r(func(r *schemas.Registration) { r.Scope = "" }), false, false},
		{"scope of its own", r(func(r *schemas.Registration) { r.Scope = "everything" }), false, false},
		{"no kinds", r(func(r *schemas.Registration) { r.Kinds = nil }), false, true},
		{"kinds over the analysis", r(func(r *schemas.Registration) { r.Scope = schemas.ScopeAnalysis }), false, true},
		{"32 kinds", r(func(r *schemas.Registration) { r.Kinds = slices.Repeat(r.Kinds, 32) }), true, false},
		{"33 kinds", r(func(r *schemas.Registration) { r.Kinds = slices.Repeat(r.Kinds, 33) }), false, false},
		{"bad kind", r(func(r *schemas.Registration) { r.Kinds = []schemas.Kind{"sample", "Memory"} }), false, false},
	}
}

func TestRegistrationCheck(t *testing.T) {
	for _, tt := range registrationCases() {
		if err := tt.registration.Check(); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestTaskToken(t *testing.T) {
	d := schemas.Sum(nil)
	if got := (schemas.TaskRef{}).Token(); got != "_" {
		t.Errorf("the token of a task over the analysis is %q", got)
	}
	if got := (schemas.TaskRef{SHA256: &d}).Token(); got != d.Token() {
		t.Errorf("the token of a task is %q", got)
	}
}

func TestIDsOfArtifactsAndSegments(t *testing.T) {
	a := schemas.Artifact{Kind: schemas.KindDropped, SHA256: schemas.Sum(nil), Occurrence: 3}
	if got, want := a.ID(someID), someID+"/artifact/dropped/"+a.SHA256.Token()+"/3"; got != want {
		t.Errorf("artifact %s, not %s", got, want)
	}
	s := schemas.Segment{Source: schemas.SourcePcap, N: 12}
	if got, want := s.ID(someID), someID+"/segment/pcap/12"; got != want {
		t.Errorf("segment %s, not %s", got, want)
	}
}

func TestEndings(t *testing.T) {
	var endings []string
	for _, info := range schemas.Types() {
		if e := (schemas.Event{Type: info.Name}); e.Family() == "context" && schemas.Ending(e.Name()) {
			endings = append(endings, e.Name())
		}
	}
	slices.Sort(endings)
	if want := []string{"analysis_cancelled", "analysis_completed", "analysis_failed"}; !slices.Equal(endings, want) {
		t.Errorf("endings %v, want %v", endings, want)
	}
}

// FuzzFindingCheck checks that a finding that passes is within the limits, and
// is still so when another program has read and written it.
func FuzzFindingCheck(f *testing.F) {
	f.Add([]byte(`{"kind":"packer","title":"packed","severity":"high","confidence":60,"techniques":["T1027"],"data":{"a":1}}`))
	f.Add([]byte(`{"kind":"a","title":"<","data":"<"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var v schemas.Finding
		if json.Unmarshal(b, &v) != nil || v.Check() != nil {
			return
		}
		if len(v.Title) > 512 || len(v.Data) > schemas.MaxFindingData || v.Confidence > 100 {
			t.Errorf("%+v passes", v)
		}
		var out bytes.Buffer
		enc := json.NewEncoder(&out)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			t.Fatal(err)
		}
		var again schemas.Finding
		if err := json.Unmarshal(out.Bytes(), &again); err != nil || again.Check() != nil {
			t.Errorf("written again as %s: %v, %v", out.Bytes(), err, again.Check())
		}
	})
}
