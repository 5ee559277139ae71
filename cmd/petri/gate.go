// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/reporters/term"
	"github.com/petri-sandbox/petri/schemas"
)

func gateCommand(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:   "gate",
		Short: "Decide whether analyses go on",
		Args:  args(cobra.NoArgs),
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(gateServeCommand(g))
	return c
}

func gateServeCommand(g *global) *cobra.Command {
	var limit time.Duration
	c := &cobra.Command{
		Use:   "serve NAME -- CMD [ARG…]",
		Short: "Answer for a gate with a command",
		Example: `  petri gate serve approve -- ./approve.sh
  petri gate serve working-hours --limit 2s -- sh -c 'test $(date +%H) -lt 18'`,
		Long: `Answer for a gate with a command: whenever a protocol asks the gate, the command
is run with the event on its standard input, as JSON. Exit code 0 is go, 1 is
stop, and anything else is no answer: the protocol says what counts then. The
first line that the command prints is the reason. Each decision is printed, with
--json as JSON. It serves until it is interrupted.`,
		Args: args(cobra.MinimumNArgs(2)),
		RunE: func(c *cobra.Command, a []string) error {
			if c.ArgsLenAtDash() != 1 {
				return usagef("the command comes after --: petri gate serve %s -- CMD", a[0])
			}
			if err := schemas.CheckGate(a[0]); err != nil {
				return usagef("%w", err)
			}
			if limit <= 0 {
				return usagef("--limit %s: how long the command may take is more than nothing", limit)
			}
			if _, err := exec.LookPath(a[1]); err != nil {
				return usagef("the gate's command: %w (name a program by its path, or one that is in PATH)", err)
			}
			return g.on(g.connect, func(ctx context.Context, b *bus.Bus, a []string) error {
				fmt.Fprintf(os.Stderr, "gate %s is served until you interrupt\n", a[0])
				return b.ServeGate(ctx, b.Tenant(), a[0], func(ctx context.Context, e schemas.Event) (*schemas.GateAnswer, error) {
					answer, err := askCommand(ctx, limit, a[1:], e)
					if err != nil {
						fmt.Fprintf(os.Stderr, "petri: no answer to %s of %s: %v\n", e.Name(), e.Analysis, err)
						return nil, ctx.Err()
					}
					return answer, g.printDecision(e, answer)
				})
			})(c, a)
		},
	}
	c.Flags().DurationVar(&limit, "limit", time.Minute, "how long the command may take")
	return c
}

// decision is what is printed of an answer.
type decision struct {
	Analysis string `json:"analysis"`
	Event    string `json:"event"`
	schemas.GateAnswer
}

func (g *global) printDecision(e schemas.Event, a *schemas.GateAnswer) error {
	if g.json {
		return printLine(os.Stdout, decision{e.Analysis, e.Name(), *a})
	}
	_, err := fmt.Println(term.Clip(fmt.Sprintf("%s  %-22s %-4s %s", e.Analysis, e.Name(), a.Decision, a.Reason), 200))
	return err
}

// askCommand runs a gate's command. The error says why that is no answer.
func askCommand(ctx context.Context, limit time.Duration, argv []string, e schemas.Event) (*schemas.GateAnswer, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // what it has started, too
	cmd.WaitDelay = time.Second                                                          // for what it left behind with its output open
	cmd.Stdin, cmd.Stderr = bytes.NewReader(body), os.Stderr
	out := new(firstBytes)
	cmd.Stdout = out
	err = cmd.Run()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("the command was not done after %s", limit)
	}
	var exit *exec.ExitError
	a := &schemas.GateAnswer{Decision: schemas.GateGo, Reason: out.line()}
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		a.Decision = schemas.GateStop
	default:
		return nil, fmt.Errorf("the command: %w", err)
	}
	return a, nil
}

// firstBytes keeps the beginning of what is written.
type firstBytes struct{ b []byte }

const maxReason = 512 // as [schemas.GateAnswer] allows

func (f *firstBytes) Write(p []byte) (int, error) {
	f.b = append(f.b, p[:min(len(p), maxReason-len(f.b))]...)
	return len(p), nil
}

// line is the first line, as text.
func (f *firstBytes) line() string {
	line, _, _ := strings.Cut(string(f.b), "\n")
	return strings.ToValidUTF8(strings.TrimSpace(line), "")
}
