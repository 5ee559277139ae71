// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// The log can hold messages that nobody wrote as events: the server stores its
// answer to a request where the request says, and whoever may ask it anything
// may name a subject of the log. What is not the event that its subject names is
// foreign. Readers pass it by and count it; writers write as if it were not
// there; the archiver leaves it behind and notes how much there was.

// own reads a message of the log as the event that its subject names. An error
// says why it is foreign.
func own(subject string, body []byte) (schemas.Event, error) {
	e, err := schemas.ParseEvent(body)
	if err != nil {
		return schemas.Event{}, err
	}
	if !names(strings.Split(subject, "."), e) {
		return schemas.Event{}, fmt.Errorf("%.80q of type %.80q lies under %.200q", e.ID, e.Type, subject)
	}
	return e, nil
}

// names reports whether the subject of those tokens is the one of an event, as
// its envelope has it.
func names(subject []string, e schemas.Event) bool {
	if len(subject) < 3 || subject[0]+"." != logPrefix {
		return false
	}
	tenant, analysis, rest := subject[1], subject[2], subject[3:]
	switch logPrefix + tenant + "." {
	case registry, unregistry:
		of := map[string]string{registry: "registered", unregistry: "unregistered"}
		return len(rest) == 0 && e.Tenant == registryTenant && e.Family() == "registry" && e.Name() == of[logPrefix+tenant+"."] &&
			strings.HasPrefix(e.ID, analysis+"/")
	case tombstones:
		return len(rest) == 1 && e.Tenant == analysis && e.Analysis == rest[0] && e.Family() == "tombstone" &&
			strings.HasPrefix(e.ID, e.Analysis+"/tombstone/")
	}
	if e.Tenant != tenant || e.Analysis != analysis || len(rest) < 2 {
		return false
	}
	id, ok := strings.CutPrefix(e.ID, analysis+"/")
	family := e.Family()
	switch rest[0] {
	case "finding", "refinding":
		return ok && family == "finding" && findingNames(rest, strings.Split(id, "/"), e)
	case family:
	default:
		return false
	}
	switch family {
	case "context":
		n, numbered := strings.CutPrefix(id, "context/")
		_, err := strconv.ParseUint(n, 10, 40)
		return ok && numbered && err == nil && len(rest) == 2 && rest[1] == e.Name()
	case "artifact", "derivation", "segment", "receipt", "checkpoint":
		return ok && id == strings.Join(rest, "/")
	case "report":
		var r schemas.ReportWritten
		return len(rest) == 2 && e.Decode(&r) == nil && rest[1] == r.Format
	}
	// A newer Petri's.
	for _, token := range rest {
		if strings.Trim(token, tokenChars) != "" {
			return false
		}
	}
	return true
}

const tokenChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"

// findingNames compares finding.<severity>.<analyzer>.<task>.<n> with
// finding/<run>/<analyzer>/<task>/<n>.
func findingNames(subject, id []string, e schemas.Event) bool {
	if len(subject) != 5 || len(id) != 5 || id[0] != "finding" || (id[1] == schemas.LiveRun) != (subject[0] == "finding") {
		return false
	}
	var f schemas.FindingCommitted
	if e.Decode(&f) != nil {
		return false
	}
	severity := f.Finding.Severity
	if severity == "" {
		severity = schemas.SeverityInfo
	}
	return subject[1] == string(severity) && subject[2] == id[2] && subject[3] == id[3] && subject[4] == id[4]
}

// repeats notices the copy of an event that lies under the event's own subject,
// behind it: whatever is in the log can be sent there once more.
type repeats struct {
	context  uint64            // number of the next context event
	segments map[string]uint64 // of the next segment, by source
	seen     seen
}

func newRepeats() *repeats {
	return &repeats{segments: map[string]uint64{}}
}

// again notes an event of one analysis and reports whether it was there before.
func (r *repeats) again(e Entry) (bool, error) {
	switch e.Event.Family() {
	case "context":
		return again(e.Event.ID, &r.context), nil
	case "segment":
		source, _, _ := strings.Cut(strings.TrimPrefix(e.Event.ID, e.Event.Analysis+"/segment/"), "/")
		next := r.segments[source]
		was := again(e.Event.ID, &next)
		if _, known := r.segments[source]; known || len(r.segments) < maxSources {
			r.segments[source] = next
		}
		return was, nil
	case "artifact", "derivation", "finding", "receipt", "checkpoint":
		// With the id: what runs have found shares subjects, and the id names the run.
		sum := sha256.Sum256([]byte(e.Subject + " " + e.Event.ID))
		was, err := r.seen.add(seenKey(sum[:]))
		if err != nil {
			err = fmt.Errorf("see whether %s comes twice: %w", e.Event.ID, err)
		}
		return was, err
	}
	return false, nil
}

// maxSources is more than there are.
const maxSources = 32

// again reports whether the number at the end of an id is below next, and else
// makes it the last.
func again(id string, next *uint64) bool {
	n, err := strconv.ParseUint(id[strings.LastIndexByte(id, '/')+1:], 10, 40)
	if err != nil {
		return false // of a segment: the file's rules have a word for it
	}
	if n < *next {
		return true
	}
	*next = n + 1
	return false
}

// lastMsg reads the last event under a subject of the log, which may hold
// wildcards. If there is none the error wraps [ErrNotFound].
func (b *Bus) lastMsg(ctx context.Context, subject string) (*jetstream.RawStreamMsg, error) {
	end, err := b.endOf(ctx, subject)
	if err != nil {
		return nil, err
	}
	if _, err := own(end.Subject, end.Data); err == nil {
		return end, nil
	}
	var last *jetstream.RawStreamMsg
	for next := uint64(1); next < end.Sequence; {
		m, err := b.lookupIn(ctx, streamLog, lookup{Next: subject, Seq: next})
		if errors.Is(err, ErrNotFound) {
			break
		}
		if err != nil {
			return nil, err
		}
		if _, err := own(m.Subject, m.Data); err == nil {
			last = m
		}
		next = m.Sequence + 1
	}
	if last == nil {
		return nil, fmt.Errorf("an event under %s: %w", subject, ErrNotFound)
	}
	return last, nil
}

// endOf reads the last message under a subject of the log, event or not.
func (b *Bus) endOf(ctx context.Context, subject string) (*jetstream.RawStreamMsg, error) {
	return b.lookupIn(ctx, streamLog, lookup{Last: subject})
}

// foreignAt is where the foreign message lies behind which the first event under
// a subject must be stored; 0: there is none, or an event is there already.
func (b *Bus) foreignAt(ctx context.Context, subject string) (uint64, error) {
	// In this order: nothing that comes in between is taken for foreign.
	end, err := b.endOf(ctx, subject)
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	_, err = b.lastMsg(ctx, subject)
	if errors.Is(err, ErrNotFound) {
		return end.Sequence, nil
	}
	return 0, err
}
