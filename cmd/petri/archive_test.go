// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/petrifile"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/reporters/fold"
	"github.com/petri-sandbox/petri/schemas"
)

// recording is where the fold's tests have logs of real analyses.
const recording = "../../reporters/fold/testdata/"

// recordedEntries reads one of these logs as it lay in the stream.
func recordedEntries(name string) ([]petrifile.Entry, error) {
	b, err := os.ReadFile(recording + name + ".log")
	if err != nil {
		return nil, err
	}
	var out []petrifile.Entry
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		e, err := schemas.ParseEvent(lines.Bytes())
		if err != nil {
			return nil, err
		}
		rest, err := subjectOf(e)
		if err != nil {
			return nil, err
		}
		out = append(out, petrifile.Entry{
			Seq: uint64(len(out) + 1), Subject: "petri." + e.Tenant + "." + e.Analysis + "." + rest, Body: bytes.Clone(lines.Bytes()),
		})
	}
	return out, lines.Err()
}

// subjectOf is the end of the subject that an event lies under.
func subjectOf(e schemas.Event) (string, error) {
	switch e.Family() {
	case "context":
		return "context." + e.Name(), nil
	case "artifact":
		var a schemas.Artifact
		err := e.Decode(&a)
		return fmt.Sprintf("artifact.%s.%s.%d", a.Kind, a.SHA256.Token(), a.Occurrence), err
	case "segment":
		var s schemas.Segment
		err := e.Decode(&s)
		return fmt.Sprintf("segment.%s.%d", s.Source, s.N), err
	case "finding":
		var f schemas.FindingCommitted
		err := e.Decode(&f)
		if f.Finding.Severity == "" {
			f.Finding.Severity = schemas.SeverityInfo
		}
		return strings.Join([]string{"finding", string(f.Finding.Severity), f.Task.Analyzer, f.Task.Token(), strconv.Itoa(f.N)}, "."), err
	case "receipt":
		var r schemas.Receipt
		err := e.Decode(&r)
		return strings.Join([]string{"receipt", r.Task.Run, r.Task.Analyzer, r.Task.Token()}, "."), err
	case "report":
		return "report.json", nil
	}
	return "", fmt.Errorf("no subject for %s", e.Type)
}

// writeRecorded writes a recorded analysis as a .petri file. Of what its log
// names there are the result documents.
func writeRecorded(name, path string) error {
	entries, err := recordedEntries(name)
	if err != nil {
		return err
	}
	first, err := schemas.ParseEvent(entries[0].Body)
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	w, err := petrifile.NewWriter(&buf, petrifile.Header{Tenant: first.Tenant, Analysis: first.Analysis})
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, err := w.Event(e); err != nil {
			return err
		}
	}
	for o, ok := w.Due(); ok; o, ok = w.Due() {
		if b, rerr := os.ReadFile(recording + "documents/" + o.SHA256.String() + ".json"); rerr == nil {
			err = w.Object(bytes.NewReader(b))
		} else {
			err = w.Absent(petrifile.AbsentMissing)
		}
		if err != nil {
			return err
		}
	}
	if _, err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, buf.Bytes(), 0o600)
}

// TestExportWipeImport puts recorded analyses into a log, exports them, and
// imports them into an installation that has nothing: the reports are the same
// byte for byte, also from the archive of the first.
func TestExportWipeImport(t *testing.T) {
	for _, name := range []string{"completed", "incomplete", "failed", "cancelled", "not_executed", "unsupported", "untraced"} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			entries, err := recordedEntries(name)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(recording + name + ".golden")
			if err != nil {
				t.Fatal(err)
			}
			cfg := app.Config{Data: t.TempDir()}
			b, done, err := cfg.OpenStore(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if _, err := b.JetStream().Publish(ctx, e.Subject, e.Body); err != nil {
					t.Fatal(err)
				}
			}
			documents, err := filepath.Glob(recording + "documents/*.json")
			if err != nil || len(documents) == 0 {
				t.Fatalf("there are no documents (%v)", err)
			}
			for _, path := range documents {
				f, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				_, _, err = b.Artifacts().Put(ctx, petrifile.KindResult, f)
				f.Close()
				if err != nil {
					t.Fatal(err)
				}
			}
			e, err := schemas.ParseEvent(entries[0].Body)
			if err != nil {
				t.Fatal(err)
			}
			id := e.Analysis
			same := func(where string, b *bus.Bus) {
				t.Helper()
				r, _, err := app.Fold(ctx, b, b.Tenant(), id)
				if err != nil {
					t.Fatal(where, err)
				}
				got, err := fold.Encode(r)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("the report %s is another", where)
				}
			}
			same("out of the log", b)
			file := filepath.Join(t.TempDir(), "analysis.petri")
			if _, err := export(ctx, b, id, file, nil); err != nil {
				t.Fatal(err)
			}
			if err := bus.NewArchiver(b, bus.ArchiverOptions{}).Archive(ctx, schemas.DefaultTenant, id); err != nil {
				t.Fatal(err)
			}
			same("out of the archive", b)
			done()

			cfg = app.Config{Data: t.TempDir()}
			if b, done, err = cfg.OpenStore(ctx); err != nil {
				t.Fatal(err)
			}
			defer done()
			in, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			if _, err := cfg.Import(ctx, b, b.Tenant(), in); err != nil {
				t.Fatal(err)
			}
			same("of the import", b)
			again := file + ".again"
			if _, err := export(ctx, b, id, again, nil); err != nil {
				t.Fatal(err)
			}
			one, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if two, err := os.ReadFile(again); err != nil || !bytes.Equal(one, two) {
				t.Errorf("the file exported there is another (%v)", err)
			}
		})
	}
}

func TestParseAge(t *testing.T) {
	for s, want := range map[string]string{"30d": "720h0m0s", "0": "0s", "12h": "12h0m0s", "0d": "0s"} {
		if d, err := parseAge(s); err != nil || d.String() != want {
			t.Errorf("%s is %s, %v", s, d, err)
		}
	}
	for _, s := range []string{"", "d", "-1d", "-1h", "1w", "9999999d", "1.5d"} {
		if d, err := parseAge(s); err == nil {
			t.Errorf("%q is %s", s, d)
		}
	}
	d := app.DefaultArchiveAfter
	if s := (*age)(&d).String(); s != "30d" {
		t.Errorf("the default prints as %s", s)
	}
}
