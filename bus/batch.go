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
	event   schemas.Event
	first   bool // store only if the subject has no message yet
}

// maxBatch is the server's limit of messages in a batch.
const maxBatch = 1000

// publishBatch stores all messages or none.
//
// The protocol is ADR-50's: every message carries the batch's id and its
// number; the first is answered, so that a refused batch is noticed early, and
// the last commits. A batch whose commit was not acknowledged may be stored or
// not; sending it again under a new id is safe where a message has first set.
// https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-50.md
func (b *Bus) publishBatch(ctx context.Context, msgs []batchMsg) error {
	if len(msgs) > maxBatch {
		return fmt.Errorf("batch of %d messages, more than %d", len(msgs), maxBatch)
	}
	return retry(ctx, func(ctx context.Context) error {
		id := nuid.Next()
		for i, m := range msgs {
			body, err := json.Marshal(m.event)
			if err != nil {
				return fmt.Errorf("encode event %s: %w", m.event.ID, err)
			}
			msg := &nats.Msg{Subject: m.subject, Data: body, Header: nats.Header{
				"Nats-Batch-Id":       []string{id},
				"Nats-Batch-Sequence": []string{strconv.Itoa(i + 1)},
			}}
			if m.first {
				msg.Header.Set(jetstream.ExpectedLastSubjSeqHeader, "0")
			}
			last := i == len(msgs)-1
			if last {
				msg.Header.Set("Nats-Batch-Commit", "1")
			}
			if i > 0 && !last {
				if err := b.nc.PublishMsg(msg); err != nil {
					return err
				}
				continue
			}
			reply, err := b.nc.RequestMsgWithContext(ctx, msg)
			if err != nil {
				return err
			}
			if err := batchReply(reply.Data, last); err != nil {
				return err
			}
		}
		return nil
	})
}

// batchReply reads a batch's answer: empty for the first message, an
// acknowledgement for the last.
func batchReply(data []byte, last bool) error {
	if len(data) == 0 && !last {
		return nil
	}
	var ack struct {
		Error *jetstream.APIError `json:"error"`
		Seq   uint64              `json:"seq"`
	}
	if err := json.Unmarshal(data, &ack); err != nil {
		return fmt.Errorf("read a batch's acknowledgement: %w", err)
	}
	if ack.Error != nil {
		return ack.Error
	}
	if last && ack.Seq == 0 {
		return fmt.Errorf("a batch's acknowledgement has no sequence: %s", data)
	}
	return nil
}
