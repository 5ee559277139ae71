// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strings"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// deletion is what delete says with --json.
type deletion struct {
	schemas.Tombstone
	Already bool `json:"already"` // it had been deleted before
}

func deleteCommand(g *global) *cobra.Command {
	var yes bool
	var reason string
	c := &cobra.Command{
		Use:   "delete ID…",
		Short: "Delete ended analyses for good",
		Long: `Delete ended analyses for good: their events, their reports, their files in the
archive, their dead letters, and their artifacts in the lists of replays and hunts.
What remains is a tombstone: who deleted the analysis, when and why.
The artifacts go with the next garbage collection (petri gc), unless another
analysis has the same bytes. An analysis that still runs is refused.`,
		Example: `  petri delete 01K9ZJ
  petri delete --yes --reason 'customer asked' 01K9ZJ`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			if _, tty := terminal(os.Stdin); !tty && !yes {
				return usagef("nobody can be asked whether to delete: say --yes")
			}
			return g.on(g.store, func(ctx context.Context, b *bus.Bus, a []string) error {
				var errs []error
				for _, s := range a {
					id, err := resolve(ctx, b, s)
					if err != nil {
						return err
					}
					if !yes && !confirm(fmt.Sprintf("delete analysis %s for good? [y/N] ", id)) {
						continue
					}
					if err := g.delete(ctx, b, id, reason); err != nil {
						errs = append(errs, err)
					}
				}
				return errors.Join(errs...)
			})(c, a)
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	c.Flags().StringVar(&reason, "reason", "", "why, for the tombstone")
	return c
}

func (g *global) delete(ctx context.Context, b *bus.Bus, id, reason string) error {
	t, err := b.Delete(ctx, b.Tenant(), id, bus.DeleteOptions{By: whoami(), Reason: reason})
	var dead *bus.DeletedError
	if err != nil && !errors.As(err, &dead) {
		return err
	}
	if g.json {
		return printLine(os.Stdout, deletion{t, dead != nil})
	}
	if dead != nil {
		fmt.Fprintln(os.Stderr, dead)
		return nil
	}
	fmt.Fprintf(os.Stderr, "%s: deleted, %d events\n", id, t.Events)
	return nil
}

// confirm asks on the terminal. Anything but yes is no.
func confirm(question string) bool {
	fmt.Fprint(os.Stderr, question)
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	answer := strings.ToLower(strings.TrimSpace(line))
	return err == nil && (answer == "y" || answer == "yes")
}

// whoami is the user at this host, for the record.
func whoami() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}
