// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/petri-sandbox/petri/schemas"
)

// A session takes one sample and queues its submission. That the bytes come with
// it is the point: a submission names a digest, and who could name one without
// having the bytes would be given another tenant's.
type session struct {
	d      *Desk
	sub    schemas.Submission
	msgs   chan *nats.Msg
	stop   context.CancelFunc
	in     *io.PipeWriter
	stored chan error // the store's word, once
	digest schemas.Digest
	size   int64 // bytes taken
}

// errSessionGone says that a session has ended, or that its desk has: the sample
// is to be sent again.
var errSessionGone = errors.New("the desk does not know this session")

const (
	sessionIdle = 30 * time.Second // without a word from the submitter
	sessionTime = time.Hour
)

// DeskSample is how large a sample a tenant's user may submit, in bytes.
const DeskSample = 100 << 20

// Headers of a session's messages.
const (
	deskOffset = "Petri-Desk-Offset" // of the bytes, in the sample
	deskEnd    = "Petri-Desk-End"    // the sample's digest: that was all of it
)

// opened is the answer to a submission: the token of the subject to send to.
type opened struct {
	Session string `json:"session"`
}

// open begins a session.
func (d *Desk) open(ctx, life context.Context, sub schemas.Submission) (opened, error) {
	if n := sub.Sample.Size; n < 1 || n > DeskSample {
		return opened{}, fmt.Errorf("%w: a sample of %d bytes; from 1 to %d are possible", ErrTooLarge, n, DeskSample)
	}
	room, err := d.b.Room(ctx) // before the sample takes what there is
	if err == nil {
		err = room.Err()
	}
	if errors.Is(err, ErrFull) {
		return opened{}, err
	}
	token := rand.Text()
	s := &session{d: d, sub: sub, msgs: make(chan *nats.Msg, 4), stored: make(chan error, 1)}
	d.mu.Lock()
	defer d.mu.Unlock()
	own := 0
	for _, o := range d.sessions {
		if o.sub.Tenant == sub.Tenant {
			own++
		}
	}
	if own >= deskUploads || len(d.sessions) >= deskSessions {
		return opened{}, errDeskBusy
	}
	ns, err := d.b.nc.ChanSubscribe(deskPrefix+sub.Tenant+"."+askSubmit+"."+token, s.msgs)
	if err != nil {
		return opened{}, err
	}
	if err := d.b.nc.FlushWithContext(ctx); err != nil {
		_ = ns.Unsubscribe()
		return opened{}, err
	}
	run, stop := context.WithTimeout(life, sessionTime)
	s.stop = stop
	d.sessions[token] = s
	d.wg.Go(func() {
		s.run(run)
		stop()
		_ = ns.Unsubscribe()
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.sessions, token)
	})
	return opened{token}, nil
}

func (d *Desk) closeSessions() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.sessions {
		s.stop()
	}
}

// run serves the session until it has been idle for long, or ctx is done. After
// its end it stays as long, for an end whose answer was lost.
func (s *session) run(ctx context.Context) {
	out, in := io.Pipe()
	s.in = in
	var storing sync.WaitGroup
	storing.Go(func() {
		store := s.d.b.Artifacts().WithCaps(Caps{schemas.KindSample: s.sub.Sample.Size})
		// A reader that is no seeker: what is broken off the submitter sends again.
		d, _, err := store.Put(ctx, schemas.KindSample, struct{ io.Reader }{out})
		s.digest = d
		s.stored <- err
		out.CloseWithError(errors.Join(errSessionGone, err))
	})
	defer func() {
		in.CloseWithError(errSessionGone) // of what is not whole nothing is kept
		storing.Wait()
	}()
	var ended error
	done := false
	idle := time.NewTimer(sessionIdle)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-idle.C:
			return
		case m := <-s.msgs:
			s.d.counts.taken.Add(1)
			var err error
			switch end := m.Header.Get(deskEnd); {
			case end != "" && !done:
				done, ended = true, s.end(ctx, end)
				err = ended
			case end != "":
				err = ended
			case done:
				err = errSessionGone
			default:
				err = s.bytes(m)
			}
			s.d.answer(m, []byte("{}"), nil, err)
		}
		idle.Reset(sessionIdle)
	}
}

// bytes takes the next bytes of the sample, or the last ones again.
func (s *session) bytes(m *nats.Msg) error {
	offset, err := strconv.ParseInt(m.Header.Get(deskOffset), 10, 64)
	if err != nil || len(m.Data) == 0 || len(m.Data) > frameSize {
		return fmt.Errorf("%w: bytes %.20q, %d of them", errBadAsk, m.Header.Get(deskOffset), len(m.Data))
	}
	switch n := int64(len(m.Data)); {
	case offset == s.size-n: // its answer was lost
		return nil
	case offset != s.size:
		return fmt.Errorf("%w: bytes from %d come after %d", errBadAsk, offset, s.size)
	case s.size+n > s.sub.Sample.Size:
		return fmt.Errorf("%w: more than the %d bytes that were said", ErrTooLarge, s.sub.Sample.Size)
	}
	// The store's pace is the submitter's: this waits until it has taken them.
	if _, err := s.in.Write(m.Data); err != nil {
		return err
	}
	s.size += int64(len(m.Data))
	return nil
}

// end has the sample stored as a whole, and queues the submission.
func (s *session) end(ctx context.Context, digest string) error {
	said, err := schemas.ParseDigest(digest)
	if err != nil {
		return fmt.Errorf("%w: %w", errBadAsk, err)
	}
	if s.size != s.sub.Sample.Size {
		return fmt.Errorf("%w: %d bytes of %d", errBadAsk, s.size, s.sub.Sample.Size)
	}
	if err := s.in.Close(); err != nil {
		return err
	}
	if err := <-s.stored; err != nil {
		return err
	}
	if said != s.digest {
		return fmt.Errorf("%w: the sample has the digest %s, not %s", errBadAsk, s.digest, said)
	}
	s.sub.Sample.SHA256 = s.digest
	return s.d.b.Submit(ctx, s.sub)
}
