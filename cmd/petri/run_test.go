// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"strings"
	"testing"
	"time"
)

var testTime = time.Date(2026, 11, 20, 18, 0, 0, 0, time.UTC)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"1": 1, "500": 500, "1K": 1 << 10, "100M": 100 << 20, "2g": 2 << 30, "007": 7,
		"9223372036854775807": math.MaxInt64, "8589934591G": 8589934591 << 30,
		// None of these is a size.
		"": 0, "0": 0, "-1": 0, "+1": 0, "M": 0, "10M junk": 0, "10MM": 0, "10 M": 0, " 10": 0, "1.5G": 0, "10T": 0, "1e3": 0, "0x10": 0, "1_000": 0,
		"99999999999G": 0, "8589934592G": 0, "9223372036854775808": 0, "99999999999999999999": 0,
	} {
		got, err := parseSize(s)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
}

// FuzzParseSize's property: what is taken is positive, and not smaller than
// its digits say.
func FuzzParseSize(f *testing.F) {
	f.Add("50M")
	f.Add("99999999999G")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseSize(s)
		if err != nil {
			return
		}
		digits := strings.TrimRight(s, "KMGkmg")
		if n <= 0 || len(s)-len(digits) > 1 || strings.Trim(digits, "0123456789") != "" {
			t.Errorf("%q is %d", s, n)
		}
	})
}
