// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// chainModel is a log of which two servers believe that they lead it. The old
// leader knows what had been stored when it was cut off, and stores nothing any
// more.
type chainModel struct {
	stored []link // in their order; the first has sequence 1
	first  uint64 // sequence of the first that has not been taken out of the log
	known  int    // how many the old leader knows; it has not heard of any taking out

	// What meets the next request: script first, then chance.
	script []string
	chance func() string
	forget bool // the server has forgotten the ids
	tries  int
}

// What may meet a request: the leader's answer, one that is lost, the old
// leader's, or that of the old leader while the leader has been asked too. Before
// it another writer may come, or the archiver.
const (
	metLeader = "leader"
	metLost   = "lost"
	metOld    = "old"
	metBoth   = "both"
	metOther  = "other writes, "
	metPurge  = "archived, "
)

func (c *chainModel) next() string {
	if c.tries++; len(c.script) == 0 {
		return c.chance()
	}
	s := c.script[0]
	c.script = c.script[1:]
	return s
}

func (c *chainModel) meet() string {
	s, other := strings.CutPrefix(c.next(), metOther)
	if other {
		c.stored = append(c.stored, link{id: fmt.Sprint("other ", len(c.stored))})
	}
	s, purge := strings.CutPrefix(s, metPurge)
	if purge {
		c.first = uint64(len(c.stored)) + 1
	}
	return s
}

// at is what a server has: messages from a sequence on.
func (c *chainModel) at(old bool) (first uint64, stored []link) {
	if old {
		return 1, c.stored[:c.known]
	}
	return c.first, c.stored
}

func (c *chainModel) storeLink(_ context.Context, l link) (uint64, error) {
	switch c.meet() {
	case metOld:
		return c.storeAt(l, true)
	case metBoth:
		_, _ = c.storeAt(l, false)
		return c.storeAt(l, true)
	case metLost:
		_, _ = c.storeAt(l, false)
		return 0, context.DeadlineExceeded
	}
	return c.storeAt(l, false)
}

// storeAt is what a server does with a link.
func (c *chainModel) storeAt(l link, old bool) (uint64, error) {
	first, stored := c.at(old)
	last := uint64(0)
	for i, s := range stored {
		if s.id == l.id && !c.forget {
			return uint64(i) + 1, nil
		}
		if uint64(i)+1 >= first {
			last = uint64(i) + 1
		}
	}
	if last != l.last {
		return 0, errModelTaken
	}
	if old { // it waits for the others
		return 0, context.DeadlineExceeded
	}
	c.stored = append(c.stored, l)
	return uint64(len(c.stored)), nil
}

func (c *chainModel) nextMsg(_ context.Context, _ string, from uint64) (*jetstream.RawStreamMsg, error) {
	met := c.meet()
	if met == metLost {
		return nil, context.DeadlineExceeded
	}
	first, stored := c.at(met != metLeader)
	if seq := max(from, first); seq <= uint64(len(stored)) {
		return &jetstream.RawStreamMsg{Sequence: seq, Header: nats.Header{jetstream.MsgIDHeader: {stored[seq-1].id}}}, nil
	}
	return nil, ErrNotFound
}

// gone asks the archive, which is none of the two leaders' log.
func (c *chainModel) gone(context.Context) (bool, error) { return c.first > 1, nil }

// check compares what a writer was told with what has happened.
func (c *chainModel) check(t *testing.T, l link, seq uint64, err error) {
	t.Helper()
	mine, others := 0, 0
	for i, s := range c.stored {
		switch at := uint64(i) + 1; {
		case s.id == l.id:
			mine++
			if err == nil && at != seq {
				t.Errorf("stored at %d, and the writer was told %d", at, seq)
			}
		case at > l.last:
			others++
		}
	}
	if mine > 1 || err == nil && mine != 1 {
		t.Errorf("stored %d times: %v", mine, err)
	}
	switch {
	case err == nil:
	case !errors.Is(err, ErrFenced):
		t.Errorf("the writer gives up: %v", err)
	case others == 0 && c.first == 1:
		t.Error("the writer was told of another, and there is none")
	}
}

// TestChain has a writer, whose last event is the third, meet what may come
// between it and the log.
func TestChain(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		what   string
		known  int // to the old leader
		forget bool
		script []string
		fenced bool
		tries  int
	}{
		{what: "nothing", known: 3, script: []string{metLeader}, tries: 1},
		{what: "the acknowledgement is lost", known: 3, script: []string{metLost, metLeader}, tries: 2},
		{what: "it is lost, and the server has forgotten the id", known: 3, forget: true, script: []string{metLost, metLeader, metLeader}, tries: 3},
		{what: "an old leader refuses and answers", known: 1, script: []string{metOld, metOld, metLeader}, tries: 3},
		{what: "an old leader refuses, the new one answers", known: 1, script: []string{metOld, metLeader, metLeader}, tries: 3},
		{what: "an old leader refuses what the new one stores, and answers", known: 1, script: []string{metBoth, metOld, metLeader}, tries: 3},
		{what: "an old leader refuses what the new one stores, which answers", known: 1, script: []string{metBoth, metLeader}, tries: 2},
		{what: "it was stored, and an old leader refuses for a minute", known: 2, script: append([]string{metLost}, times(60, metOld)...), tries: 62},
		{what: "an old leader takes it, and never answers", known: 3, script: []string{metOld, metOld, metLeader}, tries: 3},
		{what: "another writer", known: 3, script: []string{metOther + metLeader, metLeader}, fenced: true, tries: 2},
		{what: "another writer, of whom an old leader has not heard", known: 3, script: []string{metOther + metLeader, metOld, metLeader, metLeader}, fenced: true, tries: 4},
		{what: "another writer behind it, the acknowledgement lost", known: 3, forget: true, script: []string{metLost, metOther + metLeader, metLeader}, tries: 3},
		{what: "archived", known: 3, script: []string{metPurge + metLeader, metLeader}, fenced: true, tries: 2},
	} {
		t.Run(test.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &chainModel{first: 1, stored: []link{{id: "0"}, {id: "1"}, {id: "2"}}, known: test.known, forget: test.forget, script: test.script, chance: func() string { return metLeader }}
				l := link{id: "mine", last: 3}
				seq, err := appendLink(t.Context(), c, l, c.gone)
				c.check(t, l, seq, err)
				if errors.Is(err, ErrFenced) != test.fenced {
					t.Errorf("%v", err)
				}
				if c.tries != test.tries {
					t.Errorf("%d requests, not %d", c.tries, test.tries)
				}
			})
		})
	}
}

func times(n int, s string) []string {
	return strings.Split(strings.Repeat(s+"|", n-1)+s, "|")
}

// TestChainUnknown has nobody but the old leader answer: nobody knows then, and
// the writer is not told that it was overtaken.
func TestChainUnknown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &chainModel{first: 1, stored: []link{{id: "0"}, {id: "1"}}, known: 1, chance: func() string { return metOld }}
		begin := time.Now()
		_, err := appendLink(t.Context(), c, link{id: "mine", last: 2}, c.gone)
		if err == nil || errors.Is(err, ErrFenced) || time.Since(begin) < patience {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
	})
}

// TestChainWalks leaves to chance what meets a writer of many events.
func TestChainWalks(t *testing.T) {
	t.Parallel()
	written, fenced, archived := 0, 0, 0
	for seed := range uint64(2000) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			c := &chainModel{first: 1, forget: r.IntN(2) == 0}
			last := uint64(0)
			c.chance = func() string {
				if r.IntN(20) == 0 { // the old leader hears, or is another one
					c.known = max(c.known, r.IntN(len(c.stored)+1))
				}
				s := []string{metLeader, metLeader, metLost, metOld, metBoth}[r.IntN(5)]
				switch r.IntN(60) {
				case 0:
					s = metOther + s
				case 1:
					if last > 0 {
						s = metPurge + s
					}
				}
				return s
			}
			for i := range 20 {
				l := link{id: fmt.Sprint("mine ", i), last: last}
				seq, err := appendLink(t.Context(), c, l, c.gone)
				c.check(t, l, seq, err)
				if err != nil {
					fenced++
					break
				}
				written++
				last = seq
			}
			if c.first > 1 {
				archived++
			}
		})
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Logf("%d events written, %d writers fenced, %d analyses archived", written, fenced, archived)
	if written < 10000 || fenced < 100 || archived < 100 {
		t.Error("a model in which nothing happens shows nothing")
	}
}
