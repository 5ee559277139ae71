// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	wrapped "github.com/petri-sandbox/petri/analyzers/command"
	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/reporters/term"
	"github.com/petri-sandbox/petri/schemas"
)

func analyzersCommand(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:   "analyzers",
		Short: "List the analyzers, what they take and how they do; add and remove some",
		Example: `  petri analyzers
  petri analyzers --json | jq -r '.[] | select(.instances == []) | .name'`,
		Args: args(cobra.NoArgs),
		RunE: g.on(g.read, func(ctx context.Context, b *bus.Bus, _ []string) error {
			list, err := b.Analyzers(ctx)
			if err != nil {
				return err
			}
			if g.json {
				if list == nil {
					list = []bus.AnalyzerState{}
				}
				return printJSON(os.Stdout, list)
			}
			if len(list) == 0 {
				fmt.Fprintln(os.Stderr, "no analyzers yet: petri up brings some")
				return nil
			}
			return printAnalyzers(os.Stdout, list)
		}),
	}
	c.AddCommand(addCommand(g), removeCommand(g))
	return c
}

// printAnalyzers writes one line per analyzer. What others have said of
// themselves may hold anything.
func printAnalyzers(out io.Writer, list []bus.AnalyzerState) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tVERSION\tTAKES\tSTATE\tRATE\tBACKLOG\tDONE\tFAILED\tSKIPPED\tLAST ERROR")
	for _, a := range list {
		version, takes := "-", "-"
		if r := a.Registration; r != nil {
			version, takes = r.Version, kinds(r.Kinds)
			if r.Scope == schemas.ScopeAnalysis {
				takes = "the analysis"
			}
		}
		var sum bus.Beat
		for _, i := range a.Instances {
			sum.Done, sum.Failed, sum.Skipped, sum.Rate = sum.Done+i.Done, sum.Failed+i.Failed, sum.Skipped+i.Skipped, sum.Rate+i.Rate
			if i.Error != "" && !i.ErrorAt.Before(sum.ErrorAt) {
				sum.Error, sum.ErrorAt = i.Error, i.ErrorAt
			}
		}
		failure := "-"
		if sum.Error != "" {
			failure = sum.ErrorAt.Local().Format(time.DateTime) + " " + sum.Error
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.1f/s\t%d\t%d\t%d\t%d\t%s\n", a.Name, term.Clip(version, 20), term.Clip(takes, 40), analyzerState(a),
			sum.Rate, a.Waiting+uint64(a.Taken), sum.Done, sum.Failed, sum.Skipped, term.Clip(failure, 100))
	}
	return w.Flush()
}

// analyzerState says in a few words whether anybody works.
func analyzerState(a bus.AnalyzerState) string {
	switch n := len(a.Instances); {
	case a.Definition != nil && a.Definition.Removed:
		return "removed"
	case a.Registration == nil && n > 0:
		return "not registered"
	case a.Registration == nil:
		return "not started"
	case n == 0:
		return "absent"
	default:
		return strconv.Itoa(n) + " running"
	}
}

// analyzerChange is what add and remove print with --json.
type analyzerChange struct {
	Analyzer string `json:"analyzer"`
	State    string `json:"state"` // added or removed
	Open     uint64 `json:"open"`  // tasks that a removed one had not answered
}

func (g *global) printChange(c analyzerChange) error {
	if !g.json {
		return nil
	}
	return printJSON(os.Stdout, c)
}

func addCommand(g *global) *cobra.Command {
	d := &definition{}
	c := &cobra.Command{
		Use:   "add NAME [--kinds KIND,… [flags] -- CMD [ARG…]]",
		Short: "Add an analyzer while Petri runs: a command of your own, or one that was removed",
		Long: `Add an analyzer without touching anything that runs. The node starts the command
in a process of its own and keeps it running, also after a restart, until it is
removed. What the command gets and prints: petri analyzer exec --help. The same
name again replaces the command.

The name of an analyzer that Petri brings and that was removed brings it back.`,
		Example: `  petri analyzers add hosts --kinds pcap -- python3 /usr/local/lib/petri/hosts.py {file}
  petri analyzers add strings --kinds sample,dropped --version 1.2.0 --timeout 20s -- /usr/local/bin/find-strings
  petri analyzers add static`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			if dash := c.ArgsLenAtDash(); len(a) > 1 && dash != 1 {
				return usagef("the command comes after the name and -- (see: %s --help)", c.CommandPath())
			}
			name := a[0]
			var def schemas.Definition
			brought := app.Brought(name)
			switch {
			case brought && len(a) > 1:
				return usagef("%s is an analyzer that Petri brings: choose another name for the command", name)
			case !brought:
				if len(a) == 1 {
					return usagef("%s is no analyzer that Petri brings, and no command is named (add: --kinds KIND -- CMD)", name)
				}
				var err error
				if def, err = d.define(name, a[1:]); err != nil {
					return err
				}
				if g.cfg.NATS == "" { // it is started here
					if err := wrapped.Reachable(def); err != nil {
						return usage(err)
					}
				}
			}
			return g.on(g.connect, func(ctx context.Context, b *bus.Bus, _ []string) error {
				var err error
				if brought {
					_, err = b.Undefine(ctx, name)
				} else {
					err = b.Define(ctx, def)
				}
				if err != nil {
					return err
				}
				fmt.Fprintf(os.Stderr, "analyzer %s is added; the node starts it (see: petri analyzers)\n", name)
				return g.printChange(analyzerChange{Analyzer: name, State: "added"})
			})(c, a)
		},
	}
	d.flags(c.Flags())
	return c
}

func removeCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove an analyzer while Petri runs: nothing waits for it any more",
		Long: `Remove an analyzer without touching any other. The log says that it is interested
no more, and the node stops it; tasks that it is working on have five seconds to
end. What it has not answered by then is missing from those analyses, as
withdrawn. A process that you started yourself (petri analyzer exec) you stop
yourself.

An analyzer that Petri brings stays removed until it is added again.`,
		Example: `  petri analyzers remove hosts
  petri analyzers remove static`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			name := a[0]
			if err := schemas.CheckAnalyzer(name); err != nil {
				return usage(err)
			}
			return g.on(g.connect, func(ctx context.Context, b *bus.Bus, _ []string) error {
				list, err := b.Analyzers(ctx)
				if err != nil {
					return err
				}
				var was bus.AnalyzerState
				for _, s := range list {
					if s.Name == name {
						was = s
					}
				}
				if was.Name == "" && !app.Brought(name) {
					return fmt.Errorf("there is no analyzer %s (list them: petri analyzers)", name)
				}
				if app.Brought(name) {
					err = b.Define(ctx, schemas.Definition{Schema: schemas.DefinitionSchema, Name: name, Removed: true})
				} else {
					_, err = b.Undefine(ctx, name)
				}
				if err == nil {
					if _, err = b.Registered(ctx, name); err == nil {
						err = b.Unregister(ctx, name)
					} else if errors.Is(err, bus.ErrNotFound) { // one that never started
						err = nil
					}
				}
				if err != nil {
					return err
				}
				fmt.Fprintf(os.Stderr, "analyzer %s is removed", name)
				if n := was.Waiting + uint64(was.Taken); n > 0 {
					fmt.Fprintf(os.Stderr, "; %d %s open and may be missing from their analyses", n, map[bool]string{true: "task was", false: "tasks were"}[n == 1])
				}
				fmt.Fprintln(os.Stderr)
				if was.Definition == nil && !app.Brought(name) && len(was.Instances) > 0 {
					fmt.Fprintf(os.Stderr, "its process %s is still heard: unless it ends in a moment, you have started it yourself; stop it there\n", was.Instances[0].Instance)
				}
				return g.printChange(analyzerChange{Analyzer: name, State: "removed", Open: was.Waiting + uint64(was.Taken)})
			})(c, a)
		},
	}
}
