// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/reporters/compare"
	"github.com/petri-sandbox/petri/reporters/term"
	"github.com/petri-sandbox/petri/schemas"
)

// shortDifference is how many lines of each kind are printed unless all are
// wanted.
const shortDifference = 20

func diffCommand(g *global) *cobra.Command {
	var only string
	var full bool
	c := &cobra.Command{
		Use:   "diff BEFORE AFTER",
		Short: "Compare two analyses, or two runs",
		Long: `Compare two analyses, or two runs: which findings are new, gone, changed in their
severity, or the same, which result documents differ, and what one of them
covers and the other does not.

A side of a run is its id, or live, what was answered while the analyses went on,
or counting, what counts without the other side: the newest adopted runs. A run
alone is compared with what counts.`,
		Example: `  petri diff 01K9ZJ 01K9ZK
  petri diff r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA
  petri diff live r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA --analysis 01K9ZJ
  petri diff --json r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA r-01M7WZ5Q0E8T1V4RZ9C3K6XNBB`,
		Args: args(cobra.RangeArgs(1, 2)),
		RunE: g.on(g.read, func(ctx context.Context, b *bus.Bus, a []string) error {
			if len(a) == 1 {
				a = []string{compare.Counting, a[0]}
			}
			d, err := difference(ctx, b, a[0], a[1], only)
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(os.Stdout, d)
			}
			limit := shortDifference
			if full {
				limit = compare.MaxList
			}
			return printDifference(os.Stdout, d, limit)
		}),
	}
	c.Flags().StringVar(&only, "analysis", "", "of runs: only this analysis")
	c.Flags().BoolVar(&full, "full", false, "do not shorten the lists")
	return c
}

// ofRuns reports whether a side names a run.
func ofRuns(s string) bool {
	return s == schemas.LiveRun || s == compare.Counting || strings.HasPrefix(s, "r-")
}

func difference(ctx context.Context, b *bus.Bus, before, after, only string) (*compare.Difference, error) {
	if before == compare.Counting && !ofRuns(after) {
		return nil, usagef("%s is no run, and only a run is compared with what counts (petri runs list); of analyses name two", term.Clip(after, 40))
	}
	if ofRuns(before) != ofRuns(after) {
		return nil, usagef("%s and %s cannot be compared: give two analyses, or two runs (petri diff --help)", term.Clip(before, 40), term.Clip(after, 40))
	}
	if ofRuns(before) {
		return compareRuns(ctx, b, before, after, only)
	}
	if only != "" {
		return nil, usagef("--analysis is for the comparison of runs")
	}
	var reports [2]*schemas.Report
	for i, s := range []string{before, after} {
		id, err := resolve(ctx, b, s)
		if err != nil {
			return nil, err
		}
		if reports[i], _, err = app.Fold(ctx, b, b.Tenant(), id); err != nil {
			return nil, err
		}
	}
	return compare.Reports(reports[0], reports[1]), nil
}

func compareRuns(ctx context.Context, b *bus.Bus, before, after, only string) (*compare.Difference, error) {
	if only != "" {
		id, err := resolve(ctx, b, only)
		if err != nil {
			return nil, err
		}
		only = id
	}
	sides := []string{before, after}
	var analyzers, analyses []string
	known := map[string]bool{}
	for i, s := range sides {
		if s == schemas.LiveRun || s == compare.Counting {
			continue
		}
		run, err := resolveRun(ctx, b, s)
		if err != nil {
			return nil, err
		}
		r, err := b.Run(ctx, run)
		if err != nil {
			return nil, noRun(run, err)
		}
		sides[i] = run
		for _, a := range r.Analyzers {
			if !known[a] {
				known[a] = true
				analyzers = append(analyzers, a)
			}
		}
		err = b.RunAnalyses(ctx, run, func(analysis string) error {
			if !known[analysis] && (only == "" || only == analysis) {
				known[analysis] = true
				analyses = append(analyses, analysis)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if len(analyzers) == 0 {
		return nil, usagef("at least one side must be a run (petri runs list)")
	}
	if only != "" && !known[only] {
		return nil, usagef("neither side has a task of analysis %s", only)
	}
	answers := compare.NewAnswers()
	if err := b.Answers(ctx, b.Tenant(), analyzers, analyses, answers.Add); err != nil {
		return nil, err
	}
	return answers.Between(sides[0], sides[1]), nil
}

// printDifference prints at most limit lines of each kind.
func printDifference(w io.Writer, d *compare.Difference, limit int) error {
	lines := []string{fmt.Sprintf("findings of %s compared with %s: %d new, %d gone, %d changed, %d same", d.After, d.Before, d.New, d.Gone, d.Changed, d.Same)}
	list := func(n int, line func(i int) string) {
		for i := range min(n, limit) {
			lines = append(lines, "  "+line(i))
		}
		if n > limit {
			lines = append(lines, fmt.Sprintf("  … and %d more (petri diff --full, --json)", n-limit))
		}
	}
	list(len(d.NewFindings), func(i int) string { return "+ " + foundText(&d.NewFindings[i]) })
	list(len(d.GoneFindings), func(i int) string { return "- " + foundText(&d.GoneFindings[i]) })
	list(len(d.ChangedFindings), func(i int) string {
		c := &d.ChangedFindings[i]
		return fmt.Sprintf("~ %s (was %s)", foundText(&c.After), severityText(c.Before.Severity))
	})
	if n := len(d.Results); n > 0 {
		lines = append(lines, fmt.Sprintf("%d result documents differ", n))
		list(n, func(i int) string {
			r := &d.Results[i]
			return fmt.Sprintf("%s  %s %s  %s → %s", r.Analysis, r.Analyzer, r.Kind, resultText(r.Before), resultText(r.After))
		})
	}
	list(len(d.Coverage), func(i int) string { return d.Coverage[i] })
	for _, l := range lines {
		if _, err := fmt.Fprintln(w, term.Clip(l, 240)); err != nil {
			return err
		}
	}
	return nil
}

func severityText(s schemas.Severity) string {
	if s == "" {
		s = schemas.SeverityInfo
	}
	return string(s)
}

func foundText(f *compare.Found) string {
	s := fmt.Sprintf("%-8s %s  %-10s %s", severityText(f.Severity), f.Analysis, f.Analyzer, f.Title)
	if f.SHA256 != nil {
		s += "  " + f.SHA256.String()[:16]
	}
	return s
}

func resultText(r *schemas.ResultRef) string {
	if r == nil {
		return "none"
	}
	return r.SHA256.String()[:16]
}
