// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/reporters/term"
)

// bucketNames are for people.
var bucketNames = map[string]string{"ART": "artifacts", "REP": "reports", "ARC": "archive files"}

func gcCommand(g *global) *cobra.Command {
	var dry bool
	var age time.Duration
	alone := false // nobody else uses the server
	open := func(ctx context.Context) (*bus.Bus, func(), error) {
		return g.open(ctx, func(c app.Config, _ error) (*bus.Bus, func(), error) {
			alone = true
			return c.OpenStore(ctx)
		})
	}
	c := &cobra.Command{
		Use:   "gc",
		Short: "Remove artifacts that no analysis has any more",
		Long: `Remove from the store what no analysis has any more: artifacts of deleted
analyses, uploads that came to nothing, reports that were replaced. petri up does
it by itself every six hours.

What is younger than a day is left alone, since it may just be about to be
announced. Where no Petri runs nothing is, and --age 0 removes everything.`,
		Example: `  petri gc --dry-run
  petri gc --age 3h
  petri gc --json`,
		Args: args(cobra.NoArgs),
		RunE: g.on(open, func(ctx context.Context, b *bus.Bus, _ []string) error {
			if age < bus.MinGCAge && !alone {
				return usagef("--age %s: while a Petri runs it is %s at least (stop Petri, and any age will do)", age, bus.MinGCAge)
			}
			o := bus.GCOptions{DryRun: dry, Age: max(age, time.Nanosecond), Alone: alone}
			p := newCountLine()
			o.Progress = p.count
			res, err := b.Collect(ctx, o)
			p.end()
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(os.Stdout, res)
			}
			printGC(res)
			return nil
		}),
	}
	c.Flags().BoolVar(&dry, "dry-run", false, "say what would be removed, and remove nothing")
	c.Flags().DurationVar(&age, "age", 24*time.Hour, "remove what is older than this")
	return c
}

func printGC(res bus.GCResult) {
	verb := "removed"
	if res.DryRun {
		verb = "to remove"
	}
	for _, r := range res.Buckets {
		line := fmt.Sprintf("%-13s %d of %d %s, %s; %d in use, %d too young", bucketNames[r.Bucket], r.Removed, r.Objects, verb, term.Size(r.Bytes), r.Used, r.Young)
		if r.Orphans > 0 {
			line += fmt.Sprintf("; %d broken uploads of %d pieces", r.Orphans, r.Chunks)
		}
		if r.Foreign > 0 {
			line += fmt.Sprintf("; %d not Petri's", r.Foreign)
		}
		fmt.Println(line)
	}
}

// countLine is a line on standard error that counts, if that is a terminal.
type countLine struct {
	tty  bool
	last time.Time
}

func newCountLine() *countLine {
	_, tty := terminal(os.Stderr)
	return &countLine{tty: tty}
}

func (p *countLine) count(what string, n int) {
	if p.tty && time.Since(p.last) > 200*time.Millisecond {
		p.last = time.Now()
		fmt.Fprintf(os.Stderr, "\r\x1b[K%s: %d", what, n)
	}
}

// end takes the line away.
func (p *countLine) end() {
	if p.tty && !p.last.IsZero() {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}
