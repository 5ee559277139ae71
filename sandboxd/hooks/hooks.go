// SPDX-License-Identifier: Apache-2.0

// Package hooks holds the observers that run on the sandbox host, and the
// configuration that says which event triggers which of them.
//
//	hooks:
//	  - name: memory
//	    on: [snapshots_capture]
//	    timeout: 60s
//	  - name: dropped
//	    on: [pre_shutdown, pre_poweroff]
//	    required: true
//
// A hook is a name in this package, never code out of a configuration.
package hooks

import (
	"bytes"
	"context"
	_ "embed" // the default configuration
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/sandboxd/internal/yamlfile"
	"github.com/petri-sandbox/petri/schemas"
)

// Default is the text of the configuration that is used where none is named.
//
//go:embed default.yaml
var Default string

const maxTime = time.Hour

// Config says which hooks run, and when.
type Config struct {
	Hooks []Hook

	on []*yaml.Node // all names and patterns, where they stand
}

// Hook is one entry of a [Config].
type Hook struct {
	Name     string
	On       []string      // names or patterns of events
	Timeout  time.Duration // default one minute
	Async    bool          // beside the protocol, joined before start_analysis
	Required bool          // its failure fails the step
}

// Error is a mistake in a configuration's text.
type Error = yamlfile.Error

var at = yamlfile.At

// registry is every hook that there is.
var registry = map[string]struct {
	handler sandboxd.Handler
	what    string
}{
	"memory":  {memory, "stores an ELF core of the guest's RAM"},
	"dropped": {dropped, "stores the files that the sample created or changed"},
	"console": {console, "stores what the sample and the guest's kernel printed"},
}

// Names lists the hooks with a line about each.
func Names() []string {
	var out []string
	for name, h := range registry {
		out = append(out, name+": "+h.what)
	}
	slices.Sort(out)
	return out
}

// Parse reads and checks a configuration. The error is an *[Error] or several
// of them, joined.
func Parse(text string) (*Config, error) {
	doc, err := yamlfile.Read(text, "a hooks' configuration", "a mapping with the key hooks")
	if err != nil {
		return nil, err
	}
	c := new(Config)
	var errs []error
	for key, value := range yamlfile.Pairs(doc) {
		switch {
		case key.Value != "hooks":
			errs = append(errs, at(key, "unknown key %q (a configuration has only: hooks)", key.Value))
		case value.Tag == "!!null":
		case value.Kind != yaml.SequenceNode:
			errs = append(errs, at(value, "hooks is a list (  - {name: memory, on: [snapshots_capture]})"))
		default:
			errs = append(errs, c.readAll(value))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return c, nil
}

func (cfg *Config) readAll(list *yaml.Node) error {
	seen := map[string]int{}
	var errs []error
	for _, n := range list.Content {
		h, err := cfg.read(n)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if line, ok := seen[h.Name]; ok {
			errs = append(errs, at(n, "%s is listed twice, first in line %d (give it one entry with several events)", h.Name, line))
			continue
		}
		seen[h.Name] = n.Line
		cfg.Hooks = append(cfg.Hooks, h)
	}
	return errors.Join(errs...)
}

func (cfg *Config) read(n *yaml.Node) (Hook, error) {
	var h Hook
	if n.Kind != yaml.MappingNode {
		return h, at(n, "an entry is a mapping (- {name: memory, on: [snapshots_capture]})")
	}
	for key, value := range yamlfile.Pairs(n) {
		var err error
		switch key.Value {
		case "name":
			if _, ok := registry[value.Value]; !ok {
				err = at(value, "no hook %q (there are: %s)", value.Value, strings.Join(names(), ", "))
			}
			h.Name = value.Value
		case "on":
			h.On, err = cfg.readOn(value)
		case "timeout":
			if h.Timeout, err = time.ParseDuration(value.Value); err != nil || h.Timeout <= 0 || h.Timeout > maxTime {
				err = at(value, "timeout %q is not between 1ms and %s (write 500ms, 20s or 1m30s)", value.Value, maxTime)
			}
		case "async":
			err = readBool(value, "async", &h.Async)
		case "required":
			err = readBool(value, "required", &h.Required)
		default:
			keys := []string{"name", "on", "timeout", "async", "required"}
			err = at(key, "unknown key %q (%s)", key.Value, yamlfile.Nearest(key.Value, keys))
		}
		if err != nil {
			return h, err
		}
	}
	switch {
	case h.Name == "":
		return h, at(n, "an entry needs the name of a hook (there are: %s)", strings.Join(names(), ", "))
	case len(h.On) == 0:
		return h, at(n, "%s needs the events that trigger it (on: [snapshots_capture])", h.Name)
	case h.Required && h.Async:
		return h, at(n, "%s cannot be both required and async: nobody waits for its failure (take one of them away)", h.Name)
	}
	return h, nil
}

func readBool(n *yaml.Node, key string, into *bool) error {
	if err := n.Decode(into); err != nil {
		return at(n, "%s is true or false", key)
	}
	return nil
}

// readOn reads a name or pattern of an event, or a list of them.
func (cfg *Config) readOn(n *yaml.Node) ([]string, error) {
	nodes := n.Content
	if n.Kind == yaml.ScalarNode {
		nodes = []*yaml.Node{n}
	}
	var out []string
	for _, e := range nodes {
		if e.Kind != yaml.ScalarNode || n.Kind == yaml.MappingNode {
			return nil, at(n, "on is a list of events (on: [pre_shutdown, 'post_*'])")
		}
		if err := schemas.CheckEventName(strings.NewReplacer("*", "x", "?", "x").Replace(e.Value)); err != nil {
			return nil, at(e, "%v (names of events, * and ? stand for other characters)", err)
		}
		out = append(out, e.Value)
		cfg.on = append(cfg.on, e)
	}
	return out, nil
}

// Check refuses hooks that no event of a protocol's run can trigger: events
// are the names of all that can.
func (cfg *Config) Check(events []string) error {
	// What a step triggers in the default protocol is no misspelling where
	// another protocol has no such step: coverage tells of a hook that never ran.
	known := append(slices.Clone(events), schemas.EventSnapshotsCapture)
	var errs []error
	for _, n := range cfg.on {
		if !slices.ContainsFunc(known, func(name string) bool { ok, _ := path.Match(n.Value, name); return ok }) {
			errs = append(errs, at(n, "nothing publishes %s (%s)", n.Value, yamlfile.Nearest(n.Value, known)))
		}
	}
	return errors.Join(errs...)
}

func names() []string {
	var out []string
	for n := range registry {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// Install subscribes the configured hooks to a context.
func (cfg *Config) Install(c *sandboxd.Context) error {
	for _, h := range cfg.Hooks {
		err := c.SubscribeHook(h.On, registry[h.Name].handler, sandboxd.SubscribeOptions{
			Name: h.Name, Async: h.Async, Timeout: h.Timeout, Required: h.Required,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// memory dumps the guest's RAM.
func memory(ctx context.Context, c *sandboxd.Context, e schemas.Event) error {
	return c.StoreMemory(ctx, e)
}

// dropped collects what the sample left in the file system.
func dropped(ctx context.Context, c *sandboxd.Context, e schemas.Event) error {
	return c.CollectFiles(ctx, e)
}

// console stores the consoles as they are now.
func console(ctx context.Context, c *sandboxd.Context, e schemas.Event) error {
	for _, src := range []schemas.Source{schemas.SourceStdout, schemas.SourceStderr, schemas.SourceSerial} {
		b, err := c.Console(src)
		if err != nil {
			return fmt.Errorf("read %s: %w", src, err)
		}
		if len(b) == 0 {
			continue
		}
		err = c.Store(ctx, schemas.Artifact{Kind: schemas.KindConsole, MediaType: "text/plain", Name: string(src), Event: e.ID}, bytes.NewReader(b))
		if err != nil {
			return err
		}
	}
	return nil
}
