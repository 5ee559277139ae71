// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/petri-sandbox/petri/schemas"
)

// batchMsg is one message of an atomic batch.
type batchMsg struct {
	subject string
	id      string // of the event
	body    []byte // the event
	first   bool   // store only if the subject has no event yet
	foreign uint64 // with first: where the last message of the subject lies, which is foreign; 0: it has none
	once    bool   // store only if the id is new, within the dup window
}

// newBatchMsg encodes an event for a subject of the log.
func newBatchMsg(subject string, e schemas.Event, first bool) (batchMsg, error) {
	body, err := e.Encode()
	if err != nil {
		return batchMsg{}, fmt.Errorf("encode event %s: %w", e.ID, err)
	}
	return batchMsg{subject: subject, id: e.ID, body: body, first: first}, nil
}

// publishOne stores one message as a batch of it would be, at a fraction of the
// cost.
func (b *Bus) publishOne(ctx context.Context, m batchMsg) (uint64, error) {
	var opts []jetstream.PublishOpt
	if m.first {
		opts = append(opts, jetstream.WithExpectLastSequencePerSubject(m.foreign))
	}
	return b.publishBody(ctx, m.subject, m.id, m.body, opts...)
}

// maxBatch is the server's limit of messages in a batch.
const maxBatch = 1000

// Headers of a batch's messages (ADR-50).
const (
	headerBatch  = "Nats-Batch-Id"
	headerCommit = "Nats-Batch-Commit" // of the last one
)

// publishBatch stores all messages or none, one behind the other, and returns
// the sequence of the last. More than a few cost hardly more than one: the
// server brings a batch to the disk as a whole.
//
// The protocol is ADR-50's: every message carries the batch's id and its
// number, and the last commits and is answered. A batch whose commit was not
// acknowledged may be stored or not; sending it again under a new id is safe
// where a message has first set.
// https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-50.md
func (b *Bus) publishBatch(ctx context.Context, msgs []batchMsg) (seq uint64, err error) {
	if len(msgs) > maxBatch {
		return 0, fmt.Errorf("batch of %d messages, more than %d", len(msgs), maxBatch)
	}
	subjects := make([]string, len(msgs))
	for i, m := range msgs {
		subjects[i] = m.subject
	}
	err = retry(ctx, func(ctx context.Context) (err error) {
		ctx, done := b.denied.watch(ctx, subjects...)
		defer done()
		defer func() { err = b.batchDenied(ctx, err) }()
		id := []string{nuid.Next()}
		for i, m := range msgs {
			msg := &nats.Msg{Subject: m.subject, Data: m.body, Header: nats.Header{
				headerBatch:           id,
				"Nats-Batch-Sequence": []string{strconv.Itoa(i + 1)},
			}}
			if m.once {
				msg.Header[jetstream.MsgIDHeader] = []string{m.id}
			}
			if m.first {
				msg.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(m.foreign, 10)}
			}
			if i < len(msgs)-1 {
				if err := b.nc.PublishMsg(msg); err != nil {
					return err
				}
				continue
			}
			msg.Header[headerCommit] = []string{"1"}
			reply, err := b.nc.RequestMsgWithContext(ctx, msg)
			if err != nil {
				return err
			}
			if seq, err = batchReply(reply.Data); err != nil {
				return err
			}
		}
		return nil
	})
	return seq, err
}

// batchDenied returns why the server denied a message of a failed batch, if it
// did. That a batch has a hole it may have said first.
func (b *Bus) batchDenied(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if !transient(err) && b.nc.FlushWithContext(ctx) == nil { // the denial has been read
		b.denied.note(b.nc.LastError())
	}
	return deniedOr(ctx, err)
}

// batchReply reads a batch's acknowledgement.
func batchReply(data []byte) (seq uint64, err error) {
	var ack struct {
		Error *jetstream.APIError `json:"error"`
		Seq   uint64              `json:"seq"`
	}
	if err := json.Unmarshal(data, &ack); err != nil {
		return 0, fmt.Errorf("read a batch's acknowledgement: %w", err)
	}
	if ack.Error != nil {
		return 0, ack.Error
	}
	if ack.Seq == 0 {
		return 0, fmt.Errorf("a batch's acknowledgement has no sequence: %s", data)
	}
	return ack.Seq, nil
}
