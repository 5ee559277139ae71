// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/reporters/fold"
	"github.com/petri-sandbox/petri/reporters/term"
	"github.com/petri-sandbox/petri/schemas"
)

// progress tells a person what happens, on standard error: a line per step, and
// on a terminal a last line that shows that time passes.
type progress struct {
	f     *os.File
	tty   bool
	width int
	begin time.Time
	stop  chan struct{}
	wg    sync.WaitGroup
	// making reports whether a sandbox on this host makes a template, which the
	// log tells only when it is done. May be nil.
	making func() bool

	mu     sync.Mutex
	status string // what is going on now
	drawn  bool   // the status line is on the screen
	ended  bool
	events int // of the context, so far
	counts map[schemas.Source]uint64
}

func newProgress(f *os.File) *progress {
	p := &progress{f: f, begin: time.Now(), stop: make(chan struct{}), counts: map[schemas.Source]uint64{}}
	p.width, p.tty = terminal(f)
	if p.tty {
		p.wg.Add(1)
		go p.tick()
	}
	return p
}

func (p *progress) tick() {
	defer p.wg.Done()
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			p.mu.Lock()
			p.draw()
			p.mu.Unlock()
		case <-p.stop:
			return
		}
	}
}

// draw shows the status line. The lock is held.
func (p *progress) draw() {
	if !p.tty || p.status == "" {
		return
	}
	fmt.Fprintf(p.f, "\r\x1b[K%s", term.Clip(fmt.Sprintf("%6.1fs  %s", time.Since(p.begin).Seconds(), p.status), p.width-1))
	p.drawn = true
}

func (p *progress) erase() {
	if p.drawn {
		fmt.Fprint(p.f, "\r\x1b[K")
		p.drawn = false
	}
}

// line prints a line that stays.
func (p *progress) line(what, detail string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	p.erase()
	fmt.Fprintln(p.f, strings.TrimRight(term.Clip(fmt.Sprintf("%6.1fs  %-18s %s", time.Since(p.begin).Seconds(), what, detail), max(p.width, 60)), " "))
	p.draw()
}

func (p *progress) set(status string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status = status
}

func (p *progress) note(text string) { p.line("note", text) }

// starting is told of each process of a node that comes up.
func (p *progress) starting(what string) { p.set("starting Petri: " + what) }

func (p *progress) submitted(s *schemas.Submission) {
	p.line("submitted", fmt.Sprintf("%s  %s, %s", s.ID, term.Size(s.Sample.Size), s.Sample.Type.Description))
	p.set("waiting for a sandbox")
}

// quietEvents are told by others, or of no interest while one waits.
var quietEvents = map[string]bool{
	schemas.EventSubmitted: true, "pre_pause": true, "pre_resume": true, "pre_shutdown": true, "pre_poweroff": true, "pre_restart": true,
}

// makingTick is how often one looks whether a template is being made.
const makingTick = 250 * time.Millisecond

// explain says what a sandbox does between its claim and its first step, if it
// is what takes long. It ends with the context's next event.
func (p *progress) explain() {
	if p.making == nil {
		return
	}
	p.mu.Lock()
	begin := p.events
	p.mu.Unlock()
	p.wg.Go(func() {
		t := time.NewTicker(makingTick)
		defer t.Stop()
		for {
			select {
			case <-t.C:
			case <-p.stop:
				return
			}
			p.mu.Lock()
			over := p.events != begin
			p.mu.Unlock()
			if over {
				return
			}
			if p.making() {
				p.note("preparing a warm snapshot, once per guest image")
				p.set("preparing a warm snapshot")
				return
			}
		}
	})
}

// event shows one event of the log.
func (p *progress) event(e schemas.Event) {
	if e.Family() == "context" { // analyzers answer meanwhile
		p.mu.Lock()
		p.events++
		p.mu.Unlock()
	}
	switch e.Family() {
	case "context":
		if quietEvents[e.Name()] {
			return
		}
		p.line(e.Name(), fold.Detail(e))
		p.set(doing(e.Name()))
		if e.Name() == schemas.EventClaimed {
			p.explain()
		}
	case "segment":
		var s schemas.Segment
		if json.Unmarshal(e.Data, &s) == nil && s.Source == schemas.SourceTrace {
			p.mu.Lock()
			p.counts[s.Source] += s.Records
			p.status = fmt.Sprintf("running: %d system calls so far", p.counts[s.Source])
			p.mu.Unlock()
		}
	case "receipt":
		var r schemas.Receipt
		if e.Decode(&r) == nil {
			p.line("analyzer "+r.Task.Analyzer, fmt.Sprintf("%s: %s, %d findings in %s", r.Task.Kind, r.Status, r.Findings, r.Took))
		}
	}
}

// doing says what goes on after an event.
func doing(event string) string {
	switch event {
	case schemas.EventClaimed, schemas.EventPrePoweron:
		return "starting the guest"
	case schemas.EventPostPoweron, schemas.EventGuestReady:
		return "waiting for the guest's address"
	case schemas.EventSampleStarted:
		return "running"
	case schemas.EventPostPause, schemas.EventSnapshotsCapture:
		return "capturing memory"
	case schemas.EventPostShutdown, schemas.EventPostPoweroff:
		return "storing artifacts"
	case schemas.EventWaitAnalysis:
		return "analysing"
	case schemas.EventCompleted, schemas.EventFailed, schemas.EventCancelled:
		return "writing the report"
	}
	return event
}

// done takes the last line away.
func (p *progress) done() {
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return
	}
	p.ended = true
	p.erase()
	p.mu.Unlock()
	close(p.stop)
	p.wg.Wait()
}
