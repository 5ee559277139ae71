// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/petrifile"
	"github.com/petri-sandbox/petri/reporters/term"
	"github.com/petri-sandbox/petri/schemas"
)

// exported is what export says with --json.
type exported struct {
	Tenant   string            `json:"tenant"`
	Analysis string            `json:"analysis"`
	File     petrifile.Trailer `json:"file"`
	Size     int64             `json:"size"`
	LeftOut  map[string]int    `json:"left_out"` // objects, by kind
	Missing  map[string]int    `json:"missing"`  // objects that the store does not have, by kind

	without map[string]bool // kinds of what was left out
}

func exportCommand(g *global) *cobra.Command {
	var out string
	var without []string
	c := &cobra.Command{
		Use:   "export ID",
		Short: "Write an ended analysis to one file",
		Long: `Write an ended analysis to one .petri file: its log, the artifacts and the result
documents. Whoever imports the file has the same report, byte for byte. It holds
the sample, and whatever the sample left behind.

What --without names is left out, and the file says so. Besides the kinds of
artifacts there are segment (the pieces of a trace and a capture) and result
(documents of analyzers, without which a report is not the same).`,
		Example: `  petri export 01K9ZJ > analysis.petri
  petri export --out analysis.petri --without memory,pcap 01K9ZJ`,
		Args: args(cobra.ExactArgs(1)),
	}
	c.RunE = func(cmd *cobra.Command, a []string) error {
		var kinds []schemas.Kind
		for _, k := range without {
			if err := schemas.CheckKind(schemas.Kind(k)); err != nil {
				return usagef("--without: %w", err)
			}
			kinds = append(kinds, schemas.Kind(k))
		}
		if _, tty := terminal(os.Stdout); tty && out == "" {
			return usagef("a .petri file is nothing for a terminal: write it to a file (--out FILE) or a pipe")
		}
		if g.json && out == "" {
			return usagef("the file goes to standard output, where --json would write too: name a file (--out FILE)")
		}
		return g.onAnalysis(g.read, func(ctx context.Context, b *bus.Bus, id string) error {
			e, err := export(ctx, b, id, out, kinds)
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(os.Stdout, e)
			}
			fmt.Fprintf(os.Stderr, "%s: %s and %s, %s\n", e.Analysis, amount(e.File.Events, "event"), amount(e.File.Objects, "object"), term.Size(e.Size))
			printAbsent("left out", e.LeftOut)
			for _, k := range without {
				if !e.without[k] {
					fmt.Fprintf(os.Stderr, "  nothing is of kind %s, which --without names\n", k)
				}
			}
			printAbsent("missing, for the store does not have them", e.Missing)
			return nil
		})(cmd, a)
	}
	c.Flags().StringVar(&out, "out", "", "file to write to; default: standard output")
	c.Flags().StringSliceVar(&without, "without", nil, "kinds of artifacts to leave out")
	return c
}

func export(ctx context.Context, b *bus.Bus, id, out string, without []schemas.Kind) (exported, error) {
	e := exported{Tenant: b.Tenant(), Analysis: id, LeftOut: map[string]int{}, without: map[string]bool{}, Missing: map[string]int{}}
	write := func(w io.Writer) (err error) {
		counted := &counter{w: w}
		e.File, err = b.Export(ctx, b.Tenant(), id, counted, bus.ExportOptions{Without: without, Object: func(o petrifile.Object, absent string) {
			switch absent {
			case petrifile.AbsentLeftOut:
				e.LeftOut[string(o.Kinds[0])]++
				for _, k := range o.Kinds {
					e.without[string(k)] = true
				}
			case petrifile.AbsentMissing:
				e.Missing[string(o.Kinds[0])]++
			}
		}})
		e.Size = counted.n
		return err
	}
	var err error
	if out == "" {
		err = write(os.Stdout)
	} else {
		err = writeFile(out, write)
	}
	if errors.Is(err, bus.ErrNotFound) {
		err = fmt.Errorf("%w (petri list shows those there are)", err)
	}
	return e, err
}

// amount is how many there are of something.
func amount[N int | uint64](n N, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// counter counts what goes through it.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// printAbsent says on standard error which objects are not there.
func printAbsent(why string, kinds map[string]int) {
	if len(kinds) == 0 {
		return
	}
	var list []string
	for k, n := range kinds {
		list = append(list, fmt.Sprintf("%d %s", n, term.Clean(k)))
	}
	slices.Sort(list)
	fmt.Fprintf(os.Stderr, "  %s: %s\n", why, strings.Join(list, ", "))
}

func importCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE",
		Short: "Take in an analysis that was exported elsewhere; - is standard input",
		Long: `Take in an analysis that was exported elsewhere; - is standard input. It is put
into the archive, not into the log: no analyzer is woken, nothing is published,
and hunts come to it only if they are asked to. The file is checked while it is read,
and the analysis shows only if all of it is right.`,
		Example: `  petri import analysis.petri
  petri import --json /dev/stdin`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			in := os.Stdin
			if a[0] != "-" {
				f, err := os.Open(a[0])
				if err != nil {
					return usage(err)
				}
				defer f.Close()
				if fi, err := f.Stat(); err == nil && fi.IsDir() {
					return usagef("%q is a directory (import takes one .petri file, as petri export writes it)", a[0])
				}
				in = f
			} else if _, tty := terminal(os.Stdin); tty {
				return usagef("a .petri file is expected on standard input, and that is a terminal")
			}
			cfg, err := g.config()
			if err != nil {
				return err
			}
			return g.on(g.store, func(ctx context.Context, b *bus.Bus, _ []string) error {
				im, err := cfg.Import(ctx, b, b.Tenant(), in)
				if err != nil {
					return badFile(err)
				}
				if g.json {
					return printJSON(os.Stdout, im)
				}
				if im.Already {
					fmt.Fprintf(os.Stderr, "%s is here already, with the same %s; of its objects %d were new\n", im.Analysis, amount(im.Trailer.Events, "event"), im.Stored)
				} else {
					fmt.Fprintf(os.Stderr, "%s: %s and %s, of which %d new here\n", im.Analysis, amount(im.Trailer.Events, "event"), amount(im.Trailer.Objects, "object"), im.Stored)
				}
				printAbsent("neither in the file nor here", im.Absent)
				fmt.Fprintln(os.Stderr, "  "+covered(*im.Coverage))
				if !im.Already {
					fmt.Println(im.Analysis)
				}
				return nil
			})(c, a)
		},
	}
}

// badFile marks an error that is the file's as bad input.
func badFile(err error) error {
	for _, is := range []error{petrifile.ErrFormat, petrifile.ErrVersion, petrifile.ErrLimit, bus.ErrTampered, bus.ErrTooLarge} {
		if errors.Is(err, is) {
			return usage(err)
		}
	}
	return err
}

// covered says in a line what a log's checkpoints cover.
func covered(c petrifile.Coverage) string {
	if c.Covered == 0 {
		return fmt.Sprintf("no checkpoint covers any of its %d events", c.Events)
	}
	var keys []string
	for _, p := range c.Checkpoints {
		if p.Problem == "" && !slices.Contains(keys, p.Key[:16]) {
			keys = append(keys, p.Key[:16])
		}
	}
	return fmt.Sprintf("events 1 to %d of %d are signed, by key %s", c.Covered, c.Events, strings.Join(keys, ", "))
}

func archiveCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "archive ID…",
		Short: "Move ended analyses from the log to the archive now",
		Long: `Move ended analyses from the log to the archive now, where petri up moves them
after --archive-after. Whoever reads them sees no difference. An analysis that
still runs, or that an analyzer or a run still owes something, stays.`,
		Example: `  petri archive 01K9ZJ`,
		Args:    args(cobra.MinimumNArgs(1)),
		RunE: g.on(g.store, func(ctx context.Context, b *bus.Bus, a []string) error {
			x := bus.NewArchiver(b, bus.ArchiverOptions{})
			var list []schemas.ArchiveEntry
			for _, s := range a {
				id, err := resolve(ctx, b, s)
				if err != nil {
					return err
				}
				if err := x.Archive(ctx, b.Tenant(), id); err != nil {
					return fmt.Errorf("archive %s: %w", id, noAnalysis(id, err))
				}
				e, err := b.ArchiveEntry(ctx, b.Tenant(), id)
				if err != nil {
					return noAnalysis(id, err)
				}
				list = append(list, e)
			}
			if g.json {
				return printJSON(os.Stdout, list)
			}
			for _, e := range list {
				fmt.Fprintf(os.Stderr, "%s: %s, %s\n", e.Analysis, amount(e.Events, "event"), term.Size(e.Size))
			}
			return nil
		}),
	}
}
