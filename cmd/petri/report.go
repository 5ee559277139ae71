// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/reporters/fold"
	"github.com/petri-sandbox/petri/reporters/term"
	"github.com/petri-sandbox/petri/schemas"
)

// resolve accepts an analysis' id, or its beginning if only one begins so.
func resolve(ctx context.Context, b *bus.Bus, s string) (string, error) {
	if schemas.ValidID(s) {
		return s, nil
	}
	if len(s) < 6 {
		return "", usagef("%.40q is no analysis' id: 26 characters, as petri list prints them, or the first six or more of them", s)
	}
	list, err := b.List(ctx, b.Tenant(), 0)
	if err != nil {
		return "", err
	}
	var found []string
	for _, l := range list {
		if len(l.Analysis) > len(s) && l.Analysis[:len(s)] == s {
			found = append(found, l.Analysis)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		dead, err := b.FindTombstones(ctx, b.Tenant(), s)
		if err != nil {
			return "", err
		}
		if len(dead) == 1 { // whoever asks for it is told
			return dead[0], nil
		}
		return "", usagef("no analysis' id is %s or begins so (petri list shows those there are)", term.Clip(s, 40))
	}
	return "", usagef("%s begins %d analyses' ids: write more of it", s, len(found))
}

// noAnalysis says of an analysis that is not there where those are that are.
func noAnalysis(id string, err error) error {
	var dead *bus.DeletedError
	if errors.Is(err, bus.ErrNotFound) && !errors.As(err, &dead) {
		return fmt.Errorf("analysis %s: %w (petri list shows those there are)", id, bus.ErrNotFound)
	}
	return err
}

func reportCommand(g *global) *cobra.Command {
	var full bool
	var out, at string
	c := &cobra.Command{
		Use:   "report ID",
		Short: "Fold an analysis' report out of its log and print it",
		Example: `  petri report 01K9ZJ
  petri report --json 01K9ZJ | jq .outcome
  petri report --out dir 01K9ZJ
  petri report --at start_analysis 01K9ZJ`,
		Args: args(cobra.ExactArgs(1)),
	}
	c.RunE = g.onAnalysis(g.read, func(ctx context.Context, b *bus.Bus, id string) error {
		r, err := foldReport(ctx, b, id, at)
		if err != nil {
			return err
		}
		if out != "" {
			if err := os.MkdirAll(out, 0o755); err != nil {
				return usagef("--out: %w", err)
			}
			if err := writeOut(ctx, b, r, out); err != nil {
				return fmt.Errorf("write to %s: %w", out, err)
			}
		}
		return printReport(g, r, full)
	})
	c.Flags().BoolVar(&full, "full", false, "do not shorten the printed report")
	c.Flags().StringVar(&out, "out", "", "directory to write the report and the artifacts to")
	c.Flags().StringVar(&at, "at", "", "as it stood then: behind the N-th event, an event's id or name, or a time (RFC 3339)")
	return c
}

func foldReport(ctx context.Context, b *bus.Bus, id, at string) (*schemas.Report, error) {
	if at != "" {
		r, err := app.FoldAt(ctx, b, b.Tenant(), id, at)
		return r, badInput(err)
	}
	r, _, err := app.Fold(ctx, b, b.Tenant(), id)
	return r, err
}

func eventsCommand(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:   "events ID",
		Short: "Print an analysis' events in the log's order",
		Example: `  petri events 01K9ZJ
  petri events --json 01K9ZJ | jq -r .type`,
		Long: `Print an analysis' events in the log's order: a line each, or with --json the
CloudEvents themselves, one a line.`,
		Args: args(cobra.ExactArgs(1)),
	}
	var from uint64
	c.RunE = g.onAnalysis(g.read, func(ctx context.Context, b *bus.Bus, id string) error {
		w := bufio.NewWriter(os.Stdout)
		n := 0
		err := b.Read(ctx, b.Tenant(), id, from, func(e bus.Entry) error {
			n++
			return g.printEvent(w, e.Event)
		})
		if err == nil && n == 0 && from == 0 {
			err = noAnalysis(id, bus.ErrNotFound)
		}
		return errors.Join(err, w.Flush())
	})
	c.Flags().Uint64Var(&from, "from", 0, "begin at this sequence of the log")
	return c
}

// printEvent prints an event as a line.
func (g *global) printEvent(w io.Writer, e schemas.Event) error {
	if g.json {
		return printLine(w, e)
	}
	what := e.Family() + " " + e.Name()
	if e.Family() == "context" {
		what = e.Name()
	}
	_, err := fmt.Fprintln(w, term.Clip(fmt.Sprintf("%s  %-22s %-5s %s", e.Time.Format("15:04:05.000"), what, e.Origin, eventDetail(e)), 200))
	return err
}

func eventDetail(e schemas.Event) string {
	switch e.Family() {
	case "context":
		return fold.Detail(e)
	case "artifact":
		var a schemas.Artifact
		if e.Decode(&a) == nil {
			return fmt.Sprintf("%s %s %s %s", a.Kind, term.Size(a.Size), a.SHA256.String()[:16], a.Name)
		}
	case "derivation":
		var d schemas.Derivation
		if a := &d.Artifact; e.Decode(&d) == nil {
			return fmt.Sprintf("%s %s %s %s", a.Kind, term.Size(a.Size), a.SHA256.String()[:16], a.Name)
		}
	case "segment":
		var s schemas.Segment
		if e.Decode(&s) == nil {
			return fmt.Sprintf("%s %d: %s, %d records", s.Source, s.N, term.Size(s.Size), s.Records)
		}
	case "finding":
		var f schemas.FindingCommitted
		if e.Decode(&f) == nil {
			return fmt.Sprintf("%s: %s", f.Task.Analyzer, f.Finding.Title)
		}
	case "receipt":
		var r schemas.Receipt
		if e.Decode(&r) == nil {
			return fmt.Sprintf("%s %s: %s in %s", r.Task.Analyzer, r.Task.Kind, r.Status, r.Took)
		}
	case "checkpoint":
		var c schemas.Checkpoint
		if e.Decode(&c) == nil {
			return fmt.Sprintf("events 1 to %d at %s, by key %s", c.Events, c.At, c.Key)
		}
	case "behavior":
		var b schemas.Behavior
		if e.Decode(&b) == nil {
			return behaviorDetail(&b)
		}
	}
	return ""
}

func artifactsCommand(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:     "artifacts ID",
		Short:   "List an analysis' artifacts",
		Example: `  petri artifacts 01K9ZJ | grep dropped`,
		Args:    args(cobra.ExactArgs(1)),
	}
	c.RunE = g.onAnalysis(g.read, func(ctx context.Context, b *bus.Bus, id string) error {
		r, _, err := app.Fold(ctx, b, b.Tenant(), id)
		if err != nil {
			return err
		}
		if g.json {
			return printJSON(os.Stdout, r.Artifacts)
		}
		for _, a := range r.Artifacts {
			if _, err := fmt.Printf("%s  %-9s %10s  %s\n", a.SHA256, a.Kind, term.Size(a.Size), term.Clip(a.Name, 200)); err != nil {
				return err
			}
		}
		return nil
	})
	return c
}

func getCommand(g *global) *cobra.Command {
	var out string
	var raw bool
	c := &cobra.Command{
		Use:   "get DIGEST",
		Short: "Write an artifact's bytes to standard output",
		Long: `Write an artifact's bytes to standard output, verified. A trace or a capture is
kept in segments: get puts them together, unless --raw asks for the manifest.
The beginning of a digest will do, from eight characters, if only one artifact's
digest begins so.`,
		Example: `  petri get 9f86d081884c7d65 > file
  petri get -o capture.pcapng 2c26b46b68ffc68f`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			if err := checkDigest(a[0]); err != nil {
				return err
			}
			if _, tty := terminal(os.Stdout); tty && out == "" {
				return usagef("an artifact can hold anything, and a terminal obeys it: write it to a file (-o FILE) or a pipe")
			}
			return g.on(g.read, func(ctx context.Context, b *bus.Bus, a []string) error {
				f, err := resolveDigest(ctx, b, a[0])
				if err != nil {
					return err
				}
				if out == "" {
					err = copyArtifact(ctx, b, f, os.Stdout, raw)
				} else {
					err = writeFile(out, func(w io.Writer) error { return copyArtifact(ctx, b, f, w, raw) })
				}
				if errors.Is(err, bus.ErrNotFound) {
					return fmt.Errorf("%w (petri artifacts ID lists an analysis' artifacts)", err)
				}
				return err
			})(c, a)
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "", "file to write to")
	c.Flags().BoolVar(&raw, "raw", false, "the manifest itself, not what it stands for")
	return c
}

// copyArtifact writes an artifact, or what a manifest stands for.
func copyArtifact(ctx context.Context, b *bus.Bus, f bus.Found, w io.Writer, raw bool) error {
	st := b.Artifacts().For(f.Analysis)
	o, err := st.Stat(ctx, f.SHA256)
	if err != nil {
		return err
	}
	if !raw && (o.Kind == schemas.KindTrace || o.Kind == schemas.KindPcap) {
		m, err := manifest(ctx, st, f.SHA256)
		if err != nil {
			return err
		}
		for _, s := range m.Segments {
			if err := copyObject(ctx, st, s.SHA256, w); err != nil {
				return err
			}
		}
		return nil
	}
	return copyObject(ctx, st, f.SHA256, w)
}

const maxManifest = 16 << 20

func manifest(ctx context.Context, st *bus.Store, d schemas.Digest) (*schemas.Manifest, error) {
	body, err := st.ReadAll(ctx, d, maxManifest)
	if err != nil {
		return nil, err
	}
	m := new(schemas.Manifest)
	if err := json.Unmarshal(body, m); err != nil || m.Schema != schemas.ManifestSchema {
		return nil, fmt.Errorf("artifact %s is no manifest", d)
	}
	return m, nil
}

func copyObject(ctx context.Context, st *bus.Store, d schemas.Digest, w io.Writer) error {
	r, _, err := st.Open(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(w, r)
	return err
}

// writeOut writes the report and every artifact of an analysis to a directory,
// under names of our own: a digest, and the ending of a kind.
func writeOut(ctx context.Context, b *bus.Bus, r *schemas.Report, dir string) error {
	body, err := fold.Encode(r)
	if err != nil {
		return err
	}
	path, files := filepath.Join(dir, "report.json"), filepath.Join(dir, "artifacts")
	if _, err := os.Lstat(path); err == nil { // an earlier run's: what lies beside it is no part of this one
		if err := os.RemoveAll(files); err != nil {
			return err
		}
	}
	if err := os.WriteFile(path, body, 0o644); err != nil {
		return err
	}
	if err := os.MkdirAll(files, 0o755); err != nil {
		return err
	}
	done, absent := map[schemas.Digest]bool{}, 0
	for _, a := range r.Artifacts {
		if done[a.SHA256] || a.Kind == schemas.KindTemplate {
			continue
		}
		done[a.SHA256] = true
		switch err := writeArtifact(ctx, b, r.Analysis.ID, a, files); {
		case errors.Is(err, bus.ErrNotFound): // it was exported without, or is lost
			absent++
		case err != nil:
			return fmt.Errorf("artifact %s: %w", a.SHA256, err)
		}
	}
	if absent > 0 {
		fmt.Fprintf(os.Stderr, "petri: %s of the analysis not in the store, and not in %s (whether it should be: petri audit)\n", map[bool]string{true: "1 artifact is", false: fmt.Sprintf("%d artifacts are", absent)}[absent == 1], files)
	}
	return nil
}

// endings of files, by kind.
var endings = map[schemas.Kind]string{
	schemas.KindMemory: ".elf", schemas.KindPcap: ".pcapng", schemas.KindTrace: ".trace", schemas.KindConsole: ".txt",
	schemas.KindDrops: ".json", schemas.KindSample: ".sample", schemas.KindDropped: ".dropped",
}

func writeArtifact(ctx context.Context, b *bus.Bus, analysis string, a schemas.Artifact, dir string) error {
	path := filepath.Join(dir, string(a.Kind)+"-"+a.SHA256.String()+endings[a.Kind])
	return writeFile(path, func(w io.Writer) error {
		return copyArtifact(ctx, b, bus.Found{SHA256: a.SHA256, Analysis: analysis}, w, false)
	})
}

func behaviorDetail(b *schemas.Behavior) string {
	s := fmt.Sprintf("[%d] %s.%s", b.Actor.PID, b.Category, b.Action)
	switch {
	case b.Process != nil:
		s += processDetail(b.Process)
	case b.File != nil:
		s += " " + b.File.Path
	case b.Network != nil:
		s += fmt.Sprintf(" %s:%d %s", b.Network.Address, b.Network.Port, b.Network.Path)
	case b.Kernel != nil:
		s += " " + b.Kernel.Name + b.Kernel.Command
	}
	if b.Errno != "" {
		s += " " + b.Errno
	}
	return s
}

func processDetail(p *schemas.ProcessBehavior) string {
	s := ""
	if p.Path != "" {
		s += " " + p.Path
	}
	if len(p.Argv) > 0 {
		s += fmt.Sprintf(" %q", p.Argv)
	}
	switch {
	case p.Signal != "":
		s += " " + p.Signal
	case p.ExitCode != nil:
		s += fmt.Sprintf(" exit code %d", *p.ExitCode)
	}
	return s
}
