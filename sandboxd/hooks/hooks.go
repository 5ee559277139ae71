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
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/schemas"
)

// Default is the text of the configuration that is used where none is named.
//
//go:embed default.yaml
var Default string

const maxText = 64 << 10

// Config says which hooks run, and when.
type Config struct {
	Hooks []Hook `yaml:"hooks"`
}

// Hook is one entry of a [Config].
type Hook struct {
	Name     string        `yaml:"name"`
	On       []string      `yaml:"on"`       // names or patterns of events
	Timeout  time.Duration `yaml:"timeout"`  // default one minute
	Async    bool          `yaml:"async"`    // beside the protocol, joined before start_analysis
	Required bool          `yaml:"required"` // its failure fails the step
}

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

// Parse reads and checks a configuration.
func Parse(text string) (*Config, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("the hooks' configuration has %d bytes; %d are allowed", len(text), maxText)
	}
	dec := yaml.NewDecoder(bytes.NewReader([]byte(text)))
	dec.KnownFields(true)
	c := new(Config)
	if err := dec.Decode(c); err != nil {
		return nil, fmt.Errorf("hooks: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	seen := map[string]bool{}
	for i, h := range c.Hooks {
		if _, ok := registry[h.Name]; !ok {
			return nil, fmt.Errorf("hooks: entry %d: no hook %q (there are: %s)", i+1, h.Name, strings.Join(names(), ", "))
		}
		if seen[h.Name] {
			return nil, fmt.Errorf("hooks: entry %d: %s is listed twice (give it one entry with several events)", i+1, h.Name)
		}
		seen[h.Name] = true
		if len(h.On) == 0 {
			return nil, fmt.Errorf("hooks: entry %d: %s needs the events that trigger it (on: [snapshots_capture])", i+1, h.Name)
		}
		for _, p := range h.On {
			if err := schemas.CheckEventName(strings.NewReplacer("*", "x", "?", "x").Replace(p)); err != nil {
				return nil, fmt.Errorf("hooks: entry %d: %w", i+1, err)
			}
		}
		if h.Required && h.Async {
			return nil, fmt.Errorf("hooks: entry %d: %s cannot be both required and async: nobody waits for its failure", i+1, h.Name)
		}
		if h.Timeout < 0 || h.Timeout > time.Hour {
			return nil, fmt.Errorf("hooks: entry %d: a timeout is between 1ms and 1h", i+1)
		}
	}
	return c, nil
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
	return c.CollectFiles(ctx, e.ID)
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
