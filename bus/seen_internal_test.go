// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// seenKeys adds keys, some of them again, and holds the set to what a map says.
func seenKeys(t *testing.T, s *seen, n uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	there := map[uint64]bool{}
	for next := uint64(1); next <= n; {
		x := next
		if again := rng.Uint64N(3) == 0 && next > 1; again {
			x = 1 + rng.Uint64N(next-1)
		} else {
			next++
		}
		var k seenKey
		binary.LittleEndian.PutUint64(k[:], x)
		was, err := s.add(k)
		if err != nil || was != there[x] {
			t.Fatalf("key %d: %v, %v", x, was, err)
		}
		there[x] = true
	}
}

// TestSeen has more keys than memory is for: all are remembered, in a file that
// nobody finds.
func TestSeen(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	var s seen
	seenKeys(t, &s, 5*seenInMemory)
	if s.file == nil || s.stuck || len(s.memory) > seenInMemory || s.file.slots <= 4*seenInMemory {
		t.Errorf("%d keys in memory, file %+v", len(s.memory), s.file)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestSeenNoRoom has no file, or one that takes no more: then keys stay in memory.
func TestSeenNoRoom(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "none"))
	var s seen
	seenKeys(t, &s, seenInMemory+1000)
	if s.file != nil || !s.stuck {
		t.Errorf("file %+v", s.file)
	}
	t.Setenv("TMPDIR", t.TempDir())
	s = seen{}
	seenKeys(t, &s, seenInMemory+1)
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0) // reads as zeros, and has no room
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	s = seen{file: &seenFile{f: full, seed: s.file.seed, slots: 4 * seenInMemory}}
	seenKeys(t, &s, seenInMemory+1000)
	if !s.stuck || len(s.memory) != seenInMemory+1000 {
		t.Errorf("%d keys in memory", len(s.memory))
	}
}
