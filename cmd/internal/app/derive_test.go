// SPDX-License-Identifier: Apache-2.0

package app

import (
	"archive/zip"
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/archive"
	"github.com/petri-sandbox/petri/analyzers/static"
	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/reporters/fold"
	"github.com/petri-sandbox/petri/schemas"
)

// zipped is a zip file of those files.
func zipped(t *testing.T, files map[string]string) string {
	t.Helper()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for name, text := range files {
		f, err := w.Create(name)
		if err == nil {
			_, err = f.Write([]byte(text))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestHuntUnpacks hunts with the analyzers archive and static over an analysis
// whose sample is a zip file with another one in it, at which nobody looked while
// it went on. What is inside is looked at, down to the script; adopted, it is in
// the report, which is the same out of the log, the archive and an import; and
// taken back, it is as if it had never been.
func TestHuntUnpacks(t *testing.T) {
	ctx, b := t.Context(), StartBus(t)
	script := "#!/bin/sh\necho inside\n"
	inner := zipped(t, map[string]string{"inner.sh": script})
	outer := zipped(t, map[string]string{"inner.zip": inner})
	digest := func(s string) schemas.Digest { return schemas.Sum([]byte(s)) }
	id := schemas.NewID(time.Now())
	w, err := b.BeginContext(ctx, schemas.DefaultTenant, id)
	if err != nil {
		t.Fatal(err)
	}
	event := func(d schemas.Typed) {
		t.Helper()
		e, err := schemas.NewEvent(schemas.DefaultTenant, id, w.NextID(), time.Now(), schemas.OriginHost, d)
		if err == nil {
			err = w.Write(ctx, e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	d, size, err := b.Artifacts().Put(ctx, schemas.KindSample, strings.NewReader(outer))
	if err != nil {
		t.Fatal(err)
	}
	event(schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: id, Tenant: schemas.DefaultTenant, Submitted: time.Now(),
		Sample: schemas.Sample{SHA256: d, Size: size}}, Attempt: 1})
	a := schemas.Artifact{Kind: schemas.KindSample, SHA256: d, Size: size}
	e, err := schemas.NewEvent(schemas.DefaultTenant, id, a.ID(id), time.Now(), schemas.OriginHost, a)
	if err == nil {
		err = b.PublishArtifact(ctx, e, &a)
	}
	if err != nil {
		t.Fatal(err)
	}
	event(schemas.StartAnalysis{})
	event(schemas.AnalysisCompleted{Missing: []schemas.MissingTask{}})
	report := func(b *bus.Bus) (*schemas.Report, string) {
		t.Helper()
		r, _, err := Fold(ctx, b, schemas.DefaultTenant, id)
		if err != nil {
			t.Fatal(err)
		}
		text, err := fold.Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		return r, string(text)
	}
	before, _ := report(b)

	working, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { stop(); running.Wait() })
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	running.Go(func() { _ = b.DriveRuns(working, log) })
	dir := t.TempDir()
	for _, a := range []analyzers.Analyzer{archive.New(), static.New()} {
		ready := make(chan struct{})
		running.Go(func() {
			if err := runAnalyzer(working, b, a, analyzers.Options{Instance: "test", Log: log, Dir: dir, Unconfined: true}, func() { close(ready) }); working.Err() == nil {
				t.Errorf("%s ended: %v", a.Info().Name, err)
			}
		})
		select {
		case <-ready:
		case <-time.After(2 * time.Minute):
			t.Fatalf("%s is not registered", a.Info().Name)
		}
	}
	hunt := func(analyzers ...string) schemas.RunState {
		t.Helper()
		r, err := b.StartRun(ctx, schemas.RunState{Tenant: schemas.DefaultTenant, Analyzers: analyzers, Force: true})
		if err != nil {
			t.Fatal(err)
		}
		limited, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := b.WatchRun(limited, r.Run, func(s schemas.RunState) error { r = s; return nil }); err != nil {
			t.Fatalf("the run stands at %+v: %v", r, err)
		}
		return r
	}
	r := hunt("archive", "static")
	if r.State != schemas.RunDone || r.Total != 6 || r.Done+r.Skipped != 6 || r.Derived != 4 {
		t.Errorf("the hunt ended as %+v", r)
	}
	if now, _ := report(b); len(now.Artifacts) != 1 || len(now.Findings) != 0 || len(now.Analyzers) != 0 {
		t.Errorf("the report has it before it is adopted: %+v", now.Artifacts)
	}
	adopt := func(run string) {
		t.Helper()
		if _, err := b.Adopt(ctx, schemas.DefaultTenant, id, run, "test"); err != nil {
			t.Fatal(err)
		}
	}
	adopt(r.Run)
	now, text := report(b)
	outside, inside := digest(outer), digest(inner)
	type piece struct {
		digest schemas.Digest
		parent *schemas.Digest
		depth  int
		run    string
	}
	var got []piece
	for _, a := range now.Artifacts {
		got = append(got, piece{a.SHA256, a.Parent, a.Depth, a.Run})
	}
	want := []piece{{outside, nil, 0, ""}, {inside, &outside, 1, r.Run}, {digest(script), &inside, 2, r.Run}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(piece{})); diff != "" {
		t.Errorf("artifacts (-want +got):\n%s", diff)
	}
	seen := map[schemas.Digest]bool{}
	for _, f := range now.Findings {
		if f.Analyzer == "static" && f.Run == r.Run {
			seen[*f.SHA256] = true
		}
	}
	if len(seen) != 3 || !seen[digest(script)] {
		t.Errorf("static has looked at %v", seen)
	}

	var file, again bytes.Buffer
	if _, err := b.Export(ctx, schemas.DefaultTenant, id, &file, bus.ExportOptions{}); err != nil {
		t.Fatal(err)
	}
	far := StartBus(t)
	if _, err := far.Import(ctx, bytes.NewReader(file.Bytes()), bus.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, there := report(far); there != text {
		t.Errorf("the report of the import differs: %s", cmp.Diff(text, there))
	}
	if body, err := far.Artifacts().ReadAll(ctx, digest(script), 1<<20); err != nil || string(body) != script {
		t.Errorf("the import has %q inside (%v)", body, err)
	}
	x := bus.NewArchiver(b, bus.ArchiverOptions{Log: log})
	if err := x.Archive(ctx, schemas.DefaultTenant, id); err != nil {
		t.Fatal(err)
	}
	if _, there := report(b); there != text {
		t.Errorf("the report of the archive differs: %s", cmp.Diff(text, there))
	}
	if _, err := b.Export(ctx, schemas.DefaultTenant, id, &again, bus.ExportOptions{}); err != nil || !bytes.Equal(file.Bytes(), again.Bytes()) {
		t.Errorf("exported from the archive it is another file: %v", err)
	}
	d = digest(script)
	found, err := b.FindArtifacts(ctx, schemas.DefaultTenant, d.String()[:12])
	if err != nil || len(found) != 1 || found[0].Analysis != id {
		t.Errorf("found are %+v (%v)", found, err)
	}

	// Over what the archive has.
	if r := hunt("static"); r.Total != 1 || r.Derived != 0 {
		t.Errorf("a hunt over what was announced ended as %+v", r)
	}
	adopt(schemas.LiveRun)
	if now, _ := report(b); !slices.EqualFunc(now.Artifacts, before.Artifacts, func(a, b schemas.Artifact) bool { return a.SHA256 == b.SHA256 }) ||
		len(now.Findings) != 0 || len(now.Analyzers) != 0 {
		t.Errorf("without the run the report has %d artifacts, %d findings, %d tasks", len(now.Artifacts), len(now.Findings), len(now.Analyzers))
	}
}
