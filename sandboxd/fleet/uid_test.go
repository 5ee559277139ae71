// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"fmt"
	"os"
	"testing"
)

// TestFirstUID checks that sandboxes have blocks of their own, but for chance,
// and that none leaves the range.
func TestFirstUID(t *testing.T) {
	seen := map[int]bool{}
	const sandboxes = 1000
	for i := range sandboxes {
		uid := firstUID(fmt.Sprint("sandbox-", i))
		if uid < uidFirst || uid+uidBlock > uidFirst+uidBlock*uidBlocks || uid%uidBlock != 0 {
			t.Errorf("sandbox %d begins at %d", i, uid)
		}
		if uid != firstUID(fmt.Sprint("sandbox-", i)) {
			t.Errorf("sandbox %d has two blocks", i)
		}
		seen[uid] = true
	}
	// Of 1000 in 100,000 blocks, five meet another on average.
	if n := sandboxes - len(seen); n > 20 {
		t.Errorf("%d sandboxes share a block", n)
	}
}

// TestTakeUID checks that machines share no user, and that one who has gone
// makes room.
func TestTakeUID(t *testing.T) {
	f := New(Options{ID: "uidtest"})
	one, free, err := f.takeUID()
	if err != nil {
		t.Fatal(err)
	}
	two, _, err := f.takeUID()
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		if one != 0 || two != 0 {
			t.Errorf("users %d and %d, and we may choose none", one, two)
		}
		return
	}
	if one == two || one != firstUID("uidtest") {
		t.Errorf("users %d and %d", one, two)
	}
	free()
	if again, _, err := f.takeUID(); again != one || err != nil {
		t.Errorf("user %d after %d had gone, %v", again, one, err)
	}
	for range uidBlock - 2 {
		if _, _, err := f.takeUID(); err != nil {
			t.Fatal(err)
		}
	}
	if uid, _, err := f.takeUID(); err == nil {
		t.Errorf("user %d beyond the block", uid)
	}
}
