// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// What an analyzer hands in while an earlier answer is on its way goes into the
// inbox as one message, a JSON list of finished tasks: the server stores one, gives
// it out and takes it away, each with what that costs, where it were many. Whoever
// comes alone is a message alone.

// maxTogether bounds the finished tasks of one message.
const maxTogether = 32

// inboxLog is where finished tasks are handed in.
type inboxLog struct{ *Bus }

// publishBatch implements [groupLog].
func (b inboxLog) publishBatch(ctx context.Context, msgs []batchMsg) (uint64, error) {
	if msgs = together(msgs, int(b.together.Load())); len(msgs) == 1 {
		return b.publishOne(ctx, msgs[0])
	}
	return b.Bus.publishBatch(ctx, msgs)
}

// together puts an analyzer's finished tasks into as few messages as may be, of
// at most so many each.
func together(msgs []batchMsg, most int) (out []batchMsg) {
	slices.SortStableFunc(msgs, func(a, b batchMsg) int {
		return strings.Compare(inboxAnalyzer(a.subject), inboxAnalyzer(b.subject))
	})
	for len(msgs) > 0 {
		n, size := 1, len("[]")+len(msgs[0].body)
		for ; n < min(len(msgs), most) && inboxAnalyzer(msgs[n].subject) == inboxAnalyzer(msgs[0].subject); n++ {
			if size += len(",") + len(msgs[n].body); size > maxFinished {
				break
			}
		}
		out, msgs = append(out, list(msgs[:n])), msgs[n:]
	}
	return out
}

// list makes one message of some.
func list(msgs []batchMsg) batchMsg {
	if len(msgs) == 1 {
		return msgs[0]
	}
	var ids, bodies [][]byte
	for _, m := range msgs {
		ids, bodies = append(ids, []byte(m.id)), append(bodies, m.body)
	}
	m := msgs[0]
	m.id = schemas.Sum(bytes.Join(ids, []byte{' '})).Token()
	m.body = slices.Concat([]byte{'['}, bytes.Join(bodies, []byte{','}), []byte{']'})
	return m
}

// apart are the finished tasks of a message of the inbox. What is no list of so
// many as there may be is taken for one, and refused as that.
func apart(body []byte) []json.RawMessage {
	var list []json.RawMessage
	if !bytes.HasPrefix(body, []byte{'['}) || json.Unmarshal(body, &list) != nil || len(list) == 0 || len(list) > maxTogether {
		return []json.RawMessage{body}
	}
	return list
}

// handedIn are the finished tasks of a message, each in the place of a message.
func handedIn(m jetstream.Msg) []jetstream.Msg {
	list := apart(m.Data())
	if len(list) == 1 {
		return []jetstream.Msg{m}
	}
	all := &sharedMsg{Msg: m, left: len(list)}
	var out []jetstream.Msg
	for _, body := range list {
		out = append(out, partMsg{all, body})
	}
	return out
}

// sharedMsg is a message that is acknowledged when all its parts are dealt with,
// or given back for those that are to come again. The others come with them, and
// find their receipts.
type sharedMsg struct {
	jetstream.Msg
	mu   sync.Mutex
	left int
	back time.Duration // until it comes again; 0: it need not
}

func (s *sharedMsg) dealtWith(back time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.back = max(s.back, back)
	if s.left--; s.left > 0 {
		return nil
	}
	if s.back > 0 {
		return s.Msg.NakWithDelay(s.back)
	}
	return s.Msg.Ack()
}

// partMsg is a part of a message, with what the clerk does to a message. What it
// does not do, such as to give it back at once, would be done to the whole.
type partMsg struct {
	*sharedMsg
	body []byte
}

func (p partMsg) Data() []byte                       { return p.body }
func (p partMsg) Ack() error                         { return p.dealtWith(0) }
func (p partMsg) TermWithReason(string) error        { return p.dealtWith(0) }
func (p partMsg) NakWithDelay(d time.Duration) error { return p.dealtWith(max(d, 1)) }
