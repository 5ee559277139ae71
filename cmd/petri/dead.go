// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/reporters/term"
)

func deadCommand(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:   "dead",
		Short: "List, show, retry and drop what could not be processed",
		Long: `A message that nobody can process becomes a dead letter: an analyzer's answer
that the clerk refused, a submission that cannot be read, a task that was given
out too often.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(
		&cobra.Command{
			Use: "list", Short: "List the dead letters, the oldest first", Args: args(cobra.NoArgs),
			Example: "  petri dead list\n  petri dead list --json | jq '.[].reason'",
			RunE:    g.on(g.read, func(ctx context.Context, b *bus.Bus, _ []string) error { return deadList(ctx, g, b) }),
		},
		&cobra.Command{
			Use: "show ID", Short: "Show a dead letter and its message", Args: args(cobra.ExactArgs(1)),
			Example: "  petri dead show 12",
			RunE:    g.on(g.read, func(ctx context.Context, b *bus.Bus, a []string) error { return deadShow(ctx, g, b, a[0]) }),
		},
		&cobra.Command{
			Use: "retry ID…", Short: "Put dead letters back where they were, to be processed again", Args: args(cobra.MinimumNArgs(1)),
			Example: "  petri dead retry 12 13",
			RunE: g.on(g.read, func(ctx context.Context, b *bus.Bus, a []string) error {
				return deadEach(ctx, g, a, "retried", b.RetryDead)
			}),
		},
		&cobra.Command{
			Use: "drop ID…", Short: "Forget dead letters", Args: args(cobra.MinimumNArgs(1)),
			Example: "  petri dead drop 12",
			RunE: g.on(g.read, func(ctx context.Context, b *bus.Bus, a []string) error {
				return deadEach(ctx, g, a, "dropped", b.DropDead)
			}),
		},
	)
	return c
}

func deadList(ctx context.Context, g *global, b *bus.Bus) error {
	list := []bus.DeadLetter{}
	err := b.DeadLetters(ctx, func(d bus.DeadLetter) error {
		list = append(list, d)
		return nil
	})
	if err != nil {
		return err
	}
	if g.json {
		return printJSON(os.Stdout, list)
	}
	if len(list) == 0 {
		fmt.Println("there are no dead letters")
		return nil
	}
	for _, d := range list {
		fmt.Printf("%-6d %s  %s  %s  %s\n       %s\n", d.ID, d.Time.Format(time.DateTime), d.Stream, term.Clip(d.Consumer, 40), term.Size(int64(d.Size)), term.Clip(d.Reason, 200))
	}
	return nil
}

func deadShow(ctx context.Context, g *global, b *bus.Bus, arg string) error {
	id, err := deadID(arg)
	if err != nil {
		return err
	}
	d, err := b.DeadLetter(ctx, id)
	if err != nil {
		return err
	}
	if g.json {
		return printJSON(os.Stdout, struct {
			bus.DeadLetter
			Body json.RawMessage `json:"body,omitempty"` // if it is JSON
			Text string          `json:"text,omitempty"` // if it is none
		}{d, jsonOnly(d.Body), textOnly(d.Body)})
	}
	fmt.Printf("id        %d\nstream    %s\nconsumer  %s\nsubject   %s\ntime      %s\nreason    %s\n\n%s\n", d.ID, d.Stream, term.Clean(d.Consumer), term.Clean(d.Subject),
		d.Time.Format(time.RFC3339), term.Clean(d.Reason), term.Clean(string(d.Body)))
	return nil
}

func jsonOnly(b []byte) json.RawMessage {
	if json.Valid(b) {
		return b
	}
	return nil
}

func textOnly(b []byte) string {
	if json.Valid(b) {
		return ""
	}
	return string(b)
}

func deadID(s string) (uint64, error) {
	id, err := strconv.ParseUint(s, 10, 64)
	if err != nil || id == 0 {
		return 0, usagef("%s is no dead letter's number (petri dead list shows them)", term.Clip(s, 40))
	}
	return id, nil
}

// deadEach does something with each of some dead letters, and stops at the first
// that it cannot be done with.
func deadEach(ctx context.Context, g *global, a []string, done string, f func(context.Context, uint64) error) error {
	ids := make([]uint64, len(a))
	for i, s := range a {
		var err error
		if ids[i], err = deadID(s); err != nil {
			return err
		}
	}
	for _, id := range ids {
		if err := f(ctx, id); err != nil {
			return err
		}
		if !g.json {
			fmt.Printf("dead letter %d is %s\n", id, done)
		}
	}
	if g.json {
		return printJSON(os.Stdout, map[string][]uint64{done: ids})
	}
	return nil
}
