// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// amend notes an answer that came after its analysis had ended; seq is where
// its receipt lies. Of an answer that has been noted already it writes nothing,
// nor of one of a run: those change nothing until they are adopted.
func (c *Clerk) amend(ctx context.Context, t schemas.TaskRef, seq uint64) error {
	if t.Run != schemas.LiveRun {
		return nil
	}
	if before, err := c.beforeEnding(ctx, t); before || err != nil {
		return err
	}
	for {
		w, entries, err := c.b.openContext(ctx, t.Tenant, t.Analysis)
		if err != nil {
			return err
		}
		ended := false
		for _, e := range entries {
			switch {
			case schemas.Ending(e.Event.Name()):
				ended = e.Archived || e.Seq < seq
			case amends(e.Event, t):
				return nil
			}
		}
		if !ended {
			return nil
		}
		e, err := schemas.NewEvent(t.Tenant, t.Analysis, w.NextID(), time.Now(), schemas.OriginHost,
			schemas.AnalysisAmended{Analyzer: t.Analyzer, SHA256: t.SHA256, Run: t.Run})
		if err != nil {
			return err
		}
		if err := w.Write(ctx, e); !errors.Is(err, ErrFenced) {
			return err
		}
	}
}

// amends reports whether an event notes the answer to a task.
func amends(e schemas.Event, t schemas.TaskRef) bool {
	var a schemas.AnalysisAmended
	if e.Name() != schemas.EventAmended || e.Decode(&a) != nil || a.Analyzer != t.Analyzer || a.Run != t.Run {
		return false
	}
	if a.SHA256 == nil || t.SHA256 == nil {
		return a.SHA256 == t.SHA256
	}
	return *a.SHA256 == *t.SHA256
}

// beforeEnding reports, with one question where most answers come, that an
// analysis has not ended: the last that was heard of it is what comes before.
// False says nothing.
func (c *Clerk) beforeEnding(ctx context.Context, t schemas.TaskRef) (bool, error) {
	return c.endings.ask(t.Tenant+"."+t.Analysis, func() (bool, error) {
		m, err := c.b.lastMsg(ctx, contextSubject(t.Tenant, t.Analysis, "*"))
		if errors.Is(err, ErrNotFound) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		_, name, _ := strings.Cut(m.Subject, ".context.")
		return slices.Contains(neverLast, name), nil
	})
}

// asks puts the same question once for all who want to know at the same time:
// whoever comes before it has been put shares the answer.
type asks struct {
	slots chan struct{} // one element per question on its way
	mu    sync.Mutex
	next  map[string]*ask // not put yet
}

type ask struct {
	done chan struct{}
	yes  bool
	err  error
}

func newAsks() *asks { return &asks{slots: make(chan struct{}, 8), next: map[string]*ask{}} }

func (a *asks) ask(key string, put func() (bool, error)) (bool, error) {
	a.mu.Lock()
	if q, ok := a.next[key]; ok {
		a.mu.Unlock()
		<-q.done
		return q.yes, q.err
	}
	q := &ask{done: make(chan struct{})}
	a.next[key] = q
	a.mu.Unlock()
	a.slots <- struct{}{}
	a.mu.Lock()
	delete(a.next, key)
	a.mu.Unlock()
	q.yes, q.err = put()
	<-a.slots
	close(q.done)
	return q.yes, q.err
}

// neverLast are events behind which an analysis always has another: its ending,
// if nothing else. They are those that are the newest while analyzers work.
var neverLast = []string{
	schemas.EventSubmitted, schemas.EventClaimed, schemas.EventPrePoweron, schemas.EventPostPoweron, schemas.EventGuestReady,
	schemas.EventRunSample, schemas.EventSampleStarted, schemas.EventSampleExited, schemas.EventTreeExited,
	schemas.EventPrePoweroff, schemas.EventPostPoweroff, schemas.EventMachineOff,
	schemas.EventStartAnalysis, schemas.EventWaitAnalysis,
}
