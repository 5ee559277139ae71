// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/json"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/sandboxd/guest"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
)

// FuzzClipPath makes of any path one that the host accepts and a record holds.
func FuzzClipPath(f *testing.F) {
	f.Add("a/b")
	f.Add(strings.Repeat("d/", 5000))
	f.Add(strings.Repeat("\xff", 5000))
	f.Add(strings.Repeat("x", 1023) + "/" + strings.Repeat("../", 3000))
	f.Fuzz(func(t *testing.T, p string) {
		p = path.Clean("/" + p)
		got := clipPath(p)
		if len(got) > 4096 || !utf8.ValidString(got) || path.Clean(got) != got || !path.IsAbs(got) {
			t.Errorf("%d bytes, %q", len(got), got)
		}
		if len(p) <= 4096 && utf8.ValidString(p) && got != p {
			t.Errorf("%q became %q", p, got)
		}
	})
}

// FuzzFit checks that a command's output fits into an answer, whatever it is,
// and that what was left out is counted.
func FuzzFit(f *testing.F) {
	f.Add([]byte("out"), []byte("err"), 1)
	f.Add([]byte{0}, []byte{0xff}, maxExecOutput)
	f.Fuzz(func(t *testing.T, out, errOut []byte, times int) {
		times = min(max(1, times), maxExecOutput)
		var o, e clipped
		for range min(times, 64) {
			_, _ = o.Write(slices.Repeat(out, times/64+1))
			_, _ = e.Write(errOut)
		}
		res := schemas.Exec{Stdout: o.String(), Stderr: e.String()}
		before := len(res.Stdout) + len(res.Stderr)
		if err := fit(&res); err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(res)
		if err != nil || len(b) > wire.MaxPayload*3/4 {
			t.Errorf("an answer of %d bytes, %v", len(b), err)
		}
		if int64(before) != int64(len(res.Stdout)+len(res.Stderr))+res.Cut {
			t.Errorf("%d bytes before, %d after, %d cut", before, len(res.Stdout)+len(res.Stderr), res.Cut)
		}
	})
}

// FuzzParameters feeds any parameters to a request: they are refused, or taken
// whole.
func FuzzParameters(f *testing.F) {
	f.Add([]byte(`{"path":"/root/a","command":["/root/a"],"stdin":"aGVsbG8="}`))
	f.Add([]byte(`{"uptime":"80h","first_pid":777,"trace_stream":true}`))
	f.Add([]byte(`{"command":7}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		calls := 0
		_, err := answer(b, func(r machine.Run) (any, error) {
			calls++
			in, err := openStdin(r.Stdin)
			if (err == nil) != (len(r.Stdin) <= machine.MaxStdin) {
				t.Errorf("standard input of %d bytes: %v", len(r.Stdin), err)
			}
			if err != nil {
				return nil, nil
			}
			defer in.Close()
			if got, err := io.ReadAll(in); err != nil || string(got) != string(r.Stdin) {
				t.Errorf("read %q of %q, %v", got, r.Stdin, err)
			}
			return nil, nil
		})
		if (err == nil) != (calls == 1) {
			t.Errorf("%d calls, %v", calls, err)
		}
		_, _ = answer(b, func(guest.Assign) (any, error) { return nil, nil })
	})
}

func TestEnvironment(t *testing.T) {
	u := user{name: "user", home: "/home/user"}
	env := environment(u, map[string]string{"HOME": "/x", "NEW": "1"})
	if !slices.IsSorted(env) || !slices.Contains(env, "HOME=/x") || !slices.Contains(env, "NEW=1") || slices.Contains(env, "HOME=/home/user") {
		t.Errorf("environment %q", env)
	}
}

// TestDigest reads a file of many names once, and one of another file system that
// has its number by chance, or by the sample's doing, all the same.
func TestDigest(t *testing.T) {
	c := &collector{buf: make([]byte, 1<<10)}
	digest := func(text string, st unix.Stat_t) schemas.Digest {
		t.Helper()
		file, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		file.WriteString(text)
		sum, err := c.digest(file, &st, &schemas.DroppedFile{Size: int64(len(text))})
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	for _, f := range []struct {
		text string
		st   unix.Stat_t
		want string
	}{
		{"linked", unix.Stat_t{Dev: 1, Ino: 7, Nlink: 2}, "linked"},
		{"not read again", unix.Stat_t{Dev: 1, Ino: 7, Nlink: 2}, "linked"},
		{"memfd", unix.Stat_t{Dev: 2, Ino: 7}, "memfd"},
		{"other", unix.Stat_t{Dev: 1, Ino: 8}, "other"},
	} {
		if got := digest(f.text, f.st); got != schemas.Sum([]byte(f.want)) {
			t.Errorf("%q, file %d of device %d, has the digest %s, want that of %q", f.text, f.st.Ino, f.st.Dev, got, f.want)
		}
	}
}
