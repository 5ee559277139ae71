// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/reporters/term"
	"github.com/petri-sandbox/petri/sandboxd/catalogue"
	"github.com/petri-sandbox/petri/sandboxd/fleet"
	"github.com/petri-sandbox/petri/sandboxd/image"
	"github.com/petri-sandbox/petri/schemas"
)

// check is one line of the doctor's.
type check struct {
	What   string `json:"what"`
	Status string `json:"status"` // ok, warning or error
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
}

func doctorCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check what this machine has and lacks for Petri",
		Long: `Check what this machine has and lacks for Petri. Whether guests run on KVM is
found out by booting one; that is done once per boot of this machine.`,
		Example: `  petri doctor`,
		Args:    args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := interruptible(c.Context())
			defer cancel()
			cfg, err := g.config()
			if err != nil {
				return err
			}
			checks := []check{}
			examine(ctx, cfg, func(k check) {
				checks = append(checks, k)
				if !g.json {
					printCheck(k)
				}
			})
			if g.json {
				err = printJSON(os.Stdout, checks)
			}
			for _, k := range checks {
				if k.Status == "error" {
					return errors.Join(err, exitError{code: codeError})
				}
			}
			return err
		},
	}
}

func printCheck(k check) {
	mark, sgr := "ok", "32"
	switch k.Status {
	case "warning":
		mark, sgr = "!", "33"
	case "error":
		mark, sgr = "✗", "31"
	}
	mark = fmt.Sprintf("%-3s", mark)
	if color(os.Stdout) {
		mark = "\x1b[" + sgr + "m" + mark + "\x1b[0m"
	}
	fmt.Printf("%s %-19s %s\n", mark, k.What, term.Clean(k.Detail))
	if k.Fix != "" {
		fmt.Printf("    %-19s → %s\n", "", k.Fix)
	}
}

// examine tells of each check when it is done: some take their time.
func examine(ctx context.Context, cfg app.Config, tell func(check)) {
	usual := false
	for i, guest := range append(catalogue.Names(), catalogue.Extras()...) {
		k := checkGuest(ctx, cfg, guest)
		usual = usual || i == 0 && k.Status == "ok"
		tell(k)
	}
	if usual {
		tell(checkAccel(ctx, cfg, catalogue.Default))
	}
	tell(checkIsolation(cfg))
	tell(checkDisk("data", cfg.Data, cfg.Room()))
	tell(checkDisk("cache", cfg.Cache, cfg.Room()))
	tell(checkRoom(ctx, cfg))
	tell(checkLeftovers(bus.Leftovers()))
	tell(checkNode(ctx, cfg))
	tell(checkDead(ctx, cfg))
}

// checkGuest says whether samples for a guest can be run here. That those for the
// default one can is what everybody needs.
func checkGuest(ctx context.Context, cfg app.Config, guest string) check {
	what, lacks := "guest "+guest, lacking(guest)
	q, err := fleet.FindQEMU(ctx, guest)
	if err != nil {
		return check{what, lacks, err.Error(), ""}
	}
	k := checkImage(ctx, cfg, guest)
	if k.Status == "ok" {
		k.Detail += fmt.Sprintf(", QEMU %s, %s", q.Version, q.Path)
	}
	return k
}

// checkImage is [checkGuest] without QEMU.
func checkImage(ctx context.Context, cfg app.Config, guest string) check {
	what, lacks := "guest "+guest, lacking(guest)
	images := cfg.Images(nil)
	agent := images.CheckAgent(guest) // it says how to get it
	if images.Building(guest) {
		if agent != nil {
			return check{what, lacks, "another process builds it just now, and it has no agent: " + agent.Error(), "wait for that"}
		}
		return check{what, "warning", "another process builds it just now", "wait for that"}
	}
	img, err := images.Open(ctx, guest)
	if err == nil {
		err = img.Verify()
	}
	if errors.Is(err, image.ErrNoImage) && agent != nil {
		return check{what, lacks, "not built, and it has no agent: " + agent.Error(), "petri guest build " + guest + " after that"}
	}
	if errors.Is(err, image.ErrNoImage) {
		return check{what, lacks, "not built", "petri guest build " + guest}
	}
	if errors.Is(err, image.ErrNoAgent) {
		return check{what, lacks, err.Error(), ""}
	}
	if err != nil {
		return check{what, lacks, err.Error(), "petri guest build " + guest}
	}
	return check{what, "ok", "Linux " + img.KernelRelease, ""}
}

// lacking is what it is that a guest cannot be run.
func lacking(guest string) string {
	if guest == catalogue.Default {
		return "error"
	}
	return "warning"
}

func checkAccel(ctx context.Context, cfg app.Config, arch string) check {
	fl := cfg.Fleet("doctor", nil, app.Logger(os.Stderr, false))
	a, err := fl.ChooseAccel(ctx, arch)
	if err != nil {
		return check{"accelerator", "error", err.Error(), ""}
	}
	c := check{"accelerator", "ok", a.Name + ": " + a.Reason, ""}
	if a.Name == "tcg" {
		c.Status = "warning"
		c.Fix = "guests are emulated, and some ten times slower than on a machine with KVM"
	}
	return c
}

func checkIsolation(cfg app.Config) check {
	i, err := cfg.Fleet("doctor", nil, app.Logger(os.Stderr, false)).Isolation()
	switch {
	case err != nil:
		return check{"isolation", "error", err.Error(), ""}
	case i.Reason != "" || i.User == schemas.UserRoot:
		return check{"isolation", "warning", i.String(), "allow namespaces: run Petri as root, or let users have user namespaces"}
	}
	return check{"isolation", "ok", i.String(), ""}
}

func checkDisk(what, dir string, need int64) check {
	free, err := app.FreeSpace(dir)
	if err != nil {
		return check{what, "error", err.Error(), ""}
	}
	c := check{what, "ok", fmt.Sprintf("%s, %s free", dir, term.Size(free)), ""}
	if free < need {
		c.Status, c.Fix = "error", "make room, or choose another directory: --"+what+" DIR"
	}
	return c
}

// checkRoom says whether a submission would be taken: by what the bus process
// measured last, or where none runs, by the disk.
func checkRoom(ctx context.Context, cfg app.Config) check {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	room, err := cfg.DiskRoom()
	if b, cerr := cfg.Connect(ctx, "doctor"); cerr == nil {
		defer b.Close()
		room, err = b.Room(ctx)
	}
	if err != nil {
		return check{"room", "error", err.Error(), ""}
	}
	c := check{"room", "ok", cmp.Or(room.Detail, "not measured: no bus process runs"), ""}
	if err := room.Err(); err != nil {
		c.Status, c.Fix = "error", "submissions are refused: petri delete, petri gc, petri archive, or other --watermarks"
	}
	return c
}

// checkLeftovers names what servers that were killed have left in memory. The next
// one frees what it knows to be nobody's.
func checkLeftovers(left []bus.Leftover) check {
	var names, unknown []string
	for _, l := range left {
		names = append(names, l.Dir)
		if l.Link == "" {
			unknown = append(unknown, l.Dir)
		}
	}
	switch {
	case len(left) == 0:
		return check{"leftovers", "ok", "none of runs that were killed", ""}
	case len(unknown) > 0:
		return check{"leftovers", "warning", "perhaps of runs that were killed: " + strings.Join(names, " "),
			"if no older Petri runs: rm -r " + strings.Join(unknown, " ")}
	}
	return check{"leftovers", "warning", "of runs that were killed: " + strings.Join(names, " "), "the next petri run or petri up frees them"}
}

func checkNode(ctx context.Context, cfg app.Config) check {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	b, err := cfg.Connect(ctx, "doctor")
	if errors.Is(err, app.ErrNotRunning) {
		return check{"node", "ok", "none runs on " + cfg.Data + " (petri run starts its own; petri up keeps one)", ""}
	}
	if err != nil {
		return check{"node", "error", err.Error(), ""}
	}
	defer b.Close()
	alive, err := b.Alive(ctx)
	if err != nil {
		return check{"node", "error", err.Error(), "see the logs in " + cfg.Data + "/log"}
	}
	return check{"node", "ok", fmt.Sprintf("runs on %s, %d analyzers", cfg.Data, len(alive)), ""}
}

// manyDead is how many dead letters are counted.
const manyDead = 1000

// checkDead says whether there is anything that nobody could process.
func checkDead(ctx context.Context, cfg app.Config) check {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	b, err := cfg.Connect(ctx, "doctor")
	if errors.Is(err, app.ErrNotRunning) {
		return check{"dead letters", "ok", "not looked for: no node runs", ""}
	}
	n := 0
	if err == nil {
		defer b.Close()
		err = b.DeadLetters(ctx, func(bus.DeadLetter) error {
			if n++; n == manyDead {
				return bus.ErrStop
			}
			return nil
		})
	}
	switch {
	case err != nil:
		return check{"dead letters", "error", err.Error(), "see the logs in " + cfg.Data + "/log"}
	case n == 0:
		return check{"dead letters", "ok", "none", ""}
	case n == manyDead:
		return check{"dead letters", "warning", fmt.Sprintf("%d or more", n), "petri dead list"}
	}
	return check{"dead letters", "warning", strconv.Itoa(n), "petri dead list"}
}
