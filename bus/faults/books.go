// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// Books are what an outsider remembers of a bus: what was acknowledged to whom,
// and which analyses were called complete when. They are compared with the log in
// the end, read by the server's own interface and not by Petri's, and with the
// rule of docs/architecture.md, written down once more. The zero value is empty
// books. They are safe for concurrent use.
type Books struct {
	mu     sync.Mutex
	acked  map[string]bool // ids of events
	claims []claim
}

// claim says that an analysis was called complete when the log ended at seq.
type claim struct {
	analysis string
	seq      uint64
}

// Ack notes that an event was acknowledged.
func (k *Books) Ack(event string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.acked == nil {
		k.acked = map[string]bool{}
	}
	k.acked[event] = true
}

// Acked is how many events were.
func (k *Books) Acked() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.acked)
}

// Complete notes that an analysis has just been called complete.
func (k *Books) Complete(ctx context.Context, js jetstream.JetStream, analysis string) error {
	st, err := state(ctx, js)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.claims = append(k.claims, claim{analysis, st.LastSeq})
	return nil
}

// stateWait is how long the log's state is asked for: its leader may have died.
const stateWait = time.Minute

// state asks the server how far the log goes, until it answers.
func state(ctx context.Context, js jetstream.JetStream) (jetstream.StreamState, error) {
	ctx, cancel := context.WithTimeout(ctx, stateWait)
	defer cancel()
	for {
		try, done := context.WithTimeout(ctx, 5*time.Second)
		st, err := js.Stream(try, "LOG")
		done()
		if err == nil {
			return st.CachedInfo().State, nil
		}
		if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return jetstream.StreamState{}, fmt.Errorf("look where the log ends: %w", err)
		}
	}
}

// auditIdle is how long an audit waits for the next message of a log that has
// more.
const auditIdle = 30 * time.Second

// Audit compares books with the log. What is called complete in the log itself is
// checked too.
func Audit(ctx context.Context, js jetstream.JetStream, books ...*Books) (Figures, error) {
	a := audit{there: map[string]bool{}, seen: map[string]int{}, regs: map[string]schemas.Registration{}, tasks: map[string]map[string]*span{}, started: map[string]uint64{}}
	if err := a.read(ctx, js); err != nil {
		return Figures{}, fmt.Errorf("audit the log: %w", err)
	}
	var f Figures
	for _, k := range books {
		k.mu.Lock()
		f.Acked += len(k.acked)
		for id := range k.acked {
			if !a.there[id] {
				f.Lost++
			}
		}
		a.claims = append(a.claims, k.claims...)
		k.mu.Unlock()
	}
	for _, n := range a.seen {
		f.Doubled += n - 1
	}
	for _, c := range a.claims {
		if !a.complete(c) {
			f.Wrong++
		}
	}
	return f, nil
}

// audit is what the log says.
type audit struct {
	there   map[string]bool // by the event's id
	seen    map[string]int  // by event, receipt and finding
	regs    map[string]schemas.Registration
	tasks   map[string]map[string]*span // by analysis, then by analyzer and artifact
	started map[string]uint64           // where start_analysis lies, by analysis
	claims  []claim
}

// span is where the log opens and closes a task.
type span struct{ opened, closed uint64 }

func (a *audit) read(ctx context.Context, js jetstream.JetStream) error {
	st, err := state(ctx, js)
	if err != nil {
		return err
	}
	if st.Msgs == 0 {
		return nil
	}
	cons, err := js.OrderedConsumer(ctx, "LOG", jetstream.OrderedConsumerConfig{FilterSubjects: []string{"petri.>"}})
	if err != nil {
		return err
	}
	msgs, err := cons.Messages()
	if err != nil {
		return err
	}
	defer msgs.Stop()
	for pending := st.Msgs; ; {
		m, err := msgs.Next(jetstream.NextMaxWait(auditIdle))
		if errors.Is(err, nats.ErrTimeout) && pending == 0 { // what lay behind was deleted
			return nil
		}
		if err != nil {
			return err
		}
		md, err := m.Metadata()
		if err != nil {
			return err
		}
		if err := a.take(md.Sequence.Stream, m.Data()); err != nil {
			return err
		}
		// The consumer may lie at a server that has to catch up, and for which
		// nothing more is pending yet.
		if pending = md.NumPending; pending == 0 && md.Sequence.Stream >= st.LastSeq {
			return nil
		}
	}
}

// take reads the next message of the log.
func (a *audit) take(seq uint64, body []byte) error {
	e, err := schemas.ParseEvent(body)
	if err != nil {
		return err
	}
	a.there[e.ID] = true
	id := e.ID
	switch e.Type {
	case schemas.Registration{}.EventType():
		var r schemas.Registration
		if err := e.Decode(&r); err != nil {
			return err
		}
		a.regs[r.Name] = r
		return nil
	case schemas.Unregistration{}.EventType():
		var u schemas.Unregistration
		if err := e.Decode(&u); err != nil {
			return err
		}
		delete(a.regs, u.Name)
		return nil
	case schemas.Artifact{}.EventType():
		var art schemas.Artifact
		if err := e.Decode(&art); err != nil {
			return err
		}
		for name, r := range a.regs {
			if r.Scope == schemas.ScopeArtifact && slices.Contains(r.Kinds, art.Kind) {
				a.open(e.Analysis, name+"/"+art.SHA256.Token(), seq)
			}
		}
	case schemas.StartAnalysis{}.EventType():
		if a.started[e.Analysis] == 0 {
			a.started[e.Analysis] = seq
		}
		for name, r := range a.regs {
			if r.Scope == schemas.ScopeAnalysis {
				a.open(e.Analysis, name+"/_", seq)
			}
		}
	case schemas.Receipt{}.EventType():
		var r schemas.Receipt
		if err := e.Decode(&r); err != nil {
			return err
		}
		id = fmt.Sprint("receipt ", r.Task.Analysis, r.Task.Run, "/", r.Task.Analyzer, "/", r.Task.Token())
		if s := a.tasks[e.Analysis][r.Task.Analyzer+"/"+r.Task.Token()]; s != nil && s.closed == 0 && r.Task.Run == schemas.LiveRun {
			s.closed = seq
		}
	case schemas.FindingCommitted{}.EventType():
		var f schemas.FindingCommitted
		if err := e.Decode(&f); err != nil {
			return err
		}
		id = fmt.Sprint("finding ", f.Task.Analysis, f.Task.Run, "/", f.Task.Analyzer, "/", f.Task.Token(), "/", f.N)
	case schemas.AnalysisCompleted{}.EventType():
		var c schemas.AnalysisCompleted
		if err := e.Decode(&c); err != nil {
			return err
		}
		if len(c.Missing) == 0 {
			a.claims = append(a.claims, claim{e.Analysis, seq})
		}
	}
	a.seen[id]++
	return nil
}

func (a *audit) open(analysis, task string, seq uint64) {
	of := a.tasks[analysis]
	if of == nil {
		of = map[string]*span{}
		a.tasks[analysis] = of
	}
	if of[task] == nil {
		of[task] = &span{opened: seq}
	}
}

// complete reports whether an analysis had come to its analyzers, and none of its
// tasks was open.
func (a *audit) complete(c claim) bool {
	if s := a.started[c.analysis]; s == 0 || s > c.seq {
		return false
	}
	for _, s := range a.tasks[c.analysis] {
		if s.opened <= c.seq && (s.closed == 0 || s.closed > c.seq) {
			return false
		}
	}
	return true
}

// Account audits the log of a test, and reports what that gives.
func Account(ctx context.Context, t Test, js jetstream.JetStream, note string, books ...*Books) {
	t.Helper()
	f, err := Audit(ctx, js, books...)
	if err != nil {
		t.Errorf("%v", err)
		return
	}
	f.Note = note
	f.Report(t)
}
