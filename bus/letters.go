// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// letters bounds how many dead letters one analyzer causes: whoever floods the
// inbox with what must be refused shall neither keep the clerk busy with burying
// nor drive others' letters out. It is safe for concurrent use.
type letters struct {
	mu    sync.Mutex
	since time.Time      // the window's begin
	spent map[string]int // letters in the window, by the analyzer
}

// An analyzer has so many letters in that time; more are counted.
const (
	lettersMax    = 100
	lettersWindow = time.Minute
)

func newLetters() *letters { return &letters{spent: map[string]int{}} }

// take asks for a letter of an analyzer, and returns how many too many that one
// has asked for in the window.
func (l *letters) take(analyzer string, now time.Time) (surplus int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.since) >= lettersWindow {
		l.since = now
		clear(l.spent)
	}
	l.spent[analyzer]++
	return max(0, l.spent[analyzer]-lettersMax)
}

// bury moves what was handed in to the dead letters of its analyzer, which is
// whoever the server lets write there, not who the message says it is.
func (c *Clerk) bury(m jetstream.Msg, why error) {
	analyzer := inboxAnalyzer(m.Subject())
	if n := c.letters.take(analyzer, time.Now()); n > 0 {
		if n&(n-1) == 0 { // the first, and then ever more seldom
			c.log.Warn("too many dead letters of one analyzer: the rest is only counted", "analyzer", analyzer, "dropped", n, "error", why)
		}
		_ = m.Ack()
		return
	}
	c.b.bury(streamInbox, "clerk."+analyzer, m, why)
}
