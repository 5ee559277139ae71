// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/reporters/compare"
	"github.com/petri-sandbox/petri/reporters/term"
	"github.com/petri-sandbox/petri/schemas"
)

// runFlags are those of replay and hunt.
type runFlags struct {
	analyzers         []string
	kinds             []string
	force             bool
	detach            bool
	cancelOnInterrupt bool
	parallel          int
	rate              string
}

func (f *runFlags) add(c *cobra.Command) {
	c.Flags().StringArrayVar(&f.analyzers, "analyzer", nil, "analyzer to run; may be repeated")
	c.Flags().StringArrayVar(&f.kinds, "kind", nil, "only artifacts of this kind, and what is derived of them; may be repeated")
	c.Flags().BoolVar(&f.force, "force", false, "do the work again even where an earlier receipt answers it")
	c.Flags().BoolVar(&f.detach, "detach", false, "print the run's id and do not wait for its end")
	c.Flags().BoolVar(&f.cancelOnInterrupt, "cancel-on-interrupt", false, "on Ctrl-C cancel the run; else it goes on")
	c.Flags().IntVar(&f.parallel, "parallel", bus.DefaultRunParallel, "tasks that are given out at a time")
	c.Flags().StringVar(&f.rate, "rate", "", "tasks that are given out at most in a time: 10/s, 30/m, 500/h")
}

func (f *runFlags) state() (schemas.RunState, error) {
	r := schemas.RunState{Tenant: schemas.DefaultTenant, Analyzers: f.analyzers, Force: f.force, Parallel: f.parallel, By: whoami()}
	if f.parallel < 1 || f.parallel > schemas.MaxRunParallel {
		return r, usagef("--parallel %d is not between 1 and %d", f.parallel, schemas.MaxRunParallel)
	}
	for _, k := range f.kinds {
		if err := schemas.CheckKind(schemas.Kind(k)); err != nil {
			return r, usagef("--kind: %w", err)
		}
		r.Kinds = append(r.Kinds, schemas.Kind(k))
	}
	for _, a := range f.analyzers {
		if err := schemas.CheckAnalyzer(a); err != nil {
			return r, usagef("--analyzer: %w", err)
		}
	}
	var err error
	r.Rate, err = parseRate(f.rate)
	return r, err
}

// parseRate reads N/s, N/m or N/h as tasks in a second.
func parseRate(s string) (float64, error) {
	if s == "" {
		return 0, nil
	}
	number, per, _ := strings.Cut(s, "/")
	n, err := strconv.ParseFloat(number, 64)
	seconds, ok := map[string]float64{"": 1, "s": 1, "m": 60, "h": 3600}[per]
	if err != nil || !ok || !(n > 0) || n > 1e6 {
		return 0, usagef("--rate %q is no rate such as 10/s, 30/m or 500/h", s)
	}
	return n / seconds, nil
}

// parseSince reads a date, a time, or how long ago.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, time.DateTime, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t.UTC(), nil
		}
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 && n < 100_000 {
			return now.AddDate(0, 0, -n).UTC(), nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d).UTC(), nil
	}
	return time.Time{}, usagef("--since %q is neither a date (2026-11-20), nor a time (2026-11-20T16:30:00Z), nor how long ago (90m, 12h, 30d)", s)
}

func replayCommand(g *global) *cobra.Command {
	var f runFlags
	var from uint64
	c := &cobra.Command{
		Use:   "replay ID",
		Short: "Run analyzers again over an analysis' artifacts",
		Long: `Run analyzers again over an analysis' artifacts: those that are named, or all that
run now. The sample is not run again, and nobody who follows analyses notices:
the answers belong to a run of their own, which is compared with what counted so
far. petri adopt RUN makes it count.

A Ctrl-C leaves the run going; petri runs watch RUN follows it again.`,
		Example: `  petri replay 01K9ZJ
  petri replay --analyzer static 01K9ZJ
  petri replay --force --json 01K9ZJ | jq .difference`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			r, err := f.state()
			if err != nil {
				return err
			}
			r.From = from
			return g.startRun(c.Context(), r, f, func(ctx context.Context, b *bus.Bus, r *schemas.RunState) error {
				r.Analysis, err = resolve(ctx, b, a[0])
				return err
			})
		},
	}
	f.add(c)
	c.Flags().Uint64Var(&from, "from", 0, "only artifacts that were announced from this sequence of the log on")
	return c
}

func huntCommand(g *global) *cobra.Command {
	var f runFlags
	var since string
	var imported bool
	c := &cobra.Command{
		Use:   "hunt --analyzer NAME",
		Short: "Run an analyzer over the artifacts of all past analyses",
		Long: `Run an analyzer over the artifacts of all past analyses, whether it knew of them
or not. The list of tasks is made once, when the hunt begins, and grows by what is
derived in it: with several analyzers each is given what another one unpacks.
Nobody who follows analyses notices; the answers are compared with what counted
so far, and petri adopt RUN makes them count. Tasks of analyses that go on are
served first.

A Ctrl-C leaves the hunt going; petri runs watch RUN follows it again, and petri
runs pause, resume and cancel steer it from any terminal.`,
		Example: `  petri hunt --analyzer static
  petri hunt --analyzer static --since 30d --kind sample --rate 10/s
  petri hunt --analyzer archive --analyzer static
  petri hunt --analyzer static --detach`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := f.state()
			if err != nil {
				return err
			}
			if len(r.Analyzers) == 0 {
				return usagef("which analyzer? petri hunt --analyzer NAME (petri runs --help tells more)")
			}
			if r.Since, err = parseSince(since, time.Now()); err != nil {
				return err
			}
			r.Imported = imported
			return g.startRun(c.Context(), r, f, nil)
		},
	}
	f.add(c)
	c.Flags().StringVar(&since, "since", "", "only analyses that were submitted from then on: a date, a time, or how long ago (30d)")
	c.Flags().BoolVar(&imported, "imported", false, "only analyses that were imported")
	return c
}

// startRun begins a run and follows it.
func (g *global) startRun(ctx context.Context, r schemas.RunState, f runFlags, more func(context.Context, *bus.Bus, *schemas.RunState) error) error {
	cfg, err := g.config()
	if err != nil {
		return err
	}
	ctx, cancel := interruptible(ctx)
	defer cancel()
	pr := newProgress(os.Stderr)
	defer pr.done()
	node, b, err := cfg.Attach(ctx, pr.starting)
	if err != nil {
		return interrupted(ctx, err)
	}
	defer node.Close()
	defer b.Close()
	if more != nil {
		if err := more(ctx, b, &r); err != nil {
			return interrupted(ctx, err)
		}
	}
	if err := chooseAnalyzers(ctx, b, &r); err != nil {
		return interrupted(ctx, err)
	}
	if r, err = b.StartRun(ctx, r); err != nil {
		return interrupted(ctx, err)
	}
	pr.line("run", r.Run+"  "+strings.Join(r.Analyzers, ", "))
	if f.detach {
		pr.done()
		if node.Own() {
			fmt.Fprintln(os.Stderr, "petri: the run stands still until Petri runs again (petri up)")
		}
		if g.json {
			return printJSON(os.Stdout, r)
		}
		_, err := fmt.Println(r.Run)
		return err
	}
	r, err = followRun(ctx, b, r.Run, pr)
	if err != nil && ctx.Err() != nil {
		return leaveRun(ctx, b, r.Run, f, node.Own(), pr)
	}
	if err != nil {
		return err
	}
	pr.done()
	return g.printRun(ctx, b, &r)
}

// leaveRun is for whoever has interrupted the wait for a run.
func leaveRun(ctx context.Context, b *bus.Bus, run string, f runFlags, own bool, pr *progress) error {
	pr.done()
	if f.cancelOnInterrupt {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
		defer cancel()
		if err := b.OrderRun(ctx, run, bus.OrderCancel); err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, "petri: the run is cancelled")
		return exitError{code: codeInterrupted}
	}
	text := "the run goes on"
	if own {
		text = "the run goes on when Petri runs again (petri up)"
	}
	fmt.Fprintf(os.Stderr, "petri: %s; follow it: petri runs watch %s  end it: petri runs cancel %s\n", text, run, run)
	return exitError{code: codeInterrupted}
}

// chooseAnalyzers checks the analyzers of a run, or takes all that run now.
func chooseAnalyzers(ctx context.Context, b *bus.Bus, r *schemas.RunState) error {
	regs, err := b.Registrations(ctx)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(regs))
	for name := range regs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range r.Analyzers {
		reg, ok := regs[name]
		if !ok {
			return usagef("no analyzer %s is registered; there are: %s", name, strings.Join(names, ", "))
		}
		for _, k := range r.Kinds {
			if !slices.Contains(reg.Kinds, k) {
				return usagef("analyzer %s does not take artifacts of kind %s, but: %s", name, k, joinKinds(reg.Kinds))
			}
		}
	}
	if len(r.Analyzers) > 0 {
		return nil
	}
	alive, err := b.Alive(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if alive[name] > 0 {
			r.Analyzers = append(r.Analyzers, name)
		}
	}
	if len(r.Analyzers) == 0 {
		return fmt.Errorf("no analyzer is running (petri up starts those that Petri brings)")
	}
	var taken []schemas.Kind
	for _, name := range r.Analyzers {
		taken = append(taken, regs[name].Kinds...)
	}
	slices.Sort(taken)
	for _, k := range r.Kinds {
		if !slices.Contains(taken, k) {
			return usagef("no analyzer that runs takes artifacts of kind %s, but: %s", k, joinKinds(slices.Compact(taken)))
		}
	}
	return nil
}

func joinKinds(kinds []schemas.Kind) string {
	out := make([]string, len(kinds))
	for i, k := range kinds {
		out[i] = string(k)
	}
	return strings.Join(out, ", ")
}

// runText says in a line how far a run is.
func runText(r *schemas.RunState, rate float64) string {
	if r.State == schemas.RunListing {
		if r.Hold {
			return "its tasks are being listed; it is paused when that is done"
		}
		return "its tasks are being listed"
	}
	if r.State == schemas.RunFailed {
		return r.Error
	}
	s := fmt.Sprintf("%d of %d tasks of %d analyses", r.Answered(), r.Total, r.Analyses)
	for _, c := range []struct {
		n    int
		what string
	}{{r.Derived, "over what was derived in it"}, {r.Reused, "reused"}, {r.Failed, "failed"}, {r.Skipped, "skipped"}, {r.Gone, "gone"}} {
		if c.n > 0 {
			s += fmt.Sprintf(", %d %s", c.n, c.what)
		}
	}
	if rate > 0 && !r.Ended() {
		s += fmt.Sprintf(", %.1f/s", rate)
		if left := r.Total - r.Answered(); left > 0 && r.State == schemas.RunRunning {
			s += ", " + time.Duration(float64(left)/rate*float64(time.Second)).Round(time.Second).String() + " left"
		}
	}
	return s
}

// runResult is what replay, hunt and runs show print with --json.
type runResult struct {
	Run        schemas.RunState    `json:"run"`
	Difference *compare.Difference `json:"difference,omitempty"` // to what counted without it
}

// printRun prints what a run that has ended amounts to.
func (g *global) printRun(ctx context.Context, b *bus.Bus, r *schemas.RunState) error {
	out := runResult{Run: *r}
	if r.State != schemas.RunFailed {
		var err error
		if out.Difference, err = compareRuns(ctx, b, compare.Counting, r.Run, ""); err != nil {
			return interrupted(ctx, err)
		}
	}
	if g.json {
		if err := printJSON(os.Stdout, out); err != nil {
			return err
		}
	} else {
		if _, err := fmt.Printf("%s  %s: %s\n", r.Run, r.State, term.Clip(runText(r, 0), 200)); err != nil {
			return err
		}
		if out.Difference != nil {
			if err := printDifference(os.Stdout, out.Difference, shortDifference); err != nil {
				return err
			}
		}
	}
	switch {
	case r.State == schemas.RunDone && r.Total == 0:
		fmt.Fprintln(os.Stderr, "petri: nothing was to be done: no artifact is of those analyses, analyzers and kinds (petri list, petri artifacts ID)")
	case r.Failed > 0:
		fmt.Fprintf(os.Stderr, "petri: %s failed (the last reason of each analyzer: petri analyzers)\n", amount(r.Failed, "task"))
	}
	switch {
	case r.State == schemas.RunFailed:
		return exitError{code: codeError}
	case r.State == schemas.RunCancelled || r.Failed > 0:
		return exitError{code: codeIncomplete}
	}
	return nil
}

func runsCommand(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:   "runs",
		Short: "List, follow, steer and forget replays and hunts",
		Long: `List, follow, steer and forget replays and hunts, from any terminal. A run goes on until
it has ended, whoever looks, and over restarts of Petri.`,
		Example: `  petri runs list
  petri runs watch r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA
  petri runs pause r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(
		runsListCommand(g), runsShowCommand(g), runsWatchCommand(g),
		orderCommand(g, bus.OrderPause, "Give out no more of a run's tasks until it is resumed", "paused"),
		orderCommand(g, bus.OrderResume, "Let a paused run go on", "goes on"),
		orderCommand(g, bus.OrderCancel, "End a run; what it has found so far stays", "cancelled"),
		runsForgetCommand(g),
	)
	return c
}

// resolveRun accepts a run's id, or its beginning if only one begins so.
func resolveRun(ctx context.Context, b *bus.Bus, s string) (string, error) {
	if schemas.CheckRun(s) == nil && s != schemas.LiveRun {
		return s, nil
	}
	list, err := b.Runs(ctx, b.Tenant())
	if err != nil {
		return "", err
	}
	var found []string
	for _, r := range list {
		if len(s) >= 6 && strings.HasPrefix(r.Run, s) {
			found = append(found, r.Run)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", usagef("no run's id is %s or begins so (petri runs list shows those there are)", term.Clip(s, 40))
	}
	return "", usagef("%s begins %d runs' ids: write more of it", s, len(found))
}

func noRun(run string, err error) error {
	if errors.Is(err, bus.ErrNotFound) {
		return fmt.Errorf("run %s: %w (petri runs list shows those there are)", run, bus.ErrNotFound)
	}
	return err
}

func runsListCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the runs, the newest first",
		Example: `  petri runs list --json | jq -r '.[].run'`,
		Args:    args(cobra.NoArgs),
		RunE: g.on(g.read, func(ctx context.Context, b *bus.Bus, _ []string) error {
			list, err := b.Runs(ctx, b.Tenant())
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(os.Stdout, list)
			}
			for _, r := range list {
				if _, err := fmt.Println(runLine(&r)); err != nil {
					return err
				}
			}
			if len(list) == 0 {
				fmt.Fprintln(os.Stderr, "no runs yet: petri replay ID, petri hunt --analyzer NAME")
			}
			return nil
		}),
	}
}

func runLine(r *schemas.RunState) string {
	what := "hunt"
	if r.Analysis != "" {
		what = "replay of " + r.Analysis
	}
	s := fmt.Sprintf("%s  %s  %-9s  %s, %s: %s", r.Run, r.Created.Local().Format("2006-01-02 15:04"), r.State, strings.Join(r.Analyzers, ", "), what, runText(r, 0))
	if r.Waiting != "" {
		s += "; " + r.Waiting
	}
	return term.Clip(s, 240)
}

func runsShowCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use:     "show RUN",
		Short:   "Show how far a run is",
		Example: `  petri runs show r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: g.onRun(g.read, func(ctx context.Context, b *bus.Bus, run string) error {
			r, err := b.Run(ctx, run)
			if err != nil {
				return noRun(run, err)
			}
			if g.json {
				return printJSON(os.Stdout, runResult{Run: r})
			}
			_, err = fmt.Println(runLine(&r))
			return err
		}),
	}
}

func runsWatchCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use:     "watch RUN",
		Short:   "Follow a run until it ends",
		Example: `  petri runs watch r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: g.onRun(g.follow, func(ctx context.Context, b *bus.Bus, run string) error {
			pr := newProgress(os.Stderr)
			defer pr.done()
			r, err := followRun(ctx, b, run, pr)
			if err != nil {
				return noRun(run, err)
			}
			pr.done()
			return g.printRun(ctx, b, &r)
		}),
	}
}

func orderCommand(g *global, order, short, done string) *cobra.Command {
	return &cobra.Command{
		Use:     order + " RUN",
		Short:   short,
		Example: "  petri runs " + order + " r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA",
		Args:    args(cobra.ExactArgs(1)),
		RunE: g.onRun(g.connect, func(ctx context.Context, b *bus.Bus, run string) error {
			if err := b.OrderRun(ctx, run, order); err != nil {
				return noRun(run, err)
			}
			r, err := b.Run(ctx, run)
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(os.Stdout, runResult{Run: r})
			}
			_, err = fmt.Printf("%s  %s: %s\n", run, done, term.Clip(runText(&r, 0), 200))
			return err
		}),
	}
}
