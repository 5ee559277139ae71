// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/reporters/term"
	"github.com/petri-sandbox/petri/sandboxd/catalogue"
	"github.com/petri-sandbox/petri/sandboxd/image"
)

func guestCommand(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:   "guest",
		Short: "Build and list the guests' images",
		RunE: func(c *cobra.Command, a []string) error {
			if len(a) > 0 {
				return usagef("unknown command %q for %q (see: %s --help)", a[0], c.CommandPath(), c.CommandPath())
			}
			return c.Help()
		},
	}
	c.AddCommand(guestBuildCommand(g), guestListCommand(g))
	return c
}

func guestBuildCommand(g *global) *cobra.Command {
	var update, force bool
	c := &cobra.Command{
		Use:   "build GUEST…|all",
		Short: "Build guests' kernels and initramfs from Debian's packages",
		Long: `Build guests' kernels and initramfs from Debian's packages and Petri's agent.
apt downloads the packages with this machine's sources into a directory of
Petri's own; nothing is installed. The same packages give the same bytes.
For a CPU that Debian has no port to, the kernel and busybox are compiled, which
takes minutes and a cross compiler. A guest with python3 is another one than the
usual of its CPU, and gets the scripts for it; all builds the usual ones.`,
		Example: `  petri guest build amd64
  petri guest build amd64+python3     and one that has python3, for scripts for it
  petri guest build amd64 --update    newer packages, if apt offers any
  petri guest build all`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			ctx, cancel := interruptible(c.Context())
			defer cancel()
			cfg, err := g.config()
			if err != nil {
				return err
			}
			if slices.Equal(a, []string{"all"}) {
				a = catalogue.Names()
			}
			for _, arch := range a {
				if _, err := catalogue.Lookup(arch); err != nil {
					return usage(err)
				}
			}
			for _, arch := range a {
				if err := buildGuest(ctx, g, cfg, arch, update, force); err != nil {
					return interrupted(ctx, err)
				}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&update, "update", false, "ask apt for newer packages")
	c.Flags().BoolVar(&force, "force", false, "build again what is there already")
	return c
}

func buildGuest(ctx context.Context, g *global, cfg app.Config, arch string, update, force bool) error {
	b := cfg.Images(func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) })
	if force {
		if err := b.Remove(ctx, arch); err != nil {
			return err
		}
	}
	img, err := b.Build(ctx, arch, update)
	if err != nil {
		return err
	}
	if g.json {
		return printJSON(os.Stdout, img.Manifest)
	}
	fmt.Printf("%s  Linux %s, kernel %s, initramfs %s\n%s\n", img.Guest(), img.KernelRelease, term.Size(img.Kernel.Size), term.Size(img.Initramfs.Size), img.Dir)
	return nil
}

// listed is an image that guest list shows.
type listed struct {
	image.Manifest
	Dir     string `json:"dir"`
	Current bool   `json:"current"` // today's packages and agent give it
}

func guestListCommand(g *global) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the images that are built",
		Long: `List the images that are built. The current one of a guest, marked *, is made of
the packages that were fetched last and of the agent beside this program. Others
were built by another petri or of older packages: --all lists them too.`,
		Example: `  petri guest list
  petri guest list --all`,
		Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			cfg, err := g.config()
			if err != nil {
				return err
			}
			list, err := image.List(cfg.Cache)
			if err != nil {
				return err
			}
			images := cfg.Images(nil)
			show, others, size := choose(list, all, func(guest string) string {
				key, _ := images.Key(guest) // that none is current is shown; doctor says why
				return key
			})
			if g.json {
				return printJSON(os.Stdout, show)
			}
			if len(list) == 0 {
				fmt.Fprintln(os.Stderr, "no images yet: petri guest build amd64")
			}
			for _, i := range show {
				mark := " "
				if i.Current {
					mark = "*"
				}
				fmt.Printf("%s %-13s Linux %-18s %-9s %s  %s\n", mark, i.Guest(), i.KernelRelease, term.Size(i.Kernel.Size+i.Initramfs.Size), i.Key()[:16], i.Dir)
			}
			if len(others) > 0 {
				fmt.Fprintf(os.Stderr, "%s not current, %s (petri guest list --all shows where; while no Petri runs such directories may be deleted)\n", isOrAre(len(others), "other image"), term.Size(size))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "also those that are not current")
	return c
}

// choose picks the images to show: the current one of each guest, and all if that
// is asked for. It counts the others, and their bytes.
func choose(list []*image.Image, all bool, current func(guest string) string) (show, others []listed, size int64) {
	show = []listed{}
	for _, i := range list {
		l := listed{i.Manifest, i.Dir, i.Key() == current(i.Guest())}
		if !l.Current {
			others = append(others, l)
			size += i.Kernel.Size + i.Initramfs.Size
		}
		if l.Current || all {
			show = append(show, l)
		}
	}
	return show, others, size
}

func isOrAre(n int, what string) string {
	if n == 1 {
		return "1 " + what + " is"
	}
	return fmt.Sprintf("%d %ss are", n, what)
}
