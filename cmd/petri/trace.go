// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/behavior"
	"github.com/petri-sandbox/petri/schemas/trace"
)

func traceCommand(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:   "trace ID",
		Short: "Print the system calls of an analysis, a line each",
		Long: `Print the system calls of an analysis, a line each, decoded from the stored
trace: seconds since the guest's boot, process, call, result. With --json the
behaviour that the calls amount to, one event a line.`,
		Example: `  petri trace 01K9ZJ | grep connect`,
		Args:    args(cobra.ExactArgs(1)),
	}
	c.RunE = reading(g, func(ctx context.Context, b *bus.Bus, id string) error {
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
			if err := g.printTrace(ctx, b, bus.Found{SHA256: a.SHA256, Analysis: id}); err != nil {
				return err
			}
		}
		if !found {
			return fmt.Errorf("analysis %s has no trace", id)
		}
		return nil
	})
	return c
}

func (g *global) printTrace(ctx context.Context, b *bus.Bus, f bus.Found) error {
	pr, pw := io.Pipe()
	defer pr.Close()
	go func() { pw.CloseWithError(copyArtifact(ctx, b, f, pw, false)) }()
	w := bufio.NewWriter(os.Stdout)
	var werr error
	if g.json {
		_, err := behavior.Analyze(pr, func(bh schemas.Behavior) {
			if werr == nil {
				werr = printLine(w, bh)
			}
		})
		return errors.Join(err, werr, w.Flush())
	}
	r := trace.NewReader(pr)
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return errors.Join(err, w.Flush())
		}
		if _, err := fmt.Fprintf(w, "%12.6f %5d %s\n", float64(rec.Begin)/1e9, rec.Who.NSTID, behavior.Format(rec)); err != nil {
			return err
		}
	}
	return w.Flush()
}
