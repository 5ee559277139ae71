// SPDX-License-Identifier: Apache-2.0

// Command faults runs the tests that docs/faults.md names, and prints for each of
// its rows what the fault has cost. A row has failed if one of its tests has, or
// was skipped, or if none of them has figures.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/petri-sandbox/petri/bus/faults"
)

func main() {
	doc := flag.String("doc", "docs/faults.md", "the table of faults")
	only := flag.String("row", "", "run only the row of this number, or the rows whose fault contains this text")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ok, err := run(ctx, *doc, *only, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
	}
	if err != nil || !ok {
		stop()
		os.Exit(1)
	}
}

// run runs the tests of the rows, package by package, and reports whether all
// rows are well.
func run(ctx context.Context, doc, only string, w io.Writer) (bool, error) {
	rows, err := readRows(doc)
	if err != nil {
		return false, err
	}
	rows = slices.DeleteFunc(rows, func(r row) bool { return !r.is(only) })
	if len(rows) == 0 {
		return false, fmt.Errorf("no row of %s has the number %q, or a fault with that in it", doc, only)
	}
	var packages []string
	tests := map[string][]string{}
	for _, r := range rows {
		for _, t := range r.tests {
			if !slices.Contains(packages, t.pkg) {
				packages = append(packages, t.pkg)
			}
			if !slices.Contains(tests[t.pkg], t.name) {
				tests[t.pkg] = append(tests[t.pkg], t.name)
			}
		}
	}
	results := map[test]*result{}
	for _, pkg := range packages {
		if err := runPackage(ctx, pkg, tests[pkg], results, w); err != nil {
			return false, err
		}
	}
	return table(rows, results, w), nil
}

// result is what became of a test.
type result struct {
	action  string // the last one that test2json says of it: pass, fail, skip
	figures []faults.Figures
	output  strings.Builder
}

// runPackage runs tests of a package as go test does, and shows the output of
// those that fail.
func runPackage(ctx context.Context, pkg string, names []string, results map[test]*result, w io.Writer) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-tags", "vm", "-count=1", "-json", "-timeout", "60m",
		"-run", "^("+strings.Join(names, "|")+")$", "./"+pkg)
	cmd.Env = append(os.Environ(), "PETRI_FAULTS=full")
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("test %s: %w", pkg, err)
	}
	err = follow(out, pkg, results, w)
	_, _ = io.Copy(io.Discard, out)
	var exit *exec.ExitError
	if end := cmd.Wait(); err == nil && !errors.As(end, &exit) { // a failure is in the results
		err = end
	}
	if err != nil {
		return fmt.Errorf("test %s: %w", pkg, err)
	}
	return nil
}

// follow reads what go test -json says of a package.
func follow(r io.Reader, pkg string, results map[test]*result, w io.Writer) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e struct {
			Action, Test, Output string
			Elapsed              float64
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("read %.80q: %w", lines.Text(), err)
		}
		name, sub, _ := strings.Cut(e.Test, "/")
		if name == "" {
			if e.Action == "output" || e.Action == "build-output" {
				fmt.Fprint(w, pkg, ": ", e.Output)
			}
			continue
		}
		at := test{pkg, name}
		res := results[at]
		if res == nil {
			res = &result{}
			results[at] = res
		}
		switch {
		case e.Action == "output":
			res.output.WriteString(e.Output)
			if f, ok := faults.ParseFigures(e.Output); ok {
				res.figures = append(res.figures, f)
			}
		case sub != "":
		case e.Action == "pass", e.Action == "fail", e.Action == "skip":
			res.action = e.Action
			fmt.Fprintf(w, "%s %s %s (%.1f s)\n", e.Action, pkg, name, e.Elapsed)
			if e.Action != "pass" {
				fmt.Fprint(w, res.output.String())
			}
		}
	}
	return lines.Err()
}

// table prints a line per row, and reports whether all are well.
func table(rows []row, results map[test]*result, w io.Writer) bool {
	all := true
	fmt.Fprintf(w, "\n%3s  %-60s %8s %5s %8s %6s\n", "row", "fault", "acked", "lost", "doubled", "wrong")
	for _, r := range rows {
		var sum faults.Figures
		counted, bad := false, []string(nil)
		for _, t := range r.tests {
			res := results[t]
			if res == nil || res.action != "pass" {
				action := "not run"
				if res != nil && res.action != "" {
					action = res.action
				}
				bad = append(bad, t.name+": "+action)
				continue
			}
			for _, f := range res.figures {
				sum, counted = sum.Add(f), true
			}
		}
		if len(bad) == 0 && !counted {
			bad = append(bad, "no test has figures")
		}
		fault := r.fault
		if len(fault) > 60 {
			fault = fault[:57] + "..."
		}
		fmt.Fprintf(w, "%3d  %-60s %8d %5d %8d %6d  %s\n", r.n, fault, sum.Acked, sum.Lost, sum.Doubled, sum.Wrong, sum.Note)
		for _, b := range bad {
			fmt.Fprintf(w, "     FAILED: %s\n", b)
		}
		all = all && len(bad) == 0
	}
	return all
}
