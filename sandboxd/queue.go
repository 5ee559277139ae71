// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"sync"

	"github.com/petri-sandbox/petri/sandboxd/machine"
)

// A factQueue holds what a machine reports until somebody has dealt with it.
// It never makes the machine wait: the answers to requests come over the same
// link, that to "stand still" among them. What does not fit is counted.
type factQueue struct {
	max  int
	wake chan struct{} // holds a word when there is something to see

	mu      sync.Mutex
	waiting []machine.Event
	left    int // that did not fit, not yet told
	closed  bool
}

func newFactQueue(limit int) *factQueue {
	return &factQueue{max: limit, wake: make(chan struct{}, 1)}
}

// put appends e unless the queue is full or closed. One that must not get lost
// fits always; a machine makes few of them.
func (q *factQueue) put(e machine.Event, must bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	if len(q.waiting) >= q.max && !must {
		q.left++
		return false
	}
	q.waiting = append(q.waiting, e)
	q.signal()
	return true
}

// close ends the queue for those who put; what waits can still be taken.
func (q *factQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.signal()
}

func (q *factQueue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take waits for the next ones. It returns them all, how many did not fit
// meanwhile, and whether more may come. It is for one goroutine.
func (q *factQueue) take() (events []machine.Event, left int, more bool) {
	for {
		q.mu.Lock()
		events, left, more = q.waiting, q.left, !q.closed
		q.waiting, q.left = nil, 0
		q.mu.Unlock()
		if len(events) > 0 || left > 0 || !more {
			return events, left, more
		}
		<-q.wake
	}
}
