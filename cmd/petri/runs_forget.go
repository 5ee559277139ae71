// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
)

func runsForgetCommand(g *global) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "forget RUN…",
		Short: "Take away runs that have ended, with what they have found",
		Long: `Take away runs that have ended, for good: their findings, receipts and lists, and
what only they have stored with the next garbage collection (petri gc). The
analyses that they were over stay as they are. A run that was ever adopted is
refused: a report rests on it.`,
		Example: `  petri runs forget r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA
  petri runs forget --yes r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			if _, tty := terminal(os.Stdin); !tty && !yes {
				return usagef("nobody can be asked whether to forget: say --yes")
			}
			return g.on(g.store, func(ctx context.Context, b *bus.Bus, a []string) error {
				forgotten := []string{}
				var errs []error
				for _, s := range a {
					run, err := resolveRun(ctx, b, s)
					if err != nil {
						return err
					}
					if !yes && !confirm(fmt.Sprintf("forget run %s for good? [y/N] ", run)) {
						continue
					}
					if err := b.ForgetRun(ctx, run); err != nil {
						errs = append(errs, noRun(run, err))
						continue
					}
					forgotten = append(forgotten, run)
					if !g.json {
						fmt.Printf("%s  forgotten\n", run)
					}
				}
				if g.json {
					errs = append(errs, printJSON(os.Stdout, map[string][]string{"forgotten": forgotten}))
				}
				return errors.Join(errs...)
			})(c, a)
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}
