// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/auth"
	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/sandboxd/catalogue"
	"github.com/petri-sandbox/petri/sandboxd/fleet"
	"github.com/petri-sandbox/petri/sandboxd/hooks"
	"github.com/petri-sandbox/petri/sandboxd/image"
	"github.com/petri-sandbox/petri/sandboxd/machine/supervisor"
	"github.com/petri-sandbox/petri/schemas"
)

// SupervisorCommand is the hidden command of petri and sandboxd that runs
// [supervisor.Main].
const SupervisorCommand = "supervisor"

// RunSandbox is sandboxd: it takes jobs until ctx is done. ready is called
// when it does.
func RunSandbox(ctx context.Context, c Config, log *slog.Logger, ready func()) error {
	b, err := c.employ(ctx, auth.Sandboxd, "", "sandboxd", log)
	if err != nil {
		return err
	}
	b.LogTo(log)
	defer b.Close()
	// A second sandbox of the same id would take the first one's machines for
	// a dead one's.
	lock, err := bus.LockFile(c.Data, "sandbox.lock")
	if err != nil {
		return err
	}
	defer lock.Close()
	id, err := sandboxID(c.Data)
	if err != nil {
		return err
	}
	if len(c.Recorded) > 0 {
		c.Pool = nil // nothing waits that nobody takes
	}
	fl := c.Fleet(id, b, log)
	var machines sandboxd.Machines = fl
	describe, guests, has := fl.Describe, c.guests, c.Images(nil).Has
	if len(c.Recorded) > 0 {
		dir := filepath.Join(c.Data, "recorded")
		rs, err := loadRecordings(ctx, c.Recorded, c.Speed, dir)
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		machines, describe, guests, has = rs, rs.describe, rs.guests, nil
	}
	key, err := signingKey(c.Data)
	if err != nil {
		return err
	}
	host, _ := os.Hostname()
	w := sandboxd.NewWorker(logAdapter{b}, c.store(b), jobsAdapter{b, &guestQueue{b: b, guests: guests}}, endingsAdapter{b}, machines, sandboxd.Options{
		ID: id, Host: host, Version: Version, Dir: filepath.Join(c.Data, "run"), Parallel: c.Parallel, Slog: log,
		InstallHooks: installHooks, Signer: func(tenant, analysis string) sandboxd.Signer { return b.NewSigner(key, tenant, analysis) },
		Describe: describe, Has: has, Reap: fl.Reap,
		Gates: gatesAdapter{b}, Findings: b,
	})
	pooled, drain := context.WithCancel(ctx)
	var pool sync.WaitGroup
	pool.Add(1)
	go func() {
		defer pool.Done()
		fl.KeepPool(pooled)
	}()
	defer pool.Wait()
	defer drain()
	ready()
	return w.Run(ctx)
}

// Fleet makes the machines of this host.
func (c *Config) Fleet(id string, b *bus.Bus, log *slog.Logger) *fleet.Fleet {
	var store sandboxd.Store
	if b != nil {
		store = c.store(b)
	}
	return fleet.New(fleet.Options{
		ID: id, Images: c.Images(func(format string, args ...any) { log.Info(fmt.Sprintf(format, args...)) }),
		Store: store, Accel: c.Accel, Memory: c.Memory, Pool: c.Pool, Slog: log,
		Supervisor: supervisor.Privileges{Args: []string{SupervisorCommand}},
	})
}

// Images builds and finds guests' images.
func (c *Config) Images(log func(format string, args ...any)) *image.Builder {
	return &image.Builder{Cache: c.Cache, Guestd: c.guestdDir(), Log: log}
}

// sandboxID is the name of the sandbox that lives on a data directory.
func sandboxID(data string) (string, error) {
	path := filepath.Join(data, "sandbox-id")
	if b, err := os.ReadFile(path); err == nil {
		if id := strings.TrimSpace(string(b)); schemas.ValidID(id) {
			return id, nil
		}
	}
	id := schemas.NewID(time.Now())
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write the sandbox's id: %w", err)
	}
	return id, os.Rename(tmp, path)
}

func installHooks(c *sandboxd.Context, text string) error {
	if text == "" {
		text = hooks.Default
	}
	cfg, err := hooks.Parse(text)
	if err != nil {
		return err
	}
	return cfg.Install(c)
}

// logAdapter gives sandboxd the log.
type logAdapter struct{ *bus.Bus }

func (l logAdapter) OpenContext(ctx context.Context, tenant, analysis string) (sandboxd.ContextLog, error) {
	w, err := l.BeginContext(ctx, tenant, analysis)
	if err != nil {
		return nil, fenced(err)
	}
	return contextWriter{w}, nil
}

// fenced says a lost analysis in sandboxd's words.
func fenced(err error) error {
	if errors.Is(err, bus.ErrFenced) {
		return fmt.Errorf("%w: %w", sandboxd.ErrFenced, err)
	}
	return err
}

type contextWriter struct{ *bus.ContextWriter }

func (w contextWriter) Write(ctx context.Context, e schemas.Event) error {
	return fenced(w.ContextWriter.Write(ctx, e))
}

// store is where sandboxd's artifacts go.
func (c *Config) store(b *bus.Bus) sandboxd.Store {
	s := roomyStore{Store: storeAdapter{b.Artifacts().WithCaps(artifactCaps)}, marks: c.Watermarks, room: b.Room, mu: new(sync.Mutex), known: new(bus.Room)}
	if c.NATS == "" { // else its disk is elsewhere
		s.disk = c.disk
	}
	return s
}

// storeAdapter gives sandboxd the store.
type storeAdapter struct{ *bus.Store }

func (s storeAdapter) Open(ctx context.Context, d schemas.Digest) (io.ReadCloser, int64, error) {
	r, o, err := s.Store.Open(ctx, d)
	return r, o.Size, err
}

// guests lists the architectures that this host has guests for. The default one
// is always among them: who has no guest at all shall hear what to do.
func (c *Config) guests() []string {
	var out []string
	for _, cpu := range catalogue.All() {
		_, err := exec.LookPath(cpu.Binary)
		if cpu.Name == catalogue.Default || err == nil && c.Images(nil).Has(cpu.Name) {
			out = append(out, cpu.Name)
		}
	}
	return out
}

// guestQueue is the queue of what this host has guests for.
type guestQueue struct {
	b      *bus.Bus
	guests func() []string

	mu       sync.Mutex
	profiles []string // of q
	q        *bus.Queue
}

// newGuests is how soon a guest that has been built meanwhile is seen.
const newGuests = 10 * time.Second

func (g *guestQueue) Claim(ctx context.Context) (*bus.Job, error) {
	for {
		q, err := g.queue(ctx)
		if err != nil {
			return nil, err
		}
		limited, cancel := context.WithTimeout(ctx, newGuests)
		job, err := q.Claim(limited)
		over := limited.Err() != nil
		cancel()
		if err == nil || ctx.Err() != nil || !over {
			return job, err
		}
	}
}

func (g *guestQueue) queue(ctx context.Context) (*bus.Queue, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := g.guests(); !slices.Equal(now, g.profiles) {
		q, err := g.b.Queue(ctx, now)
		if err != nil {
			return nil, err
		}
		g.q, g.profiles = q, now
	}
	return g.q, nil
}

// jobsAdapter gives sandboxd a queue.
type jobsAdapter struct {
	b *bus.Bus
	q interface {
		Claim(context.Context) (*bus.Job, error)
	}
}

func (j jobsAdapter) Claim(ctx context.Context) (sandboxd.Job, error) {
	job, err := j.q.Claim(ctx)
	if err != nil {
		return nil, err
	}
	if s := &job.Submission; s.Expected == nil {
		ask, cancel := context.WithTimeout(ctx, expectTime)
		defer cancel()
		if s.Expected, _, err = Expected(ask, j.b, s.Profile); err != nil {
			// By another list the analysis could pass for whole.
			err = fmt.Errorf("look who is expected for submission %s: %w", s.ID, err)
			return nil, errors.Join(err, job.Release(expectAgain))
		}
	}
	return jobAdapter{job}, nil
}

// expectTime is how long the operator's list may take to be read, and
// expectAgain when a job comes again for which it could not be.
const (
	expectTime  = 10 * time.Second
	expectAgain = 5 * time.Second
)

func (j jobsAdapter) Release(token string) error { return j.b.ReleaseByToken(token) }

type jobAdapter struct{ j *bus.Job }

func (j jobAdapter) Submission() schemas.Submission    { return j.j.Submission }
func (j jobAdapter) Token() string                     { return j.j.ReleaseToken() }
func (j jobAdapter) Keepalive(ctx context.Context)     { j.j.Keepalive(ctx) }
func (j jobAdapter) Done(ctx context.Context) error    { return j.j.Done(ctx) }
func (j jobAdapter) Release(after time.Duration) error { return j.j.Release(after) }

// gatesAdapter gives sandboxd the gates.
type gatesAdapter struct{ b *bus.Bus }

func (g gatesAdapter) Ask(ctx context.Context, tenant, gate string, e schemas.Event) ([]byte, error) {
	answer, err := g.b.AskGate(ctx, tenant, gate, e)
	if errors.Is(err, bus.ErrNotFound) {
		err = fmt.Errorf("%w: %w", sandboxd.ErrNoGate, err)
	}
	return answer, err
}

// endingsAdapter gives sandboxd the wait and the ending.
type endingsAdapter struct{ *bus.Bus }

func (e endingsAdapter) Events(ctx context.Context, tenant, analysis string) ([]schemas.Event, error) {
	entries, err := e.Context(ctx, tenant, analysis)
	if err != nil {
		return nil, err
	}
	out := make([]schemas.Event, len(entries))
	for i := range entries {
		out[i] = entries[i].Event
	}
	return out, nil
}

func (e endingsAdapter) Hold(ctx context.Context, analysis, worker string) error {
	return fenced(e.HoldLease(ctx, analysis, worker))
}

func (e endingsAdapter) Holder(ctx context.Context, analysis string) (string, error) {
	l, err := e.Leased(ctx, analysis)
	if errors.Is(err, bus.ErrNotFound) {
		return "", nil
	}
	return l.Worker, err
}
