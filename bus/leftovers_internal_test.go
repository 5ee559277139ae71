// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestLeftovers has servers killed: what they staged batches in is the next
// server's on their data directory, and anybody's to free when that is gone. Of
// one that lives nothing is taken.
func TestLeftovers(t *testing.T) {
	if err := stageable(); err != nil {
		t.Skip("SKIPPED: ", err)
	}
	memory := func(dir string) (out []string) {
		t.Helper()
		for _, st := range stagings(dir) {
			own := memoryOf(st.target)
			if own == "" {
				t.Fatalf("%s leads to %q", st.link, st.target)
			}
			out = append(out, own)
		}
		if len(out) == 0 {
			t.Fatal("nothing is staged")
		}
		return out
	}
	there := func(dirs []string, want bool, when string) {
		t.Helper()
		for _, d := range dirs {
			if _, err := os.Stat(d); errors.Is(err, os.ErrNotExist) == want {
				t.Errorf("%s: %s is there: %v, wanted %v", when, d, !want, want)
			}
		}
	}
	left := func(dirs []string) bool {
		return slices.ContainsFunc(Leftovers(), func(l Leftover) bool { return slices.Contains(dirs, l.Dir) })
	}
	base := t.TempDir()
	killed, gone, live := filepath.Join(base, "killed"), filepath.Join(base, "gone"), filepath.Join(base, "live")
	of := map[string][]string{}
	for _, dir := range []string{killed, gone, live} {
		s, b := openLog(t, dir)
		of[dir] = memory(dir)
		b.Close()
		if dir == live {
			defer s.Close()
		} else {
			s.Kill()
		}
	}
	for _, dir := range []string{gone, live} { // the one that lives has lost its directory's links too
		if err := os.RemoveAll(filepath.Join(dir, "jetstream")); err != nil {
			t.Fatal(err)
		}
	}
	if left(of[killed]) || left(of[live]) {
		t.Errorf("left are %+v; of the killed %v, of the live %v", Leftovers(), of[killed], of[live])
	}
	sweep(slog.New(slog.DiscardHandler))
	for end := time.Now().Add(time.Minute); left(of[gone]) && time.Now().Before(end); { // perhaps another process sweeps just now
		sweep(slog.New(slog.DiscardHandler))
	}
	there(of[killed], true, "swept")
	there(of[gone], false, "swept")
	there(of[live], true, "swept")

	s, b := openLog(t, killed)
	b.Close()
	s.Close()
	there(of[killed], false, "started again")
	for _, dir := range of[live] { // its links are gone, so that its end frees nothing
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
	}
}

// An older Petri's memory says nothing of itself: it is named and left alone.
func TestLeftoverOfOlder(t *testing.T) {
	if err := stageable(); err != nil {
		t.Skip("SKIPPED: ", err)
	}
	dir, err := os.MkdirTemp(memoryDir, memoryPrefix)
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sweep(slog.New(slog.DiscardHandler))
	if !slices.Contains(Leftovers(), Leftover{Dir: dir}) {
		t.Errorf("%s is not in %+v", dir, Leftovers())
	}
}
