// SPDX-License-Identifier: Apache-2.0

package archive_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/analyzertest"
	"github.com/petri-sandbox/petri/analyzers/archive"
	"github.com/petri-sandbox/petri/schemas"
)

func TestGolden(t *testing.T) { analyzertest.Golden(t, archive.New()) }

func collect(t *testing.T, a analyzers.Analyzer, b []byte) (analyzers.Collected, schemas.ArchiveContents) {
	t.Helper()
	c, err := analyzers.Collect(t.Context(), a, analyzertest.Job(a, "x", b))
	if err != nil {
		t.Fatal(err)
	}
	var contents schemas.ArchiveContents
	if len(c.Findings) > 0 {
		if err := json.Unmarshal(c.Findings[0].Data, &contents); err != nil {
			t.Fatal(err)
		}
	}
	return c, contents
}

func kinds(c analyzers.Collected) string {
	var out []string
	for _, f := range c.Findings {
		out = append(out, f.Kind)
	}
	return strings.Join(out, " ")
}

func TestOwnPassword(t *testing.T) {
	b, err := os.ReadFile("testdata/locked-aes.in")
	if err != nil {
		t.Fatal(err)
	}
	c, contents := collect(t, archive.New("s3cret"), b)
	if contents.Password != "s3cret" || contents.Locked != 0 || len(c.Derived) != 1 || c.Derived[0].SHA256 != schemas.Sum([]byte("hello from an archive\n")) {
		t.Errorf("%+v %+v", contents, c.Derived)
	}
}

// TestForgedAES has an encrypted file with another authentication code: no
// password is right, and nothing is taken out of it.
func TestForgedAES(t *testing.T) {
	b, err := os.ReadFile("testdata/locked-aes.in")
	if err != nil {
		t.Fatal(err)
	}
	// The code of ten bytes ends where the central directory begins.
	end := bytes.Index(b, []byte("PK\x01\x02"))
	if end < 0 {
		t.Fatal("the test's file has no central directory")
	}
	b[end-1] ^= 1
	c, contents := collect(t, archive.New("s3cret"), b)
	if contents.Locked != 1 || len(c.Derived) != 0 || kinds(c) != "archive_contents archive_encrypted" {
		t.Errorf("%s: %+v", kinds(c), contents)
	}
}

// TestBombs has a little of much that unpacks to much.
func TestBombs(t *testing.T) {
	zeros := make([]byte, 100<<20)
	var gz, zipped, many, hole bytes.Buffer
	w := gzip.NewWriter(&gz)
	w.Write(zeros)
	w.Close()
	z := zip.NewWriter(&zipped)
	f, err := z.Create("zeros")
	if err != nil {
		t.Fatal(err)
	}
	f.Write(zeros)
	f, _ = z.Create("small")
	f.Write([]byte("small"))
	z.Close()
	z = zip.NewWriter(&many)
	for i := range 50_100 {
		z.CreateHeader(&zip.FileHeader{Name: fmt.Sprint(i)})
	}
	z.Close()
	// A tar that says that it holds a terabyte.
	tw := tar.NewWriter(&hole)
	tw.WriteHeader(&tar.Header{Name: "hole", Typeflag: tar.TypeReg, Size: 1 << 40, Mode: 0o600})
	for name, tc := range map[string]struct {
		b       []byte
		derived int
	}{"gzip": {gz.Bytes(), 0}, "zip": {zipped.Bytes(), 1}, "entries": {many.Bytes(), 0}, "hole": {hole.Bytes(), 0}} {
		c, contents := collect(t, archive.New(), tc.b)
		if kinds(c) != "archive_contents archive_bomb" || len(c.Derived) != tc.derived || contents.Extracted != tc.derived {
			t.Errorf("%s: %s, %+v", name, kinds(c), contents)
		}
	}
}

// TestManyFiles leaves out, and counts, what is over the limit of a task.
func TestManyFiles(t *testing.T) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := range schemas.MaxDerived + 7 {
		f, err := z.Create(fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(f, i)
	}
	z.Close()
	c, contents := collect(t, archive.New(), b.Bytes())
	if len(c.Derived) != schemas.MaxDerived || contents.LeftOut != 7 || contents.Extracted != schemas.MaxDerived || contents.Unnamed == 0 {
		t.Errorf("%d derived, %+v", len(c.Derived), contents)
	}
}

// FuzzAnalyze takes anything: it is skipped, or the numbers add up and stay
// within the limits.
func FuzzAnalyze(f *testing.F) {
	in, _ := filepath.Glob("testdata/*.in")
	for _, path := range in {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	a := archive.New()
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := analyzers.Collect(context.Background(), a, analyzertest.Job(a, "x", b))
		if err != nil {
			t.Fatal(err)
		}
		if c.Status == schemas.TaskSkipped {
			return
		}
		var x schemas.ArchiveContents
		if err := json.Unmarshal(c.Findings[0].Data, &x); err != nil {
			t.Fatal(err)
		}
		if x.Extracted != len(c.Derived) || x.Extracted > x.Files || x.Locked > x.Encrypted || x.Files+x.Empty+x.Dirs+x.Links+x.Special > x.Entries {
			t.Errorf("%d derived: %+v", len(c.Derived), x)
		}
		var bytes int64
		for _, d := range c.Derived {
			bytes += d.Size
			if d.Size > 4<<20 && d.Size/max(int64(len(b)), 1) > 250 {
				t.Errorf("%d bytes of %d", d.Size, len(b))
			}
		}
		if bytes != x.Bytes {
			t.Errorf("%d bytes were derived: %+v", bytes, x)
		}
	})
}
