// SPDX-License-Identifier: Apache-2.0

package sandboxd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/sandboxd/hooks"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/protocol"
	"github.com/petri-sandbox/petri/schemas"
)

// memLog is a log in memory that can go away and be taken over.
type memLog struct {
	mu        sync.Mutex
	events    []schemas.Event
	context   map[string][]schemas.Event // by analysis
	writers   map[string]int             // the newest writer of each
	back      chan struct{}              // closed while the log is there
	awayAt    time.Time
	broken    error         // what every publish returns at once, such as a full disk
	waits     []time.Time   // deadlines of the waits for analyzers
	shown     int           // live events
	numbers   []uint64      // theirs
	analysing time.Duration // that analyzers take
	taken     chan struct{} // closed when another sandbox has every lease; nil: never
}

// breakDown makes every publish fail; nil mends it.
func (l *memLog) breakDown(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = err
}

func newMemLog() *memLog {
	l := &memLog{context: map[string][]schemas.Event{}, writers: map[string]int{}, back: make(chan struct{})}
	close(l.back)
	return l
}

// goAway makes every publish wait; the returned function brings the log back.
func (l *memLog) goAway() (back func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.back, l.awayAt = make(chan struct{}), time.Now()
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.awayAt = time.Time{}
		close(l.back)
	}
}

func (l *memLog) Away() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.awayAt.IsZero() {
		return 0
	}
	return time.Since(l.awayAt)
}

func (l *memLog) wait(ctx context.Context) error {
	l.mu.Lock()
	back, broken := l.back, l.broken
	l.mu.Unlock()
	if broken != nil {
		return broken
	}
	select {
	case <-back:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *memLog) append(ctx context.Context, e schemas.Event) error {
	if err := l.wait(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
	return nil
}

func (l *memLog) PublishArtifact(ctx context.Context, e schemas.Event, _ *schemas.Artifact) error {
	return l.append(ctx, e)
}

func (l *memLog) PublishSegment(ctx context.Context, e schemas.Event, _ *schemas.Segment) error {
	return l.append(ctx, e)
}

// PublishBehavior waits for the log, which the real one does not: whoever calls
// it must not hold anything up.
func (l *memLog) PublishBehavior(_, _ string, b *schemas.Behavior, _ schemas.Event) error {
	if err := l.wait(context.Background()); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shown++
	l.numbers = append(l.numbers, b.Number)
	return nil
}

func (l *memLog) OpenContext(_ context.Context, _, analysis string) (sandboxd.ContextLog, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writers[analysis]++
	return &memWriter{l: l, analysis: analysis, n: l.writers[analysis]}, nil
}

type memWriter struct {
	l        *memLog
	analysis string
	n        int
}

func (w *memWriter) NextID() string {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	return fmt.Sprintf("%s/context/%d", w.analysis, len(w.l.context[w.analysis]))
}

func (w *memWriter) Write(ctx context.Context, e schemas.Event) error {
	if err := w.l.wait(ctx); err != nil {
		return err
	}
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	if w.l.writers[w.analysis] != w.n {
		return sandboxd.ErrFenced
	}
	w.l.events = append(w.l.events, e)
	w.l.context[w.analysis] = append(w.l.context[w.analysis], e)
	return nil
}

// names lists an analysis' context events.
func (l *memLog) names(analysis string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, e := range l.context[analysis] {
		out = append(out, e.Name())
	}
	return out
}

func (l *memLog) find(t *testing.T, analysis, name string, into schemas.Typed) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.context[analysis] {
		if e.Name() == name {
			if err := e.Decode(into); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("no event %s", name)
}

// The log ends analyses too.

func (l *memLog) End(ctx context.Context, tenant, analysis string, ending schemas.Typed) (schemas.Event, error) {
	for {
		events, _ := l.Events(ctx, tenant, analysis)
		for _, e := range events {
			if schemas.Ending(e.Name()) {
				return e, nil
			}
		}
		w, _ := l.OpenContext(ctx, tenant, analysis)
		e, err := schemas.NewEvent(tenant, analysis, w.NextID(), time.Now(), schemas.OriginHost, ending)
		if err != nil {
			return e, err
		}
		if err := w.Write(ctx, e); !errors.Is(err, sandboxd.ErrFenced) {
			return e, err
		}
	}
}

func (l *memLog) Wait(_ context.Context, _, _ string, deadline time.Time, _ []string) ([]schemas.MissingTask, error) {
	time.Sleep(l.analysing)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waits = append(l.waits, deadline)
	return []schemas.MissingTask{}, nil
}

func (l *memLog) Events(_ context.Context, _, analysis string) ([]schemas.Event, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.context[analysis]), nil
}

func (l *memLog) Hold(ctx context.Context, _, _ string) error {
	select {
	case <-ctx.Done():
		return nil
	case <-l.taken:
		return sandboxd.ErrFenced
	}
}

func (l *memLog) Holder(context.Context, string) (string, error) {
	select {
	case <-l.taken:
		return "another", nil
	default:
		return "", nil
	}
}

// memStore keeps bytes in memory.
type memStore struct {
	mu   sync.Mutex
	objs map[schemas.Digest][]byte
	fail error
	full error // what Room says
}

// Room implements [sandboxd.Roomy].
func (s *memStore) Room(int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full
}

func newMemStore() *memStore { return &memStore{objs: map[schemas.Digest][]byte{}} }

func (s *memStore) Put(_ context.Context, _ schemas.Kind, r io.Reader) (schemas.Digest, int64, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return schemas.Digest{}, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return schemas.Digest{}, 0, s.fail
	}
	d := schemas.Sum(b)
	s.objs[d] = b
	return d, int64(len(b)), nil
}

func (s *memStore) Open(_ context.Context, d schemas.Digest) (io.ReadCloser, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.objs[d]
	if !ok {
		return nil, 0, errors.New("not found")
	}
	return io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
}

// fakeMachine is a machine whose guest does what a test says.
type fakeMachine struct {
	o       machine.Observer
	onRun   func(m *fakeMachine) (machine.Started, error)
	onCall  func(name string) // sees every call before it acts
	onClose func()
	fail    map[string]error // by verb
	late    bool             // a pause works, and its answer never comes

	mu     sync.Mutex
	calls  []string
	closed bool
	paused bool
	sum    schemas.Digest
	slow   time.Duration // that every call takes
}

func (m *fakeMachine) call(name string) error {
	time.Sleep(m.slow)
	if m.onCall != nil {
		m.onCall(name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, name)
	if m.closed {
		return machine.ErrGone
	}
	return m.fail[name]
}

func (m *fakeMachine) Poweron(_ context.Context, id machine.Identity) (machine.Boot, error) {
	err := m.call("poweron")
	if err == nil {
		m.o.Event(machine.Event{Time: time.Now(), Lease: &schemas.IPAddress{Address: "10.0.2.15", MAC: id.MAC, Lease: "dhcp"}})
	}
	return machine.Boot{Ready: schemas.GuestReady{Identity: id.Identity}}, err
}

func (m *fakeMachine) Pause(ctx context.Context) error {
	err := m.call("pause")
	m.mu.Lock()
	m.paused = err == nil
	m.mu.Unlock()
	if m.late {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (m *fakeMachine) Resume(context.Context) error {
	m.mu.Lock()
	m.paused = false
	m.mu.Unlock()
	return m.call("resume")
}

func (m *fakeMachine) Restart(_ context.Context, id machine.Identity) (machine.Boot, error) {
	return machine.Boot{Ready: schemas.GuestReady{Identity: id.Identity}}, m.call("restart")
}
func (m *fakeMachine) Shutdown(context.Context) error { return m.call("shutdown") }
func (m *fakeMachine) Poweroff(context.Context) error { return m.call("poweroff") }
func (m *fakeMachine) Flush(context.Context) error    { return m.call("flush") }

func (m *fakeMachine) Run(_ context.Context, r machine.Run, sample *os.File) (machine.Started, error) {
	if err := m.call("run " + strings.Join(r.Command, " ")); err != nil {
		return machine.Started{}, err
	}
	b, _ := io.ReadAll(io.NewSectionReader(sample, 0, r.Size))
	m.sum = schemas.Sum(b)
	if m.onRun != nil {
		return m.onRun(m)
	}
	return m.exit(0)
}

// exit is an onRun of a sample that ends at once.
func (m *fakeMachine) exit(code int) (machine.Started, error) {
	m.o.Data(schemas.SourceStdout, []byte("hello\n"))
	m.o.Event(machine.Event{Time: time.Now(), Exited: &schemas.SampleExited{Reason: "exited", ExitCode: &code}})
	m.o.Event(machine.Event{Time: time.Now(), Tree: &machine.TreeExited{}})
	return machine.Started{PID: 7, Path: "/root/sample", SHA256: m.sum}, nil
}

func (m *fakeMachine) Exec(_ context.Context, e machine.Exec) (schemas.Exec, error) {
	return schemas.Exec{Command: e.Command, Stdout: "out"}, m.call("exec")
}

func (m *fakeMachine) Collect(context.Context, machine.Collect) (machine.Collected, error) {
	if err := m.call("collect"); err != nil {
		return machine.Collected{}, err
	}
	for _, path := range []string{"/tmp/a", "/tmp/b"} {
		sum := schemas.Sum([]byte("same"))
		w := m.o.File(schemas.DroppedFile{FileMeta: schemas.FileMeta{Path: path, Change: "created"}, Type: "file", Size: 4, SHA256: &sum, Stored: true})
		_, _ = w.Write([]byte("same"))
		w.Close(0, nil)
	}
	return machine.Collected{Listed: 2, Sent: 2}, nil
}

func (m *fakeMachine) DumpMemory(_ context.Context, f *os.File) error {
	if err := m.call("dump"); err != nil {
		return err
	}
	_, err := f.WriteString("RAM")
	return err
}

func (m *fakeMachine) Close() error {
	if m.onClose != nil {
		m.onClose()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

func (m *fakeMachine) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

func (m *fakeMachine) isPaused() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.paused
}

// bench is a worker with everything around it in memory.
type bench struct {
	signed   []string
	unsigned error // what every signature fails with
	*memLog
	store     *memStore
	jobs      chan *fakeJob
	released  chan string
	givenBack int                  // jobs
	machine   func(m *fakeMachine) // sets each machine up
	machines  []*fakeMachine
	cancels   map[string]func(by string)
	install   func(c *sandboxd.Context) // subscribes more than the hooks
	gates     sandboxd.Gates
	findings  sandboxd.Findings
	display   bool // machines have one
	has       func(guest string) bool
	parallel  int
	mu        sync.Mutex
	dir       string
}

func newBench(t *testing.T) *bench {
	return &bench{memLog: newMemLog(), store: newMemStore(), jobs: make(chan *fakeJob, 10), released: make(chan string, 10),
		cancels: map[string]func(string){}, dir: t.TempDir()}
}

func (b *bench) OnCancel(_, analysis string, fn func(by string)) (func(), error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cancels[analysis] = fn
	return func() {}, nil
}

func (b *bench) cancel(analysis string) {
	b.mu.Lock()
	fn := b.cancels[analysis]
	b.mu.Unlock()
	if fn != nil {
		fn("a test")
	}
}

func (b *bench) New(_ context.Context, _ sandboxd.MachineSpec, o machine.Observer) (machine.Machine, error) {
	m := &fakeMachine{o: o, fail: map[string]error{}}
	if b.machine != nil {
		b.machine(m)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.machines = append(b.machines, m)
	if b.display {
		return screen{m}, nil
	}
	return m, nil
}

func (b *bench) last() *fakeMachine {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.machines) == 0 {
		return nil
	}
	return b.machines[len(b.machines)-1]
}

func (b *bench) Claim(ctx context.Context) (sandboxd.Job, error) {
	select {
	case j := <-b.jobs:
		return j, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (b *bench) Release(token string) error {
	b.released <- token
	return nil
}

type fakeJob struct {
	sub  schemas.Submission
	b    *bench
	done chan struct{}
}

func (j *fakeJob) Submission() schemas.Submission { return j.sub }
func (j *fakeJob) Token() string                  { return "token-" + j.sub.ID }
func (j *fakeJob) Keepalive(ctx context.Context)  { <-ctx.Done() }

func (j *fakeJob) Done(context.Context) error {
	close(j.done)
	return nil
}

// Release puts the job back, as the queue would.
func (j *fakeJob) Release(after time.Duration) error {
	j.b.mu.Lock()
	j.b.givenBack++
	j.b.mu.Unlock()
	time.AfterFunc(after, func() { j.b.jobs <- j })
	return nil
}

// submission of a small sample under the default protocol and hooks.
func (b *bench) submission(t *testing.T) schemas.Submission {
	t.Helper()
	d, n, err := b.store.Put(t.Context(), schemas.KindSample, strings.NewReader("#!/bin/sh\nexit 0\n"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	return schemas.Submission{
		ID: schemas.NewID(now), Tenant: "default", Profile: "amd64", Protocol: protocol.Default, Submitted: now,
		Sample:  schemas.Sample{SHA256: d, Size: n, Name: "sample.sh", Type: schemas.SampleType{Format: "script"}},
		Options: schemas.Options{Runtime: schemas.Duration(20 * time.Second)},
	}
}

// worker starts a worker; it is stopped and waited for at the end of the test.
func (b *bench) worker(t *testing.T) (stop func()) {
	t.Helper()
	w := sandboxd.NewWorker(b, b.store, b, b, b, sandboxd.Options{
		ID: "worker", Dir: b.dir, Parallel: b.parallel, Slog: slog.New(slog.DiscardHandler),
		Gates: b.gates, Findings: b.findings, Has: b.has,
		Describe: func(guest, start string) schemas.MachineSpec { return schemas.MachineSpec{Arch: guest, Start: start} },
		Signer:   func(_, analysis string) sandboxd.Signer { return fakeSigner{b, analysis} },
		InstallHooks: func(c *sandboxd.Context, text string) error {
			if text == "" {
				text = hooks.Default
			}
			cfg, err := hooks.Parse(text)
			if err != nil {
				return err
			}
			if b.install != nil {
				b.install(c)
			}
			return cfg.Install(c)
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("worker: %v", err)
			}
		})
	}
	return stop
}

// fakeSigner notes what it is asked to vouch for.
type fakeSigner struct {
	b        *bench
	analysis string
}

func (s fakeSigner) Sign(_ context.Context, at string) error {
	names := s.b.names(s.analysis)
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.signed = append(s.b.signed, at)
	if !slices.Contains(names, at) {
		return fmt.Errorf("%s is not in the log", at)
	}
	return s.b.unsigned
}

// signatures are the events at which the log was signed.
func (b *bench) signatures() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.signed)
}

// analyse runs one submission to its ending and returns the names of its
// context events.
func (b *bench) analyse(t *testing.T, sub schemas.Submission) []string {
	t.Helper()
	stop := b.worker(t)
	defer stop()
	j := &fakeJob{sub: sub, b: b, done: make(chan struct{})}
	b.jobs <- j
	<-j.done
	b.ended(t, sub.ID)
	return b.names(sub.ID)
}

// ended waits for an analysis' ending.
func (b *bench) ended(t *testing.T, id string) {
	t.Helper()
	for range 100_000 {
		if n := b.names(id); len(n) > 0 && schemas.Ending(n[len(n)-1]) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("analysis %s has not ended: %v", id, b.names(id))
}
