// SPDX-License-Identifier: Apache-2.0

package schemas_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/schemas"
)

// tokenForm is what a subject takes of a digest.
var tokenForm = regexp.MustCompile(`^[a-z2-7]{52}$`)

func TestDigest(t *testing.T) {
	d := schemas.Sum([]byte("abc")) // FIPS 180-2, appendix B.1
	const want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	if d.String() != want {
		t.Errorf("Sum is %s", d)
	}
	if d.IsZero() || !(schemas.Digest{}).IsZero() {
		t.Error("IsZero is wrong")
	}
	b, err := json.Marshal(map[string]any{"value": d, "pointer": &d, "none": (*schemas.Digest)(nil)})
	if err != nil || string(b) != `{"none":null,"pointer":"`+want+`","value":"`+want+`"}` {
		t.Errorf("JSON %s, %v", b, err)
	}
}

func TestParseDigestRefuses(t *testing.T) {
	good := schemas.Sum(nil).String()
	for _, s := range []string{"", good[1:], good + "0", good[1:] + "g", good[1:] + "\n", " " + good[1:], strings.Repeat("é", 32)} {
		if d, err := schemas.ParseDigest(s); err == nil || !d.IsZero() {
			t.Errorf("ParseDigest(%q) = %s, %v", s, d, err)
		}
		var d schemas.Digest
		if err := d.UnmarshalText([]byte(s)); err == nil {
			t.Errorf("UnmarshalText(%q) takes it", s)
		}
	}
}

func TestParseTokenRefuses(t *testing.T) {
	good := schemas.Sum(nil).Token()
	for _, s := range []string{"", good[1:], good + "a", strings.ToUpper(good), good[1:] + "1", good[1:] + "=", "_", schemas.Sum(nil).String()} {
		if _, err := schemas.ParseToken(s); err == nil {
			t.Errorf("ParseToken(%q) takes it", s)
		}
	}
}

// FuzzDigest checks that the two texts of a digest name it and no other.
func FuzzDigest(f *testing.F) {
	f.Add([]byte("abc"), []byte("abd"))
	f.Add([]byte{}, []byte{0})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		d := schemas.Sum(a)
		if p, err := schemas.ParseDigest(d.String()); err != nil || p != d {
			t.Errorf("ParseDigest(%s) = %s, %v", d, p, err)
		}
		if !tokenForm.MatchString(d.Token()) {
			t.Errorf("%q is no token", d.Token())
		}
		if p, err := schemas.ParseToken(d.Token()); err != nil || p != d {
			t.Errorf("ParseToken(%s) = %s, %v", d.Token(), p, err)
		}
		if e := schemas.Sum(b); (e == d) != (e.Token() == d.Token()) || (e == d) != (e.String() == d.String()) {
			t.Errorf("%s and %s have the same text, or one digest has two", d, e)
		}
	})
}

// FuzzParseDigest checks that only a digest's own hexadecimal text is taken.
func FuzzParseDigest(f *testing.F) {
	f.Add(schemas.Sum(nil).String())
	f.Add(strings.Repeat("A", 64))
	f.Add(schemas.Sum(nil).Token())
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := schemas.ParseDigest(s); err == nil && d.String() != strings.ToLower(s) {
			t.Errorf("ParseDigest(%q) = %s", s, d)
		}
		if d, err := schemas.ParseToken(s); err == nil {
			if p, err := schemas.ParseToken(d.Token()); err != nil || p != d {
				t.Errorf("ParseToken(%q) = %s, whose own token gives %s, %v", s, d, p, err)
			}
		}
	})
}
