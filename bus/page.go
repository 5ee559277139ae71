// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Bounds of a page: it fits in one message, encoded.
const (
	pageEvents = 256
	pageBytes  = MaxPayload / 2
)

// page returns the next events of the log under a subject from a sequence on,
// as many as fit. None means that there is none now: the leader has said so.
func (b *Bus) page(ctx context.Context, subject string, from uint64) ([]Entry, error) {
	msgs, err := b.rawPage(ctx, subject, from)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	out := make([]Entry, 0, len(msgs))
	for _, m := range msgs {
		out = append(out, newEntry(m.Seq, m.Subject, m.Data))
	}
	return out, nil
}

// pageMsg is a message of a page, as the desk gives it.
type pageMsg struct {
	Seq     uint64 `json:"seq"`
	Subject string `json:"subject"`
	Data    []byte `json:"data"`
}

func (b *Bus) rawPage(ctx context.Context, subject string, from uint64) ([]pageMsg, error) {
	from = max(from, 1)
	if b.tenant != "" {
		var msgs []pageMsg
		err := b.ask(ctx, askPage, deskAsk{Next: subject, Seq: from}, &msgs)
		return msgs, err
	}
	msgs, err := b.replicaPage(ctx, subject, from)
	if err == nil && len(msgs) > 0 {
		return msgs, nil
	}
	// A replica may lag, or be lost; the leader knows.
	m, err := b.lookupIn(ctx, streamLog, lookup{Next: subject, Seq: from})
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []pageMsg{{m.Sequence, m.Subject, m.Data}}, nil
}

// replicaPage asks any replica for a page in one request. What was lost on the
// way is behind what it returns.
// https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-31.md
func (b *Bus) replicaPage(ctx context.Context, subject string, from uint64) ([]pageMsg, error) {
	req, err := json.Marshal(struct {
		lookup
		Batch    int `json:"batch"`
		MaxBytes int `json:"max_bytes"`
	}{lookup{Next: subject, Seq: from}, pageEvents, pageBytes})
	if err != nil {
		return nil, err
	}
	var out []pageMsg
	get := apiPrefix + "DIRECT.GET." + streamLog
	err = b.allowed(ctx, []string{get}, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		sub, err := b.nc.SubscribeSync(b.nc.NewInbox())
		if err != nil {
			return err
		}
		defer func() { _ = sub.Unsubscribe() }()
		if err := b.nc.PublishRequest(get, sub.Subject, req); err != nil {
			return err
		}
		for bytes, last := 0, "0"; len(out) < pageEvents; {
			m, err := sub.NextMsgWithContext(ctx)
			if err != nil {
				return err
			}
			if m.Header.Get("Status") != "" { // the end of the batch, or nothing there
				return nil
			}
			seq, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
			if err != nil {
				return fmt.Errorf("read the server's answer: %w", err)
			}
			if m.Header.Get("Nats-Last-Sequence") != last { // one was lost with its connection
				return nil
			}
			last = m.Header.Get(jetstream.SequenceHeader)
			if bytes += len(m.Data); bytes > pageBytes && len(out) > 0 {
				return nil
			}
			out = append(out, pageMsg{seq, m.Header.Get(jetstream.SubjectHeader), m.Data})
		}
		return nil
	})
	if len(out) > 0 && !errors.Is(err, ErrDenied) && !errors.Is(err, nats.ErrConnectionClosed) {
		return out, nil
	}
	return out, err
}
