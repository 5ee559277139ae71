// SPDX-License-Identifier: Apache-2.0

package fleet_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/sandboxd/fleet"
)

func TestPoolFlag(t *testing.T) {
	for _, tt := range []struct {
		text string
		want fleet.Pool
		back string
	}{
		{"0", fleet.Pool{}, "0"},
		{"3", fleet.Pool{"amd64": 3}, "amd64=3"},
		{"mipsel=1,amd64=2", fleet.Pool{"amd64": 2, "mipsel": 1}, "amd64=2,mipsel=1"},
		{"amd64=0,i386=100", fleet.Pool{"i386": 100}, "i386=100"},
	} {
		var p fleet.Pool
		if err := p.Set(tt.text); err != nil {
			t.Errorf("%s: %v", tt.text, err)
		}
		if diff := cmp.Diff(tt.want, p); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.text, diff)
		}
		if got := p.String(); got != tt.back {
			t.Errorf("%s is written %s, want %s", tt.text, got, tt.back)
		}
	}
	for text, says := range map[string]string{
		"":                "",
		"vax=1":           `"vax"`,
		"amd64":           "no number",
		"amd64=x":         "no number",
		"-1":              "no number",
		"101":             "no number",
		"amd64=1,amd64=2": "two numbers",
		"amd64=1,":        "",
	} {
		p := fleet.Pool{"s390x": 7}
		if err := p.Set(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", text, err)
		}
		if len(p) != 1 {
			t.Errorf("%q, which is wrong, has made it %v", text, p)
		}
	}
}
