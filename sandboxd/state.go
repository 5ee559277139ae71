// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"errors"
	"fmt"
	"strings"
)

// State is what a machine is in.
type State string

// States.
const (
	Defined  State = "defined"  // never started
	Running  State = "running"  //
	Paused   State = "paused"   // its CPUs stand still
	Shutdown State = "shutdown" // it went down because its guest was asked to
	Off      State = "off"      // its power was taken, or the guest went down by itself
	Crashed  State = "crashed"  // its guest panicked, or what emulates it broke
)

// Verb is what can be done to a machine.
type Verb string

// Verbs.
const (
	VerbPoweron  Verb = "poweron"
	VerbPause    Verb = "pause"
	VerbResume   Verb = "resume"
	VerbShutdown Verb = "shutdown"
	VerbPoweroff Verb = "poweroff"
	VerbRestart  Verb = "restart"
)

// ErrIllegal says that a verb does not fit the machine's state. Nothing has
// been done and nothing published.
var ErrIllegal = errors.New("illegal transition")

type transition struct {
	from []State
	to   State
}

// transitions is the whole state machine.
var transitions = map[Verb]transition{
	VerbPoweron:  {[]State{Defined, Shutdown, Off, Crashed}, Running},
	VerbPause:    {[]State{Running}, Paused},
	VerbResume:   {[]State{Paused}, Running},
	VerbShutdown: {[]State{Running}, Shutdown},
	VerbPoweroff: {[]State{Running, Paused}, Off},
	VerbRestart:  {[]State{Running}, Running},
}

// Next is the state that a verb leads to, or an error that wraps [ErrIllegal].
func Next(from State, v Verb) (State, error) {
	t, ok := transitions[v]
	if !ok {
		return "", fmt.Errorf("%w: there is no verb %q", ErrIllegal, v)
	}
	for _, f := range t.from {
		if f == from {
			return t.to, nil
		}
	}
	var allowed []string
	for _, f := range t.from {
		allowed = append(allowed, string(f))
	}
	return "", fmt.Errorf("%w: %s of a machine that is %s (it must be %s)", ErrIllegal, v, from, strings.Join(allowed, " or "))
}

// Alive reports whether a machine in that state has a guest.
func (s State) Alive() bool { return s == Running || s == Paused }
