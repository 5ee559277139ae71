// SPDX-License-Identifier: Apache-2.0

package schemas_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

func TestIDsAreValidAndSort(t *testing.T) {
	var ids []string
	for _, at := range []time.Time{
		time.UnixMilli(0), time.UnixMilli(1), time.UnixMilli(31), time.UnixMilli(32), time.UnixMilli(1 << 35),
		time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC), time.UnixMilli(1<<48 - 1),
	} {
		ids = append(ids, schemas.NewID(at))
	}
	if !slices.IsSorted(ids) {
		t.Errorf("not in the order of their times: %v", ids)
	}
	for _, id := range ids {
		if !schemas.ValidID(id) {
			t.Errorf("%q is not valid", id)
		}
	}
	if !strings.HasPrefix(ids[0], "0000000000") || !strings.HasPrefix(ids[6], "7ZZZZZZZZZ") {
		t.Errorf("first %s, last %s", ids[0], ids[6])
	}
}

func TestIDsHoldTheirTime(t *testing.T) {
	// The example of https://github.com/ulid/javascript: 1469918176385 ms.
	if id := schemas.NewID(time.UnixMilli(1469918176385)); !strings.HasPrefix(id, "01ARYZ6S41") {
		t.Errorf("%s does not begin with 01ARYZ6S41", id)
	}
}

func TestIDsOfOneMomentDiffer(t *testing.T) {
	seen := map[string]bool{}
	at := time.UnixMilli(1469918176385)
	for range 10000 {
		id := schemas.NewID(at)
		if seen[id] {
			t.Fatalf("%s came twice", id)
		}
		seen[id] = true
	}
}

func TestAttemptID(t *testing.T) {
	seen := map[string]string{}
	for _, sub := range []string{someID, "01M7WWPJGHX01836292GCV681M", schemas.NewID(time.UnixMilli(1469918176385))} {
		if got := schemas.AttemptID(sub, 1); got != sub {
			t.Errorf("the first attempt of %s is %s", sub, got)
		}
		for n := 1; n <= 50; n++ {
			id := schemas.AttemptID(sub, n)
			if !schemas.ValidID(id) {
				t.Errorf("attempt %d of %s: %q is not valid", n, sub, id)
			}
			if id[:10] != sub[:10] {
				t.Errorf("attempt %d of %s has another time: %s", n, sub, id)
			}
			if other, ok := seen[id]; ok {
				t.Errorf("%s is an attempt of %s and of %s", id, sub, other)
			}
			if seen[id] = sub; id != schemas.AttemptID(sub, n) {
				t.Errorf("attempt %d of %s has two ids", n, sub)
			}
		}
	}
	// Other programs find attempts by this, so it must never change.
	if got, want := schemas.AttemptID(someID, 2), "01M7WWPJGHYJCFYEPA57CBSYDA"; got != want {
		t.Errorf("the second attempt is %s, not %s", got, want)
	}
}

func TestValidID(t *testing.T) {
	for _, s := range []string{
		"", someID[1:], someID + "0", strings.ToLower(someID), "8" + someID[1:], someID[:25] + "I", someID[:25] + "L", someID[:25] + "O",
		someID[:25] + "U", someID[:25] + ".", someID[:25] + "*", someID[:13] + " " + someID[14:], someID[:24] + "é",
	} {
		if schemas.ValidID(s) {
			t.Errorf("%q is valid", s)
		}
		if err := schemas.CheckID(s); err == nil || !strings.Contains(err.Error(), "petri list") {
			t.Errorf("CheckID(%q) = %v", s, err)
		}
	}
	if err := schemas.CheckID(someID); err != nil {
		t.Error(err)
	}
}
