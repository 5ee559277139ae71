// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/auth"
	"github.com/petri-sandbox/petri/cmd/internal/app"
)

// busCommand is for whoever has the bus on other hosts than this one.
func busCommand(g *global) *cobra.Command {
	c := &cobra.Command{
		Use: "bus", Short: "Set up and run a bus for several hosts",
		Long: `A bus of your own: NATS servers on one or three hosts, and the process that
keeps the log on them. On one machine petri up does all of this by itself.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(busInitCommand(g), busUserCommand(g), busRevokeCommand(g), busRenewCommand(g), busServeCommand(g), busRunCommand(g))
	return c
}

func busInitCommand(g *global) *cobra.Command {
	var o auth.Options
	var replicas int
	c := &cobra.Command{
		Use: "init DIR", Short: "Make keys, certificates, configurations and credentials",
		Example: `  petri bus init petri-bus --hosts bus.example.org
  petri bus init petri-bus --replicas 3 --hosts 10.0.0.1,10.0.0.2,10.0.0.3 --tenants default,acme`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			if replicas != 0 && replicas != len(o.Hosts) {
				return usagef("--replicas %d, but --hosts names %d: name each server's host", replicas, len(o.Hosts))
			}
			for _, port := range []struct {
				flag string
				n    int
			}{{"port", o.Port}, {"cluster-port", o.ClusterPort}} {
				if port.n < 1 || port.n > 65535 { // the other hosts must know it
					return usagef("--%s %d is not between 1 and 65535", port.flag, port.n)
				}
			}
			o.MaxPayload, o.Analyzers = 2*bus.MaxPayload, app.Builtin()
			if err := auth.Init(a[0], o); err != nil {
				return err
			}
			if g.json {
				return printJSON(c.OutOrStdout(), struct {
					Dir string `json:"dir"`
					URL string `json:"url"`
				}{a[0], o.URL()})
			}
			fmt.Fprintf(c.OutOrStdout(), "made %s; what to copy where says %s\n", a[0], filepath.Join(a[0], "README.md"))
			return nil
		},
	}
	f := c.Flags()
	f.IntVar(&replicas, "replicas", 0, "how many servers there are; each of --hosts is one")
	f.StringSliceVar(&o.Hosts, "hosts", []string{"127.0.0.1"}, "names or addresses of the servers: one, three or more")
	f.StringSliceVar(&o.Tenants, "tenants", []string{"default"}, "tenants, each of which gets a user")
	f.IntVar(&o.Port, "port", 4222, "port for clients")
	f.IntVar(&o.ClusterPort, "cluster-port", 6222, "port for the other servers")
	return c
}

func busUserCommand(g *global) *cobra.Command {
	var expires age
	c := &cobra.Command{
		Use: "user DIR ROLE [NAME]", Short: "Make credentials of one more analyzer or tenant",
		Long: `Make the credentials of a role: bus, admin, sandboxd, analyzer NAME, reporter,
siem or user TENANT. The servers need not be told. DIR is that of petri bus init,
or on one machine Petri's data directory.`,
		Example: `  petri bus user petri-bus analyzer yara
  petri bus user petri-bus user acme --expires 90d`,
		Args: args(cobra.RangeArgs(2, 3)),
		RunE: func(c *cobra.Command, a []string) error {
			name := ""
			if len(a) == 3 {
				name = a[2]
			}
			path, err := auth.AddUser(a[0], auth.Role(a[1]), name, auth.UserOptions{Expires: time.Duration(expires)})
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(c.OutOrStdout(), struct {
					Creds string `json:"creds"`
				}{path})
			}
			fmt.Fprintln(c.OutOrStdout(), path)
			return nil
		},
	}
	c.Flags().Var(&expires, "expires", "the servers cut the user off after so long, such as 12h or 90d; 0: never")
	return c
}

func busRevokeCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use: "revoke DIR USER", Short: "Take a user's credentials back",
		Long: `Take back the credentials in DIR/users/USER.creds, wherever copies of them are.
The servers that --nats names cut the user off at once. Their configurations in
DIR/nodes are made anew: copy each nats.conf to its host before that server's
next start, which would forget it otherwise. If DIR is the data directory of one
machine, its server is told by itself.`,
		Example: `  petri bus revoke petri-bus user-acme --nats tls://10.0.0.1:4222
  petri bus revoke petri-bus analyzer-yara`,
		Args: args(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, a []string) error {
			ctx, cancel := interruptible(c.Context())
			defer cancel()
			url, local := g.cfg.NATS, auth.IsLocal(a[0])
			if url == "" && local { // the server that runs there, if one does
				at, err := bus.ReadAddress(a[0])
				if err != nil && !errors.Is(err, bus.ErrNotFound) {
					return err
				}
				url = at.URL
			}
			told, err := auth.Revoke(ctx, a[0], url, a[1])
			if err != nil {
				return interrupted(ctx, err)
			}
			if g.json {
				return printJSON(c.OutOrStdout(), struct {
					User string `json:"user"`
					Told int    `json:"servers_told"`
				}{a[1], told})
			}
			next := ""
			if !local {
				next = "; now copy " + filepath.Join(a[0], "nodes", "HOST", "nats.conf") + " to the servers"
			}
			fmt.Fprintf(c.OutOrStdout(), "revoked %s; %s told%s\n", a[1], count(uint64(told), "server"), next)
			return nil
		},
	}
}

func busRenewCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use: "renew DIR", Short: "Sign an older Petri's installation anew",
		Long: `Make of an installation that an older Petri made what petri bus init makes now:
accounts per role in DIR/nodes/*/nats.conf, and DIR/users signed for them. Copy the
configurations to the servers and start them anew, then the credentials to who has
them. Keys and data stay.`,
		Example: `  petri bus renew petri-bus`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			if err := auth.Renew(a[0], app.Builtin()); err != nil {
				return err
			}
			if g.json {
				return printJSON(c.OutOrStdout(), struct {
					Dir string `json:"dir"`
				}{a[0]})
			}
			fmt.Fprintf(c.OutOrStdout(), "renewed %s; now copy %s to the servers, and then %s to who has them\n", a[0], filepath.Join("nodes", "HOST", "nats.conf"), filepath.Join("users", "*.creds"))
			return nil
		},
	}
}

func busServeCommand(g *global) *cobra.Command {
	var config string
	c := &cobra.Command{
		Use: "serve --config FILE", Short: "Run a NATS server of a configuration of petri bus init",
		Example: "  petri bus serve --config /etc/petri/nats.conf",
		Args:    args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if config == "" {
				return usagef("--config is missing: a nats.conf that petri bus init made")
			}
			ctx, cancel := interruptible(c.Context())
			defer cancel()
			log := app.Logger(os.Stderr, g.cfg.Verbose)
			return bus.Serve(ctx, config, log, func() { log.Info("ready", "config", config) })
		},
	}
	c.Flags().StringVar(&config, "config", "", "the server's configuration")
	return c
}

func busRunCommand(g *global) *cobra.Command {
	var replicas int
	var part string
	c := &cobra.Command{
		Use: "run", Short: "Keep the log on NATS servers of your own",
		Long: `Run what belongs to the log on NATS servers of your own: the streams, the clerk,
the registrar, the archiver and the projections. One such process must run; a
second one on another host takes over when it dies.

The clerk reads what analyzers hand in, and the archiver what the log has of them.
Both can run as processes of their own, with credentials that allow nothing else:
--part core, clerk and archiver, each with the credentials of its name, core with
those of bus.`,
		Example: "  petri bus run --nats tls://10.0.0.1:4222,tls://10.0.0.2:4222 --creds bus.creds --ca ca.pem\n" +
			"  petri bus run --part clerk --nats tls://10.0.0.1:4222 --creds clerk.creds --ca ca.pem",
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := g.config()
			if err != nil {
				return err
			}
			if cfg.NATS == "" {
				return usagef("--nats is missing: name the servers (on one machine: petri up)")
			}
			if replicas < 0 || replicas > 5 {
				return usagef("--replicas %d: 1 to 5, 0 for the usual", replicas)
			}
			cfg.Replicas, cfg.Part = replicas, app.Part(part)
			if part != "" && !slices.Contains(app.Parts(), cfg.Part) {
				return usagef("--part %.40q is none of %v", part, app.Parts())
			}
			ctx, cancel := interruptible(c.Context())
			defer cancel()
			log := app.Logger(os.Stderr, cfg.Verbose)
			return app.RunBus(ctx, cfg, log, func() { log.Info("ready") })
		},
	}
	c.Flags().IntVar(&replicas, "replicas", 0, "copies of everything; 0: 3 on a cluster, else 1")
	c.Flags().StringVar(&part, "part", "", "run one part only: core, clerk or archiver")
	g.archiveFlag(c.Flags())
	return c
}
