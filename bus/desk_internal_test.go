// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"encoding/json"
	"strings"
	"testing"
)

func FuzzParseAsk(f *testing.F) {
	for _, s := range [][2]string{
		{"ask.acme.look", `{"last":"petri.acme.01K9ZJ3V0000000000000000AA.context.>"}`},
		{"ask.acme.look", `{"next":"$KV.ARCHIVE.acme.01K9ZJ3V0000000000000000AA","seq":7}`},
		{"ask.acme.look", `{"last":"petri._tombstone.acme.01K9ZJ3V0000000000000000AA"}`},
		{"ask.acme.look", `{"last":"petri.other.>"}`},
		{"ask.acme.page", `{"next":"petri.acme.>","seq":3}`},
		{"ask.acme.page", `{"next":"petri.*.>"}`},
		{"ask.acme.stat", `{"bucket":"ART","analysis":"01K9ZJ3V0000000000000000AA"}`},
		{"ask.acme.list", `{"limit":5,"skip":2}`},
		{"ask.acme.find", `{"prefix":"abcd"}`},
		{"ask.acme.submit", `{"submission":{"tenant":"other"}}`},
		{"ask.*.list", `{}`},
	} {
		f.Add(s[0], []byte(s[1]))
	}
	f.Fuzz(func(t *testing.T, subject string, body []byte) {
		tenant, what, a, err := parseAsk(subject, body)
		if err != nil {
			return
		}
		if deskPrefix+tenant+"."+what != subject || strings.ContainsAny(tenant, ".*> ") {
			t.Fatalf("%q is what tenant %q asks of %q", subject, tenant, what)
		}
		switch what {
		case askLook, askPage:
			s := a.Last + a.Next
			own := strings.HasPrefix(s, "petri."+tenant+".") || strings.HasPrefix(s, "petri._tombstone."+tenant+".") || strings.HasPrefix(s, "$KV.ARCHIVE."+tenant+".")
			if !own || strings.ContainsAny(s, " \t\r\n\x00") || strings.Contains(s, "..") {
				t.Fatalf("tenant %s may look at %q", tenant, s)
			}
		case askSubmit:
			if a.Submission.Tenant != tenant {
				t.Fatalf("tenant %s may submit for %q", tenant, a.Submission.Tenant)
			}
		}
		// It says the same when it is sent again.
		again, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := parseAsk(subject, again); err != nil && len(again) <= maxAsk {
			t.Fatalf("%s is refused: %v", again, err)
		}
	})
}
