// SPDX-License-Identifier: Apache-2.0

package schemas_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/petri-sandbox/petri/schemas"
)

// compiled are the committed schemas by name. That they compile says that each
// is valid by the rules of JSON Schema 2020-12.
func compiled(t testing.TB) map[string]*jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	for _, info := range schemas.Types() {
		if err := c.AddResource(schemas.SchemaURI(info.Name), readJSON(t, "json/"+info.Name+".json")); err != nil {
			t.Fatalf("%s: %v", info.Name, err)
		}
	}
	out := map[string]*jsonschema.Schema{}
	for _, info := range schemas.Types() {
		s, err := c.Compile(schemas.SchemaURI(info.Name))
		if err != nil {
			t.Fatalf("%s: %v", info.Name, err)
		}
		if s.DraftVersion != 2020 {
			t.Errorf("%s is of draft %d", info.Name, s.DraftVersion)
		}
		out[info.Name] = s
	}
	return out
}

func readJSON(t testing.TB, path string) any {
	t.Helper()
	b, err := os.ReadFile(filepath.FromSlash(path))
	if err != nil {
		t.Fatal(err)
	}
	return parseJSON(t, b)
}

func parseJSON(t testing.TB, b []byte) any {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// example returns the value that is under the schema, and the event around it
// if there is one.
func example(t *testing.T, info schemas.TypeInfo) (value any, event map[string]any) {
	t.Helper()
	v := readJSON(t, "json/examples/"+info.Name+".json")
	if info.Form == schemas.FormEvent {
		event = v.(map[string]any)
		return event["data"], event
	}
	return v, nil
}

func TestEveryExampleIsValid(t *testing.T) {
	all := compiled(t)
	for _, info := range schemas.Types() {
		t.Run(info.Name, func(t *testing.T) {
			value, event := example(t, info)
			if err := all[info.Name].Validate(value); err != nil {
				t.Error(err)
			}
			if event == nil {
				return
			}
			if err := all[schemas.EnvelopeSchema].Validate(any(event)); err != nil {
				t.Error(err)
			}
			if event["type"] != info.Name || event["dataschema"] != schemas.SchemaURI(info.Name) {
				t.Errorf("its type is %v, its schema %v", event["type"], event["dataschema"])
			}
		})
	}
}

// TestEveryExampleSurvivesItsType reads each example into its Go type and
// writes it again: nothing that a schema shows may be lost.
func TestEveryExampleSurvivesItsType(t *testing.T) {
	for _, info := range schemas.Types() {
		t.Run(info.Name, func(t *testing.T) {
			b, err := os.ReadFile("json/examples/" + info.Name + ".json")
			if err != nil {
				t.Fatal(err)
			}
			into := info.New()
			if info.Form == schemas.FormEvent {
				e, err := schemas.ParseEvent(b)
				if err != nil {
					t.Fatal(err)
				}
				if err := e.Decode(into.(schemas.Typed)); err != nil {
					t.Fatal(err)
				}
				b = e.Data
			} else if err := json.Unmarshal(b, into); err != nil {
				t.Fatal(err)
			}
			again, err := json.Marshal(into)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(parseJSON(t, b), parseJSON(t, again)); diff != "" {
				t.Errorf("read and written again (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEveryRequiredFieldIsMissed(t *testing.T) {
	all := compiled(t)
	for _, info := range schemas.Types() {
		value, _ := example(t, info)
		for _, field := range all[info.Name].Required {
			m := maps.Clone(value.(map[string]any))
			delete(m, field)
			if all[info.Name].Validate(any(m)) == nil {
				t.Errorf("%s is valid without %s", info.Name, field)
			}
		}
	}
}

// TestUnknownFieldsAreNoError keeps the way open for fields of later versions.
func TestUnknownFieldsAreNoError(t *testing.T) {
	all := compiled(t)
	for _, info := range schemas.Types() {
		value, _ := example(t, info)
		m := maps.Clone(value.(map[string]any))
		m["added_later"] = true
		if err := all[info.Name].Validate(any(m)); err != nil {
			t.Errorf("%s: %v", info.Name, err)
		}
	}
}

func TestBadValuesAreErrors(t *testing.T) {
	all := compiled(t)
	digest := schemas.Sum(nil).String()
	for _, tt := range []struct{ name, path, value string }{
		{"petri.event.v1", "specversion", `"0.3"`},
		{"petri.event.v1", "id", `""`},
		{"petri.event.v1", "source", `"petri"`},
		{"petri.event.v1", "type", `"petri.context.Pre.v1"`},
		{"petri.event.v1", "type", `"petri.context.pre_pause"`},
		{"petri.event.v1", "time", `"yesterday"`},
		{"petri.event.v1", "time", `"2026-11-20 16:30:11"`},
		{"petri.event.v1", "datacontenttype", `"text/plain"`},
		{"petri.event.v1", "dataschema", `"https://example.org/"`},
		{"petri.event.v1", "tenant", `"de.fault"`},
		{"petri.event.v1", "analysis", `"01m7wwpjghx01836292gcv681k"`},
		{"petri.event.v1", "origin", `"nobody"`},
		{"petri.event.v1", "data", `[]`},
		{"petri.context.sample_started.v1", "sha256", strconv.Quote(digest[1:])},
		{"petri.context.sample_started.v1", "sha256", strconv.Quote(digest + "0")},
		{"petri.context.sample_started.v1", "sha256", strconv.Quote(strings.ToUpper(digest))},
		{"petri.context.sample_started.v1", "sha256", strconv.Quote(schemas.Sum(nil).Token())},
		{"petri.context.sample_started.v1", "pid", `"1767"`},
		{"petri.context.post_poweron.v1", "template", `""`},
		{"petri.context.post_poweron.v1", "took", `"560"`},
		{"petri.context.post_poweron.v1", "took", `560000000`},
		{"petri.context.start_analysis.v1", "artifacts", `null`},
		{"petri.context.start_analysis.v1", "artifacts/0/sha256", `"0"`},
		{"petri.context.start_analysis.v1", "sources/0/produced", `-1`},
		{"petri.context.wait_analysis.v2", "timeout", `"in a minute"`},
		{"petri.context.custom.v1", "payload", `{"note": 1}`},
		{"petri.context.analysis_submitted.v1", "submission/sample/sha256", `"0"`},
		{"petri.job.submission.v1", "id", `"1"`},
		{"petri.job.submission.v1", "options/priority", `"urgent"`},
		{"petri.artifact.announced.v1", "kind", `"Sample"`},
		{"petri.artifact.announced.v1", "sha256", `"0"`},
		{"petri.segment.published.v1", "data", `"not base64"`},
		{"petri.segment.published.v1", "data", `"aGVsbG8"`},
		{"petri.finding.committed.v1", "task/run", `"r-1"`},
		{"petri.finding.committed.v1", "finding/severity", `"urgent"`},
		{"petri.finding.committed.v1", "finding/confidence", `101`},
		{"petri.finding.committed.v1", "finding/evidence/0/artifact", `"0"`},
		{"petri.task.finished.v1", "status", `"maybe"`},
		{"petri.task.finished.v1", "result/schema", `"other.v1"`},
		{"petri.receipt.committed.v1", "task/sha256", `"0"`},
		{"petri.registry.registered.v1", "scope", `"everything"`},
		{"petri.registry.registered.v1", "kinds", `[]`},
		{"petri.registry.unregistered.v1", "name", `"a.b"`},
		{"petri.behavior.file.open.v1", "action", `"close"`},
		{"petri.behavior.file.open.v1", "category", `"network"`},
		{"petri.behavior.file.open.v1", "file/path", `1`},
		{"petri.report.written.v1", "verdict", `"clean"`},
		{"petri.report.document.v1", "schema_version", `"2.0"`},
		{"petri.report.document.v1", "outcome/value", `"good"`},
		{"petri.report.document.v1", "console/exit_code", `"0"`},
		{"petri.manifest.v1", "schema", `"petri.manifest.v2"`},
		{"petri.drops.v1", "files/0/sha256", `"0"`},
		{"petri.template.v1", "ram", `"0"`},
		{"petri.result.static.v1", "schema", `"petri.result.behavior.v1"`},
		{"petri.result.behavior.v1", "syscalls", `{"write": -1}`},
	} {
		info := typeInfo(t, tt.name)
		value, _ := example(t, info)
		set(t, value, strings.Split(tt.path, "/"), parseJSON(t, []byte(tt.value)))
		if all[tt.name].Validate(value) == nil {
			t.Errorf("%s is valid with %s in %s", tt.name, tt.value, tt.path)
		}
	}
}

// set replaces what lies at a path.
func set(t *testing.T, v any, path []string, with any) {
	t.Helper()
	last := len(path) == 1
	switch v := v.(type) {
	case map[string]any:
		if _, ok := v[path[0]]; !ok {
			t.Fatalf("the example has no %s", path[0])
		}
		if last {
			v[path[0]] = with
			return
		}
		set(t, v[path[0]], path[1:], with)
	case []any:
		i, err := strconv.Atoi(path[0])
		if err != nil || i >= len(v) {
			t.Fatalf("the example has no element %s", path[0])
		}
		if last {
			v[i] = with
			return
		}
		set(t, v[i], path[1:], with)
	default:
		t.Fatalf("the example holds nothing below %s", path[0])
	}
}

func typeInfo(t *testing.T, name string) schemas.TypeInfo {
	t.Helper()
	for _, info := range schemas.Types() {
		if info.Name == name {
			return info
		}
	}
	t.Fatalf("there is no schema %s", name)
	return schemas.TypeInfo{}
}

func TestNullExitCodeIsValid(t *testing.T) {
	info := typeInfo(t, "petri.report.document.v1")
	value, _ := example(t, info)
	set(t, value, []string{"console", "exit_code"}, nil)
	if err := compiled(t)[info.Name].Validate(value); err != nil {
		t.Error(err)
	}
}

func TestIndex(t *testing.T) {
	var index struct {
		Envelope, Custom string
		Types            map[string]struct{ Form, File, Example string }
	}
	b, err := os.ReadFile("json/index.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &index); err != nil {
		t.Fatal(err)
	}
	if index.Envelope != schemas.EnvelopeSchema || index.Custom != schemas.CustomType {
		t.Errorf("envelope %q, custom %q", index.Envelope, index.Custom)
	}
	var want []string
	for _, info := range schemas.Types() {
		want = append(want, info.Name)
		e := index.Types[info.Name]
		if e.Form != string(info.Form) {
			t.Errorf("%s has the form %q, not %q", info.Name, e.Form, info.Form)
		}
		for _, path := range []string{e.File, e.Example} {
			if _, err := os.Stat(filepath.Join("json", path)); err != nil {
				t.Errorf("%s: %v", info.Name, err)
			}
		}
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(index.Types))); diff != "" {
		t.Errorf("types (-want +got):\n%s", diff)
	}
}

// TestChecksAndSchemasAgree keeps what Petri refuses and what its schemas
// refuse the same, for what strangers write.
func TestChecksAndSchemasAgree(t *testing.T) {
	all := compiled(t)
	info := typeInfo(t, "petri.finding.committed.v1")
	for _, tt := range findingCases() {
		value, _ := example(t, info)
		b, err := json.Marshal(tt.finding)
		if err != nil {
			t.Fatal(err)
		}
		set(t, value, []string{"finding"}, parseJSON(t, b))
		err = all[info.Name].Validate(value)
		if got := err == nil; got != tt.ok && !tt.onlyGo {
			t.Errorf("finding %s: the schema says %v", tt.name, err)
		}
	}
	for _, tt := range registrationCases() {
		b, err := json.Marshal(tt.registration)
		if err != nil {
			t.Fatal(err)
		}
		err = all["petri.registry.registered.v1"].Validate(parseJSON(t, b))
		if got := err == nil; got != tt.ok && !tt.onlyGo {
			t.Errorf("registration %s: the schema says %v", tt.name, err)
		}
	}
}
