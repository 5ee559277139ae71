// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// What is cut is the same after it has been through JSON, and as long as it may be.
func TestClip(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "short", strings.Repeat("a", 20), strings.Repeat("ü", 20), strings.Repeat("日本", 9), "a" + strings.Repeat("🐟", 9)} {
		for n := range 20 {
			got := clipString(s, n)
			if len(got) > n || len(s) <= n && got != s || len(s) > n && len(got) < n-utf8.UTFMax+1 || !strings.HasPrefix(s, got) {
				t.Errorf("%q cut to %d: %q", s, n, got)
			}
			var back string
			if body, err := json.Marshal(got); err != nil || json.Unmarshal(body, &back) != nil || back != got {
				t.Errorf("%q cut to %d is %q, and %q after JSON", s, n, got, back)
			}
		}
	}
}
