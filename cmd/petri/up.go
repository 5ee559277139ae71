// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/reporters/term"
	"github.com/petri-sandbox/petri/sandboxd/fleet"
)

func upCommand(g *global) *cobra.Command {
	pool := fleet.DefaultPool() // petri run, which ends with its sample, has none
	c := &cobra.Command{
		Use:   "up",
		Short: "Run Petri until it is interrupted: the bus, a sandbox, the analyzers and the reporter",
		Example: `  petri up
  petri up --parallel 4 --listen 127.0.0.1:4222
  petri up --archive-after 7d
  petri up --pool amd64=2,mipsel=1
  petri up --recorded analysis.petri --speed 10
  petri up --sync 1s`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := g.config()
			if err != nil {
				return err
			}
			cfg.Pool = pool
			ctx, cancel := interruptible(c.Context())
			defer cancel()
			log := app.Logger(os.Stderr, cfg.Verbose)
			if err := cfg.CheckRoom(); errors.Is(err, bus.ErrFull) { // what is there can be read, and deleted
				log.Warn("submissions are refused", "error", err)
			} else if err != nil {
				return err
			}
			n, err := app.StartNode(ctx, cfg, log, func(role string) { log.Info("ready", "role", role) })
			if errors.Is(err, bus.ErrInUse) {
				return fmt.Errorf("%w (a Petri runs there: petri submit FILE uses it; for a second one: --data DIR)", err)
			}
			if err != nil {
				return interrupted(ctx, err)
			}
			fmt.Fprintf(os.Stderr, "Petri is up on %s. Submit with: petri submit FILE\n", cfg.Data)
			<-ctx.Done()
			fmt.Fprintln(os.Stderr, "Petri goes down: ending what runs")
			n.Close()
			return nil
		},
	}
	g.archiveFlag(c.Flags())
	g.syncFlag(c.Flags())
	g.queueFlag(c.Flags())
	c.Flags().Var(&pool, "pool", app.PoolUsage)
	g.recordedFlags(c.Flags())
	return c
}

// busy tells a program when to submit again, and gives the error its code.
func busy(g *global, err error) error {
	var b *bus.BusyError
	if !errors.As(err, &b) {
		return err
	}
	if g.json {
		err := printJSON(os.Stdout, map[string]any{"error": "busy", "waiting": b.Waiting, "retry_after_seconds": int(b.Retry.Seconds())})
		if err != nil {
			return err
		}
	}
	return exitError{codeBusy, err}
}

func submitCommand(g *global) *cobra.Command {
	s := &submission{}
	c := &cobra.Command{
		Use:   "submit FILE [-- ARGS…]",
		Short: "Queue a file for the Petri that runs (petri up), and print its analysis' id",
		Example: `  petri submit ./sample
  petri submit --priority high --runtime 2m ./sample -- -v
  petri watch $(petri submit ./sample)`,
		Long: `Queue a file for the Petri that runs (petri up), and print its analysis' id.

If as many submissions wait as petri up --queue allows, nothing is queued and the
exit code is 6: the message says after how many seconds to try again, and so does
retry_after_seconds with --json.`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			if dash := c.ArgsLenAtDash(); len(a) > 1 && dash != 1 {
				return usagef("arguments of the sample come after --")
			}
			req, err := s.request(a[0], a[1:])
			if err != nil {
				return err
			}
			ctx, cancel := interruptible(c.Context())
			defer cancel()
			list, err := s.prepare(ctx, req)
			if err != nil {
				return interrupted(ctx, badInput(err))
			}
			for _, p := range list {
				defer p.Close()
			}
			b, done, err := g.connect(ctx)
			if err != nil {
				return interrupted(ctx, err)
			}
			defer done()
			for _, p := range list {
				if err := p.Submit(ctx, b); err != nil {
					return interrupted(ctx, busy(g, badInput(err)))
				}
				if !g.json {
					fmt.Println(p.Submission.ID)
				} else if err := printJSON(os.Stdout, p.Submission); err != nil {
					return err
				}
			}
			return nil
		},
	}
	s.flags(c)
	c.Flags().BoolVar(&s.all, "all", false, "the file is an archive; each file in it is a sample of its own")
	c.Flags().IntVar(&s.retries, "retries", 1, "new analyses if the sandbox fails")
	return c
}

func cancelCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use:     "cancel ID",
		Short:   "End an analysis that runs or waits",
		Example: `  petri cancel 01K9ZJ`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: g.onAnalysis(g.connect, func(ctx context.Context, b *bus.Bus, id string) error {
			return noAnalysis(id, b.Cancel(ctx, b.Tenant(), id, "petri cancel"))
		}),
	}
}

func listCommand(g *global) *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use:   "list",
		Short: "List the analyses, the newest first",
		Example: `  petri list --limit 5
  petri list --json | jq -r '.[].analysis'`,
		Args: args(cobra.NoArgs),
		RunE: g.on(g.read, func(ctx context.Context, b *bus.Bus, _ []string) error {
			if limit < 0 {
				return usagef("--limit %d: 0 is for all", limit)
			}
			list, err := b.List(ctx, b.Tenant(), limit)
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(os.Stdout, list)
			}
			if len(list) == 0 {
				fmt.Fprintln(os.Stderr, "no analyses yet: petri run FILE makes the first")
				return nil
			}
			width, _ := terminal(os.Stdout)
			for _, s := range list {
				status := s.Status
				if s.Outcome != "" {
					status = string(s.Outcome) + ", " + string(s.Verdict)
				}
				line := fmt.Sprintf("%s  %s  %-28s %s", s.Analysis, s.Submitted.Local().Format(time.DateTime), status, s.Sample.Name)
				if _, err := fmt.Println(term.Clip(line, max(width, 80))); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	c.Flags().IntVar(&limit, "limit", 50, "at most so many; 0 for all")
	return c
}
