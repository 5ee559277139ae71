// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/petri-sandbox/petri/schemas"
)

// A Desk serves the users of tenants, who may not read the log and the store
// themselves: both hold everybody's, and the server's permissions cannot tell
// whose a message or an object is. The desk can. It answers one question at a
// time with one message, and remembers nothing but samples that are on their
// way in; any number of desks may serve the same log.
type Desk struct {
	b   *Bus
	log *slog.Logger

	slots    chan struct{} // a question each
	wg       sync.WaitGroup
	mu       sync.Mutex
	tenants  map[string]int      // questions and sessions in work
	sessions map[string]*session // by their last token
	names    nameCache

	counts struct{ taken, done, refused, busy, failed atomic.Uint64 }
}

// Bounds of a desk.
const (
	deskSlots    = 32               // questions in work
	deskTenant   = 8                // of one tenant, so that it does not take all
	deskWaiting  = 256              // messages that wait
	deskTime     = 20 * time.Second // for one answer
	deskSessions = 16               // samples on their way in
	deskUploads  = 4                // of one tenant
)

// NewDesk returns the desk of a bus.
func NewDesk(b *Bus, log *slog.Logger) *Desk {
	return &Desk{b: b, log: log, slots: make(chan struct{}, deskSlots), tenants: map[string]int{}, sessions: map[string]*session{}}
}

// DeskCounts are how many questions a desk has had.
type DeskCounts struct {
	Taken   uint64
	Done    uint64 // answered
	Refused uint64 // there was no such thing, or it was not the tenant's, or no question
	Busy    uint64 // told to come again
	Failed  uint64 // the desk's own trouble
}

// Counts may be called at any time.
func (d *Desk) Counts() DeskCounts {
	c := &d.counts
	return DeskCounts{c.taken.Load(), c.done.Load(), c.refused.Load(), c.busy.Load(), c.failed.Load()}
}

// Run serves until ctx is done.
func (d *Desk) Run(ctx context.Context) error {
	asked := make(chan *nats.Msg, deskWaiting)
	// Of several desks one gets the question.
	sub, err := d.b.nc.ChanQueueSubscribe(deskPrefix+"*.*", "desk", asked)
	if err != nil {
		return fmt.Errorf("open the desk: %w", err)
	}
	defer func() {
		_ = sub.Unsubscribe()
		d.closeSessions()
		d.wg.Wait()
		d.log.Info("the desk closes", "counts", d.Counts())
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-asked:
			d.take(ctx, m)
		}
	}
}

// take starts the answer to a question, or has it asked again later.
func (d *Desk) take(ctx context.Context, m *nats.Msg) {
	d.counts.taken.Add(1)
	tenant, what, a, err := parseAsk(m.Subject, m.Data)
	if err != nil {
		d.answer(m, nil, nil, err)
		return
	}
	select {
	case d.slots <- struct{}{}:
	default:
		d.answer(m, nil, nil, errDeskBusy)
		return
	}
	if !d.enter(tenant) {
		<-d.slots
		d.answer(m, nil, nil, errDeskBusy)
		return
	}
	d.wg.Go(func() {
		defer func() {
			d.leave(tenant)
			<-d.slots
		}()
		actx, cancel := context.WithTimeout(ctx, deskTime)
		defer cancel()
		body, header, err := d.reply(actx, ctx, tenant, what, a)
		d.answer(m, body, header, err)
	})
}

// errDeskBusy has whoever asks ask again.
var errDeskBusy = errors.New("too many questions at once")

func (d *Desk) enter(tenant string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tenants[tenant] >= deskTenant {
		return false
	}
	d.tenants[tenant]++
	return true
}

func (d *Desk) leave(tenant string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tenants[tenant]--; d.tenants[tenant] == 0 {
		delete(d.tenants, tenant)
	}
}

// Headers of an answer.
const (
	deskErrorHeader   = "Petri-Desk-Error"
	deskSeqHeader     = "Petri-Desk-Seq"
	deskSubjectHeader = "Petri-Desk-Subject"
	deskTimeHeader    = "Petri-Desk-Time"
)

func (d *Desk) answer(m *nats.Msg, body []byte, header nats.Header, err error) {
	if err == nil && len(body) > MaxPayload {
		err = fmt.Errorf("%w: the answer has %d bytes", ErrTooLarge, len(body))
	}
	if err != nil {
		e := newDeskError(err)
		switch {
		case errors.Is(err, errDeskBusy), e.Code == deskQueue, e.Code == deskFull:
			d.counts.busy.Add(1)
		case e.Code == deskAgain, e.Code == deskCorrupt:
			d.counts.failed.Add(1)
			d.log.Warn("the desk has no answer", "subject", m.Subject, "error", err)
		default:
			d.counts.refused.Add(1)
		}
		text, _ := json.Marshal(e)
		body, header = nil, nats.Header{deskErrorHeader: []string{string(text)}}
	} else {
		d.counts.done.Add(1)
	}
	// Where the answer is wanted the server keeps for itself, for askers have an
	// account of their own. In an installation of an older Petri they have not, and
	// the asker says it: it may be told to only where askers listen.
	if !strings.HasPrefix(m.Reply, "_R_.") && !strings.HasPrefix(m.Reply, "_INBOX_user-"+strings.SplitN(m.Subject, ".", 3)[1]+".") {
		return
	}
	_ = d.b.nc.PublishMsg(&nats.Msg{Subject: m.Reply, Header: header, Data: body})
}

// reply answers a question. life is the desk's, for what outlives the answer.
func (d *Desk) reply(ctx, life context.Context, tenant, what string, a deskAsk) ([]byte, nats.Header, error) {
	switch what {
	case askLook:
		stream, err := streamFor(tenant, a.Last+a.Next)
		if err != nil {
			return nil, nil, err
		}
		m, err := d.b.lookupIn(ctx, stream, lookup{Last: a.Last, Next: a.Next, Seq: a.Seq})
		if err != nil {
			return nil, nil, err
		}
		return m.Data, messageHeader(m.Subject, m.Sequence, m.Time), nil
	case askPage:
		msgs, err := d.b.rawPage(ctx, a.Next, a.Seq)
		return encoded(msgs, err)
	case askStat, askChunk:
		if err := d.mayRead(ctx, tenant, a); err != nil {
			return nil, nil, err
		}
		s := &Store{b: d.b, bucket: a.Bucket}
		m, err := s.record(ctx, a.Digest)
		if err == nil && what == askChunk {
			var o Object
			if o, err = s.object(a.Digest, m.Sequence, m.Data); err == nil {
				m, err = s.chunk(ctx, o, max(a.Seq, 1))
			}
		}
		if err != nil {
			return nil, nil, err
		}
		return m.Data, messageHeader("", m.Sequence, m.Time), nil
	case askList:
		return encoded(d.list(ctx, tenant, a))
	case askFind:
		found, err := d.b.FindArtifacts(ctx, tenant, a.Prefix)
		return encoded(found[:min(len(found), maxFound)], err)
	case askTombstone:
		ids, err := d.b.FindTombstones(ctx, tenant, a.Prefix)
		return encoded(ids[:min(len(ids), maxFound)], err)
	case askCancel:
		return encoded(struct{}{}, d.b.Cancel(ctx, tenant, a.Analysis, clipString(oneLine(a.By), 128)))
	case askSubmit:
		return encoded(d.open(ctx, life, *a.Submission))
	}
	return nil, nil, errBadAsk
}

// maxFound bounds what is found by a beginning.
const maxFound = 1000

func messageHeader(subject string, seq uint64, at time.Time) nats.Header {
	return nats.Header{deskSubjectHeader: []string{subject}, deskSeqHeader: []string{strconv.FormatUint(seq, 10)}, deskTimeHeader: []string{at.Format(time.RFC3339Nano)}}
}

func encoded(v any, err error) ([]byte, nats.Header, error) {
	if err != nil {
		return nil, nil, err
	}
	body, err := json.Marshal(v)
	return body, nil, err
}

// list returns as many summaries as fit in an answer, as they are encoded.
func (d *Desk) list(ctx context.Context, tenant string, a deskAsk) ([]json.RawMessage, error) {
	limit := 0
	if a.Limit > 0 {
		limit = a.Skip + a.Limit
		if limit < 0 {
			return nil, errBadAsk
		}
	}
	all, err := d.b.List(ctx, tenant, limit)
	if err != nil {
		return nil, err
	}
	out, room := []json.RawMessage{}, MaxPayload-64<<10
	for _, s := range all[min(a.Skip, len(all)):] {
		body, err := json.Marshal(s)
		if err != nil {
			return nil, err
		}
		if room -= len(body) + 1; room < 0 {
			break
		}
		out = append(out, body)
	}
	return out, nil
}

// mayRead reports an error that wraps [ErrNotFound] unless the analysis, which
// is the tenant's, names the object.
func (d *Desk) mayRead(ctx context.Context, tenant string, a deskAsk) error {
	none := fmt.Errorf("artifact %s in analysis %s: %w", a.Digest, a.Analysis, ErrNotFound)
	if a.Bucket == bucketArchive {
		entry, err := d.b.archived(ctx, tenant, a.Analysis)
		if err == nil && (entry.revision == 0 || entry.File != a.Digest) {
			err = none
		}
		return err
	}
	key := named{tenant, a.Analysis, a.Bucket, a.Digest}
	if d.names.has(key, time.Now()) {
		return nil
	}
	found := false
	err := d.b.Read(ctx, tenant, a.Analysis, 0, func(e Entry) error {
		return eventRefs(e.Event, func(r reference) error {
			if r.bucket == a.Bucket && r.digest == a.Digest {
				found = true
				return ErrStop
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	if !found {
		return none
	}
	d.names.add(key, time.Now())
	return nil
}

// named is an object that an analysis names.
type named struct {
	tenant, analysis, bucket string
	digest                   schemas.Digest
}

// nameCache remembers for a while what was found in a log, so that the next chunk
// need not read it again.
type nameCache struct {
	mu   sync.Mutex
	seen map[named]time.Time
}

const (
	nameTime = time.Minute
	maxNames = 10_000
)

func (n *nameCache) has(k named, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	at, ok := n.seen[k]
	return ok && now.Sub(at) < nameTime
}

func (n *nameCache) add(k named, now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.seen == nil || len(n.seen) >= maxNames {
		n.seen = map[named]time.Time{}
	}
	n.seen[k] = now
}
