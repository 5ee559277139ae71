// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	wrapped "github.com/petri-sandbox/petri/analyzers/command"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/schemas"
)

func analyzerCommand(g *global) *cobra.Command {
	c := &cobra.Command{
		Use: "analyzer", Short: "Run an analyzer of your own", Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(execCommand(g))
	return c
}

// execCommand runs a command as an analyzer in this process.
func execCommand(g *global) *cobra.Command {
	d := &definition{}
	var name string
	c := &cobra.Command{
		Use:   "exec --name NAME --kinds KIND,… [flags] -- CMD [ARG…]",
		Short: "Run any command as an analyzer until it is interrupted",
		Long: `Run any command as an analyzer: it gets each artifact of the kinds on standard
input, or as a file where an argument is {file}, and prints findings as lines of
JSON. {kind} and {sha256} stand for the artifact's. Exit code 0: done; 77: not for
this analyzer; any other: failed, with the last line of standard error.

The command runs unprivileged, without network, with files that it can only
read, and under the limits; what of that is in force here is said at the start.
It stays registered when it is interrupted: analyses wait for it, until
petri analyzers remove NAME.`,
		Example: `  petri analyzer exec --name hosts --kinds pcap -- python3 hosts.py {file}
  petri analyzer exec --name strings --kinds sample,dropped --memory 64M --timeout 20s -- /usr/local/bin/find-strings
  petri analyzer exec --name lookup --kinds sample --network -- ./lookup {sha256}`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			if c.ArgsLenAtDash() != 0 {
				return usagef("the command comes after -- (see: %s --help)", c.CommandPath())
			}
			def, err := d.define(name, a)
			if err != nil {
				return err
			}
			cfg, err := g.config()
			if err != nil {
				return err
			}
			cfg.Unconfined = d.unconfined
			ctx, cancel := interruptible(c.Context())
			defer cancel()
			err = app.RunCommand(ctx, cfg, def, app.Logger(os.Stderr, cfg.Verbose), func() {
				fmt.Fprintf(os.Stderr, "analyzer %s is registered for %s\n", def.Name, kinds(def.Kinds))
			})
			if ctx.Err() != nil && err == nil {
				fmt.Fprintf(os.Stderr, "analyzer %s stays registered, and analyses wait for it (forget it: petri analyzers remove %s)\n", def.Name, def.Name)
			}
			return interrupted(ctx, err)
		},
	}
	c.Flags().StringVar(&name, "name", "", "name of the analyzer: a-z, 0-9 and -, at most 32")
	c.Flags().BoolVar(&d.unconfined, "unconfined", false, "run also where nothing keeps the command from the network")
	d.flags(c.Flags())
	return c
}

// definition is what flags say of a command.
type definition struct {
	version    string
	kinds      []string
	memory     size
	cpu        time.Duration
	timeout    time.Duration
	maxInput   size
	maxOutput  size
	processes  int
	network    bool
	unconfined bool
}

func (d *definition) flags(f *pflag.FlagSet) {
	d.memory, d.maxInput, d.maxOutput = wrapped.DefaultMemory, wrapped.DefaultMaxInput, wrapped.DefaultMaxOutput
	f.StringVar(&d.version, "version", wrapped.DefaultVersion, "version of the analyzer: change it whenever its output changes")
	f.StringSliceVar(&d.kinds, "kinds", nil, "kinds of artifacts that it takes, such as sample,dropped,extracted,pcap,trace,memory,console")
	f.Var(&d.memory, "memory", "private memory of each process, such as 256M")
	f.DurationVar(&d.cpu, "cpu", wrapped.DefaultCPU, "CPU time of each process")
	f.DurationVar(&d.timeout, "timeout", wrapped.DefaultTimeout, "time of one task")
	f.Var(&d.maxInput, "max-input", "largest artifact that it is given; larger ones fail")
	f.Var(&d.maxOutput, "max-output", "most that it may print")
	f.IntVar(&d.processes, "processes", wrapped.DefaultProcesses, "processes and threads that it may have at once")
	f.BoolVar(&d.network, "network", false, "let it use this host's network")
}

// define checks the flags.
func (d *definition) define(name string, argv []string) (schemas.Definition, error) {
	def := schemas.Definition{
		Name: name, Version: d.version, Argv: argv, Memory: int64(d.memory), CPU: schemas.Duration(d.cpu), Timeout: schemas.Duration(d.timeout),
		MaxInput: int64(d.maxInput), MaxOutput: int64(d.maxOutput), Processes: d.processes, Network: d.network,
	}
	if name == "" {
		return def, usagef("the analyzer has no name (add: --name NAME)")
	}
	if len(d.kinds) == 0 {
		return def, usagef("it is not said what the analyzer takes (add: --kinds sample, or others)")
	}
	if app.Brought(name) {
		return def, usagef("%s is an analyzer that Petri brings: choose another name", name)
	}
	for _, limit := range []struct {
		flag string
		n    int64
	}{{"cpu", int64(d.cpu)}, {"timeout", int64(d.timeout)}, {"processes", int64(d.processes)}} {
		if limit.n <= 0 {
			return def, usagef("--%s is more than nothing", limit.flag)
		}
	}
	for _, k := range d.kinds {
		def.Kinds = append(def.Kinds, schemas.Kind(k))
	}
	dir, err := os.Getwd()
	if err != nil {
		return def, err
	}
	def, err = wrapped.Define(def, dir)
	return def, usage(err)
}

func kinds(list []schemas.Kind) string {
	var out []string
	for _, k := range list {
		out = append(out, string(k))
	}
	return strings.Join(out, ",")
}

// size is a flag of a number of bytes.
type size int64

func (s *size) String() string {
	for _, u := range []struct {
		shift int
		name  string
	}{{30, "G"}, {20, "M"}, {10, "K"}} {
		if *s != 0 && *s&(1<<u.shift-1) == 0 {
			return strconv.FormatInt(int64(*s)>>u.shift, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(*s), 10)
}

func (s *size) Set(text string) error {
	shift, number := 0, strings.TrimSuffix(strings.ToUpper(text), "B")
	number = strings.TrimSuffix(number, "I")
	for i, unit := range []string{"K", "M", "G"} {
		if n, ok := strings.CutSuffix(number, unit); ok {
			number, shift = n, 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64>>shift {
		return fmt.Errorf("%q is no size such as 512K, 256M or 2G", text)
	}
	*s = size(n << shift)
	return nil
}

func (*size) Type() string { return "size" }
