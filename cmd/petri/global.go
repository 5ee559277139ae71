// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/sandboxd/fleet"
	"github.com/petri-sandbox/petri/sandboxd/image"
)

// global are the flags that every command has.
type global struct {
	cfg      app.Config
	memoryMB int64
	json     bool
}

func (g *global) flags(f *pflag.FlagSet) {
	f.StringVar(&g.cfg.Data, "data", app.DefaultData(), "directory of the log, the artifacts and the credentials")
	f.StringVar(&g.cfg.Cache, "cache", image.DefaultCache(), "directory of the guests' images")
	f.StringVar(&g.cfg.NATS, "nats", os.Getenv(app.ServerVariable), "URL of a NATS server of your own (also PETRI_NATS); default: the embedded one")
	f.StringVar(&g.cfg.Creds, "creds", os.Getenv(app.CredsVariable), "file of the credentials for the server (also PETRI_CREDS); default of the embedded one: the admin's")
	f.StringVar(&g.cfg.CA, "ca", os.Getenv(app.CAVariable), "file of the authority of that server's certificate (also PETRI_CA)")
	f.StringVar(&g.cfg.Listen, "listen", "", "loopback address of the embedded server; default: a free port")
	f.StringVar(&g.cfg.Accel, "accel", "auto", "what guests run on: auto, kvm or tcg")
	f.IntVar(&g.cfg.Parallel, "parallel", max(1, runtime.NumCPU()/2), "analyses that have a machine at the same time")
	f.Int64Var(&g.memoryMB, "memory", 256, "memory of a guest, MiB")
	f.StringVar(&g.cfg.Guestd, "guestd", "", "directory of the guest agents; default: beside this program")
	f.BoolVarP(&g.cfg.Verbose, "verbose", "v", false, "log more")
	f.BoolVar(&g.json, "json", false, "write JSON to standard output")
	for _, name := range []string{"guestd", "listen", "parallel", "memory", "accel"} {
		if fl := f.Lookup(name); fl != nil {
			fl.Hidden = name == "guestd"
		}
	}
}

// archiveFlag says how long analyses stay in the log. Only what starts a bus has
// it.
func (g *global) archiveFlag(f *pflag.FlagSet) {
	f.Var(&g.cfg.Watermarks, "watermarks", "how full, in percent, the disk or a stream may be before submissions are refused, and before high-volume data is cut")
	g.cfg.ArchiveAfter = app.DefaultArchiveAfter
	f.Var((*age)(&g.cfg.ArchiveAfter), "archive-after", "move ended analyses in which nothing happened for so long from the log to the archive, such as 12h or 30d; 0: never")
}

// syncFlag says when the embedded server's data is on the disk. Only what starts
// a bus has it.
func (g *global) syncFlag(f *pflag.FlagSet) {
	f.Var((*interval)(&g.cfg.Sync), "sync", "when what is acknowledged is on the disk: always, or at least every so often, such as 1s: faster, and a power cut loses that much")
}

// queueFlag bounds the queue. Only what starts a bus has it.
func (g *global) queueFlag(f *pflag.FlagSet) {
	f.Int64Var(&g.cfg.Queue, "queue", app.DefaultQueue, "submissions that may wait or be in work; more are told to come again later")
}

// recordedFlags make a sandbox replay. Only what starts one has them.
func (g *global) recordedFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&g.cfg.Recorded, "recorded", nil, app.RecordedUsage)
	f.Float64Var(&g.cfg.Speed, "speed", 1, app.SpeedUsage)
}

// interval is a flag of a duration that may be "always".
type interval time.Duration

func (i *interval) String() string {
	if *i == 0 {
		return "always"
	}
	return time.Duration(*i).String()
}

func (i *interval) Set(s string) error {
	d, err := time.ParseDuration(s)
	switch {
	case s == "always" || err == nil && d == 0:
		d = 0
	case err != nil || d < 100*time.Millisecond || d > time.Minute:
		return fmt.Errorf("%q is neither always nor a duration from 100ms to 1m", s)
	}
	*i = interval(d)
	return nil
}

func (*interval) Type() string { return "interval" }

// age is a flag of a duration that may count days.
type age time.Duration

func (a *age) String() string {
	d := time.Duration(*a)
	if d > 0 && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	return d.String()
}

func (a *age) Set(s string) error {
	d, err := parseAge(s)
	*a = age(d)
	return err
}

func (*age) Type() string { return "duration" }

const day = 24 * time.Hour

// parseAge reads a duration, or a number of days such as 30d.
func parseAge(s string) (time.Duration, error) {
	if n, ok := strings.CutSuffix(s, "d"); ok {
		days, err := strconv.Atoi(n)
		if err != nil || days < 0 || days > 36500 {
			return 0, fmt.Errorf("%q is no number of days", s)
		}
		return time.Duration(days) * day, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is no duration such as 12h or 30d", s)
	}
	return d, nil
}

// config checks and completes the flags.
func (g *global) config() (app.Config, error) {
	c := g.cfg
	if err := app.CheckMachines(c.Accel, c.Parallel, g.memoryMB); err != nil {
		return c, usage(err)
	}
	if c.Queue < 0 {
		return c, usagef("--queue %d: at least 1 submission must fit in", c.Queue)
	}
	if err := app.CheckSpeed(c.Speed); err != nil {
		return c, usagef("%w", err)
	}
	c.Memory = g.memoryMB << 20
	// The node's processes live in another directory.
	c.Recorded = slices.Clone(c.Recorded)
	paths := []*string{&c.Data, &c.Cache, &c.Guestd, &c.Creds, &c.CA}
	for i := range c.Recorded {
		paths = append(paths, &c.Recorded[i])
	}
	for _, dir := range paths {
		if *dir == "" {
			continue
		}
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return c, usagef("%q: %w", *dir, err)
		}
		*dir = abs
	}
	return c, nil
}

// oneInterrupt is the time in which a signal that comes again is still the first:
// timeout(1) sends its to the program and then to the program's group.
const oneInterrupt = 500 * time.Millisecond

// interruptible returns a context that the first Ctrl-C or SIGTERM ends. The
// second ends the program.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		select {
		case <-ch:
			cancel()
		case <-ctx.Done():
			signal.Stop(ch)
			return
		}
		again(ch)
		fmt.Fprintln(os.Stderr, "petri: interrupted twice, giving up at once")
		os.Exit(codeInterrupted)
	}()
	return ctx, cancel
}

// again waits for a signal that is not the one just received.
func again(ch <-chan os.Signal) {
	begin := time.Now()
	for range ch {
		if time.Since(begin) >= oneInterrupt {
			return
		}
	}
}

// interrupted turns the end of an interruptible context into the exit code.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return exitError{code: codeInterrupted}
	}
	return err
}

// terminal says how wide the terminal behind f is; ok is false if it is none.
func terminal(f *os.File) (width int, ok bool) {
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 100, false
	}
	return cmp.Or(int(ws.Col), 100), true
}

// color reports whether f takes ANSI colors. https://no-color.org
func color(f *os.File) bool {
	_, tty := terminal(f)
	return tty && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// daemonCommand runs one process of a node; the node starts it.
func daemonCommand(g *global) *cobra.Command {
	var pool fleet.Pool
	c := &cobra.Command{
		Use: app.DaemonCommand + " ROLE", Hidden: true, Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, a []string) error {
			c, err := g.config()
			if err != nil {
				return err
			}
			c.Pool = pool
			return app.Daemon(a[0], c, os.Stderr)
		},
	}
	g.archiveFlag(c.Flags())
	g.syncFlag(c.Flags())
	g.queueFlag(c.Flags())
	c.Flags().Var(&pool, "pool", app.PoolUsage)
	g.recordedFlags(c.Flags())
	return c
}
