// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/reporters/term"
)

// maxListed bounds what audit keeps for --json.
const maxListed = 100_000

// audited is what audit says with --json.
type audited struct {
	bus.AuditResult
	List []bus.AuditProblem `json:"list"` // of the problems, at most 100,000
}

func auditCommand(g *global) *cobra.Command {
	var deep bool
	c := &cobra.Command{
		Use:   "audit",
		Short: "Check that the store has everything that the log names",
		Long: `Check that the store has everything that the log and the archive name: artifacts,
segments, result documents, reports. Each has a record, of the right size, and all
its pieces; with --deep every byte is read and compared with its digest. Pieces
that no record names are found too. The exit code is 1 if something is wrong.`,
		Example: `  petri audit
  petri audit --deep --json`,
		Args: args(cobra.NoArgs),
		RunE: g.on(g.store, func(ctx context.Context, b *bus.Bus, _ []string) error {
			line := newCountLine()
			list := []bus.AuditProblem{}
			res, err := b.Audit(ctx, bus.AuditOptions{Deep: deep, Progress: line.count, Found: func(p bus.AuditProblem) {
				if g.json {
					if len(list) < maxListed {
						list = append(list, p)
					}
					return
				}
				line.end()
				fmt.Println(problemLine(p))
			}})
			line.end()
			if err != nil {
				return err
			}
			if g.json {
				err = printJSON(os.Stdout, audited{res, list})
			} else {
				_, err = fmt.Println(res)
			}
			if err == nil && res.Problems > 0 {
				return exitError{code: codeError}
			}
			return err
		}),
	}
	c.Flags().BoolVar(&deep, "deep", false, "read every byte and compare it with its digest")
	return c
}

func problemLine(p bus.AuditProblem) string {
	s := bucketNames[p.Bucket] + ":"
	if p.Analysis != "" {
		s = p.Analysis + ":"
	}
	if p.SHA256 != nil {
		s += fmt.Sprintf(" %s %s:", p.Kind, p.SHA256)
	}
	if p.Upload != "" {
		s += " upload " + p.Upload + ":"
	}
	return term.Clean(s + " " + p.Problem)
}
