// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/reporters/fold"
	"github.com/petri-sandbox/petri/reporters/term"
	"github.com/petri-sandbox/petri/sandboxd/fleet"
	"github.com/petri-sandbox/petri/sandboxd/protocol"
	"github.com/petri-sandbox/petri/schemas"
)

// submission are the flags that say what shall be done with a sample.
type submission struct {
	protocol, hooks string
	runtime         time.Duration
	command         string
	commandSet      func() bool
	env             []string
	dir, stdin      string
	name, clock     string
	user            string
	cold            bool
	untraced        bool
	noReuse         bool
	priority        string
	retries         int
	maxSample       string
	password        string
	member          string
	all             bool
	limits          []string
}

func (s *submission) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.protocol, "protocol", "", "file with the protocol; default: the built-in one")
	f.StringVar(&s.hooks, "hooks", "", "file with the hooks' configuration; default: the built-in one")
	f.DurationVar(&s.runtime, "runtime", app.DefaultRuntime, "how long the sample may run, 1s to 1h")
	s.commandSet = func() bool { return f.Changed("command") }
	f.StringVar(&s.command, "command", "", "command to run instead of the sample; the word {sample} is its path")
	f.StringArrayVar(&s.env, "env", nil, "NAME=VALUE for the sample's environment; may be repeated")
	f.StringVar(&s.dir, "dir", "", "guest directory to start in; default: the user's")
	f.StringVar(&s.stdin, "stdin", "", "file whose bytes the sample can read from its standard input, at most 32 KiB")
	f.StringVar(&s.name, "name", "", "the sample's file name in the guest; random: one that tells nothing; default: the file's")
	f.StringVar(&s.clock, "clock", "", "what the guest's clock shows: 2024-05-01, 2024-05-01T09:30:00Z, or from now +720h or -8760h")
	f.StringVar(&s.user, "user", "", "guest user to run as; default: root")
	f.BoolVar(&s.cold, "cold", false, "boot the guest instead of restoring a snapshot")
	f.BoolVar(&s.noReuse, "no-reuse", false, "have analyzers do their work, whatever they answered before for the same bytes")
	f.BoolVar(&s.untraced, "untraced", false, "do not trace system calls (the report says so)")
	f.StringVar(&s.priority, "priority", "normal", "low, normal or high")
	f.StringVar(&s.password, "password", "", "the file is an archive with this password; what is in it is the sample")
	f.StringVar(&s.member, "member", "", "the file is an archive; the file of this name in it is the sample")
	f.StringVar(&s.maxSample, "max-sample", "100M", "largest sample to take")
	f.StringArrayVar(&s.limits, "limit", nil, "NAME=SIZE, how much is kept of "+strings.Join(limitNames(), ", ")+"; may be repeated")
}

// maxRetries is more than a sandbox that goes on failing deserves.
const maxRetries = 10

func (s *submission) request(path string, args []string) (app.Request, error) {
	r := app.Request{Path: path, Protocol: s.protocol, Hooks: s.hooks, Stdin: s.stdin}
	r.Options = schemas.Options{
		Runtime: schemas.Duration(s.runtime), Args: args, Dir: s.dir, User: s.user, Cold: s.cold, Untraced: s.untraced, NoReuse: s.noReuse,
		Priority: s.priority, Retries: s.retries,
	}
	if s.runtime <= 0 {
		return r, usagef("--runtime %s is not between %s and %s", s.runtime, app.MinRuntime, app.MaxRuntime)
	}
	if s.retries < 0 || s.retries > maxRetries {
		return r, usagef("--retries %d is not between 0 and %d", s.retries, maxRetries)
	}
	switch s.priority {
	case "low", "normal", "high":
	default:
		return r, usagef("--priority %q is none of low, normal, high", s.priority)
	}
	if s.commandSet() {
		argv, err := protocol.Split(s.command)
		if err != nil || len(argv) == 0 {
			return r, usagef("--command %q: %w", s.command, cmpErr(err, "it has no word"))
		}
		r.Options.Command = argv
	}
	if s.dir != "" && !filepath.IsAbs(s.dir) {
		return r, usagef("--dir %q is not an absolute path", s.dir)
	}
	// JSON would alter them silently.
	for _, word := range slices.Concat(r.Options.Command, args, s.env, []string{s.dir}) {
		if !utf8.ValidString(word) || strings.ContainsRune(word, 0) {
			return r, usagef("%q is not UTF-8 without NUL, as arguments and environment must be", word)
		}
	}
	if err := app.CheckName(s.name); err != nil {
		return r, usagef("--name: %w", err)
	}
	clock, err := parseClock(s.clock, time.Now())
	if err != nil {
		return r, usagef("--clock: %w", err)
	}
	r.Options.Name, r.Options.Clock = s.name, clock
	for _, kv := range s.env {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return r, usagef("--env %q is not NAME=VALUE", kv)
		}
		if r.Options.Env == nil {
			r.Options.Env = map[string]string{}
		}
		r.Options.Env[k] = v
	}
	n, err := parseSize(s.maxSample)
	if err != nil {
		return r, usagef("--max-sample: %w", err)
	}
	r.Options.MaxSample = n
	for _, kv := range s.limits {
		name, size, _ := strings.Cut(kv, "=")
		n, err := parseSize(size)
		if err != nil {
			return r, usagef("--limit %q: %w", kv, err)
		}
		field := limitOf(&r.Options.Limits, name)
		if field == nil {
			return r, usagef("--limit %q: there is no %q, but %s", kv, name, strings.Join(limitNames(), ", "))
		}
		if n > maxLimit {
			return r, usagef("--limit %q is more than %dG", kv, maxLimit>>30)
		}
		*field = n
	}
	return r, nil
}

// prepare opens and checks the file, or what of an archive is meant.
func (s *submission) prepare(ctx context.Context, req app.Request) ([]*app.Prepared, error) {
	if s.password == "" && s.member == "" && !s.all {
		p, err := app.Prepare(req)
		if err == nil && unpackable(p.Submission.Sample.Type) {
			fmt.Fprintf(os.Stderr, "petri: %q is taken as it is; to run what is in it: --password infected for its only file, or --member NAME\n", p.Submission.Sample.Name)
		}
		return []*app.Prepared{p}, err
	}
	if s.all && s.member != "" {
		return nil, usagef("--all and --member exclude each other")
	}
	return app.PrepareArchive(ctx, req, app.Archive{Password: s.password, Member: s.member, All: s.all})
}

// unpackable reports whether a sample that cannot be run is an archive out of which
// one can be.
func unpackable(t schemas.SampleType) bool {
	if t.Unsupported == "" {
		return false
	}
	switch t.Description {
	case "zip archive", "gzip data", "xz data", "zstd data", "bzip2 data":
		return true
	}
	return false
}

// maxLimit is as far as a limit can be raised.
const maxLimit = 16 << 30

func limitNames() []string {
	return []string{"stdout", "trace", "pcap", "dropped-file", "dropped-files", "dropped-total"}
}

func limitOf(l *schemas.Limits, name string) *int64 {
	switch name {
	case "stdout":
		return &l.Stdout
	case "trace":
		return &l.Trace
	case "pcap":
		return &l.Pcap
	case "dropped-file":
		return &l.DroppedFile
	case "dropped-files":
		return &l.DroppedFiles
	case "dropped-total":
		return &l.DroppedTotal
	}
	return nil
}

// parseClock reads a date, a time, or a distance from now, which is signed.
func parseClock(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	var t time.Time
	var err error
	if s[0] == '+' || s[0] == '-' {
		var d time.Duration
		d, err = time.ParseDuration(s)
		t = now.Add(d)
	} else if t, err = time.Parse(time.DateOnly, s); err != nil {
		t, err = time.Parse(time.RFC3339, s)
	}
	switch {
	case err != nil:
		return t, fmt.Errorf("%q is no date (2024-05-01), time (2024-05-01T09:30:00Z) or distance from now (+720h, -8760h)", s)
	case t.Year() < 1980 || t.Year() > 2037: // what the guest's file systems and 32-bit clocks can hold
		return t, fmt.Errorf("%q is not between 1980 and 2037", s)
	}
	return t.UTC(), nil
}

func cmpErr(err error, text string) error {
	if err != nil {
		return err
	}
	return errors.New(text)
}

// parseSize reads a number of bytes, with K, M or G if it is one of those.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "KMGkmg")
	shift := 0
	switch strings.ToUpper(s[len(digits):]) {
	case "":
	case "K":
		shift = 10
	case "M":
		shift = 20
	case "G":
		shift = 30
	default:
		digits = ""
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	switch {
	case errors.Is(err, strconv.ErrRange), err == nil && n > math.MaxInt64>>shift:
		return 0, fmt.Errorf("%q is too much", s)
	case err != nil || n == 0:
		return 0, fmt.Errorf("%q is no size (write 50M or 1G)", s)
	}
	return int64(n) << shift, nil
}

func runCommand(g *global) *cobra.Command {
	s := &submission{}
	var out, failOn string
	var full bool
	c := &cobra.Command{
		Use:   "run FILE [-- ARGS…]",
		Short: "Detonate one file and print the report",
		Long: `Detonate one file in a virtual machine and print the report. Everything that is
needed is started and stopped with it, unless a Petri runs on the data directory
already: then that one does the work.`,
		Example: `  petri run ./sample
  petri run --runtime 60s ./sample -- --daemon
  petri run --command 'sh {sample}' installer.txt
  petri run --json ./sample > report.json`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			if dash := c.ArgsLenAtDash(); len(a) > 1 && dash != 1 {
				return usagef("arguments of the sample come after --: petri run %s -- %s", a[0], strings.Join(a[1:], " "))
			}
			req, err := s.request(a[0], a[1:])
			if err != nil {
				return err
			}
			switch failOn {
			case "", "suspicious", "malicious":
			default:
				return usagef("--fail-on %q is neither suspicious nor malicious", failOn)
			}
			return runOne(c.Context(), g, s, req, runOptions{out: out, failOn: failOn, full: full})
		},
	}
	s.flags(c)
	c.Flags().StringVar(&out, "out", "", "directory to write the report and the artifacts to; an earlier report there is replaced")
	c.Flags().StringVar(&failOn, "fail-on", "", "exit with 3 on this verdict or a worse one: suspicious or malicious")
	c.Flags().BoolVar(&full, "full", false, "do not shorten the printed report")
	return c
}

type runOptions struct {
	out, failOn string
	full        bool
}

func runOne(ctx context.Context, g *global, s *submission, req app.Request, o runOptions) error {
	cfg, err := g.config()
	if err != nil {
		return err
	}
	list, err := s.prepare(ctx, req)
	if err != nil {
		return badInput(err)
	}
	prep := list[0]
	defer prep.Close()
	if o.out != "" {
		if err := os.MkdirAll(o.out, 0o755); err != nil {
			return usagef("--out: %w", err)
		}
	}
	if err := cfg.CheckRoom(); err != nil {
		b, cerr := cfg.Connect(ctx, "petri")
		if cerr != nil {
			return err
		}
		b.Close() // the Petri that runs has marks of its own
	}
	ctx, cancel := interruptible(ctx)
	defer cancel()
	pr := newProgress(os.Stderr)
	defer pr.done()
	if cfg.NATS == "" { // else the sandbox may be on another host
		pr.making = func() bool { return fleet.Making(cfg.Cache) }
	}

	node, b, err := cfg.Attach(ctx, pr.starting)
	if err != nil {
		return interrupted(ctx, err)
	}
	defer node.Close()
	defer b.Close()
	if prep.Submission.Sample.Type.Unsupported == "" {
		note := func(format string, args ...any) { pr.note(fmt.Sprintf(format, args...)) }
		if err := cfg.CheckGuest(ctx, prep.Submission.Profile, note); err != nil {
			return interrupted(ctx, err)
		}
	}
	if err := prep.Submit(ctx, b); err != nil {
		return interrupted(ctx, busy(g, badInput(err)))
	}
	pr.submitted(&prep.Submission)
	report, err := watchToReport(ctx, b, &prep.Submission, pr)
	if err != nil {
		return err
	}
	pr.done()
	if o.out != "" {
		if err := writeOut(context.WithoutCancel(ctx), b, report, o.out); err != nil {
			return fmt.Errorf("write to %s: %w", o.out, err)
		}
	}
	if err := printReport(g, report, o.full); err != nil {
		return err
	}
	node.Leave(ctx, func(text string) { fmt.Fprintln(os.Stderr, "petri:", text) })
	return exitCode(ctx, report, o.failOn)
}

// badInput gives errors of the user's the right exit code.
func badInput(err error) error {
	if errors.Is(err, app.ErrBadInput) {
		return usage(err)
	}
	return err
}

// reportTime is how long the reporter may take to write the report of an
// analysis that has ended.
const reportTime = 15 * time.Second

// watchToReport follows a submission until its last attempt has ended and its
// report is there. When ctx is done it cancels the analysis, and goes on until
// that has ended.
func watchToReport(ctx context.Context, b *bus.Bus, s *schemas.Submission, pr *progress) (*schemas.Report, error) {
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	id := s.ID
	cancelled := context.AfterFunc(ctx, func() {
		pr.note("interrupted: ending the analysis (interrupt again to leave at once)")
		if err := b.Cancel(life, s.Tenant, id, "the user who ran it"); err != nil {
			pr.note("cancel: " + err.Error())
		}
		time.AfterFunc(time.Minute, stop)
	})
	defer cancelled()
	for attempt := 1; ; attempt++ {
		id = schemas.AttemptID(s.ID, attempt)
		ending, err := follow(life, b, s.Tenant, id, pr)
		if err != nil {
			return nil, err
		}
		var f schemas.AnalysisFailed
		if attempt <= s.Options.Retries && ending.Decode(&f) == nil && app.Retryable(f) {
			pr.note("trying again")
			continue
		}
		r, _, err := app.Fold(life, b, s.Tenant, id)
		return r, err
	}
}

// follow shows an analysis' events until its report is written, or the
// reporter has had its time: then the caller folds the log itself.
func follow(ctx context.Context, b *bus.Bus, tenant, id string, pr *progress) (schemas.Event, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go watchBus(ctx, b, cancel)
	defer telling(ctx, b, func(text string) { pr.line("server", text) })()
	var ending schemas.Event
	err := b.Follow(ctx, tenant, id, 0, nil, func(e bus.Entry) error {
		pr.event(e.Event)
		switch {
		case e.Event.Family() == "context" && schemas.Ending(e.Event.Name()):
			ending = e.Event
			time.AfterFunc(reportTime, func() { cancel(nil) })
		case e.Event.Family() == "report" && ending.ID != "":
			return bus.ErrStop
		}
		return nil
	})
	if ending.ID != "" {
		return ending, nil
	}
	if err == nil {
		err = errors.New("the log ended")
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return ending, fmt.Errorf("follow the analysis: %w", err)
}

// busAway is how long the bus may be away before nobody waits for it: longer
// than an analysis does.
const busAway = 2 * time.Minute

// watchBus gives up when the bus does not come back.
func watchBus(ctx context.Context, b *bus.Bus, give func(error)) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if b.Away() > busAway {
				give(fmt.Errorf("the bus has been away for %s (see log/bus.log in the data directory; is its disk full? the next start ends the analysis)", busAway))
				return
			}
		}
	}
}

// printReport prints the report: the document alone, or a rendering.
func printReport(g *global, r *schemas.Report, full bool) error {
	if g.json {
		b, err := fold.Encode(r)
		if err != nil {
			return err
		}
		if _, tty := terminal(os.Stdout); tty {
			b = escapeJSON(b) // else the document's own bytes
		}
		_, err = os.Stdout.Write(b)
		return err
	}
	width, tty := terminal(os.Stdout)
	if !tty {
		width = 1000 // nothing is cut off for whoever can scroll
	}
	return term.Write(os.Stdout, r, term.Options{Color: color(os.Stdout), Width: width, Full: full})
}

// exitCode is the report's.
func exitCode(ctx context.Context, r *schemas.Report, failOn string) error {
	if ctx.Err() != nil {
		return exitError{code: codeInterrupted}
	}
	v := r.Verdict.Value
	if failOn != "" && (v == schemas.VerdictMalicious || failOn == "suspicious" && v == schemas.VerdictSuspicious) {
		return exitError{code: codeFailOn}
	}
	switch r.Outcome.Value {
	case schemas.OutcomeCompleted:
		return nil
	case schemas.OutcomeNotExecuted, schemas.OutcomeUnsupported:
		return exitError{code: codeNotExecuted}
	case schemas.OutcomeIncomplete:
		return exitError{code: codeIncomplete}
	}
	return exitError{code: codeError}
}
