// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/behavior"
	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

func traceCommand(g *global) *cobra.Command {
	t := &traceView{json: &g.json}
	c := &cobra.Command{
		Use:   "trace {ID | --file FILE}",
		Short: "Print the system calls of an analysis, a line each",
		Long: `Print the system calls of an analysis, a line each, decoded from the stored
trace: seconds since the guest's boot, thread, call, result. With --json the
behaviour that the calls amount to, one event a line.

What was recorded is always everything; --class, --call, --process and --failed
choose what of it is shown. A call is shown if it is of one of the classes or
has one of the names. The classes are ` + strings.Join(sysno.ClassNames(), ", ") + `;
forks, executions and exits are of class process.

With --format stap the lines are those of LiSa's SystemTap module (SYSCALL,
PROCESS, OPENFILE); --file reads such text, too.`,
		Example: `  petri trace --class file,network 01K9ZJ
  petri trace --call connect,sendto --failed 01K9ZJ
  petri trace --process 7 --hex 01K9ZJ
  petri trace --file copy.trace
  petri trace --format stap 01K9ZJ > trace.txt`,
		Args: args(func(_ *cobra.Command, a []string) error {
			if (len(a) == 1) == (t.file != "") || len(a) > 1 {
				return errors.New("the trace of which analysis, or --file?")
			}
			return nil
		}),
	}
	f := c.Flags()
	f.StringSliceVar(&t.classes, "class", nil, "only calls of these classes: "+strings.Join(sysno.ClassNames(), ", "))
	f.StringSliceVar(&t.calls, "call", nil, "only calls of these names")
	f.IntSliceVar(&t.filter.Processes, "process", nil, "only what processes or threads of these numbers do")
	f.BoolVar(&t.filter.Failed, "failed", false, "only calls that failed")
	f.BoolVar(&t.hex, "hex", false, "also dump the buffers that were captured")
	f.StringVar(&t.format, "format", "strace", "of the lines: strace, or stap for the text of LiSa's SystemTap module")
	f.StringVar(&t.file, "file", "", "read the trace in this file, or - for standard input, instead of an analysis'")
	stored := g.onAnalysis(g.read, func(ctx context.Context, b *bus.Bus, id string) error { return t.ofAnalysis(ctx, b, id) })
	c.RunE = func(c *cobra.Command, a []string) error {
		if err := t.check(); err != nil {
			return err
		}
		if t.file != "" {
			return t.ofFile()
		}
		return stored(c, a)
	}
	return c
}

// traceView is how a trace is to be shown.
type traceView struct {
	json           *bool
	classes, calls []string
	filter         behavior.Filter
	hex            bool
	format, file   string
}

// check makes the filter out of what the user wrote.
func (t *traceView) check() error {
	for _, name := range t.classes {
		class, ok := sysno.ParseClass(name)
		if !ok {
			return usagef("--class %q is none of %s", name, strings.Join(sysno.ClassNames(), ", "))
		}
		t.filter.Classes |= class
	}
	for _, name := range t.calls {
		if _, ok := sysno.ClassOf(name); !ok && !strings.HasPrefix(name, "syscall_") {
			return usagef("--call %q: no CPU's kernel has such a call (one without a name is syscall_NUMBER)", name)
		}
	}
	t.filter.Calls = t.calls
	switch {
	case t.format != "strace" && t.format != "stap":
		return usagef("--format %q is neither strace nor stap", t.format)
	case t.format == "stap" && (t.hex || *t.json):
		return usagef("--format stap is text for programs: neither --hex nor --json goes with it")
	}
	if t.hex && *t.json {
		return usagef("--hex dumps the calls' buffers, and --json shows no calls")
	}
	return nil
}

func (t *traceView) ofAnalysis(ctx context.Context, b *bus.Bus, id string) error {
	r, _, err := app.Fold(ctx, b, b.Tenant(), id)
	if err != nil {
		return err
	}
	found := false
	for _, a := range r.Artifacts {
		if a.Kind != schemas.KindTrace {
			continue
		}
		found = true
		err := t.ofArtifact(ctx, b, bus.Found{SHA256: a.SHA256, Analysis: id})
		if errors.Is(err, bus.ErrNotFound) {
			return fmt.Errorf("the trace is not in the store: %w (the analysis was imported without it, or it is lost: petri audit)", err)
		}
		if err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("analysis %s has no trace", id)
	}
	return nil
}

func (t *traceView) ofArtifact(ctx context.Context, b *bus.Bus, f bus.Found) error {
	pr, pw := io.Pipe()
	defer pr.Close()
	go func() { pw.CloseWithError(copyArtifact(ctx, b, f, pw, false)) }()
	totals, err := t.print(pr)
	sayGaps(totals)
	return err
}

// ofFile shows a file, which may be anything.
func (t *traceView) ofFile() error {
	f := os.Stdin
	if t.file != "-" {
		var err error
		if f, err = os.Open(t.file); err != nil {
			return usage(err)
		}
		defer f.Close()
	}
	totals, err := t.print(f)
	if err == nil && totals.Records == 0 && totals.Bad == 0 {
		return usagef("%s holds no trace: none of its %d bytes belongs to one", t.file, totals.Skipped)
	}
	sayGaps(totals)
	return err
}

// sayGaps tells who looks at calls that there were others.
func sayGaps(t trace.Totals) {
	if t.Bad+t.Skipped+t.Missing > 0 {
		sayHere(fmt.Sprintf("%d records could not be decoded, %d are missing, %d bytes belong to none", t.Bad, t.Missing, t.Skipped))
	}
	if t.Lost > 0 {
		sayHere(fmt.Sprintf("the guest has lost %d records", t.Lost))
	}
}

// print writes the trace to standard output.
func (t *traceView) print(in io.Reader) (trace.Totals, error) {
	src, err := behavior.Open(in)
	if err != nil {
		return trace.Totals{}, err
	}
	w := bufio.NewWriter(os.Stdout)
	switch {
	case *t.json:
		err = t.events(w, src)
	case t.format == "stap":
		err = t.stap(w, src)
	default:
		err = t.lines(w, src)
	}
	return src.Totals(), errors.Join(err, w.Flush())
}

// each calls f for every record of the trace.
func each(src behavior.Source, f func(*trace.Record) error) error {
	for {
		rec, err := src.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = f(rec)
		}
		if err != nil {
			return err
		}
	}
}

func (t *traceView) events(w io.Writer, src behavior.Source) error {
	var werr error
	tracker := behavior.New(func(b schemas.Behavior) {
		if werr == nil && t.filter.Event(&b) {
			werr = printLine(w, b)
		}
	})
	err := each(src, func(r *trace.Record) error {
		tracker.Add(r)
		return werr
	})
	if err == nil {
		tracker.Settle()
	}
	return errors.Join(err, werr)
}

func (t *traceView) stap(w io.Writer, src behavior.Source) error {
	s := behavior.NewStapWriter(w, t.filter.Record)
	if err := each(src, s.Add); err != nil {
		return err
	}
	return s.Close()
}

func (t *traceView) lines(w io.Writer, src behavior.Source) error {
	var joiner behavior.Joiner
	return each(src, func(r *trace.Record) error {
		if !t.filter.Failed {
			return t.line(w, r)
		}
		// The end of a call tells that it failed, and its beginning what it was.
		for _, whole := range joiner.Join(r) {
			if err := t.line(w, whole); err != nil {
				return err
			}
		}
		return nil
	})
}

func (t *traceView) line(w io.Writer, r *trace.Record) error {
	if !t.filter.Record(r) {
		return nil
	}
	at := fmt.Sprintf("%.6f", float64(r.Begin)/1e9)
	if r.Untold&trace.UntoldCPU != 0 {
		at = "-"
	}
	if _, err := fmt.Fprintf(w, "%12s %5d %s\n", at, behavior.Thread(r), behavior.Format(r)); err != nil {
		return err
	}
	if !t.hex {
		return nil
	}
	_, err := io.WriteString(w, behavior.Dump(r))
	return err
}
