// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/reporters/term"
	"github.com/petri-sandbox/petri/sandboxd/catalogue"
	"github.com/petri-sandbox/petri/schemas"
)

// Words in the place of a list of analyzers.
const (
	expectNone    = "none"
	expectDefault = "default"
)

func expectCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "expect [PROFILE [NAME,…|none|default]]",
		Short: "Show or say which analyzers must answer for an analysis to be complete",
		Long: `Show or say which analyzers must answer for the analyses of a profile, which is
a guest's architecture, to be complete. If one of them does not, the report names
it with the reason, and the outcome is incomplete.

  NAME,…   these, also if they are removed or have never registered
  none     nobody: analyzers that answer count, and nobody is missed
  default  those that Petri brings, but for those that are removed

It holds for the jobs that a sandbox takes from then on. An analysis that was
begun has its list in its log.`,
		Example: `  petri expect
  petri expect amd64
  petri expect amd64 static,behavior,yara
  petri expect amd64 none
  petri expect amd64 default
  petri expect --json | jq -r '.[].expected_analyzers[]'`,
		Args: args(cobra.MaximumNArgs(2)),
		RunE: func(c *cobra.Command, a []string) error {
			if len(a) > 0 && !slices.Contains(catalogue.Names(), a[0]) {
				return usagef("there is no profile %.40q; there are %s", a[0], strings.Join(catalogue.Names(), ", "))
			}
			if len(a) < 2 {
				return g.on(g.read, func(ctx context.Context, b *bus.Bus, a []string) error {
					return showExpected(ctx, g, b, a)
				})(c, a)
			}
			p, err := parseExpected(a[0], a[1])
			if err != nil {
				return usage(err)
			}
			return g.on(g.connect, func(ctx context.Context, b *bus.Bus, a []string) error {
				return expect(ctx, g, b, a[0], p)
			})(c, a)
		},
	}
}

// parseExpected reads a list; nil is the default one.
func parseExpected(profile, list string) (*schemas.Profile, error) {
	p := &schemas.Profile{Schema: schemas.ProfileSchema, Name: profile, Expected: []string{}}
	switch list {
	case expectDefault:
		return nil, nil
	case expectNone:
		return p, nil
	}
	p.Expected = strings.Split(list, ",")
	for _, word := range []string{expectNone, expectDefault} {
		if slices.Contains(p.Expected, word) {
			return nil, fmt.Errorf("%s stands alone, not in a list", word)
		}
	}
	slices.Sort(p.Expected)
	return p, p.Check()
}

// expect stores a list, or forgets the one there is, and shows what holds then.
func expect(ctx context.Context, g *global, b *bus.Bus, profile string, p *schemas.Profile) error {
	var err error
	if p == nil {
		_, err = b.ForgetProfile(ctx, profile)
	} else {
		err = b.SetProfile(ctx, *p)
	}
	if err != nil {
		return err
	}
	if p != nil {
		list, err := b.Analyzers(ctx)
		if err != nil {
			return err
		}
		for _, name := range p.Expected {
			if !slices.ContainsFunc(list, func(s bus.AnalyzerState) bool { return s.Name == name && s.Registration != nil }) {
				fmt.Fprintf(os.Stderr, "analyzer %s is not registered: until it is, analyses are incomplete (see: petri analyzers)\n", name)
			}
		}
	}
	return showExpected(ctx, g, b, []string{profile})
}

// expectation is who must answer for the analyses of a profile.
type expectation struct {
	Profile  string   `json:"profile"`
	Expected []string `json:"expected_analyzers"`
	Operator bool     `json:"operator"` // the list is the operator's
}

// showExpected shows the lists of some profiles, or else of all.
func showExpected(ctx context.Context, g *global, b *bus.Bus, profiles []string) error {
	if len(profiles) == 0 {
		set, err := b.Profiles(ctx)
		if err != nil {
			return err
		}
		profiles = catalogue.Names()
		for name := range set { // of sandboxes with other guests
			if !slices.Contains(profiles, name) {
				profiles = append(profiles, name)
			}
		}
		slices.Sort(profiles)
	}
	list := make([]expectation, len(profiles))
	for i, name := range profiles {
		e := expectation{Profile: name}
		var err error
		if e.Expected, e.Operator, err = app.Expected(ctx, b, name); err != nil {
			return err
		}
		list[i] = e
	}
	if g.json {
		return printJSON(os.Stdout, list)
	}
	return printExpected(os.Stdout, list)
}

func printExpected(out io.Writer, list []expectation) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PROFILE\tEXPECTED\tLIST")
	for _, e := range list {
		names, from := strings.Join(e.Expected, ","), expectDefault
		if len(e.Expected) == 0 {
			names = expectNone
		}
		if e.Operator {
			from = "the operator's"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", term.Clean(e.Profile), term.Clean(names), from)
	}
	return w.Flush()
}
