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

What an analysis that has ended did is shown also where no Petri runs.

Nothing of the log is left out: what a slow reader or a lost connection misses is
read again. Behaviour that was missed is counted; with --json that is told on
standard error.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			if all == (len(a) == 1) {
				return usagef("watch needs the id of an analysis, or --all (petri list shows the analyses)")
			}
			open := g.connect
			var alone error // why there is only a log, and nobody who writes to it
			if !all {
				open = func(ctx context.Context) (*bus.Bus, func(), error) {
					return g.open(ctx, func(c app.Config, err error) (*bus.Bus, func(), error) {
						alone = err
						return c.OpenLog(ctx)
					})
				}
			}
			return g.on(open, func(ctx context.Context, b *bus.Bus, a []string) error {
				feed := g.feed(os.Stdout, os.Stderr, all)
				if all {
					return b.Live(ctx, b.Tenant(), feed)
				}
				id, err := resolve(ctx, b, a[0])
				if err != nil {
					return err
				}
				if err := standing(ctx, b, id); err != nil {
					return err
				}
				if alone != nil {
					return showEnded(ctx, b, id, feed, alone)
				}
				return b.Watch(ctx, b.Tenant(), id, feed)
			})(c, a)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "everything that happens, from now on")
	return c
}

// showEnded shows the log of an analysis up to its ending. If it has none, what
// there is is shown, and the error wraps alone.
func showEnded(ctx context.Context, b *bus.Bus, id string, feed bus.Feed, alone error) error {
	ended := false
	err := b.Read(ctx, b.Tenant(), id, 0, func(e bus.Entry) error {
		if err := feed.Event(e.Event); err != nil {
			return err
		}
		if ended = e.Event.Family() == "context" && schemas.Ending(e.Event.Name()); ended {
			return bus.ErrStop
		}
		return nil
	})
	if err == nil && !ended {
		err = fmt.Errorf("analysis %s has not ended: %w", id, alone)
	}
	return err
}

// standing reports an error if there is no such analysis, in the log or in the
// queue, for which one would wait for ever.
func standing(ctx context.Context, b *bus.Bus, id string) error {
	there := func() (bool, error) {
		is := false
		err := b.Read(ctx, b.Tenant(), id, 0, func(bus.Entry) error {
			is = true
			return bus.ErrStop
		})
		return is, err
	}
	is, err := there()
	if err == nil && !is && !queued(ctx, b, id) {
		is, err = there() // it has left the queue for the log meanwhile
		if err == nil && !is {
			err = noAnalysis(id, bus.ErrNotFound)
		}
	}
	return err
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
