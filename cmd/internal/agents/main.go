// SPDX-License-Identifier: Apache-2.0

// Command agents builds the guests' agents, guestd-ARCH each, into a directory.
// The Makefile and the tests build them by it, and so the same bytes.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/petri-sandbox/petri/sandboxd/catalogue"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: agents DIRECTORY ARCH…|all")
		os.Exit(2)
	}
	arches := os.Args[2:]
	if slices.Equal(arches, []string{"all"}) {
		arches = catalogue.Names()
	}
	for _, arch := range arches {
		if err := build(os.Args[1], arch); err != nil {
			fmt.Fprintln(os.Stderr, "agents:", err)
			os.Exit(1)
		}
	}
}

func build(dir, arch string) error {
	cpu, err := catalogue.Lookup(arch)
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "guestd-"+cpu.Name),
		"github.com/petri-sandbox/petri/cmd/guestd")
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux"), cpu.Go...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build guestd for %s: %w", arch, err)
	}
	return nil
}
