// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus/faults"
	"github.com/petri-sandbox/petri/schemas"
)

// The model is a log in memory with consumers as the server has them, and
// around it everybody who takes part in one analysis: a sandbox that announces,
// analyzers that register, change, withdraw, work, hang and die, a clerk that
// dies, and waiters. A random walk chooses who does the next step and who dies
// in it. What decides is the code that runs: [register], [unregister],
// [liveConsumer], [taskOf], the clerk's examine and messages, the group's
// commits, [credit]. What it decides is compared with the rule as the
// architecture states it, which is written down here once more, and slowly.

// modelWalks is how many walks the test takes, and modelSeed, if it is set in
// the environment, the only one.
const (
	modelWalks = 2000
	modelSeed  = "PETRI_MODEL_SEED"
)

func TestModel(t *testing.T) {
	t.Parallel()
	if s := os.Getenv(modelSeed); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		walk(t, seed)
		return
	}
	walks := modelWalks
	if testing.Short() {
		walks /= 10
	}
	total := modelCounts{}
	for i := range walks {
		total.add(walk(t, uint64(i)))
		if t.Failed() {
			t.Fatalf("run it again: %s=%d go test ./bus -run TestModel", modelSeed, i)
		}
	}
	// A walk in which something was lost, doubled or wrong has failed.
	faults.Figures{Acked: total.Receipts, Note: fmt.Sprintf("%d walks, %+v", walks, total)}.Report(t)
	// A model in which nothing happens shows nothing.
	for _, n := range []int{total.Crashes, total.Tasks, total.Receipts, total.Rejected, total.Poison, total.Refused, total.Withdrawn, total.Deadline, total.Whole, total.Astray} {
		if n == 0 && !testing.Short() {
			t.Errorf("something has never happened: %+v", total)
		}
	}
}

// modelCounts says what has happened in walks.
type modelCounts struct {
	Steps, Crashes, Tasks, Receipts, Rejected, Refused, Poison, Withdrawn, Deadline, Whole, Astray int
}

func (c *modelCounts) add(o modelCounts) {
	c.Steps += o.Steps
	c.Crashes += o.Crashes
	c.Tasks += o.Tasks
	c.Receipts += o.Receipts
	c.Rejected += o.Rejected
	c.Refused += o.Refused
	c.Poison += o.Poison
	c.Withdrawn += o.Withdrawn
	c.Deadline += o.Deadline
	c.Whole += o.Whole
	c.Astray += o.Astray
}

// modelLog is a totally ordered log with the server's guards.
type modelLog struct {
	entries []Entry
	last    map[string]uint64 // sequence of the last message of a subject
}

func (l *modelLog) put(m batchMsg) uint64 {
	e, err := schemas.ParseEvent(m.body)
	if err != nil {
		panic(err)
	}
	seq := uint64(len(l.entries) + 1)
	l.entries = append(l.entries, Entry{Seq: seq, Subject: m.subject, Event: e, Body: m.body})
	l.last[m.subject] = seq
	return seq
}

// stray puts a message under a subject that is no event.
func (l *modelLog) stray(subject string) {
	seq := uint64(len(l.entries) + 1)
	l.entries = append(l.entries, newEntry(seq, subject, []byte(`{"type":"io.nats.jetstream.api.v1.stream_msg_get_response"}`)))
	l.last[subject] = seq
}

func (l *modelLog) foreignAt(ctx context.Context, subject string) (uint64, error) {
	if _, err := l.lastMsg(ctx, subject); err == nil {
		return 0, nil
	}
	return l.last[subject], nil
}

var errModelTaken = &jetstream.APIError{Code: 400, ErrorCode: codeWrongLastSequence}

func (l *modelLog) publishOne(ctx context.Context, m batchMsg) (uint64, error) {
	return l.publishBatch(ctx, []batchMsg{m})
}

func (l *modelLog) publishBatch(_ context.Context, msgs []batchMsg) (seq uint64, err error) {
	in := map[string]bool{}
	for _, m := range msgs {
		if m.first && (l.last[m.subject] != m.foreign || in[m.subject]) {
			return 0, errModelTaken
		}
		in[m.subject] = true
	}
	for _, m := range msgs {
		seq = l.put(m)
	}
	return seq, nil
}

func (l *modelLog) lastMsg(_ context.Context, subject string) (*jetstream.RawStreamMsg, error) {
	if !strings.ContainsAny(subject, "*>") && l.last[subject] == 0 {
		return nil, ErrNotFound
	}
	for i := len(l.entries) - 1; i >= 0; i-- {
		if !l.entries[i].foreign && matches(subject, l.entries[i].Subject) {
			return l.raw(l.entries[i].Seq), nil
		}
	}
	return nil, ErrNotFound
}

func (l *modelLog) raw(seq uint64) *jetstream.RawStreamMsg {
	e := l.entries[seq-1]
	return &jetstream.RawStreamMsg{Subject: e.Subject, Sequence: e.Seq, Data: e.Body}
}

func (l *modelLog) anyMsg(ctx context.Context, subject string) (*jetstream.RawStreamMsg, error) {
	return l.lastMsg(ctx, subject)
}

func (l *modelLog) archivedHas(context.Context, string, string, string) (bool, error) {
	return false, nil
}

func (l *modelLog) archivedArtifact(context.Context, string, string, schemas.Kind, schemas.Digest) (*schemas.Artifact, error) {
	return nil, ErrNotFound
}

func (l *modelLog) tombstone(context.Context, string, string) (*DeletedError, error) { return nil, nil }

func (l *modelLog) archivedOccurrences(context.Context, string) (int, error) { return 0, nil }

// modelConsumer is a pull consumer.
type modelConsumer struct {
	cfg     jetstream.ConsumerConfig
	next    uint64         // sequence to look at next
	pending map[uint64]int // delivered and not acknowledged: how often
	again   []uint64       // of those, what is to be delivered again
}

// deliver gives out one message. Of one that was given out too often it tells
// lost.
func (c *modelConsumer) deliver(l *modelLog, lost func(seq uint64)) (Entry, int, bool) {
	for len(c.again) > 0 {
		seq := c.again[0]
		c.again = c.again[1:]
		n, ok := c.pending[seq]
		if !ok {
			continue
		}
		if n >= c.cfg.MaxDeliver {
			delete(c.pending, seq)
			lost(seq)
			continue
		}
		c.pending[seq] = n + 1
		return l.entries[seq-1], n + 1, true
	}
	for c.next <= uint64(len(l.entries)) {
		e := l.entries[c.next-1]
		c.next++
		if slices.ContainsFunc(c.cfg.FilterSubjects, func(f string) bool { return matches(f, e.Subject) }) {
			c.pending[e.Seq] = 1
			return e, 1, true
		}
	}
	return Entry{}, 0, false
}

func (c *modelConsumer) nak(seq uint64) {
	if _, ok := c.pending[seq]; ok && !slices.Contains(c.again, seq) {
		c.again = append(c.again, seq)
	}
}

func (c *modelConsumer) ack(seq uint64) { delete(c.pending, seq) }

// modelTask is a task in the hands of a process.
type modelTask struct {
	ref     schemas.TaskRef
	seq     uint64
	attempt int
	held    bool
}

type modelAnalyzer struct {
	name    string
	choices []schemas.Registration // what it may register as
	want    *schemas.Registration  // what it is about to register, until that has worked
	leaving bool                   // it is about to withdraw
	dead    bool                   // no process of it runs any more
	poison  bool                   // it dies of every task
	hands   []modelTask
}

// modelInbox is a finished task on its way, and modelCommit one that a clerk
// has examined.
type modelInbox struct {
	f          schemas.FinishedTask
	deliveries int
	taken      bool // by a clerk
}

type modelCommit struct {
	in     *modelInbox
	parent *schemas.Artifact
	msgs   []batchMsg
}

type model struct {
	modelLog
	t     *testing.T
	rng   *rand.Rand
	seed  uint64
	calm  bool // nobody dies any more
	count modelCounts

	tenant, analysis string
	at               time.Time
	events           int // that the sandbox has written
	announced        int
	started          bool
	ended            []schemas.MissingTask // nil: not yet
	wasWhole         bool

	consumers map[string]*modelConsumer
	analyzers []*modelAnalyzer
	inbox     []*modelInbox
	clerk     *Clerk
	commits   []*modelCommit
	waiter    *credit
	read      int // by the waiter
}

var errModelCrash = errors.New("died")

// dies decides whether whoever is at work dies here.
func (m *model) dies(percent int) bool {
	if m.calm || m.rng.IntN(100) >= percent {
		return false
	}
	m.count.Crashes++
	return true
}

// step does one step of what [register] and [unregister] do; whoever does it may
// die before and behind it.
func (m *model) step(f func()) error {
	if m.dies(10) {
		return errModelCrash
	}
	f()
	if m.dies(10) {
		return errModelCrash
	}
	return nil
}

func (m *model) registered(_ context.Context, analyzer string) (was schemas.Registration, seq uint64, err error) {
	reg, gone := m.last[registry+analyzer], m.last[unregistry+analyzer]
	if reg == 0 || gone > reg {
		return was, 0, nil
	}
	return was, reg, m.entries[reg-1].Event.Decode(&was)
}

func (m *model) announce(_ context.Context, r schemas.Registration) (seq uint64, err error) {
	err = m.step(func() { seq = m.event(registry+r.Name, "_registry", "", r) })
	return seq, err
}

func (m *model) retract(_ context.Context, analyzer string) error {
	return m.step(func() { m.event(unregistry+analyzer, "_registry", "", schemas.Unregistration{Name: analyzer}) })
}

func (m *model) consumer(_ context.Context, name string) (*jetstream.ConsumerConfig, error) {
	if c := m.consumers[name]; c != nil {
		cfg := c.cfg
		return &cfg, nil
	}
	return nil, nil
}

func (m *model) setConsumer(_ context.Context, cfg jetstream.ConsumerConfig) error {
	return m.step(func() {
		c := m.consumers[cfg.Durable]
		if c == nil {
			c = &modelConsumer{next: cfg.OptStartSeq, pending: map[uint64]int{}}
			m.consumers[cfg.Durable] = c
		} else if c.cfg.OptStartSeq != cfg.OptStartSeq {
			m.t.Errorf("the start of a consumer cannot be changed: %d, %d", c.cfg.OptStartSeq, cfg.OptStartSeq)
		}
		c.cfg = cfg
	})
}

func (m *model) dropConsumer(_ context.Context, name string) error {
	return m.step(func() { delete(m.consumers, name) })
}

func (m *model) event(subject, tenant, analysis string, data schemas.Typed) uint64 {
	m.events++
	name, rest, _ := strings.Cut(strings.TrimPrefix(subject, logPrefix+tenant+"."), ".")
	id := name + "/" + strings.ReplaceAll(rest, ".", "/")
	if _, ok := data.(schemas.Artifact); !ok {
		id = name + "/context/" + strconv.Itoa(m.events)
	}
	e, err := schemas.NewEvent(tenant, analysis, id, m.at, schemas.OriginHost, data)
	if err != nil {
		m.t.Fatal(err)
	}
	msg, err := newBatchMsg(subject, e, false)
	if err != nil {
		m.t.Fatal(err)
	}
	return m.put(msg)
}

// modelBytes are the contents of the model's artifacts: few, so that they meet
// again.
func modelBytes(i int) schemas.Digest { return schemas.Sum([]byte{byte(i)}) }

var modelKinds = []schemas.Kind{schemas.KindSample, schemas.KindDropped, schemas.KindPcap}

func newModel(t *testing.T, seed uint64) *model {
	m := &model{
		modelLog: modelLog{last: map[string]uint64{}}, t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 1)),
		tenant: schemas.DefaultTenant, at: time.Unix(1_800_000_000, 0).UTC(), consumers: map[string]*modelConsumer{},
	}
	m.analysis = schemas.NewID(m.at)
	m.clerk = &Clerk{ledger: m, log: slog.New(slog.DiscardHandler)}
	m.waiter = newCredit(m.tenant, m.analysis, nil)
	reg := func(name, version string, kinds ...schemas.Kind) schemas.Registration {
		r := schemas.Registration{Name: name, Version: version, Kinds: kinds, Scope: schemas.ScopeArtifact}
		if len(kinds) == 0 {
			r.Scope = schemas.ScopeAnalysis
		}
		return r
	}
	after := reg("summary", "1.0.0")
	after.After = afterArtifacts
	m.analyzers = []*modelAnalyzer{
		{name: "static", choices: []schemas.Registration{reg("static", "1.0.0", "sample"), reg("static", "2.0.0", "sample", "dropped"), reg("static", "3.0.0", "dropped")}},
		{name: "unpack", choices: []schemas.Registration{reg("unpack", "1.0.0", "sample", "dropped"), reg("unpack", "2.0.0", "sample", "dropped")}},
		{name: "flows", choices: []schemas.Registration{reg("flows", "1.0.0", "pcap")}},
		{name: "summary", choices: []schemas.Registration{after}},
		{name: "whole", choices: []schemas.Registration{reg("whole", "1.0.0"), reg("whole", "2.0.0", "pcap")}},
	}
	early := m.rng.IntN(2) == 0 // most are there before anything happens
	for _, a := range m.analyzers {
		a.poison = m.rng.IntN(6) == 0
		if early && m.rng.IntN(4) > 0 {
			a.want = &a.choices[0]
			m.calm = true
			m.membership(a)
			m.calm = false
		}
	}
	return m
}

// act is one step of somebody.
func (m *model) act() {
	a := m.analyzers[m.rng.IntN(len(m.analyzers))]
	switch n := m.rng.IntN(100); {
	case n < 10:
		m.sandbox()
	case n < 16:
		if a.want == nil && !a.leaving && !a.dead {
			r := a.choices[m.rng.IntN(len(a.choices))]
			a.want = &r
		}
		m.membership(a)
	case n < 18:
		a.leaving = a.want == nil && !a.dead && m.last[registry+a.name] > m.last[unregistry+a.name]
		m.membership(a)
	case n < 24:
		m.membership(a)
	case n < 44:
		m.take(a)
	case n < 64:
		m.work(a)
	case n < 69:
		m.expire(a)
	case n < 84:
		m.examine()
	case n < 96:
		m.commit()
	case n < 98:
		m.astray()
	default:
		if m.rng.IntN(40) == 0 {
			a.dead, a.hands = true, nil
		}
	}
}

// astray has the server store an answer where somebody is about to write.
func (m *model) astray() {
	m.count.Astray++
	if len(m.commits) > 0 {
		c := m.commits[m.rng.IntN(len(m.commits))]
		if msg := c.msgs[m.rng.IntN(len(c.msgs))]; m.last[msg.subject] == 0 {
			m.stray(msg.subject)
			return
		}
	}
	art := schemas.Artifact{Kind: modelKinds[m.rng.IntN(len(modelKinds))], SHA256: modelBytes(m.rng.IntN(4)), Occurrence: m.rng.IntN(3)}
	m.stray(artifactSubject(m.tenant, m.analysis, &art))
}

// sandbox announces, begins the analysis, and at last the wait.
func (m *model) sandbox() {
	switch {
	case m.started:
	case m.announced == 0 || m.announced < 6 && m.rng.IntN(3) > 0:
		m.announced++
		kind := modelKinds[m.rng.IntN(len(modelKinds))]
		art := schemas.Artifact{Kind: kind, SHA256: modelBytes(m.rng.IntN(4))}
		var err error
		if art.Occurrence, err = nextOccurrence(context.Background(), m, artifactsOf(m.tenant, m.analysis, string(kind), art.SHA256)); err != nil {
			m.t.Fatal(err)
		}
		m.event(artifactSubject(m.tenant, m.analysis, &art), m.tenant, m.analysis, art)
	default:
		m.started = true
		m.event(contextSubject(m.tenant, m.analysis, schemas.EventStartAnalysis), m.tenant, m.analysis, schemas.StartAnalysis{})
	}
}

// membership goes on with what an analyzer is about to register or withdraw.
func (m *model) membership(a *modelAnalyzer) {
	if a.dead {
		return
	}
	ctx := context.Background()
	switch {
	case a.want != nil:
		if err := register(ctx, m, *a.want); err == nil {
			a.want = nil
		} else if !errors.Is(err, errModelCrash) {
			m.t.Error(err)
		} else if m.rng.IntN(3) == 0 { // and comes back as another one
			r := a.choices[m.rng.IntN(len(a.choices))]
			a.want = &r
		}
	case a.leaving:
		err := unregister(ctx, m, a.name)
		if err != nil && !errors.Is(err, errModelCrash) {
			m.t.Error(err)
		}
		// Who has died in it does not always come back to it.
		a.leaving = err != nil && m.last[registry+a.name] > m.last[unregistry+a.name]
	}
}

// take gives a process of an analyzer a task, as [Bus.NextTask] does. It reports
// whether the consumer had something.
func (m *model) take(a *modelAnalyzer) (delivered bool) {
	c := m.consumers[liveConsumerName(a.name)]
	if c == nil || a.dead || len(a.hands) > 3 {
		return false
	}
	e, n, ok := c.deliver(&m.modelLog, func(seq uint64) { m.giveUp(a.name, seq) })
	if !ok {
		return false
	}
	ref, _, err := taskOf(a.name, e.Subject, e.Body)
	if err != nil {
		if !e.foreign {
			m.t.Fatal(err)
		}
		c.ack(e.Seq)
		return true
	}
	if _, err := m.lastMsg(context.Background(), receiptSubject(ref)); err == nil {
		c.ack(e.Seq)
		return true
	}
	m.count.Tasks++
	a.hands = append(a.hands, modelTask{ref: ref, seq: e.Seq, attempt: n, held: a.name == "summary"})
	return true
}

// giveUp answers a task that was given out too often, as the bus' process does.
func (m *model) giveUp(analyzer string, seq uint64) {
	e := m.entries[seq-1]
	f, err := lostTask(streamLog, analyzer, e.Subject, e.Body)
	if e.foreign {
		return
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.count.Poison++
	m.inbox = append(m.inbox, &modelInbox{f: f})
}

// work goes on with a task in somebody's hands.
func (m *model) work(a *modelAnalyzer) {
	if len(a.hands) == 0 {
		return
	}
	i := m.rng.IntN(len(a.hands))
	k := a.hands[i]
	if k.held { // it may not begin before the log says so
		c := newCredit(m.tenant, m.analysis, nil)
		for _, e := range m.entries {
			if !e.foreign {
				c.apply(e)
			}
		}
		if !c.begins(nil) {
			return
		}
		if want := m.artifactsOwed(); len(want) > 0 && !c.ended {
			m.t.Errorf("seed %d: a task begins that comes after %v", m.seed, want)
		}
		a.hands[i].held = false
		return
	}
	a.hands = slices.Delete(a.hands, i, i+1)
	c := m.consumers[liveConsumerName(a.name)]
	f := schemas.FinishedTask{Task: k.ref, Version: "1.0.0", Instance: strconv.Itoa(m.rng.IntN(3)), Status: schemas.TaskDone}
	// Nobody but flows' server counts how often flows dies of a task.
	if k.attempt > 3 && a.name != "flows" {
		f.Status, f.Error = schemas.TaskFailed, "poison"
	} else {
		if a.poison && (!m.calm || a.name == "flows") || m.dies(15) {
			if c != nil {
				c.nak(k.seq)
			}
			return // the task comes again when its time is up
		}
		for n := range len(a.name) % 3 {
			f.Findings = append(f.Findings, schemas.Finding{Kind: "k", Title: strconv.Itoa(n)})
		}
		if a.name == "unpack" && k.ref.SHA256 != nil && k.ref.SHA256[0]%2 == 0 {
			f.Derived = append(f.Derived, schemas.Derived{Kind: "dropped", SHA256: modelBytes(int(k.ref.SHA256[1]) % 6)}, schemas.Derived{Kind: "pcap", SHA256: modelBytes(5)})
		}
	}
	m.inbox = append(m.inbox, &modelInbox{f: f})
	if m.dies(15) { // handed in, and not acknowledged
		return
	}
	if c != nil {
		c.ack(k.seq)
	}
}

// expire has the time of a task run out, whoever works on it.
func (m *model) expire(a *modelAnalyzer) {
	c := m.consumers[liveConsumerName(a.name)]
	if c == nil || len(c.pending) == 0 {
		return
	}
	keys := slices.Sorted(maps.Keys(c.pending))
	seq := keys[m.rng.IntN(len(keys))]
	if m.calm && slices.ContainsFunc(a.hands, func(k modelTask) bool { return k.seq == seq }) {
		return
	}
	c.nak(seq)
}

// examine has a clerk take a finished task and decide on it.
func (m *model) examine() {
	var free []*modelInbox
	for _, in := range m.inbox {
		if !in.taken {
			free = append(free, in)
		}
	}
	if len(free) == 0 {
		return
	}
	in := free[m.rng.IntN(len(free))]
	in.taken = true
	in.deliveries++
	ctx := context.Background()
	parent, receipt, err := m.clerk.examine(ctx, &in.f, in.deliveries > 1)
	var refused errRefused
	switch {
	case errors.As(err, &refused):
		m.count.Refused++
		if w := m.withdrawnBy(in.f.Task); !w {
			m.t.Errorf("seed %d: refused: %v", m.seed, err)
		}
		m.done(in)
		return
	case err != nil:
		m.t.Errorf("seed %d: examine: %v", m.seed, err)
	case receipt != nil:
		m.count.Rejected++
		m.done(in)
		return
	}
	msgs, err := m.clerk.messages(ctx, &in.f, parent, m.at)
	if errors.As(err, &refused) { // derived too often
		in.f.Derived = nil
		msgs, err = m.clerk.messages(ctx, &in.f, parent, m.at)
	}
	if err != nil {
		m.t.Errorf("seed %d: messages: %v", m.seed, err)
		return
	}
	m.commits = append(m.commits, &modelCommit{in, parent, msgs})
}

func (m *model) done(in *modelInbox) {
	m.inbox = slices.DeleteFunc(m.inbox, func(i *modelInbox) bool { return i == in })
}

// commit has the clerk write what it has examined, as one group.
func (m *model) commit() {
	if len(m.commits) == 0 {
		return
	}
	n := 1 + m.rng.IntN(len(m.commits))
	m.rng.Shuffle(len(m.commits), func(i, j int) { m.commits[i], m.commits[j] = m.commits[j], m.commits[i] })
	batch := m.commits[:n]
	m.commits = slices.Clone(m.commits[n:])
	again := func() {
		for _, c := range batch {
			c.in.taken = false // it comes again when its time is up
		}
	}
	if m.dies(15) {
		again()
		return
	}
	var tasks []*groupTask
	for _, c := range batch {
		tasks = append(tasks, &groupTask{receipt: receiptSubject(c.in.f.Task), msgs: c.msgs, done: make(chan groupResult, 1)})
	}
	before := len(m.entries)
	newGroup(m).write(context.Background(), tasks)
	if len(m.entries) == before {
		m.count.Rejected++
	}
	if m.dies(15) {
		again()
		return
	}
	for i, c := range batch {
		r := <-tasks[i].done
		switch {
		case r.err == nil:
			m.done(c.in)
		case errors.Is(r.err, errConflict):
			c.in.taken = false
		default:
			m.t.Errorf("seed %d: commit: %v", m.seed, r.err)
		}
	}
}

// obligation is what the rule says that somebody owes, or owed.
type obligation struct {
	key                 string
	artifact            bool
	answered, withdrawn bool
}

// obligations is the rule: who was registered for a kind when it was announced
// owes an answer, until there is one, or until the log says that he does not
// want that kind any more.
func (m *model) obligations() map[string]*obligation {
	type reg = schemas.Registration
	out := map[string]*obligation{}
	regs := make([]map[string]reg, len(m.entries)+1) // who was registered before each entry
	now := map[string]reg{}
	receipts := map[string]bool{}
	for i, e := range m.entries {
		regs[i] = now
		var r reg
		var u schemas.Unregistration
		var rc schemas.Receipt
		switch {
		case strings.HasPrefix(e.Subject, registry):
			if e.Event.Decode(&r) == nil {
				now = maps.Clone(now)
				now[r.Name] = r
			}
		case strings.HasPrefix(e.Subject, unregistry):
			if e.Event.Decode(&u) == nil {
				now = maps.Clone(now)
				delete(now, u.Name)
			}
		case e.Event.Family() == "receipt":
			if e.Event.Decode(&rc) == nil {
				receipts[rc.Task.Analyzer+"/"+rc.Task.Token()] = true
			}
		}
	}
	regs[len(m.entries)] = now
	for i, e := range m.entries {
		kind, token := schemas.Kind(""), "_"
		if e.Event.Family() == "artifact" {
			var a schemas.Artifact
			if e.Event.Decode(&a) != nil {
				continue
			}
			kind, token = a.Kind, a.SHA256.Token()
		} else if e.Event.Name() != schemas.EventStartAnalysis {
			continue
		}
		for name, r := range regs[i] {
			if !wants(r, kind) {
				continue
			}
			key := name + "/" + token
			gone := false
			for _, later := range regs[i+1:] {
				l, there := later[name]
				gone = gone || !there || !wants(l, kind)
			}
			o := out[key]
			if o == nil {
				o = &obligation{key: key, artifact: token != "_", answered: receipts[key], withdrawn: true}
				out[key] = o
			}
			o.withdrawn = o.withdrawn && gone
		}
	}
	return out
}

func (m *model) artifactsOwed() []string {
	var out []string
	for key, o := range m.obligations() {
		if o.artifact && !o.answered && !o.withdrawn {
			out = append(out, key)
		}
	}
	return out
}

// withdrawnBy reports whether an analyzer's last registration is not for a task.
func (m *model) withdrawnBy(t schemas.TaskRef) bool {
	var r schemas.Registration
	if err := m.entries[m.last[registry+t.Analyzer]-1].Event.Decode(&r); err != nil {
		return false
	}
	return !wants(r, t.Kind)
}

// check compares what the waiter thinks with the rule.
func (m *model) check() {
	closed := false
	for ; m.read < len(m.entries); m.read++ {
		if e := m.entries[m.read]; !e.foreign {
			m.waiter.apply(e)
		}
		// A reader may stand between any two entries of a commit.
		closed = closed || m.waiter.complete(nil) && len(m.waiter.missing(nil)) == 0
	}
	if closed && !m.waiter.complete(nil) {
		m.t.Errorf("seed %d: a reader in the middle of a commit would have ended the analysis", m.seed)
	}
	owed, withdrawn := 0, map[string]bool{}
	for key, o := range m.obligations() {
		switch {
		case o.answered:
		case o.withdrawn:
			withdrawn[key] = true
		default:
			owed++
		}
	}
	whole := m.started && owed == 0
	if got := m.waiter.complete(nil); got != whole {
		m.t.Errorf("seed %d: complete is %v, but %d tasks are owed", m.seed, got, owed)
	}
	said := map[string]bool{}
	for _, x := range m.waiter.missing(nil) {
		if x.Reason == schemas.MissingWithdrawn {
			said[creditKey(schemas.TaskRef{Analyzer: x.Analyzer, SHA256: x.SHA256})] = true
		}
	}
	if !maps.Equal(said, withdrawn) {
		m.t.Errorf("seed %d: withdrawn are %v, said is %v", m.seed, withdrawn, said)
	}
	if whole && m.ended == nil {
		m.end()
	}
}

// end ends the analysis, as any waiter may, once.
func (m *model) end() {
	m.ended = m.waiter.missing(nil)
	m.wasWhole = len(m.ended) == 0
	switch {
	case !m.waiter.complete(nil):
		m.count.Deadline++
	case m.wasWhole:
		m.count.Whole++
	default:
		m.count.Withdrawn++
	}
	msg := contextSubject(m.tenant, m.analysis, schemas.EventCompleted)
	if m.last[msg] > 0 {
		m.t.Errorf("seed %d: a second ending", m.seed)
	}
	m.event(msg, m.tenant, m.analysis, schemas.AnalysisCompleted{Missing: m.ended})
}

// audit looks at the whole log: each task has one receipt at most, and exactly
// the findings that it speaks of.
func (m *model) audit() {
	findings, receipts := map[string]map[int]int{}, map[string]schemas.Receipt{}
	for _, e := range m.entries {
		switch e.Event.Family() {
		case "finding":
			var f schemas.FindingCommitted
			if err := e.Event.Decode(&f); err != nil {
				m.t.Fatal(err)
			}
			key := creditKey(f.Task)
			if findings[key] == nil {
				findings[key] = map[int]int{}
			}
			findings[key][f.N]++
		case "receipt":
			var r schemas.Receipt
			if err := e.Event.Decode(&r); err != nil {
				m.t.Fatal(err)
			}
			key := creditKey(r.Task)
			if _, ok := receipts[key]; ok {
				m.t.Errorf("seed %d: two receipts of %s", m.seed, key)
			}
			receipts[key] = r
			m.count.Receipts++
		}
	}
	for key, ns := range findings {
		if _, ok := receipts[key]; !ok {
			m.t.Errorf("seed %d: findings of %s without a receipt", m.seed, key)
		}
		for n, times := range ns {
			if times != 1 {
				m.t.Errorf("seed %d: finding %d of %s is there %d times", m.seed, n, key, times)
			}
		}
	}
	for key, r := range receipts {
		if len(findings[key]) != r.Findings {
			m.t.Errorf("seed %d: %d findings of %s, and its receipt says %d", m.seed, len(findings[key]), key, r.Findings)
		}
	}
}

// walk takes one walk: some wild steps, then the deadline if nothing has ended
// the analysis, and then a calm in which all that is alive does its work.
func walk(t *testing.T, seed uint64) modelCounts {
	m := newModel(t, seed)
	steps := 60 + m.rng.IntN(300)
	early := m.rng.IntN(3) == 0 // the deadline is in the wild
	for range steps {
		m.count.Steps++
		m.act()
		if n := len(m.entries); n != m.read {
			m.check()
		}
		if t.Failed() {
			return m.count
		}
	}
	if early && m.started && m.ended == nil {
		m.check()
		m.end()
	}
	m.calm = true
	if !m.started {
		m.announced = 6
		m.sandbox()
	}
	for _, a := range m.analyzers {
		for a.want != nil || a.leaving {
			if a.dead {
				break
			}
			m.membership(a)
		}
	}
	for idle := 0; idle < 3; idle++ {
		for _, a := range m.analyzers {
			if m.take(a) {
				idle = 0
			}
			for range len(a.hands) {
				m.work(a)
			}
			m.expire(a)
		}
		for len(m.inbox) > 0 {
			m.examine()
			m.commit()
			idle = 0
		}
		m.check()
		if t.Failed() {
			return m.count
		}
	}
	m.settled()
	m.audit()
	return m.count
}

// settled checks that in the calm everything was answered that somebody alive
// owed, and that an end came.
func (m *model) settled() {
	dead := map[string]bool{}
	for _, a := range m.analyzers {
		dead[a.name] = a.dead
	}
	for key, o := range m.obligations() {
		name, _, _ := strings.Cut(key, "/")
		if name == "summary" && slices.ContainsFunc(m.artifactsOwed(), func(string) bool { return true }) {
			continue // it is held until the deadline, which the dead bring about
		}
		if !o.answered && !o.withdrawn && !dead[name] {
			m.t.Errorf("seed %d: nobody has done %s", m.seed, key)
		}
	}
	if m.ended == nil {
		m.end() // the deadline
	}
	if !m.waiter.complete(dead) && len(m.artifactsOwed()) == 0 {
		m.t.Errorf("seed %d: it waits for somebody who is alive: %v", m.seed, fmt.Sprint(m.waiter.missing(nil)))
	}
	// A whole ending is never found to have been too early.
	if m.wasWhole {
		for key, o := range m.obligations() {
			if !o.answered && !o.withdrawn {
				m.t.Errorf("seed %d: the analysis ended as whole, and then %s was owed", m.seed, key)
			}
		}
	}
}
