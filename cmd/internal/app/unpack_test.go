// SPDX-License-Identifier: Apache-2.0

package app_test

import (
	"archive/zip"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/schemas"
)

// zipOf is a zip with these files, name and text by turns.
func zipOf(t *testing.T, files ...string) string {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		f, err := w.Create(files[i])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "samples.zip")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestPrepareArchive takes samples out of archives, in a real child.
func TestPrepareArchive(t *testing.T) {
	// Of archive's golden inputs: one file each, by the passwords that the names
	// tell.
	const golden = "../../../analyzers/archive/testdata/"
	script := "#!/bin/sh\necho one\n"
	two := zipOf(t, "bin/one", script, "../../two", "#!/bin/sh\necho two\n")
	for _, tt := range []struct {
		name  string
		path  string
		a     app.Archive
		names []string // of the samples
		fails string
	}{
		{"only file", zipOf(t, "../bin/one", script), app.Archive{All: true}, []string{"one"}, ""},
		{"member", two, app.Archive{Member: "bin/one"}, []string{"one"}, ""},
		{"all", two, app.Archive{All: true}, []string{"one", "two"}, ""},
		{"several", two, app.Archive{Password: "infected"}, nil, `has 2 files: choose one with --member NAME, or submit each with petri submit --all: "bin/one", "../../two"`},
		{"no such member", two, app.Archive{Member: "three"}, nil, `no file "three"`},
		{"twice", zipOf(t, "a", "1", "a", "2"), app.Archive{Member: "a"}, nil, "2 files \"a\""},
		{"no archive", golden + "../archive.go", app.Archive{All: true}, nil, "no archive that is known here"},
		{"empty", zipOf(t), app.Archive{All: true}, nil, "no file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list, err := app.PrepareArchive(t.Context(), app.Request{Path: tt.path}, tt.a)
			var names []string
			for _, p := range list {
				names = append(names, p.Submission.Sample.Name)
				p.Close()
			}
			if diff := cmp.Diff(tt.names, names); diff != "" {
				t.Error(diff)
			}
			if tt.fails == "" && err != nil || tt.fails != "" && (!errors.Is(err, app.ErrBadInput) || !strings.Contains(err.Error(), tt.fails)) {
				t.Errorf("error %v, want %q", err, tt.fails)
			}
		})
	}
}

// TestPrepareEncrypted opens a zip by the password that is given, and by no
// other.
func TestPrepareEncrypted(t *testing.T) {
	for _, name := range []string{"aes.in", "zipcrypto.in"} {
		path := "../../../analyzers/archive/testdata/" + name
		list, err := app.PrepareArchive(t.Context(), app.Request{Path: path}, app.Archive{All: true, Password: "infected"})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, p := range list {
			if p.Submission.Sample.Size == 0 || p.Submission.Sample.Type.Format == "" || p.Submission.Sample.SHA256 != (schemas.Digest{}) {
				t.Errorf("%s: %+v", name, p.Submission.Sample)
			}
			p.Close()
		}
	}
}
