// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// adoption is what petri adopt prints with --json.
type adoption struct {
	Run     string   `json:"run"`
	Adopted []string `json:"adopted"` // analyses in which it counts from now on
	Already []string `json:"already"` // in which it did
	Skipped []string `json:"skipped"` // that go on, or were deleted
}

func adoptCommand(g *global) *cobra.Command {
	var only string
	c := &cobra.Command{
		Use:   "adopt RUN",
		Short: "Make a run count: its answers take the place of the earlier ones",
		Long: `Make a run count, in every analysis that it touched or in one of them: its answers
take the place of the earlier ones, and the reports are written anew. What the
run failed at stays as it was. The log forgets nothing, and the report keeps the
history of its verdict. "petri adopt live --analysis ID" goes back to what was
answered while the analysis went on.`,
		Example: `  petri adopt r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA
  petri adopt r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA --analysis 01K9ZJ
  petri adopt live --analysis 01K9ZJ`,
		Args: args(cobra.ExactArgs(1)),
		RunE: g.on(g.connect, func(ctx context.Context, b *bus.Bus, a []string) error {
			out, err := adopt(ctx, b, a[0], only)
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(os.Stdout, out)
			}
			_, err = fmt.Printf("%s counts in %d analyses (in %d it did already; %d go on or were deleted)\n",
				out.Run, len(out.Adopted)+len(out.Already), len(out.Already), len(out.Skipped))
			return err
		}),
	}
	c.Flags().StringVar(&only, "analysis", "", "only in this analysis")
	return c
}

func adopt(ctx context.Context, b *bus.Bus, name, only string) (*adoption, error) {
	out := &adoption{Run: name, Adopted: []string{}, Already: []string{}, Skipped: []string{}}
	var err error
	if only != "" {
		if only, err = resolve(ctx, b, only); err != nil {
			return nil, err
		}
	}
	one := func(analysis string) error {
		done, err := b.Adopt(ctx, b.Tenant(), analysis, out.Run, whoami())
		switch {
		case errors.Is(err, bus.ErrNotEnded) || errors.Is(err, bus.ErrNotFound):
			if only != "" {
				return err
			}
			out.Skipped = append(out.Skipped, analysis)
		case err != nil:
			return err
		case done:
			out.Adopted = append(out.Adopted, analysis)
		default:
			out.Already = append(out.Already, analysis)
		}
		return nil
	}
	if name == schemas.LiveRun {
		if only == "" {
			return nil, usagef("in which analysis? petri adopt live --analysis ID")
		}
		return out, one(only)
	}
	if out.Run, err = resolveRun(ctx, b, name); err != nil {
		return nil, err
	}
	r, err := b.Run(ctx, out.Run)
	if err != nil {
		return nil, noRun(out.Run, err)
	}
	if !r.Ended() {
		return nil, fmt.Errorf("run %s is %s: adopt it when it has ended (petri runs watch %s)", r.Run, r.State, r.Run)
	}
	touched := false
	err = b.RunAnalyses(ctx, out.Run, func(analysis string) error {
		if only != "" && analysis != only {
			return nil
		}
		touched = true
		return one(analysis)
	})
	if err == nil && only != "" && !touched {
		err = usagef("run %s has no task of analysis %s", out.Run, only)
	}
	return out, err
}
