// SPDX-License-Identifier: Apache-2.0

package analyzers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/analyzers/internal/jail"
	"github.com/petri-sandbox/petri/schemas"
)

// Options of [Run]. The zero value is the production default.
type Options struct {
	Instance    string        // names this process in answers; empty: host and process id
	Concurrency int           // children at once; zero: GOMAXPROCS
	Slots       Slots         // shared with other runners, in place of Concurrency; nil: of its own
	Log         *slog.Logger  // nil: nothing is logged
	Stats       *Stats        // to be counted into; nil: one of its own. Logged at the end
	Dir         string        // for temporary files, which have no names; empty: os.TempDir
	Heartbeat   time.Duration // how often a running task is kept; zero: 3 s, a third of what the bus waits
	Drain       time.Duration // how long running tasks may go on when ctx is done; zero: 5 s, negative: not at all

	MaxInput      map[schemas.Kind]int64 // bytes of an artifact; a kind without an entry: [DefaultMaxInput], memory 16 times that
	MaxEvents     int64                  // bytes of a log; zero: 256 MiB
	MaxResult     int64                  // bytes of a result document; zero: 256 MiB
	MaxDerived    int64                  // bytes of a derived artifact; zero: 128 MiB
	MaxDerivedAll int64                  // bytes of all that a task derives; zero: 512 MiB

	// Unconfined permits to go on where neither a network namespace nor a
	// system-call filter is to be had.
	Unconfined bool
}

// Slots are places for children: one element per running child.
type Slots chan struct{}

// NewSlots returns places for n children; zero: for GOMAXPROCS.
func NewSlots(n int) Slots {
	if n == 0 {
		n = runtime.GOMAXPROCS(0)
	}
	return make(Slots, n)
}

// DefaultMaxInput bounds what is spooled for a task, in bytes.
const DefaultMaxInput = 1 << 30

// MaxAttempts is how often a task is tried. Who is given it after that answers it
// as failed: a task that took its runners with it does not get another one. A
// runner that is stopped, or has not begun, has not tried.
const MaxAttempts = 3

// Bounds of the JSON of all findings, and of all announcements of derived
// artifacts, so that an answer stays a message.
const (
	maxFindingBytes = 1 << 20
	maxDerivedBytes = 256 << 10
)

const (
	callTimeout   = 30 * time.Second // of a call of a service
	awayTime      = 10 * time.Minute // that a task waits for a bus that does not answer
	preflightNext = time.Minute      // between two preflights of an analyzer that is unavailable
	registerRetry = time.Second
)

func (o Options) fill() Options {
	set := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	set(&o.MaxEvents, 256<<20)
	set(&o.MaxResult, 256<<20)
	set(&o.MaxDerived, 128<<20)
	set(&o.MaxDerivedAll, 512<<20)
	if o.Instance == "" {
		host, _ := os.Hostname()
		o.Instance = fmt.Sprintf("%s-%d", host, os.Getpid())
	}
	if o.Slots != nil {
		o.Concurrency = cap(o.Slots)
	}
	if o.Concurrency == 0 {
		o.Concurrency = runtime.GOMAXPROCS(0)
	}
	if o.Slots == nil {
		o.Slots = NewSlots(o.Concurrency)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Stats == nil {
		o.Stats = &Stats{}
	}
	if o.Dir == "" {
		o.Dir = os.TempDir()
	}
	if o.Heartbeat == 0 {
		o.Heartbeat = 3 * time.Second
	}
	if o.Drain == 0 {
		o.Drain = 5 * time.Second
	}
	return o
}

func (o Options) limits() limits {
	return limits{
		Findings: schemas.MaxFindings, FindingBytes: maxFindingBytes, Result: o.MaxResult,
		Derived: schemas.MaxDerived, DerivedBytes: maxDerivedBytes, DerivedEach: o.MaxDerived, DerivedAll: o.MaxDerivedAll,
	}
}

func (o Options) maxInput(k schemas.Kind) int64 {
	if n, ok := o.MaxInput[k]; ok {
		return n
	}
	if k == schemas.KindMemory {
		return 16 * DefaultMaxInput
	}
	return DefaultMaxInput
}

// runner runs tasks.
type runner struct {
	services Services
	opts     Options
	spawner  *spawner
	slots    chan struct{} // one element per running child

	mu   sync.Mutex
	busy map[string]bool // the tasks that it has, by their refs
}

// take notes that a task is this runner's, unless it is so already.
func (r *runner) take(t schemas.TaskRef) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := busyKey(t)
	was := r.busy[k]
	r.busy[k] = true
	return !was
}

// leave notes that it is so no longer.
func (r *runner) leave(t schemas.TaskRef) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.busy, busyKey(t))
}

func busyKey(t schemas.TaskRef) string {
	return t.Tenant + "/" + t.Analysis + "/" + t.Run + "/" + t.Analyzer + "/" + t.Token()
}

// Run registers the analyzers and works on their tasks until ctx is done. Then
// it takes no more, lets what runs finish for a while, gives the rest back and
// returns nil. It returns an error if it cannot start: a bad list, no
// registration, no way to confine a child. A task never ends it, nor another
// task.
//
// The program's main must call [Child] first.
func Run(ctx context.Context, list []Analyzer, s Services, o Options) error {
	if isChild() {
		return errors.New("this is a child process: main must call analyzers.Child first")
	}
	if err := Check(list); err != nil {
		return err
	}
	o = o.fill()
	sp, err := newSpawner(ctx, o.Dir)
	if err != nil {
		return err
	}
	defer sp.close()
	r := &runner{services: s, opts: o, spawner: sp, slots: o.Slots, busy: map[string]bool{}}
	o.Log.Info("analyzers are confined", "namespaces", sp.level.String(), "uid", sp.status.UID, "empty_root", sp.status.Root,
		"syscall_filter", sp.status.Filter, "memory_limit", sp.status.Memory, "no_network", sp.status.Network)
	for _, a := range list {
		if i := a.Info(); i.Exec {
			o.Log.Info("programs that an analyzer starts are confined", "analyzer", i.Name, "uid", sp.status.UID, "namespaces", sp.level.String(),
				"landlock", jail.Landlock(), "syscall_filter", sp.status.Filter, "memory_limit", sp.status.Memory, "no_network", sp.status.Network && !i.Network)
		}
	}
	if !sp.status.Network && !o.Unconfined {
		return fmt.Errorf("%w: neither network namespaces nor system-call filters are permitted; allow one of them to this process, or set Unconfined", ErrUnconfined)
	}
	for _, a := range list {
		if err := s.Registry.Register(ctx, a.Info().Registration()); err != nil {
			return fmt.Errorf("register analyzer %s: %w", a.Info().Name, err)
		}
	}

	// Tasks outlive ctx by the drain.
	tasks, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		if o.Drain <= 0 {
			cancel()
			return
		}
		time.AfterFunc(o.Drain, cancel)
	})
	defer stop()
	var wg sync.WaitGroup
	for _, a := range list {
		wg.Go(func() { r.feed(ctx, tasks, &wg, a) })
	}
	wg.Wait()
	o.Stats.report(o.Log)
	return nil
}

// feed takes the tasks of one analyzer.
func (r *runner) feed(ctx, tasks context.Context, wg *sync.WaitGroup, a Analyzer) {
	info := a.Info().fill()
	log := r.opts.Log.With("analyzer", info.Name)
	gate := &gate{analyzer: a}
	wait := registerRetry
	for {
		// Take nothing while every slot is in use: somebody else may have one.
		select {
		case r.slots <- struct{}{}:
			<-r.slots
		case <-ctx.Done():
			return
		}
		d, err := r.services.Queue.Next(ctx, info.Name)
		if ctx.Err() != nil {
			if err == nil && r.take(d.Task().Ref) {
				r.giveBack(ctx, log, info.Name, d, 0)
			}
			return
		}
		if err != nil {
			log.Warn("taking a task failed", "error", err, "retry_in", wait)
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			wait = min(2*wait, 30*time.Second)
			continue
		}
		wait = registerRetry
		// A task in work comes again if the queue was away, or has not heard of us
		// for too long. Who works on it keeps it, and ends it.
		if !r.take(d.Task().Ref) {
			continue
		}
		d = held{d, r}
		r.opts.Stats.update(info.Name, func(s *AnalyzerStats) { s.Taken++ })
		t := &task{runner: r, info: info, gate: gate, delivery: d, Task: d.Task(), log: log}
		beat := t.heartbeat(tasks)
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			beat()
			r.giveBack(ctx, log, info.Name, d, 0)
			return
		}
		r.opts.Stats.update(info.Name, func(s *AnalyzerStats) { s.Running++ })
		wg.Go(func() {
			defer func() {
				<-r.slots
				r.opts.Stats.update(info.Name, func(s *AnalyzerStats) { s.Running-- })
			}()
			defer beat()
			t.run(tasks)
		})
	}
}

// held is a delivery that is the runner's until it is ended or given back: before
// that, for the task may come again at once.
type held struct {
	Delivery
	runner *runner
}

func (h held) Ack(ctx context.Context) error {
	h.runner.leave(h.Task().Ref)
	return h.Delivery.Ack(ctx)
}

func (h held) Nak(ctx context.Context, delay time.Duration) error {
	h.runner.leave(h.Task().Ref)
	return h.Delivery.Nak(ctx, delay)
}

func (h held) Return(ctx context.Context) error {
	h.runner.leave(h.Task().Ref)
	return h.Delivery.Return(ctx)
}

// giveBack returns a delivery to the queue, also when ctx is done: then that is
// why, and it has been no attempt.
func (r *runner) giveBack(ctx context.Context, log *slog.Logger, name string, d Delivery, delay time.Duration) {
	r.opts.Stats.update(name, func(s *AnalyzerStats) { s.Dropped++ })
	stopped := ctx.Err() != nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	var err error
	if stopped {
		err = d.Return(ctx)
	} else {
		err = d.Nak(ctx, delay)
	}
	if err != nil {
		log.Warn("giving back a task failed", "error", err) // it comes again when the queue has waited long enough
	}
}

// gate remembers whether an analyzer can work here.
type gate struct {
	analyzer Analyzer

	mu      sync.Mutex
	err     error
	checked time.Time
	ok      bool
}

// open returns nil if the analyzer can work.
func (g *gate) open(ctx context.Context) error {
	p, has := g.analyzer.(Preflighter)
	if !has {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ok || !g.checked.IsZero() && time.Since(g.checked) < preflightNext {
		return g.err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	g.err = p.Preflight(ctx)
	g.ok, g.checked = g.err == nil, time.Now()
	return g.err
}
