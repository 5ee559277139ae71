// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const root = "../.."

// documents are README.md and the files in docs, by path from the root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob(root + "/docs/*.md")
	if err != nil || len(paths) == 0 {
		t.Fatalf("there are no docs (%v)", err)
	}
	out := map[string]string{}
	for _, p := range append(paths, root+"/README.md") {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = string(b)
	}
	return out
}

// TestLinks follows every relative link of the documents, and wants every
// document of docs linked from README.md.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	docs := documents(t)
	for name, text := range docs {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			path := filepath.Join(filepath.Dir(name), target)
			if target == "" {
				path = name
			}
			if _, err := os.Stat(filepath.Join(root, path)); err != nil {
				t.Errorf("%s: the link %s leads nowhere", name, m[1])
			}
			if anchor != "" && !headings(docs[path])[anchor] {
				t.Errorf("%s: the link %s leads to no heading", name, m[1])
			}
		}
		if name != "README.md" && !strings.Contains(docs["README.md"], "]("+name+")") {
			t.Errorf("README.md does not link %s", name)
		}
	}
}

// headings are the anchors of a document.
func headings(text string) map[string]bool {
	out := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		s := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(m[1]), "")
		out[strings.ReplaceAll(s, " ", "-")] = true
	}
	return out
}

// quoted returns the lines of code blocks and what stands in code quotes.
func quoted(text string) []string {
	var out []string
	for i, part := range strings.Split(text, "```") {
		if i%2 == 1 {
			out = append(out, strings.Split(part, "\n")...)
			continue
		}
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(part, -1) {
			out = append(out, strings.Join(strings.Fields(m[1]), " "))
		}
	}
	return out
}

// TestCommands checks every petri command and every make target in the
// documents, and the examples in the help, against the command tree.
func TestCommands(t *testing.T) {
	makefile, err := os.ReadFile(root + "/Makefile")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for name, text := range documents(t) {
		for _, line := range quoted(text) {
			line = strings.TrimPrefix(strings.TrimSpace(line), "$ ")
			if target, ok := strings.CutPrefix(line, "make "); ok {
				target, _, _ = strings.Cut(target, "  ")
				if strings.Contains(target, " ") {
					continue // an error that begins so
				}
				if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(target) + `:`).Match(makefile) {
					t.Errorf("%s: there is no make %s", name, target)
				}
			}
			if args, ok := petri(line); ok {
				seen++
				if problem := try(args); problem != "" {
					t.Errorf("%s: %q: %s", name, line, problem)
				}
			}
		}
	}
	if seen < 50 {
		t.Errorf("only %d commands were found: are they still written so that this test finds them?", seen)
	}
	visit(command(), func(c *cobra.Command) {
		for line := range strings.Lines(c.Example) {
			args, ok := petri(strings.TrimSpace(line))
			if !ok {
				t.Errorf("%s --help: the example %q is none", c.CommandPath(), line)
			} else if problem := try(args); problem != "" {
				t.Errorf("%s --help: the example %q: %s", c.CommandPath(), line, problem)
			}
		}
	})
}

// petri returns the arguments of a line that calls petri. What follows two
// spaces, a redirection or a pipe is not its.
func petri(line string) ([]string, bool) {
	for _, program := range []string{"petri ", "bin/petri "} {
		if rest, ok := strings.CutPrefix(line, program); ok {
			rest, _, _ = strings.Cut(rest, "  ")
			rest = regexp.MustCompile(` [|>].*`).ReplaceAllString(rest, "")
			return strings.Fields(rest), true
		}
	}
	return nil, false
}

// try says what is wrong with a command line, as far as commands and flags go.
func try(args []string) string {
	c := command()
	c.InitDefaultHelpCmd()
	for i := 0; i < len(args); i++ {
		a := strings.TrimRight(args[i], ",;:")
		switch {
		case a == "--":
			return ""
		case strings.HasPrefix(a, "-"):
			c.InitDefaultHelpFlag()
			c.InitDefaultVersionFlag()
			f := flag(c, strings.TrimLeft(a, "-"))
			if f == nil {
				return c.CommandPath() + " has no flag " + a
			}
			if f.NoOptDefVal == "" && !strings.Contains(a, "=") {
				i++ // its value
			}
		case c.HasSubCommands():
			var next *cobra.Command
			for _, s := range c.Commands() {
				if s.Name() == a {
					next = s
				}
			}
			if next == nil {
				return c.CommandPath() + " has no command " + a
			}
			c = next
		}
	}
	return ""
}

func flag(c *cobra.Command, name string) *pflag.Flag {
	name, _, _ = strings.Cut(name, "=")
	for _, set := range []*pflag.FlagSet{c.Flags(), c.PersistentFlags(), c.Root().PersistentFlags()} {
		if f := set.Lookup(name); f != nil {
			return f
		}
		if len(name) == 1 {
			if f := set.ShorthandLookup(name); f != nil {
				return f
			}
		}
	}
	return nil
}

func visit(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, s := range c.Commands() {
		visit(s, f)
	}
}

// TestFlags checks that every flag that the documents name exists, and that
// docs/use.md, docs/guests.md and four more name every command and flag
// that there is.
func TestFlags(t *testing.T) {
	all := map[string]bool{"--help": true, "--version": true, "--only": true} // the last is the analyzer daemon's
	var commands []string
	visit(command(), func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		if c.HasParent() && !c.HasSubCommands() {
			commands = append(commands, c.CommandPath())
		}
		for _, set := range []*pflag.FlagSet{c.LocalFlags(), c.PersistentFlags()} {
			set.VisitAll(func(f *pflag.Flag) {
				if !f.Hidden {
					all["--"+f.Name] = true
				}
			})
		}
	})
	docs := documents(t)
	long := regexp.MustCompile(`(?:^|[\s(])(--[a-z][a-z-]*)`)
	for name, text := range docs {
		for _, line := range quoted(text) {
			for _, m := range long.FindAllStringSubmatch(line, -1) {
				if !all[m[1]] {
					t.Errorf("%s: %q: no command has the flag %s", name, line, m[1])
				}
			}
		}
	}
	manual := docs["docs/use.md"] + docs["docs/guests.md"] + docs["docs/analyzers.md"] + docs["docs/install-cluster.md"] + docs["docs/protocols.md"] + docs["docs/dead-letters.md"]
	for name := range all {
		if name != "--help" && name != "--version" && !strings.Contains(manual, name) {
			t.Errorf("none of docs/use.md, guests.md, analyzers.md, install-cluster.md, protocols.md and dead-letters.md names %s", name)
		}
	}
	for _, path := range commands {
		if !strings.Contains(manual, path) {
			t.Errorf("none of docs/use.md, guests.md, analyzers.md, install-cluster.md, protocols.md and dead-letters.md names %s", path)
		}
	}
}
