// SPDX-License-Identifier: Apache-2.0

package schemas_test

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

func TestNames(t *testing.T) {
	checks := map[string]func(string) error{
		"kind":     func(s string) error { return schemas.CheckKind(schemas.Kind(s)) },
		"analyzer": schemas.CheckAnalyzer, "tenant": schemas.CheckTenant, "event": schemas.CheckEventName,
	}
	for _, tt := range []struct{ name, ok string }{
		{"a", "kind analyzer tenant event"},
		{"sample", "kind analyzer tenant event"},
		{"a1", "kind analyzer tenant event"},
		{"a-b", "kind analyzer tenant"},
		{"a_b", "event"},
		{strings.Repeat("a", 32), "kind analyzer tenant event"},
		{strings.Repeat("a", 33), "event"},
		{strings.Repeat("a", 64), "event"},
		{strings.Repeat("a", 65), ""},
		{"", ""},
		{"A", ""},
		{"1a", ""},
		{"-a", ""},
		{"_a", ""},
		{"a.b", ""},
		{"a b", ""},
		{"a\n", ""},
		{"a*", ""},
		{">", ""},
		{"é", ""},
		{"aé", ""},
		{"a\x00", ""},
		{"a\xff", ""},
		{"../a", ""},
	} {
		for what, check := range checks {
			want := strings.Contains(tt.ok, what)
			if err := check(tt.name); (err == nil) != want {
				t.Errorf("%s %q: %v", what, tt.name, err)
			}
		}
	}
}

func TestErrorsOfNamesAreShort(t *testing.T) {
	err := schemas.CheckAnalyzer(strings.Repeat("\x1b", 1<<20))
	if err == nil || len(err.Error()) > 600 || strings.ContainsRune(err.Error(), '\x1b') {
		t.Errorf("%d bytes: %.200v", len(err.Error()), err)
	}
}

func TestCheckRun(t *testing.T) {
	for run, ok := range map[string]bool{
		"live": true, "r-" + someID: true, "": false, "r-": false, "r-1": false, someID: false, "R-" + someID: false, "live ": false,
		"r-" + strings.ToLower(someID): false,
	} {
		if err := schemas.CheckRun(run); (err == nil) != ok {
			t.Errorf("CheckRun(%q) = %v", run, err)
		}
	}
}

// FuzzNames checks that what is taken as a name can stand as one token of a
// subject and as a file's name.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"sample", "a-b", "a_b", "a.b", "", "..", "é", someID, "r-" + someID} {
		f.Add(s)
	}
	tok := regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	f.Fuzz(func(t *testing.T, s string) {
		for what, err := range map[string]error{
			"kind": schemas.CheckKind(schemas.Kind(s)), "analyzer": schemas.CheckAnalyzer(s), "tenant": schemas.CheckTenant(s),
			"event": schemas.CheckEventName(s), "run": schemas.CheckRun(s), "id": schemas.CheckID(s),
		} {
			if err == nil && !tok.MatchString(s) {
				t.Errorf("%q is taken as %s", s, what)
			}
		}
	})
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{"0s": 0, "560ms": 560 * time.Millisecond, "1m30s": 90 * time.Second, "-1s": -time.Second, "1.5µs": 1500} {
		var d schemas.Duration
		if err := d.UnmarshalText([]byte(text)); err != nil || d.D() != want || d.String() != text {
			t.Errorf("%q: %s, %v", text, d, err)
		}
	}
	for _, text := range []string{"", "5", "5 s", "s", "1h1", "1d", "five"} {
		if err := new(schemas.Duration).UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), "write 500ms") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// FuzzDuration checks that Petri and its schemas take the same durations.
func FuzzDuration(f *testing.F) {
	for _, s := range []string{"0", "0s", "1h2m3.5s", "-.5us", "1µs", "1μs", "+1ms", "1", "1e3s", ".", "-"} {
		f.Add(s)
	}
	schema := compiled(f)["petri.context.log_away.v1"]
	f.Fuzz(func(t *testing.T, s string) {
		var d schemas.Duration
		err := d.UnmarshalText([]byte(s))
		valid := schema.Validate(map[string]any{"for": s}) == nil
		// The schema cannot tell that a duration is too long to be held, as one
		// of a million hours is.
		small := len(strings.Map(onlyDigits, s)) <= 6
		if err == nil && !valid || err != nil && valid && small {
			t.Errorf("%q: Petri says %v, the schema takes it: %t", s, err, valid)
		}
		if err == nil {
			var again schemas.Duration
			b, _ := d.MarshalText()
			if err := again.UnmarshalText(b); err != nil || again != d {
				t.Errorf("%q gives %s, which gives %s, %v", s, d, again, err)
			}
		}
	})
}

func onlyDigits(r rune) rune {
	if r < '0' || r > '9' {
		return -1
	}
	return r
}
