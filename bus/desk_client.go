// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// Tenant is whose analyses the connection is about: that of the credentials of a
// tenant's user, who asks the desk, else the default one.
func (b *Bus) Tenant() string {
	if b.tenant != "" {
		return b.tenant
	}
	return schemas.DefaultTenant
}

// AsksDesk reports whether the credentials are those of a tenant's user, so that
// what is read must be named by an analysis of the tenant.
func (b *Bus) AsksDesk() bool { return b.tenant != "" }

// ask asks the desk and decodes its answer.
func (b *Bus) ask(ctx context.Context, what string, a deskAsk, answer any) error {
	m, err := b.askMsg(ctx, what, a)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(m.Data, answer); err != nil {
		return fmt.Errorf("read the desk's answer: %w", err)
	}
	return nil
}

func (b *Bus) askMsg(ctx context.Context, what string, a deskAsk) (*nats.Msg, error) {
	body, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	return b.askDesk(ctx, &nats.Msg{Subject: deskPrefix + b.tenant + "." + what, Data: body}, func(err error) error {
		if time.Since(begin) > noDesk {
			return errors.New("nobody answers for the tenant (is petri bus run running?)")
		}
		return err
	})
}

// noDesk is how long nobody may be at the desk: longer than it takes another one
// to open.
const noDesk = 15 * time.Second

// askDesk sends a message to the desk until it is answered. nobody says what it
// means that nobody listens.
func (b *Bus) askDesk(ctx context.Context, q *nats.Msg, nobody func(error) error) (m *nats.Msg, err error) {
	err = retryFor(ctx, deskTime+5*time.Second, func(ctx context.Context) error {
		return b.allowed(ctx, []string{q.Subject}, func(ctx context.Context) error {
			m, err = b.nc.RequestMsgWithContext(ctx, &nats.Msg{Subject: q.Subject, Header: q.Header, Data: q.Data})
			if errors.Is(err, nats.ErrNoResponders) {
				return nobody(err)
			}
			if err != nil {
				return err
			}
			text := m.Header.Get(deskErrorHeader)
			if text == "" {
				return nil
			}
			var e deskError
			if err := json.Unmarshal([]byte(text), &e); err != nil {
				return fmt.Errorf("read the desk's answer: %w", err)
			}
			return e.err()
		})
	})
	return m, err
}

// askLookup is lookupIn by way of the desk.
func (b *Bus) askLookup(ctx context.Context, l lookup) (*jetstream.RawStreamMsg, error) {
	m, err := b.askMsg(ctx, askLook, deskAsk{Last: l.Last, Next: l.Next, Seq: l.Seq})
	if err != nil {
		return nil, err
	}
	return deskMessage(m)
}

// deskMessage reads an answer that is a message of a stream.
func deskMessage(m *nats.Msg) (*jetstream.RawStreamMsg, error) {
	seq, err := strconv.ParseUint(m.Header.Get(deskSeqHeader), 10, 64)
	at, terr := time.Parse(time.RFC3339Nano, m.Header.Get(deskTimeHeader))
	if err := errors.Join(err, terr); err != nil {
		return nil, fmt.Errorf("read the desk's answer: %w", err)
	}
	return &jetstream.RawStreamMsg{Subject: m.Header.Get(deskSubjectHeader), Sequence: seq, Time: at, Data: m.Data}, nil
}

// askObject asks for the meta record of an object, or for a chunk.
func (s *Store) askObject(ctx context.Context, what string, d schemas.Digest, seq uint64) (*jetstream.RawStreamMsg, error) {
	if s.analysis == "" {
		return nil, fmt.Errorf("artifact %s: of which analysis must be said: %w", d, ErrDenied)
	}
	m, err := s.b.askMsg(ctx, what, deskAsk{Bucket: s.bucket, Analysis: s.analysis, Digest: d, Seq: seq})
	if err != nil {
		return nil, err
	}
	return deskMessage(m)
}

// askSummaries is List by way of the desk, which gives as many at a time as fit.
func (b *Bus) askSummaries(ctx context.Context, limit int) ([]Summary, error) {
	var out []Summary
	for {
		var page []Summary
		a := deskAsk{Skip: len(out)}
		if limit > 0 {
			a.Limit = limit - len(out)
		}
		if err := b.ask(ctx, askList, a, &page); err != nil {
			return nil, fmt.Errorf("list the analyses: %w", err)
		}
		out = append(out, page...)
		if len(page) == 0 || limit > 0 && len(out) >= limit {
			return out, nil
		}
	}
}

// SubmitSample stores a submission's sample, which r gives from where it stands,
// and queues the submission. The store caps the sample at the submission's
// MaxSample. It returns the sample's digest and size.
func (b *Bus) SubmitSample(ctx context.Context, s schemas.Submission, r io.ReadSeeker) (schemas.Digest, int64, error) {
	if b.tenant == "" {
		d, n, err := b.Artifacts().WithCaps(Caps{schemas.KindSample: s.Options.MaxSample}).Put(ctx, schemas.KindSample, r)
		if err != nil {
			return d, n, fmt.Errorf("store the sample: %w", err)
		}
		if n != s.Sample.Size {
			return d, n, nil // the caller knows what to say
		}
		s.Sample.SHA256 = d
		return d, n, b.Submit(ctx, s)
	}
	start, err := r.Seek(0, io.SeekCurrent)
	if err != nil {
		return schemas.Digest{}, 0, err
	}
	for try := 1; ; try++ {
		d, n, err := b.askSubmit(ctx, s, r)
		if !errors.Is(err, errSessionGone) || try == 3 {
			return d, n, err
		}
		// The desk has ended: another one begins anew.
		if _, err := r.Seek(start, io.SeekStart); err != nil {
			return d, n, err
		}
	}
}

func (b *Bus) askSubmit(ctx context.Context, s schemas.Submission, r io.Reader) (schemas.Digest, int64, error) {
	var none schemas.Digest
	var o opened
	if err := b.ask(ctx, askSubmit, deskAsk{Submission: &s}, &o); err != nil {
		return none, 0, fmt.Errorf("submit: %w", err)
	}
	subject := deskPrefix + b.tenant + "." + askSubmit + "." + o.Session
	frame := b.frames.Get().(*[frameSize]byte)
	defer b.frames.Put(frame)
	sum, size := sha256.New(), int64(0)
	for {
		n, err := io.ReadFull(r, frame[:])
		if n > 0 {
			sum.Write(frame[:n])
			if serr := b.tell(ctx, subject, nats.Header{deskOffset: []string{strconv.FormatInt(size, 10)}}, frame[:n]); serr != nil {
				return none, 0, fmt.Errorf("store the sample: %w", serr)
			}
			size += int64(n)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return none, 0, err
		}
	}
	d := schemas.Digest(sum.Sum(nil))
	if size != s.Sample.Size {
		return d, size, nil
	}
	if err := b.tell(ctx, subject, nats.Header{deskEnd: []string{d.String()}}, nil); err != nil {
		return d, size, fmt.Errorf("submit: %w", err)
	}
	return d, size, nil
}

// tell sends a message to a session. A session of which nobody hears is gone.
func (b *Bus) tell(ctx context.Context, subject string, h nats.Header, body []byte) error {
	_, err := b.askDesk(ctx, &nats.Msg{Subject: subject, Header: h, Data: body}, func(error) error { return errSessionGone })
	return err
}
