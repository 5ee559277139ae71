// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/petri-sandbox/petri/sandboxd/fleet"
	"github.com/petri-sandbox/petri/sandboxd/image"
)

// Main is the main of a daemon of a multi-host installation: one role, against
// a NATS server of the user's own. It returns the exit code.
func Main(role, what string) int {
	c := Config{}
	var memoryMB int64
	f := pflag.NewFlagSet(role, pflag.ContinueOnError)
	f.Usage = func() {
		fmt.Fprintf(os.Stderr, "%s %s\n\nUsage: %s --nats URL [flags]\n\n%s", role, what, role, f.FlagUsages())
	}
	f.StringVar(&c.NATS, "nats", os.Getenv(ServerVariable), "URL of the NATS server (also PETRI_NATS)")
	f.StringVar(&c.Creds, "creds", os.Getenv(CredsVariable), "file of the credentials for it (also PETRI_CREDS)")
	f.StringVar(&c.CA, "ca", os.Getenv(CAVariable), "file of the authority of its certificate (also PETRI_CA)")
	f.StringVar(&c.Data, "data", DefaultData(), "directory of this daemon's data")
	f.StringVar(&c.Cache, "cache", image.DefaultCache(), "directory of the guests' images")
	f.StringVar(&c.Guestd, "guestd", "", "directory of the guest agents; default: beside this program")
	f.StringVar(&c.Accel, "accel", "auto", "what guests run on: auto, kvm or tcg")
	f.IntVar(&c.Parallel, "parallel", 1, "analyses that have a machine at the same time")
	f.Int64Var(&memoryMB, "memory", 256, "memory of a guest, MiB")
	if role == "sandboxd" {
		c.Pool = fleet.DefaultPool()
		f.Var(&c.Pool, "pool", PoolUsage)
		f.StringArrayVar(&c.Recorded, "recorded", nil, RecordedUsage)
		f.Float64Var(&c.Speed, "speed", 1, SpeedUsage)
	}
	if role == "analyzer" {
		f.StringSliceVar(&c.Only, "only", nil, "run only these analyzers, such as static,behavior")
	}
	f.BoolVarP(&c.Verbose, "verbose", "v", false, "log more")
	if err := f.Parse(os.Args[1:]); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return 0
		}
		fmt.Fprintf(os.Stderr, "%s: %v (see: %s --help)\n", role, FlagError(err), role)
		return 2
	}
	if c.NATS == "" {
		fmt.Fprintf(os.Stderr, "%s: --nats is missing: name the server to work for (on one machine: petri up)\n", role)
		return 2
	}
	if err := errors.Join(CheckMachines(c.Accel, c.Parallel, memoryMB), CheckSpeed(c.Speed)); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
		return 2
	}
	c.Memory = memoryMB << 20
	c.again = os.Args[1:]
	if role == "analyzer" && f.Arg(0) == commandRole { // how it starts itself for an analyzer that was added
		role = commandRole
	} else if f.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "%s: %q is no flag (see: %s --help)\n", role, f.Arg(0), role)
		return 2
	}
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log := Logger(os.Stderr, c.Verbose)
	err := RunRole(ctx, role, c, log, func() { log.Info("ready") })
	if err != nil && ctx.Err() == nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
		return 1
	}
	return 0
}
