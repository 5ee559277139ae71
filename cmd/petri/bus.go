// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/analyzers/all"
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
	c.AddCommand(busInitCommand(g), busUserCommand(g), busRevokeCommand(g), busServeCommand(g), busRunCommand(g))
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
			o.MaxPayload = 2 * bus.MaxPayload
			for _, an := range all.List() {
				o.Analyzers = append(o.Analyzers, an.Info().Name)
			}
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
siem or user TENANT. The servers need not be told.`,
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
next start, which would forget it otherwise.`,
		Example: `  petri bus revoke petri-bus user-acme --nats tls://10.0.0.1:4222
  petri bus revoke petri-bus analyzer-yara`,
		Args: args(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, a []string) error {
			ctx, cancel := interruptible(c.Context())
			defer cancel()
			told, err := auth.Revoke(ctx, a[0], g.cfg.NATS, a[1])
			if err != nil {
				return interrupted(ctx, err)
			}
			if g.json {
				return printJSON(c.OutOrStdout(), struct {
					User string `json:"user"`
					Told int    `json:"servers_told"`
				}{a[1], told})
			}
			fmt.Fprintf(c.OutOrStdout(), "revoked %s; %s told; now copy %s to the servers\n", a[1], count(uint64(told), "server"), filepath.Join(a[0], "nodes", "HOST", "nats.conf"))
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
	c := &cobra.Command{
		Use: "run", Short: "Keep the log on NATS servers of your own",
		Long: `Run what belongs to the log on NATS servers of your own: the streams, the clerk,
the registrar, the archiver and the projections. One such process must run; a
second one on another host takes over when it dies.`,
		Example: "  petri bus run --nats tls://10.0.0.1:4222,tls://10.0.0.2:4222 --creds bus.creds --ca ca.pem",
		Args:    args(cobra.NoArgs),
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
			cfg.Replicas = replicas
			ctx, cancel := interruptible(c.Context())
			defer cancel()
			log := app.Logger(os.Stderr, cfg.Verbose)
			return app.RunBus(ctx, cfg, log, func() { log.Info("ready") })
		},
	}
	c.Flags().IntVar(&replicas, "replicas", 0, "copies of everything; 0: 3 on a cluster, else 1")
	g.archiveFlag(c.Flags())
	return c
}
