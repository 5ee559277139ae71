// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// A link is a message that the log takes only if the one before it is still the
// last of its chain.
type link struct {
	subject, id string // the id is this message's alone: two writers count alike
	body        []byte
	chain       string // the subject of all links, which may hold wildcards
	last        uint64 // sequence of the one before; 0: there is none
	// strange reports whether a message of the chain is no link: it is passed by.
	// nil: all are links.
	strange func(*jetstream.RawStreamMsg) bool
}

// strange is for chains that have no copies of earlier links.
func strange(m *jetstream.RawStreamMsg) bool {
	_, err := own(m.Subject, m.Data)
	return err != nil
}

// chainLog is what a chain needs of the log.
type chainLog interface {
	// storeLink is one attempt.
	storeLink(ctx context.Context, l link) (seq uint64, err error)
	// nextMsg reads the first message of a subject from a sequence on.
	nextMsg(ctx context.Context, subject string, from uint64) (*jetstream.RawStreamMsg, error)
}

// errPassed says that something lay in the way of a link that is none.
var errPassed = errors.New("passed by what is no link")

// appendLink stores a link and returns its sequence. An error that wraps
// [ErrFenced] says that another one lies behind the one before, or that what
// there was has been taken away, which gone reports.
//
// That the log refuses a link is no proof of that: an earlier try may have been
// stored without an answer, and a leader that was cut off and does not know it
// yet answers as well, out of an older log. So is what it says when it is asked.
// What it has is true, since nothing is shown before most servers have it; what
// it has not may only be missing there. Then the next try finds out.
func appendLink(ctx context.Context, log chainLog, l link, gone func(context.Context) (bool, error)) (seq uint64, err error) {
	try := func(ctx context.Context) error {
		var err error
		if seq, err = log.storeLink(ctx, l); !hasCode(err, codeWrongLastSequence) {
			return err
		}
		refusal := err
		m, err := log.nextMsg(ctx, l.chain, l.last+1)
		switch {
		case err == nil && l.strange != nil && l.strange(m):
			l.last = m.Sequence
			return errPassed
		case err == nil && m.Header.Get(jetstream.MsgIDHeader) == l.id:
			seq = m.Sequence
			return nil
		case err == nil:
			return ErrFenced
		case !errors.Is(err, ErrNotFound):
			return err
		}
		if away, err := gone(ctx); err != nil {
			return err
		} else if away {
			return ErrFenced
		}
		return passing{fmt.Errorf("refused, although nothing lies behind %d: %w", l.last, refusal)}
	}
	err = retry(ctx, func(ctx context.Context) error {
		for {
			if err := try(ctx); !errors.Is(err, errPassed) {
				return err
			}
		}
	})
	if err != nil {
		return 0, fmt.Errorf("publish %s: %w", l.id, err)
	}
	return seq, nil
}

// storeLink implements [chainLog].
func (b *Bus) storeLink(ctx context.Context, l link) (seq uint64, err error) {
	if len(l.body) > maxBody {
		return 0, fmt.Errorf("the event has %d bytes, more than %d", len(l.body), maxBody)
	}
	return b.publishOnce(ctx, l.subject, l.id, l.body, jetstream.WithExpectLastSequenceForSubject(l.last, l.chain))
}

// nextMsg implements [chainLog].
func (b *Bus) nextMsg(ctx context.Context, subject string, from uint64) (*jetstream.RawStreamMsg, error) {
	return b.lookupIn(ctx, streamLog, lookup{Next: subject, Seq: from})
}
