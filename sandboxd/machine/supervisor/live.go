// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"bytes"
	"fmt"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/behavior"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// The budget of live events: they are for eyes, and the trace has everything.
const (
	liveRate   = 200    // events a second
	liveBurst  = 1000   // events at once
	liveTotal  = 20_000 // events of an analysis
	liveBlocks = 64     // blocks of the trace that wait to be decoded
)

// live looks at the trace on its way through: it keeps the counts for the
// coverage, and shows what the sample does as it does it. The decoding has its
// own goroutine and never holds the trace up: what it cannot follow is not
// shown, and counted.
type live struct {
	out    *observer
	buf    []byte
	totals trace.Header
	last   []byte // the newest block: it ends in the counters, once flushed
	bad    string // why the bytes are no trace any more

	blocks     chan []byte // closed by end
	done       chan struct{}
	suppressed map[string]uint64 // the goroutine's until done is closed
	overrun    uint64            // records that were never decoded for eyes
}

func newLive(out *observer) *live {
	l := &live{out: out, blocks: make(chan []byte, liveBlocks), done: make(chan struct{}), suppressed: map[string]uint64{}}
	go l.show()
	return l
}

// add takes the next bytes of the trace.
func (l *live) add(p []byte) {
	if l.bad != "" {
		return
	}
	l.buf = append(l.buf, p...)
	for {
		h, block, rest, err := trace.NextBlock(l.buf)
		if err != nil {
			l.bad = err.Error()
			return
		}
		if block == nil {
			return
		}
		l.totals = h
		l.last = bytes.Clone(block)
		select {
		case l.blocks <- l.last:
		default:
			l.overrun += uint64(h.Count)
		}
		l.buf = append(l.buf[:0:0], rest...)
	}
}

// show decodes blocks and sends the events that the budget allows.
func (l *live) show() {
	defer close(l.done)
	sent, tokens, at := 0, float64(liveBurst), time.Now()
	number := uint64(0)
	tracker := behavior.New(func(b schemas.Behavior) {
		now := time.Now()
		tokens = min(liveBurst, tokens+now.Sub(at).Seconds()*liveRate)
		at = now
		number++ // also of what the budget leaves out, so that it can be seen
		if tokens < 1 || sent >= liveTotal {
			l.suppressed[b.Category+"."+b.Action]++
			return
		}
		tokens--
		sent++
		b.Number = number
		l.out.Event(machine.Event{Time: now, Behavior: &b})
	})
	pipe := &blockReader{blocks: l.blocks}
	r := trace.NewReader(pipe)
	for {
		rec, err := r.Next()
		if err != nil {
			tracker.Settle()
			return
		}
		tracker.Add(rec)
	}
}

// blockReader gives a channel of blocks as a stream.
type blockReader struct {
	blocks <-chan []byte
	rest   []byte
}

func (r *blockReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		b, ok := <-r.blocks
		if !ok {
			return 0, errEnd
		}
		r.rest = b
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

var errEnd = fmt.Errorf("the trace has ended")

// end returns what became of the trace. Nothing comes after it.
func (l *live) end(c schemas.SourceCoverage) schemas.SourceCoverage {
	close(l.blocks)
	<-l.done
	c.Produced, c.Lost, c.Unreadable = l.totals.Produced, l.totals.Lost, l.totals.Unreadable
	var untracked uint64
	r := trace.NewReader(bytes.NewReader(l.last))
	for {
		rec, err := r.Next()
		if err != nil {
			break
		}
		if rec.Type == trace.Stats {
			c.PerCPU = append(c.PerCPU, schemas.CPUCoverage{CPU: int(rec.Args[0]), Produced: rec.Args[1], Lost: rec.Args[2]})
			untracked += rec.Args[4]
		}
	}
	if len(l.suppressed) > 0 || l.overrun > 0 {
		c.Suppressed = l.suppressed
		if l.overrun > 0 {
			c.Suppressed["records"] = l.overrun
		}
	}
	switch {
	case l.bad != "":
		c.Status, c.Reason = schemas.StatusPartial, "malformed: "+l.bad
	case untracked > 0:
		c.Status, c.Reason = schemas.StatusPartial, fmt.Sprintf("%d processes could not be followed", untracked)
	case c.Lost > 0:
		c.Status, c.Reason = schemas.StatusPartial, fmt.Sprintf("%d of %d records lost", c.Lost, c.Produced)
	case len(c.PerCPU) == 0 && c.Status == schemas.StatusWhole:
		c.Status, c.Reason = schemas.StatusPartial, "it ends without the tracer's last counts"
	}
	return c
}
