// SPDX-License-Identifier: Apache-2.0

// Command petri detonates programs in virtual machines and reports what they
// did. It is the one command that people type.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/all"
	"github.com/petri-sandbox/petri/cmd/internal/app"
)

// Exit codes.
const (
	codeOK          = 0   // done
	codeError       = 1   //
	codeUsage       = 2   // usage or bad input
	codeFailOn      = 3   // --fail-on was met
	codeNotExecuted = 4   // the sample did not run, or no guest can run it
	codeIncomplete  = 5   // it ran, but something is missing
	codeBusy        = 6   // the queue is full: the same again later
	codeInterrupted = 130 // by a signal
)

// exitError carries an exit code, and no text if everything has been said.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

// usage marks an error as the user's.
func usage(err error) error {
	if err == nil {
		return nil
	}
	return exitError{codeUsage, err}
}

func usagef(format string, args ...any) error { return usage(fmt.Errorf(format, args...)) }

func main() { os.Exit(run()) }

func run() int {
	// In an analyzer's child this does not return.
	analyzers.Child(all.Children())
	err := command().ExecuteContext(context.Background())
	var exit exitError
	switch {
	case err == nil:
		return codeOK
	case errors.As(err, &exit):
		if exit.err != nil {
			fmt.Fprintln(os.Stderr, "petri:", exit.err)
		}
		return exit.code
	}
	if strings.HasPrefix(err.Error(), "unknown command") { // cobra has no type for it
		fmt.Fprintf(os.Stderr, "petri: %s (see: petri --help)\n", strings.TrimSpace(err.Error()))
		return codeUsage
	}
	fmt.Fprintln(os.Stderr, "petri:", err)
	if errors.Is(err, context.Canceled) {
		return codeInterrupted
	}
	return codeError
}

// command is the whole tree.
func command() *cobra.Command {
	g := &global{}
	root := &cobra.Command{
		Use:   "petri",
		Short: "Detonate programs in virtual machines and report what they did",
		Long: `Petri runs a program in a virtual machine, records every step, system call,
file and frame in a log, lets analyzers read it, and folds a report out of it.

Start with:  petri run FILE

Exit codes: 0 done, 1 error, 2 usage or bad input, 3 --fail-on was met, 4 the
sample was not executed or no guest can run it, 5 incomplete, 6 busy: retry
later, 130 interrupted.`,
		Version:       app.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%w (see: %s --help)", app.FlagError(err), c.CommandPath())
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	g.flags(root.PersistentFlags())
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error { return g.mayRun(c) }
	root.AddCommand(
		runCommand(g), upCommand(g), submitCommand(g), watchCommand(g), gateCommand(g), reportCommand(g), eventsCommand(g),
		exportCommand(g), importCommand(g), archiveCommand(g), verifyCommand(g), deleteCommand(g),
		listCommand(g), artifactsCommand(g), getCommand(g), traceCommand(g), cancelCommand(g), guestCommand(g), doctorCommand(g),
		replayCommand(g), huntCommand(g), runsCommand(g), adoptCommand(g), diffCommand(g),
		gcCommand(g), deadCommand(g), auditCommand(g), analyzersCommand(g), expectCommand(g), analyzerCommand(g),
		busCommand(g), daemonCommand(g), supervisorCommand(),
	)
	return root
}

// args wraps an argument check so that its failure is the user's.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, a []string) error {
		if err := check(c, a); err != nil {
			return usagef("%w (usage: %s; more: %s --help)", err, c.UseLine(), c.CommandPath())
		}
		return nil
	}
}
