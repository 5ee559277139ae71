// SPDX-License-Identifier: Apache-2.0

package schemas_test

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/schemas"
)

func TestProfileCheck(t *testing.T) {
	many := make([]string, schemas.MaxExpected+1)
	for i := range many {
		many[i] = "a" + strconv.Itoa(i)
	}
	good := schemas.Profile{Schema: schemas.ProfileSchema, Name: "amd64", Expected: many[1:]}
	for _, row := range []struct {
		change func(p *schemas.Profile)
		want   string // in the error; empty: none
	}{
		{func(*schemas.Profile) {}, ""},
		{func(p *schemas.Profile) { p.Expected = []string{} }, ""},
		{func(p *schemas.Profile) { p.Expected = nil }, "no list"},
		{func(p *schemas.Profile) { p.Expected = many }, "257 are named"},
		{func(p *schemas.Profile) { p.Expected = []string{"static", "yara", "static"} }, "static is named twice"},
		{func(p *schemas.Profile) { p.Expected = []string{"static", ""} }, "analyzer name"},
		{func(p *schemas.Profile) { p.Name = "a.b" }, "profile"},
		{func(p *schemas.Profile) { p.Schema = "" }, "schema"},
	} {
		p := good
		row.change(&p)
		err := p.Check()
		if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%.60v: %v, not %q", p, err, row.want)
		}
	}
}

// TestExpectedOrNot tells a submission that expects nobody from one that leaves
// it to the operator, through JSON and back.
func TestExpectedOrNot(t *testing.T) {
	typ := schemas.Submission{}.EventType()
	schema := compiled(t)[typ]
	b, err := json.Marshal(readJSON(t, "json/examples/"+typ+".json").(map[string]any)["data"])
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range [][]string{nil, {}, {"static"}} {
		var s, got schemas.Submission
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatal(err)
		}
		s.Expected = want
		body, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(parseJSON(t, body)); err != nil {
			t.Errorf("%#v: %v", want, err)
		}
		if err := json.Unmarshal(body, &got); err != nil || !slices.Equal(got.Expected, want) || (got.Expected == nil) != (want == nil) {
			t.Errorf("%#v came back as %#v, %v", want, got.Expected, err)
		}
	}
}
