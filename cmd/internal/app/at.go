// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/reporters/fold"
	"github.com/petri-sandbox/petri/schemas"
)

// FoldAt makes an analysis' report as it stood at a point of its log: behind
// its n-th event, behind the event of that id or the only context event of that
// name, or behind the last event before the first that is later than a time.
// Input that names no such point gives an error that wraps [ErrBadInput].
func FoldAt(ctx context.Context, b *bus.Bus, tenant, analysis, at string) (*schemas.Report, error) {
	p := point{at: at, analysis: analysis}
	if t, err := time.Parse(time.RFC3339Nano, at); err == nil {
		p.time = t
	}
	foreign, err := b.ReadCounting(ctx, tenant, analysis, 0, p.look)
	if err != nil {
		return nil, err
	}
	if p.events == 0 {
		return nil, fmt.Errorf("analysis %s: %w (petri list shows those there are)", analysis, bus.ErrNotFound)
	}
	n, err := p.ordinal()
	if err != nil {
		return nil, fmt.Errorf("%w: --at %.80q: %w", ErrBadInput, at, err)
	}
	f := fold.New()
	f.SetForeign(foreign) // of the whole log: they have no place among the events
	err = b.Read(ctx, tenant, analysis, 0, func(e bus.Entry) error {
		f.Add(e.Event)
		if f.Events() == n {
			return bus.ErrStop
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f.Report(documents{ctx, b.Artifacts().For(analysis)})
}

// point finds a point in a log.
type point struct {
	at       string
	analysis string
	time     time.Time

	events  int
	byID    int   // ordinal of the event of that id
	byName  []int // ordinals of the context events of that name
	byTime  int   // events before the first that is later
	later   bool
	first   time.Time
	context []string // for people
}

// maxPointNames bounds the names in an error.
const maxPointNames = 60

func (p *point) look(e bus.Entry) error {
	p.events++
	ev := e.Event
	if p.events == 1 {
		p.first = ev.Time
	}
	if ev.ID == p.at || ev.ID == p.analysis+"/"+p.at {
		p.byID = p.events
	}
	if ev.Family() == "context" {
		if ev.Name() == p.at {
			p.byName = append(p.byName, p.events)
		}
		if len(p.context) < maxPointNames {
			p.context = append(p.context, fmt.Sprintf("%d %s", p.events, ev.Name()))
		}
	}
	// A guest's clock is not to be trusted.
	if !p.time.IsZero() && ev.Origin == schemas.OriginHost && ev.Time.After(p.time) {
		p.later = true
	}
	if !p.later {
		p.byTime = p.events
	}
	return nil
}

func (p *point) ordinal() (int, error) {
	if n, err := strconv.Atoi(p.at); err == nil {
		if n < 1 || n > p.events {
			return 0, fmt.Errorf("the analysis has the events 1 to %d", p.events)
		}
		return n, nil
	}
	switch {
	case !p.time.IsZero() && p.byTime == 0:
		return 0, fmt.Errorf("the analysis begins at %s", p.first.Format(time.RFC3339Nano))
	case !p.time.IsZero():
		return p.byTime, nil
	case p.byID > 0:
		return p.byID, nil
	case len(p.byName) == 1:
		return p.byName[0], nil
	case len(p.byName) > 1:
		return 0, fmt.Errorf("there are %d events of that name, with the ordinals %s: say which", len(p.byName), strings.Trim(fmt.Sprint(p.byName), "[]"))
	}
	return 0, fmt.Errorf("it is no ordinal, no id or name of an event of this analysis, and no time (RFC 3339); it has %d events, of the context: %s", p.events, strings.Join(p.context, ", "))
}
