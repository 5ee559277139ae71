// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/petrifile"
	"github.com/petri-sandbox/petri/reporters/term"
	"github.com/petri-sandbox/petri/schemas"
)

// verified is what verify says with --json.
type verified struct {
	Tenant   string             `json:"tenant"`
	Analysis string             `json:"analysis"`
	Ending   string             `json:"ending"` // empty: the analysis has not ended, or was not read to there
	Root     schemas.Digest     `json:"root"`   // Merkle tree hash over all events
	Coverage petrifile.Coverage `json:"coverage"`
	Objects  int                `json:"objects"` // whose bytes were compared with their digest
	Absent   map[string]int     `json:"absent"`  // objects that a file does not have, by kind
	Problems []string           `json:"problems"`
}

func verifyCommand(g *global) *cobra.Command {
	var key string
	var showKey bool
	c := &cobra.Command{
		Use:   "verify ID|FILE",
		Short: "Check an analysis, or a .petri file, against its digests and signatures",
		Long: `Check an analysis, or a .petri file, against its digests and signatures: whether
its events are whole and in their order, whether every artifact has the bytes
that the log names, which events a checkpoint of the sandbox covers, by which
key, and what lies behind them. With --key only that key counts: whose it is you
must know from somewhere else than the file.

The exit code is 1 if anything does not match, or if --key was given and covers
nothing.`,
		Example: `  petri verify 01K9ZJ
  petri verify --key 3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29 analysis.petri
  petri verify --show-key`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			cfg, err := g.config()
			if err != nil {
				return err
			}
			own, _, err := cfg.PublicKey()
			switch {
			case err != nil && showKey:
				return err
			case showKey && own == "":
				return fmt.Errorf("there is no key on %s yet: the sandbox makes one when it first starts", cfg.Data)
			case showKey && g.json:
				return printJSON(os.Stdout, map[string]string{"key": own})
			case showKey:
				_, err := fmt.Println(own)
				return err
			case len(a) == 0:
				return usagef("verify what? (usage: %s; more: %s --help)", c.UseLine(), c.CommandPath())
			}
			if b, err := hex.DecodeString(key); err != nil || key != "" && len(b) != 32 {
				return usagef("--key %q is no key: 64 hexadecimal digits, as petri verify --show-key prints them", term.Clip(key, 80))
			}
			ctx, cancel := interruptible(c.Context())
			defer cancel()
			v, err := g.verify(ctx, a[0], key)
			if err != nil {
				return interrupted(ctx, err)
			}
			if g.json {
				err = printJSON(os.Stdout, v)
			} else {
				printVerified(v, own)
			}
			if len(v.Problems) > 0 || key != "" && v.Coverage.Covered == 0 {
				return errors.Join(err, exitError{code: codeError})
			}
			return err
		},
	}
	c.Flags().StringVar(&key, "key", "", "public key whose checkpoints count, hexadecimal; default: any")
	c.Flags().BoolVar(&showKey, "show-key", false, "print the key that this data directory's sandbox signs with")
	return c
}

// idCharacters are those of which ids are made.
const idCharacters = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// verify checks a file if there is one of that name, else an analysis.
func (g *global) verify(ctx context.Context, what, key string) (*verified, error) {
	if fi, err := os.Stat(what); err == nil && !fi.IsDir() {
		f, err := os.Open(what)
		if err != nil {
			return nil, usage(err)
		}
		defer f.Close()
		return verifyFile(f, key)
	}
	if fi, err := os.Stat(what); err == nil && fi.IsDir() {
		return nil, usagef("%q is a directory (name a .petri file in it, or the id of an analysis)", term.Clip(what, 200))
	}
	if strings.ContainsAny(what, "./") {
		return nil, usagef("there is no file %s", term.Clip(what, 200))
	}
	if strings.Trim(what, idCharacters) != "" || len(what) < 6 {
		return nil, usagef("%q is neither a file nor an analysis' id (name a .petri file by its path, or an id as petri list prints it)", term.Clip(what, 200))
	}
	b, done, err := g.read(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	id, err := resolve(ctx, b, what)
	var exit exitError
	if errors.As(err, &exit) && exit.code == codeUsage {
		return nil, usagef("there is no file %s, and %w", what, exit.err)
	}
	if err != nil {
		return nil, err
	}
	return verifyAnalysis(ctx, b, id, key)
}

// take takes over what a log says of itself.
func (v *verified) take(l *petrifile.Log) {
	v.Ending, v.Root, v.Coverage = l.Ending(), l.Root(), l.Coverage()
	for _, p := range v.Coverage.Checkpoints {
		if p.Problem != "" {
			v.Problems = append(v.Problems, fmt.Sprintf("event %d, the checkpoint at %s: %s", p.Event, p.At, p.Problem))
		}
	}
}

func verifyFile(r io.Reader, key string) (*verified, error) {
	f, err := petrifile.NewReader(r, key)
	if err != nil {
		return nil, usage(err)
	}
	defer f.Close()
	v := &verified{Tenant: f.Header().Tenant, Analysis: f.Header().Analysis, Absent: map[string]int{}, Problems: []string{}}
	for {
		item, err := f.Next()
		if errors.Is(err, io.EOF) {
			v.take(f.Log())
			return v, nil
		}
		if err != nil {
			v.take(f.Log())
			v.Problems = append(v.Problems, err.Error())
			return v, nil
		}
		switch {
		case item.Object == nil:
		case item.Absent != "":
			v.Absent[string(item.Object.Kinds[0])]++
		default:
			v.Objects++
		}
	}
}

func verifyAnalysis(ctx context.Context, b *bus.Bus, id, key string) (*verified, error) {
	v := &verified{Tenant: b.Tenant(), Analysis: id, Absent: map[string]int{}, Problems: []string{}}
	log, err := b.Verify(ctx, b.Tenant(), id, key)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, fmt.Errorf("%w (petri list shows those there are)", err)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	v.take(log)
	if err != nil {
		v.Problems = append(v.Problems, err.Error())
		return v, nil
	}
	e, err := b.ArchiveEntry(ctx, b.Tenant(), id)
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		return nil, err
	}
	for _, o := range log.Objects() {
		err := b.VerifyObject(ctx, id, o)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, bus.ErrNotFound) && e.Imported: // it may have been left out of the file
			v.Absent[string(o.Kinds[0])]++
		case err != nil:
			v.Problems = append(v.Problems, err.Error())
		default:
			v.Objects++
		}
	}
	return v, nil
}

// maxProblems are printed; --json has them all.
const maxProblems = 20

func printVerified(v *verified, own string) {
	state := v.Ending
	if state == "" {
		state = "no ending yet"
	}
	fmt.Printf("%s: %d events, %s\n", v.Analysis, v.Coverage.Events, state)
	line := func(what, format string, args ...any) { fmt.Printf("  %-11s %s\n", what, fmt.Sprintf(format, args...)) }
	for _, p := range v.Coverage.Checkpoints {
		if p.Problem != "" {
			continue
		}
		whose := ""
		if p.Key == own {
			whose = " (the sandbox of this data directory)"
		}
		line("signed", "events 1 to %d, at %s, by key %s%s", p.Events, p.At, p.Key, whose)
	}
	if n := v.Coverage.Events - v.Coverage.Covered; n > 0 {
		var types []string
		for _, t := range slices.Sorted(maps.Keys(v.Coverage.Uncovered)) {
			types = append(types, fmt.Sprintf("%d %s", v.Coverage.Uncovered[t], term.Clip(t, 80)))
		}
		what := "behind that"
		if v.Coverage.Covered == 0 {
			what = "by a key that counts"
		}
		line("not signed", "%d events %s: %s", n, what, term.Clip(strings.Join(types, ", "), 400))
	}
	if n := v.Coverage.Foreign; n > 0 {
		line("foreign", "%s in the log, left out", count(n, "message"))
	}
	line("objects", "%d have the bytes that the log names", v.Objects)
	for _, k := range slices.Sorted(maps.Keys(v.Absent)) {
		line("absent", "%d %s: only the digests are here", v.Absent[k], term.Clean(k))
	}
	for i, p := range v.Problems {
		if i == maxProblems {
			line("problems", "and %d more", len(v.Problems)-i)
			break
		}
		line("problem", "%s", term.Clip(p, 400))
	}
}
