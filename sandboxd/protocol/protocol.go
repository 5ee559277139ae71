// SPDX-License-Identifier: Apache-2.0

// Package protocol reads protocols: ordered lists of steps on a machine, as
// YAML. It checks a protocol as a whole before anything starts, and says of
// what is wrong where it is and how to mend it. It runs nothing.
//
//	name: default
//	steps:
//	  - poweron: {timeout: 30s}
//	  - wait_ip: {timeout: 10s, on_failure: continue}
//	  - run_sample: {timeout: 10s}
//	  - wait: {until: [tree_exited, quiet], quiet: 10s, limit: runtime}
//	  - trigger: snapshots_capture
//	  - shutdown: {timeout: 10s, on_failure: poweroff}
//	  - start_analysis
//	  - wait_analysis: {timeout: 60s}
//	gates:
//	  - {on: run_sample, name: approve, timeout: 10s, otherwise: stop}
//	control: {extend: 60s, stop: true, dump_memory: 2}
package protocol

import (
	_ "embed" // the default protocol
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/petri-sandbox/petri/sandboxd/internal/yamlfile"
	"github.com/petri-sandbox/petri/schemas"
)

// Default is the text of the protocol that runs where none is named.
//
//go:embed default.yaml
var Default string

const (
	maxSteps = 200
	maxTime  = time.Hour
)

// OnFailure is what a step's failure leads to.
type OnFailure string

const (
	// Stop skips the machine's remaining steps; what has been gathered is
	// still analysed.
	Stop OnFailure = "stop"
	// Continue goes on with the next step.
	Continue OnFailure = "continue"
	// Poweroff takes the machine's power and goes on with the next step.
	Poweroff OnFailure = "poweroff"
)

// A Kind is what a step does.
type Kind string

// Kinds of steps.
const (
	Poweron       Kind = "poweron"
	WaitIP        Kind = "wait_ip"
	RunSample     Kind = "run_sample"
	Wait          Kind = "wait"
	Pause         Kind = "pause"
	Resume        Kind = "resume"
	Restart       Kind = "restart"
	Shutdown      Kind = "shutdown"
	PoweroffStep  Kind = "poweroff"
	Trigger       Kind = "trigger"
	Exec          Kind = "exec"
	DumpMemory    Kind = "dump_memory"
	StartAnalysis Kind = "start_analysis"
	WaitAnalysis  Kind = "wait_analysis"
)

// A Step is one instruction.
type Step struct {
	Kind      Kind
	Timeout   time.Duration
	OnFailure OnFailure

	Cold    bool              // poweron: boot, do not restore
	Until   []string          // wait: which of them ends it
	Quiet   time.Duration     // wait: how long nothing new makes it quiet
	Runtime bool              // wait: its timeout is the submission's runtime
	Event   string            // trigger: its name
	Payload map[string]string // trigger
	Command []string          // exec

	Line, Column int // in the text
}

// What a wait can wait for, besides names of context events.
const (
	UntilTreeExited   = "tree_exited"   // no process of the sample is left
	UntilSampleExited = "sample_exited" // the sample's first process has ended
	UntilQuiet        = "quiet"         // nothing new for a while
)

// A Protocol is a checked list of steps.
type Protocol struct {
	Name    string
	Steps   []Step
	Gates   []Gate
	Control Control
}

// An Error is a mistake in a protocol's text.
type Error = yamlfile.Error

var at = yamlfile.At

// option is a key of a step: whether it applies and how it is read.
type option struct {
	kinds []Kind // none: all
	read  func(s *Step, n *yaml.Node) error
}

// defaults of the steps, and the only place that lists them.
var kinds = map[Kind]Step{
	Poweron:       {Timeout: 30 * time.Second, OnFailure: Stop},
	WaitIP:        {Timeout: 10 * time.Second, OnFailure: Continue},
	RunSample:     {Timeout: 10 * time.Second, OnFailure: Stop},
	Wait:          {Timeout: 20 * time.Second, OnFailure: Continue},
	Pause:         {Timeout: 10 * time.Second, OnFailure: Stop},
	Resume:        {Timeout: 10 * time.Second, OnFailure: Stop},
	Restart:       {Timeout: 30 * time.Second, OnFailure: Stop},
	Shutdown:      {Timeout: 10 * time.Second, OnFailure: Poweroff},
	PoweroffStep:  {Timeout: 10 * time.Second, OnFailure: Continue},
	Trigger:       {Timeout: 60 * time.Second, OnFailure: Continue},
	Exec:          {Timeout: 10 * time.Second, OnFailure: Continue},
	DumpMemory:    {Timeout: 60 * time.Second, OnFailure: Continue},
	StartAnalysis: {Timeout: 60 * time.Second, OnFailure: Continue},
	WaitAnalysis:  {Timeout: 60 * time.Second, OnFailure: Continue},
}

var options = map[string]option{
	"timeout":    {nil, func(s *Step, n *yaml.Node) error { return readDuration(n, &s.Timeout) }},
	"on_failure": {nil, readOnFailure},
	"cold":       {[]Kind{Poweron}, readCold},
	"until":      {[]Kind{Wait}, readUntil},
	"quiet":      {[]Kind{Wait}, func(s *Step, n *yaml.Node) error { return readDuration(n, &s.Quiet) }},
	"limit":      {[]Kind{Wait}, readLimit},
	"for":        {[]Kind{Wait}, func(s *Step, n *yaml.Node) error { return readDuration(n, &s.Timeout) }},
	"event":      {[]Kind{Trigger}, readEvent},
	"payload":    {[]Kind{Trigger}, readPayload},
	"command":    {[]Kind{Exec}, readCommand},
}

// Parse reads and checks a protocol. The error is a *[Error] or several of
// them, joined.
func Parse(text string) (*Protocol, error) {
	doc, err := yamlfile.Read(text, "a protocol", "a mapping with the keys name and steps")
	if err != nil {
		return nil, err
	}
	p := &Protocol{}
	var errs []error
	var steps *yaml.Node
	for key, value := range yamlfile.Pairs(doc) {
		switch key.Value {
		case "name":
			if value.Kind != yaml.ScalarNode {
				errs = append(errs, at(value, "name is one text (name: my-protocol)"))
			}
			p.Name = value.Value
		case "steps":
			steps = value
		case "gates":
			errs = append(errs, p.readGates(value)...)
		case "control":
			errs = append(errs, p.readControl(value)...)
		default:
			errs = append(errs, at(key, "unknown key %q (a protocol has name, steps, gates and control)", key.Value))
		}
	}
	if steps == nil || steps.Kind != yaml.SequenceNode || len(steps.Content) == 0 {
		return nil, errors.Join(append(errs, at(doc, "a protocol needs steps: a list, one step per line"))...)
	}
	if len(steps.Content) > maxSteps {
		return nil, at(steps, "%d steps; %d are allowed (take some away)", len(steps.Content), maxSteps)
	}
	for _, n := range steps.Content {
		s, err := parseStep(n)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.Steps = append(p.Steps, s)
	}
	if len(errs) == 0 {
		errs = append(errs, p.check()...)
		errs = append(errs, p.checkUntil(steps)...)
		errs = append(errs, p.checkGates()...)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return p, nil
}

// parseStep reads "kind", "kind: value" or "kind: {options}".
func parseStep(n *yaml.Node) (Step, error) {
	key, value := n, (*yaml.Node)(nil)
	if n.Kind == yaml.MappingNode {
		if len(n.Content) != 2 {
			return Step{}, at(n, "a step has one name (write its options in braces: - wait: {for: 5s})")
		}
		key, value = n.Content[0], n.Content[1]
	}
	if key.Kind != yaml.ScalarNode {
		return Step{}, at(n, "a step is a name, or a name and its options")
	}
	s, ok := kinds[Kind(key.Value)]
	if !ok {
		return Step{}, at(key, "unknown step %q (%s)", key.Value, yamlfile.Nearest(key.Value, Kinds()))
	}
	s.Kind, s.Line, s.Column = Kind(key.Value), key.Line, key.Column
	switch {
	case value == nil || value.Tag == "!!null":
	case value.Kind == yaml.MappingNode:
		if err := readOptions(&s, value); err != nil {
			return Step{}, err
		}
	default:
		if err := readShort(&s, value); err != nil {
			return Step{}, err
		}
	}
	return s, s.check(key)
}

func readOptions(s *Step, n *yaml.Node) error {
	for key, value := range yamlfile.Pairs(n) {
		o, ok := options[key.Value]
		if !ok || len(o.kinds) > 0 && !slices.Contains(o.kinds, s.Kind) {
			return at(key, "%s has no option %q (%s)", s.Kind, key.Value, yamlfile.Nearest(key.Value, optionsOf(s.Kind)))
		}
		if err := o.read(s, value); err != nil {
			var e *Error
			if errors.As(err, &e) {
				return err
			}
			return at(value, "%s: %v", key.Value, err)
		}
	}
	return nil
}

// readShort reads the value of a step that needs only one.
func readShort(s *Step, n *yaml.Node) error {
	switch s.Kind {
	case Trigger:
		return readEvent(s, n)
	case Exec:
		return readCommand(s, n)
	case Wait:
		return readDuration(n, &s.Timeout)
	}
	return at(n, "write the options of %s in braces: - %s: {timeout: 10s}", s.Kind, s.Kind)
}

func (s *Step) check(n *yaml.Node) error {
	switch {
	case s.Timeout <= 0 || s.Timeout > maxTime:
		return at(n, "%s: a timeout is between 1ms and %s", s.Kind, maxTime)
	case s.Kind == Trigger && s.Event == "":
		return at(n, "trigger needs the name of an event: - trigger: snapshots_capture")
	case s.Kind == Exec && len(s.Command) == 0:
		return at(n, "exec needs a command: - exec: [ps, aux]")
	case s.Kind == Wait && slices.Contains(s.Until, UntilQuiet) && s.Quiet == 0:
		return at(n, "wait until quiet needs how long: {until: [quiet], quiet: 10s}")
	case s.Quiet < 0 || s.Quiet > maxTime:
		return at(n, "quiet is between 1ms and %s", maxTime)
	}
	return nil
}

// analysis reports whether a step comes after the machine's time.
func (k Kind) analysis() bool { return k == StartAnalysis || k == WaitAnalysis }

// check looks at the steps' order.
func (p *Protocol) check() []error {
	var errs []error
	fail := func(s Step, format string, args ...any) {
		errs = append(errs, &Error{Line: s.Line, Column: s.Column, Text: fmt.Sprintf(format, args...)})
	}
	started, waited, on, ran, paused := false, false, false, false, false
	for _, s := range p.Steps {
		switch {
		case s.Kind == RunSample && ran:
			fail(s, "run_sample comes once for each start of the machine (take this one away, or restart before it)")
		case (s.Kind == RunSample || s.Kind == Exec) && paused:
			fail(s, "%s while the guest is paused: nothing can run (resume before it)", s.Kind)
		case s.Kind == StartAnalysis && started:
			fail(s, "start_analysis comes once (take this one away)")
		case s.Kind == WaitAnalysis && !started:
			fail(s, "wait_analysis needs start_analysis before it (add - start_analysis)")
		case s.Kind == WaitAnalysis && waited:
			fail(s, "wait_analysis comes once (take this one away)")
		case !s.Kind.analysis() && started:
			fail(s, "%s after start_analysis: the machine is gone by then (move it before)", s.Kind)
		case s.Kind == Poweron, s.Kind == Restart && on:
			on, ran, paused = true, false, false
		case !s.Kind.analysis() && s.Kind != Trigger && s.Kind != Wait && !on:
			fail(s, "%s before poweron (add - poweron before it)", s.Kind)
		}
		switch s.Kind {
		case RunSample:
			ran = true
		case Pause:
			paused = true
		case Resume:
			paused = false
		}
		started = started || s.Kind == StartAnalysis
		waited = waited || s.Kind == WaitAnalysis
	}
	if !started || !waited {
		fail(p.Steps[len(p.Steps)-1], "a protocol ends with start_analysis and wait_analysis (add them)")
	}
	return errs
}

// checkUntil refuses waits for what nothing publishes: they would end with
// their limit, and nobody would know why.
func (p *Protocol) checkUntil(steps *yaml.Node) []error {
	known := append(p.Events(), UntilTreeExited, UntilQuiet)
	var errs []error
	for _, n := range steps.Content {
		if n.Kind != yaml.MappingNode {
			continue
		}
		for key, value := range yamlfile.Pairs(n.Content[1]) {
			if key.Value != "until" {
				continue
			}
			names := value.Content
			if value.Kind == yaml.ScalarNode {
				names = []*yaml.Node{value}
			}
			for _, name := range names {
				if !slices.Contains(known, name.Value) {
					errs = append(errs, at(name, "until: nothing publishes %s (%s)", name.Value, yamlfile.Nearest(name.Value, known)))
				}
			}
		}
	}
	return errs
}

// events are what the sandbox publishes of its own accord while an analysis
// has its context.
var events = []string{
	schemas.EventSubmitted, schemas.EventClaimed, schemas.EventIPAddress, schemas.EventRunSample, schemas.EventGuestReady,
	schemas.EventSampleStarted, schemas.EventSampleExited, schemas.EventMachineOff, schemas.EventFault, schemas.EventLogAway, schemas.EventTampering,
	schemas.EventGateAnswered, schemas.EventControlDecided,
	schemas.EventHookFailed, schemas.EventStepFailed, schemas.EventExec, schemas.EventStartAnalysis,
	schemas.EventTreeExited, schemas.EventPreExec, schemas.EventPreDumpMemory,
}

// Events lists the names of the context events that can be published in a run
// of the protocol.
func (p *Protocol) Events() []string {
	out := slices.Clone(events)
	for _, verb := range []Kind{Poweron, Pause, Resume, Shutdown, PoweroffStep, Restart} {
		out = append(out, "pre_"+string(verb), "post_"+string(verb), "failed_"+string(verb))
	}
	for _, s := range p.Steps {
		if s.Kind == Trigger && !slices.Contains(out, s.Event) {
			out = append(out, s.Event)
		}
	}
	return out
}

// Kinds lists the names of all steps.
func Kinds() []string {
	var out []string
	for k := range kinds {
		out = append(out, string(k))
	}
	slices.Sort(out)
	return out
}

func optionsOf(k Kind) []string {
	var out []string
	for name, o := range options {
		if len(o.kinds) == 0 || slices.Contains(o.kinds, k) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func readDuration(n *yaml.Node, into *time.Duration) error {
	d, err := time.ParseDuration(n.Value)
	if err != nil || d <= 0 {
		return at(n, "%q is not a duration (write 500ms, 20s or 1m30s)", n.Value)
	}
	*into = d
	return nil
}

func readCold(s *Step, n *yaml.Node) error {
	if err := n.Decode(&s.Cold); err != nil {
		return at(n, "cold is true or false")
	}
	return nil
}

func readOnFailure(s *Step, n *yaml.Node) error {
	s.OnFailure = OnFailure(n.Value)
	switch s.OnFailure {
	case Stop, Continue, Poweroff:
		return nil
	}
	return at(n, "on_failure %q is none of stop, continue, poweroff (write one of them)", n.Value)
}

func readUntil(s *Step, n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		s.Until = []string{n.Value}
	} else if err := n.Decode(&s.Until); err != nil || len(s.Until) == 0 {
		return at(n, "until is a name or a list of names (until: [tree_exited, quiet])")
	}
	for _, u := range s.Until {
		if err := schemas.CheckEventName(u); err != nil {
			return at(n, "until: %v", err)
		}
	}
	return nil
}

func readLimit(s *Step, n *yaml.Node) error {
	if n.Value == "runtime" {
		s.Runtime = true
		return nil
	}
	return readDuration(n, &s.Timeout)
}

// reserved are events that only the machine and the sandbox publish: a
// protocol that could trigger them could lie.
func reserved(name string) bool {
	for _, p := range []string{"pre_", "post_", "failed_", "analysis_"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	switch name {
	case schemas.EventIPAddress, schemas.EventRunSample, schemas.EventGuestReady, schemas.EventSampleStarted,
		schemas.EventSampleExited, schemas.EventTreeExited, schemas.EventMachineOff, schemas.EventHookFailed, schemas.EventStepFailed,
		schemas.EventExec, schemas.EventStartAnalysis, schemas.EventWaitAnalysis,
		schemas.EventGateAnswered, schemas.EventControlDecided, schemas.EventRunAdopted:
		return true
	}
	return false
}

func readEvent(s *Step, n *yaml.Node) error {
	s.Event = n.Value
	if err := schemas.CheckEventName(s.Event); err != nil {
		return at(n, "%v", err)
	}
	if reserved(s.Event) {
		return at(n, "%s is an event that only the sandbox publishes (choose another name)", s.Event)
	}
	return nil
}

func readPayload(s *Step, n *yaml.Node) error {
	if err := n.Decode(&s.Payload); err != nil {
		return at(n, "payload is a mapping of names to texts (payload: {key: value})")
	}
	return nil
}

func readCommand(s *Step, n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		argv, err := Split(n.Value)
		if err != nil {
			return at(n, "%v", err)
		}
		s.Command = argv
		return nil
	}
	if err := n.Decode(&s.Command); err != nil {
		return at(n, "command is a list of words, or one text that is split by quotes (command: [ps, aux])")
	}
	return nil
}
