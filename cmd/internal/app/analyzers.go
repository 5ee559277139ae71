// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/all"
	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/auth"
	"github.com/petri-sandbox/petri/sandboxd/child"
	"github.com/petri-sandbox/petri/schemas"
)

// commandRole is the role of a process that runs one analyzer that is a command.
// It reads the definition from standard input.
const commandRole = "command"

// RunAnalyzers runs the analyzers that Petri brings, but for those that are
// removed, and those that were added, each of these in a process of its own. It
// follows what is added and removed until ctx is done: one that comes or goes
// disturbs no other. ready is called when all that Petri brings are registered.
func RunAnalyzers(ctx context.Context, c Config, log *slog.Logger, ready func()) error {
	b, err := c.employ(ctx, auth.Analyzer, auth.Builtin, "analyzers", log)
	if err != nil {
		return err
	}
	b.LogTo(log)
	defer b.Close()
	for _, name := range c.Only {
		if err := schemas.CheckAnalyzer(name); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &staff{c: c, b: b, log: log, fail: cancel, slots: analyzers.NewSlots(0), at: map[string]*post{}}
	first := true
	err = b.FollowDefinitions(ctx, func(defs map[string]schemas.Definition) {
		s.follow(ctx, defs)
		if !first {
			return
		}
		first = false
		var brought []*post
		for _, p := range s.at {
			if p.def == nil {
				brought = append(brought, p)
			}
		}
		s.wg.Go(func() {
			for _, p := range brought {
				select {
				case <-p.ready:
				case <-p.done: // removed meanwhile
				case <-ctx.Done():
					return
				}
			}
			ready()
		})
	})
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	cancel(nil)
	s.wg.Wait()
	return err
}

// staff are the analyzers of this process.
type staff struct {
	c     Config
	b     *bus.Bus
	log   *slog.Logger
	fail  context.CancelCauseFunc
	slots analyzers.Slots
	wg    sync.WaitGroup
	at    map[string]*post // by the analyzer's name
}

// post is one analyzer that runs.
type post struct {
	def   *schemas.Definition // of a command
	stop  context.CancelFunc
	done  chan struct{} // closed when it has ended
	ready chan struct{} // closed when it is registered

	stopped bool // it ends, or has ended
}

// follow makes what runs what is defined.
func (s *staff) follow(ctx context.Context, defs map[string]schemas.Definition) {
	want := map[string]func(context.Context, func()) error{}
	def := map[string]*schemas.Definition{}
	for _, a := range all.List() {
		name := a.Info().Name
		if !defs[name].Removed {
			want[name] = func(ctx context.Context, ready func()) error { return s.builtin(ctx, a, ready) }
		}
	}
	for name, d := range defs {
		if _, brought := want[name]; !brought && !d.Removed {
			want[name], def[name] = func(ctx context.Context, _ func()) error { return s.command(ctx, d) }, &d
		}
	}
	if len(s.c.Only) > 0 {
		maps.DeleteFunc(want, func(name string, _ func(context.Context, func()) error) bool { return !slices.Contains(s.c.Only, name) })
	}
	for name, p := range s.at {
		if _, ok := want[name]; ok && !p.stopped && same(p.def, def[name]) {
			delete(want, name)
			continue
		}
		if !p.stopped {
			s.log.Info("analyzer is told to end", "analyzer", name)
			p.stopped = true
			p.stop()
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		s.start(ctx, name, def[name], want[name])
	}
}

func same(a, b *schemas.Definition) bool {
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return bytes.Equal(x, y)
}

// start runs an analyzer as soon as the one of that name has ended.
func (s *staff) start(ctx context.Context, name string, d *schemas.Definition, run func(context.Context, func()) error) {
	before := s.at[name]
	ctx, stop := context.WithCancel(ctx)
	p := &post{def: d, stop: stop, done: make(chan struct{}), ready: make(chan struct{})}
	s.at[name] = p
	s.wg.Go(func() {
		defer close(p.done)
		defer stop()
		if before != nil {
			<-before.done
		}
		if err := run(ctx, sync.OnceFunc(func() { close(p.ready) })); err != nil && ctx.Err() == nil {
			s.fail(fmt.Errorf("analyzer %s: %w", name, err))
		}
	})
}

// builtin runs an analyzer that Petri brings.
func (s *staff) builtin(ctx context.Context, a analyzers.Analyzer, ready func()) error {
	return runAnalyzer(ctx, s.b, a, analyzers.Options{Instance: instance(), Log: s.log, Slots: s.slots, Dir: s.c.Data}, ready)
}

// maxAgain is the longest time between two starts of a command that ends.
const maxAgain = time.Minute

// command keeps the process of a command running until ctx is done. That it
// cannot run here is no concern of the others.
func (s *staff) command(ctx context.Context, d schemas.Definition) error {
	log := s.log.With("analyzer", d.Name)
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, maxAgain) {
		begin := time.Now()
		p, err := s.spawn(d)
		if err == nil {
			log.Info("analyzer's process started", "pid", p.PID())
			select {
			case <-p.Done():
				err = errors.New(p.Cause())
			case <-ctx.Done():
				s.end(p, log)
				return nil
			}
		}
		if time.Since(begin) > maxAgain {
			wait = time.Second
		}
		log.Warn("analyzer's process ended, starting it again", "error", err, "in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
	return nil
}

// endTime is how long the process of a command has to finish its tasks.
const endTime = 15 * time.Second

func (s *staff) end(p *child.Process, log *slog.Logger) {
	_ = p.Signal(syscall.SIGTERM)
	select {
	case <-p.Done():
	case <-time.After(endTime):
		log.Warn("analyzer's process does not end, killing it")
		p.Kill()
	}
}

// credsOf is the file of the credentials of an analyzer that was added. Those of
// the process that starts it are for the analyzers that Petri brings; the
// added one's own lie beside them, as petri bus user makes them. Who has none
// there tries with the process' own.
func (c *Config) credsOf(analyzer string) string {
	if c.Creds == "" {
		return ""
	}
	own := filepath.Join(filepath.Dir(c.Creds), "analyzer-"+analyzer+".creds")
	if _, err := os.Stat(own); err != nil {
		return c.Creds
	}
	return own
}

func (s *staff) spawn(d schemas.Definition) (*child.Process, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	creds := s.c.credsOf(d.Name)
	args := (&Node{cfg: s.c}).args(commandRole)
	if s.c.again != nil {
		args = slices.Clone(s.c.again)
		if creds != "" { // behind those of this process
			args = append(args, "--creds="+creds)
		}
		args = append(args, commandRole)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = daemonEnv()
	if s.c.NATS != "" {
		cmd.Env = append(cmd.Env, ServerVariable+"="+s.c.NATS, CredsVariable+"="+creds, CAVariable+"="+s.c.CA)
	}
	cmd.Stdin, cmd.Stderr = bytes.NewReader(body), os.Stderr
	p, err := child.Start(cmd)
	if err != nil {
		return nil, fmt.Errorf("start the process of analyzer %s: %w", d.Name, err)
	}
	return p, nil
}

// readCommand is the role of a command's process.
func readCommand(ctx context.Context, c Config, log *slog.Logger, ready func()) error {
	var d schemas.Definition
	if err := json.NewDecoder(io.LimitReader(os.Stdin, 1<<20)).Decode(&d); err != nil {
		return fmt.Errorf("read the definition of the analyzer from standard input: %w", err)
	}
	return RunCommand(ctx, c, d, log, ready)
}

// Brought reports whether Petri brings an analyzer of that name, or the process
// of those that it brings has it.
func Brought(name string) bool { return name == auth.Builtin || slices.Contains(Builtin(), name) }

// Builtin are the names of the analyzers that Petri brings.
func Builtin() []string {
	var names []string
	for _, a := range all.List() {
		names = append(names, a.Info().Name)
	}
	return names
}
