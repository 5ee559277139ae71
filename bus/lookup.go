// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// lookup asks for one message of a stream. Exactly one way of asking is set:
// the last of a subject, the next of a subject from a sequence on, or the one
// with a sequence.
type lookup struct {
	Last string `json:"last_by_subj,omitempty"`
	Next string `json:"next_by_subj,omitempty"`
	Seq  uint64 `json:"seq,omitempty"`
}

// lookupIn reads one message from a stream's leader. The client's own get asks
// any replica, which may not have yet what was acknowledged a moment ago: an
// artifact would be refused because a follower has not heard of it. If there
// is no such message the error wraps [ErrNotFound].
// https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-31.md
func (b *Bus) lookupIn(ctx context.Context, stream string, l lookup) (*jetstream.RawStreamMsg, error) {
	if b.tenant != "" {
		if stream != streamLog && stream != "KV_"+kvArchive {
			return nil, fmt.Errorf("read %s: %w", stream, ErrDenied)
		}
		return b.askLookup(ctx, l)
	}
	req, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	var reply struct {
		Error   *jetstream.APIError `json:"error"`
		Message *struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Header  []byte    `json:"hdrs"`
			Data    []byte    `json:"data"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	subject := jetstream.DefaultAPIPrefix + "STREAM.MSG.GET." + stream
	err = retry(ctx, func(ctx context.Context) error {
		m, err := b.request(ctx, subject, req)
		if err != nil {
			return err
		}
		reply.Error, reply.Message = nil, nil
		if err := json.Unmarshal(m.Data, &reply); err != nil {
			return fmt.Errorf("read the server's answer: %w", err)
		}
		if reply.Error != nil {
			return reply.Error
		}
		if reply.Message == nil {
			return errors.New("the server's answer has no message")
		}
		return nil
	})
	if hasCode(err, jetstream.JSErrCodeMessageNotFound) || hasCode(err, jetstream.JSErrCodeStreamNotFound) {
		return nil, fmt.Errorf("%s%s in %s: %w", l.Last, l.Next, stream, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	m := reply.Message
	out := &jetstream.RawStreamMsg{Subject: m.Subject, Sequence: m.Seq, Data: m.Data, Time: m.Time}
	if len(m.Header) > 0 {
		if out.Header, err = nats.DecodeHeadersMsg(m.Header); err != nil {
			return nil, fmt.Errorf("read the header of message %d of %s: %w", m.Seq, stream, err)
		}
	}
	return out, nil
}

// anyMsg is lastMsg for whoever needs to know that there is such an event, and
// not that it is the last: any replica may answer, and only if that has none
// the leader is asked. That costs a fraction, and the load is shared.
func (b *Bus) anyMsg(ctx context.Context, subject string) (*jetstream.RawStreamMsg, error) {
	if m, ok := b.anyIn(ctx, streamLog, lookup{Last: subject}); ok {
		if _, err := own(m.Subject, m.Data); err == nil {
			return m, nil
		}
	}
	return b.lastMsg(ctx, subject)
}

// anyIn reads one message from any replica of a stream. False says nothing: the
// leader may have it.
func (b *Bus) anyIn(ctx context.Context, stream string, l lookup) (*jetstream.RawStreamMsg, bool) {
	if b.tenant != "" {
		return nil, false
	}
	req, err := json.Marshal(l)
	if err != nil {
		return nil, false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	m, err := b.request(ctx, jetstream.DefaultAPIPrefix+"DIRECT.GET."+stream, req)
	if err != nil || m.Header.Get("Status") != "" {
		return nil, false
	}
	seq, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
	at := m.Header.Get(jetstream.SubjectHeader)
	return &jetstream.RawStreamMsg{Subject: at, Sequence: seq, Header: m.Header, Data: m.Data}, err == nil && at != ""
}

// subjects calls fn with every subject of a stream that matches a filter, and
// how many messages it has, in order. It takes constant memory here; the server
// gives them in pages.
func (b *Bus) subjects(ctx context.Context, stream, filter string, fn func(subject string, messages uint64) error) error {
	for offset := 0; ; {
		req, err := json.Marshal(map[string]any{"subjects_filter": filter, "offset": offset})
		if err != nil {
			return err
		}
		var reply struct {
			Error *jetstream.APIError `json:"error"`
			Total int                 `json:"total"`
			State struct {
				Subjects map[string]uint64 `json:"subjects"`
			} `json:"state"`
		}
		page, cancel := context.WithTimeout(ctx, time.Minute) // a server may have millions to sort
		m, err := b.request(page, jetstream.DefaultAPIPrefix+"STREAM.INFO."+stream, req)
		cancel()
		if err == nil {
			err = json.Unmarshal(m.Data, &reply)
		}
		if err == nil && reply.Error != nil {
			err = reply.Error
		}
		if err != nil {
			return fmt.Errorf("list the subjects of %s: %w", stream, err)
		}
		for _, s := range slices.Sorted(maps.Keys(reply.State.Subjects)) {
			if err := fn(s, reply.State.Subjects[s]); err != nil {
				return err
			}
		}
		offset += len(reply.State.Subjects)
		if len(reply.State.Subjects) == 0 || offset >= reply.Total {
			return nil
		}
	}
}
