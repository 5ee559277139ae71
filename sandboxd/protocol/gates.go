// SPDX-License-Identifier: Apache-2.0

package protocol

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/petri-sandbox/petri/sandboxd/internal/yamlfile"
	"github.com/petri-sandbox/petri/schemas"
)

// A Gate is a service outside of the sandbox that the analysis waits for at an
// event: it says whether the protocol goes on.
type Gate struct {
	On        []string // names of events
	Name      string
	Timeout   time.Duration
	Otherwise string // [schemas.GateGo] or [schemas.GateStop]: what counts without a valid answer

	Line, Column int // in the text
}

const (
	maxGates    = 20
	gateTimeout = 10 * time.Second
)

func (p *Protocol) readGates(n *yaml.Node) []error {
	if n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		return []error{at(n, "gates is a list (gates: [{on: run_sample, name: approve, timeout: 10s, otherwise: stop}])")}
	}
	if len(n.Content) > maxGates {
		return []error{at(n, "%d gates; %d are allowed (take some away)", len(n.Content), maxGates)}
	}
	var errs []error
	for _, entry := range n.Content {
		g, err := readGate(entry)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.Gates = append(p.Gates, g)
	}
	return errs
}

func readGate(n *yaml.Node) (Gate, error) {
	g := Gate{Timeout: gateTimeout, Line: n.Line, Column: n.Column}
	if n.Kind != yaml.MappingNode {
		return g, at(n, "a gate is a mapping (- {on: run_sample, name: approve, timeout: 10s, otherwise: stop})")
	}
	for key, value := range yamlfile.Pairs(n) {
		var err error
		switch key.Value {
		case "on":
			g.On, err = readGateOn(value)
		case "name":
			g.Name = value.Value
			if cerr := schemas.CheckGate(g.Name); cerr != nil {
				err = at(value, "%v", cerr)
			}
		case "timeout":
			err = readDuration(value, &g.Timeout)
			if err == nil && g.Timeout > maxTime {
				err = at(value, "a gate's timeout is between 1ms and %s", maxTime)
			}
		case "otherwise":
			g.Otherwise = value.Value
			if g.Otherwise != schemas.GateGo && g.Otherwise != schemas.GateStop {
				err = at(value, "otherwise %q is neither go nor stop (write one of them)", g.Otherwise)
			}
		default:
			err = at(key, "a gate has no option %q (%s)", key.Value, yamlfile.Nearest(key.Value, []string{"on", "name", "timeout", "otherwise"}))
		}
		if err != nil {
			return g, err
		}
	}
	switch {
	case g.Name == "":
		return g, at(n, "a gate needs a name: that of the service that is asked (name: approve)")
	case len(g.On) == 0:
		return g, at(n, "gate %s needs the event that it is asked at (on: run_sample)", g.Name)
	case g.Otherwise == "":
		return g, at(n, "gate %s needs to say what counts without an answer (otherwise: stop, or otherwise: go)", g.Name)
	}
	return g, nil
}

func readGateOn(n *yaml.Node) ([]string, error) {
	nodes := n.Content
	if n.Kind == yaml.ScalarNode {
		nodes = []*yaml.Node{n}
	}
	var out []string
	for _, e := range nodes {
		if e.Kind != yaml.ScalarNode || n.Kind == yaml.MappingNode {
			return nil, at(n, "on is the name of an event, or a list of them (on: run_sample)")
		}
		if err := schemas.CheckEventName(e.Value); err != nil {
			return nil, at(e, "%v", err)
		}
		if slices.Contains(out, e.Value) {
			return nil, at(e, "%s is here twice (take one away)", e.Value)
		}
		out = append(out, e.Value)
	}
	return out, nil
}

// Gateable lists the events of a run of the protocol that a gate can be asked
// at. Nobody is asked before the power is taken, about the sandbox's own
// trouble, or where no step is left to stop.
func (p *Protocol) Gateable() []string {
	return slices.DeleteFunc(p.Events(), func(name string) bool {
		switch name {
		case schemas.EventSubmitted, schemas.EventClaimed, schemas.EventStartAnalysis, schemas.EventMachineOff,
			schemas.EventHookFailed, schemas.EventStepFailed, schemas.EventFault, schemas.EventLogAway, schemas.EventTampering,
			schemas.EventGateAnswered, schemas.EventControlDecided, schemas.EventPrePoweroff, schemas.EventPostPoweroff:
			return true
		}
		return strings.HasPrefix(name, "failed_")
	})
}

// checkGates refuses gates at what nothing publishes, and those that a trigger
// would not wait for.
func (p *Protocol) checkGates() []error {
	known := p.Gateable()
	var errs []error
	for _, g := range p.Gates {
		fail := func(format string, args ...any) {
			errs = append(errs, &Error{Line: g.Line, Column: g.Column, Text: fmt.Sprintf(format, args...)})
		}
		for _, on := range g.On {
			switch {
			case slices.Contains(known, on):
			case slices.Contains(p.Events(), on):
				fail("gate %s: no gate can be asked at %s (%s)", g.Name, on, yamlfile.Nearest(on, known))
			default:
				fail("gate %s: nothing publishes %s (%s)", g.Name, on, yamlfile.Nearest(on, known))
			}
			for _, s := range p.Steps {
				if s.Kind == Trigger && s.Event == on && s.Timeout <= g.Timeout {
					fail("gate %s may take %s, and the trigger of %s in line %d waits for %s (give that a longer timeout)", g.Name, g.Timeout, on, s.Line, s.Timeout)
				}
			}
		}
	}
	return errs
}
