// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

func watchCommand(g *global) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "watch (ID | --all)",
		Short: "Show what happens, as it happens",
		Example: `  petri watch 01K9ZJ
  petri watch --all
  petri watch --json 01K9ZJ | jq -r .type`,
		Long: `Show what happens, as it happens: in an analysis until it ends, its log from the
beginning and the sample's behaviour from now on; or with --all everywhere, from
now on. With --json one CloudEvent a line.

Nothing of the log is left out: what a slow reader or a lost connection misses is
read again. Behaviour that was missed is counted; with --json that is told on
standard error.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			if all == (len(a) == 1) {
				return usagef("watch needs the id of an analysis, or --all (petri list shows the analyses)")
			}
			ctx, cancel := interruptible(c.Context())
			defer cancel()
			b, err := g.connect(ctx)
			if err != nil {
				return interrupted(ctx, err)
			}
			defer b.Close()
			feed := g.feed(os.Stdout, os.Stderr, all)
			if all {
				return interrupted(ctx, b.Live(ctx, b.Tenant(), feed))
			}
			id, err := resolve(ctx, b, a[0])
			if err != nil {
				return err
			}
			return interrupted(ctx, b.Watch(ctx, b.Tenant(), id, feed))
		},
	}
	c.Flags().BoolVar(&all, "all", false, "everything that happens, from now on")
	return c
}

// feed prints what happens, and what was missed of it. Gaps are no events: where
// out is for machines they go to stderr.
func (g *global) feed(out, stderr io.Writer, named bool) bus.Feed {
	gaps := out
	if g.json {
		gaps = stderr
	}
	return bus.Feed{
		Event: func(e schemas.Event) error {
			if named && !g.json && e.Analysis != "" {
				if _, err := fmt.Fprint(out, e.Analysis, "  "); err != nil {
					return err
				}
			}
			return g.printEvent(out, e)
		},
		Gap: func(p bus.Gap) error {
			_, err := fmt.Fprintln(gaps, gapText(p))
			return err
		},
	}
}

// gapText says what became of what was missed.
func gapText(p bus.Gap) string {
	var parts []string
	if p.Events > 0 {
		parts = append(parts, count(p.Events, "event")+" came late: read from the log")
	}
	if p.Foreign > 0 {
		parts = append(parts, count(p.Foreign, "foreign message")+" left out")
	}
	if len(parts) > 0 {
		return "(" + strings.Join(parts, "; ") + ")"
	}
	return fmt.Sprintf("(%s of %s not shown)", count(p.Behavior, "behaviour event"), p.Analysis)
}

func count(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
