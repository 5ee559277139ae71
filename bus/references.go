// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// A reference is a place that names an object of the store.
type reference struct {
	bucket   string
	kind     schemas.Kind
	digest   schemas.Digest
	size     int64 // bytes; -1: it does not say
	tenant   string
	analysis string
	imported bool // from elsewhere, where it may have been exported without the object
}

// What the store holds without being an artifact.
const (
	kindSegment schemas.Kind = "segment"
	kindResult  schemas.Kind = "result"
	kindReport  schemas.Kind = "report"
)

// references calls fn with every reference that there is, some more than once.
// What is moved while they are read is read before it is moved or after: from
// the queue and the inbox things go to the log, from the log to the archive, and
// in this order they are read. Whatever is written behind its beginning it may
// or may not see.
func (b *Bus) references(ctx context.Context, fn func(reference) error) error {
	err := b.Queued(ctx, func(q QueuedJob) error { return submissionRefs(q.Submission, fn) })
	if err != nil {
		return fmt.Errorf("read the queue: %w", err)
	}
	// The inbox lets nobody read it but the clerk, so its messages are asked for
	// one by one.
	for next := uint64(1); ; {
		m, err := b.lookupIn(ctx, streamInbox, lookup{Next: "in.>", Seq: next})
		if errors.Is(err, ErrNotFound) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the inbox: %w", err)
		}
		for _, body := range apart(m.Data) {
			if err := inboxRefs(body, fn); err != nil {
				return err
			}
		}
		next = m.Sequence + 1
	}
	return b.history(ctx, func(_ schemas.ArchiveEntry, err error) error { return err }, fn)
}

// history is references without what only waits to become history. damaged is
// told of a file of the archive that cannot be read, and says whether to go on.
func (b *Bus) history(ctx context.Context, damaged func(a schemas.ArchiveEntry, err error) error, fn func(reference) error) error {
	parts := map[schemas.Digest]bool{} // templates whose parts are named
	each := func(e schemas.Event, imported bool) error {
		return eventRefs(e, func(r reference) error {
			r.imported = imported
			if err := fn(r); err != nil || r.kind != schemas.KindTemplate || parts[r.digest] {
				return err
			}
			parts[r.digest] = true
			return b.templateRefs(ctx, r, fn)
		})
	}
	var subjects []string
	for _, family := range []string{"artifact", "derivation", "segment", "receipt", "report"} {
		subjects = append(subjects, logPrefix+"*.*."+family+".>")
	}
	subjects = append(subjects, contextSubject("*", "*", schemas.EventSubmitted))
	err := b.scan(ctx, streamLog, subjects, func(m message) error {
		e, err := schemas.ParseEvent(m.data)
		if err != nil {
			return nil // it names nothing that anybody could read
		}
		return each(e, false)
	})
	if err != nil {
		return err
	}
	return b.ArchiveEntries(ctx, "*", func(a schemas.ArchiveEntry) error {
		for {
			if err := fn(reference{bucketArchive, kindPetri, a.File, a.Size, a.Tenant, a.Analysis, false}); err != nil {
				return err
			}
			err := b.archivedEvents(ctx, a, func(e Entry) error { return each(e.Event, a.Imported) })
			if err == nil || ctx.Err() != nil {
				return err
			}
			now, nerr := b.archived(ctx, a.Tenant, a.Analysis)
			switch {
			case nerr != nil:
				return nerr
			case now.revision == 0: // deleted
				return nil
			case now.File == a.File && transient(err):
				return err
			case now.File == a.File:
				return damaged(a, err)
			}
			a = now.ArchiveEntry // it was replaced meanwhile
		}
	})
}

func submissionRefs(s schemas.Submission, fn func(reference) error) error {
	return fn(reference{bucketArtifacts, schemas.KindSample, s.Sample.SHA256, s.Sample.Size, s.Tenant, s.ID, false})
}

func inboxRefs(body []byte, fn func(reference) error) error {
	var f schemas.FinishedTask
	e, err := schemas.ParseEvent(body)
	if err != nil || e.Decode(&f) != nil {
		return nil // the clerk buries it
	}
	for _, d := range f.Derived {
		if err := fn(reference{bucketArtifacts, d.Kind, d.SHA256, d.Size, f.Task.Tenant, f.Task.Analysis, false}); err != nil {
			return err
		}
	}
	if f.Result == nil {
		return nil
	}
	return fn(reference{bucketArtifacts, kindResult, f.Result.SHA256, f.Result.Size, f.Task.Tenant, f.Task.Analysis, false})
}

// eventRefs calls fn with what an event of the log names. An event that does not
// hold what its type says names nothing.
func eventRefs(e schemas.Event, fn func(reference) error) error {
	ref := func(bucket string, kind schemas.Kind, d schemas.Digest, size int64) error {
		return fn(reference{bucket, kind, d, size, e.Tenant, e.Analysis, false})
	}
	switch e.Family() {
	case "artifact":
		var a schemas.Artifact
		if e.Decode(&a) == nil {
			return ref(bucketArtifacts, a.Kind, a.SHA256, a.Size)
		}
	case "derivation":
		var d schemas.Derivation
		if e.Decode(&d) == nil {
			return ref(bucketArtifacts, d.Artifact.Kind, d.Artifact.SHA256, d.Artifact.Size)
		}
	case "segment":
		var s schemas.Segment
		if e.Decode(&s) == nil && len(s.Data) == 0 && s.Size > 0 {
			return ref(bucketArtifacts, kindSegment, s.SHA256, s.Size)
		}
	case "receipt":
		var r schemas.Receipt
		if e.Decode(&r) == nil && r.Result != nil {
			return ref(bucketArtifacts, kindResult, r.Result.SHA256, r.Result.Size)
		}
	case "report":
		var w schemas.ReportWritten
		if e.Decode(&w) == nil {
			return ref(bucketReports, kindReport, w.SHA256, w.Size)
		}
	case "context":
		var s schemas.AnalysisSubmitted
		if e.Name() == schemas.EventSubmitted && e.Decode(&s) == nil {
			return ref(bucketArtifacts, schemas.KindSample, s.Submission.Sample.SHA256, s.Submission.Sample.Size)
		}
	}
	return nil
}

// maxTemplate bounds the document that lists a template's parts, in bytes.
const maxTemplate = 1 << 20

// templateRefs calls fn with the parts of a template. One that is not there, or
// cannot be read, has none.
func (b *Bus) templateRefs(ctx context.Context, r reference, fn func(reference) error) error {
	body, err := b.Artifacts().ReadAll(ctx, r.digest, maxTemplate)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrTooLarge) {
		return nil
	}
	if err != nil {
		return err
	}
	var t schemas.Template
	if json.Unmarshal(body, &t) != nil {
		return nil
	}
	for _, d := range []schemas.Digest{t.Kernel, t.Initramfs, t.RAM, t.State} {
		if err := fn(reference{bucketArtifacts, "template-part", d, -1, r.tenant, r.analysis, r.imported}); err != nil {
			return err
		}
	}
	return nil
}

// message is a message of a stream.
type message struct {
	subject string
	seq     uint64
	time    time.Time // of the server, when it was stored
	data    []byte
}

// scan calls fn with what a stream has under some subjects when it begins, in
// its order and in constant memory.
func (b *Bus) scan(ctx context.Context, stream string, subjects []string, fn func(message) error) error {
	end, err := b.lastOf(ctx, stream, subjects)
	if err != nil || end == 0 {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cons, err := b.js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{FilterSubjects: subjects, InactiveThreshold: time.Minute})
	if err != nil {
		return fmt.Errorf("read %s: %w", stream, err)
	}
	msgs := make(chan jetstream.Msg, 256)
	cc, err := cons.Consume(func(m jetstream.Msg) {
		select {
		case msgs <- m:
		case <-ctx.Done():
		}
	}, jetstream.PullMaxMessagesWithBytesLimit(256, 8<<20), jetstream.PullHeartbeat(pullHeartbeat))
	if err != nil {
		return fmt.Errorf("read %s: %w", stream, err)
	}
	defer func() {
		cancel() // frees the handler
		cc.Stop()
		<-cc.Closed()
	}()
	idle := time.NewTicker(idleCheck)
	defer idle.Stop()
	for seen := uint64(0); seen < end; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-cc.Closed():
			return fmt.Errorf("read %s: %w", stream, nats.ErrConnectionClosed)
		case <-idle.C:
			// What was the last may have been taken away meanwhile.
			last, err := b.lastOf(ctx, stream, subjects)
			if err != nil {
				return err
			}
			end = min(end, last)
		case m := <-msgs:
			md, err := m.Metadata()
			if err != nil {
				return err
			}
			if seen = md.Sequence.Stream; seen > end {
				return nil
			}
			if err := fn(message{m.Subject(), seen, md.Timestamp, m.Data()}); err != nil {
				return err
			}
			if md.NumPending == 0 {
				return nil
			}
		}
	}
	return nil
}

// lastOf is the sequence of the last message under any of some subjects, 0 if
// there is none.
func (b *Bus) lastOf(ctx context.Context, stream string, subjects []string) (uint64, error) {
	end := uint64(0)
	for _, s := range subjects {
		m, err := b.lookupIn(ctx, stream, lookup{Last: s})
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", stream, err)
		}
		end = max(end, m.Sequence)
	}
	return end, nil
}

// A keySet is a set of 64-bit keys in 8 bytes each. Keys are beginnings of
// digests, or hashes: two things may share one, which makes the set say yes too
// often, never no.
type keySet struct {
	keys   []uint64
	sorted int // how many of them are in order and unlike
}

func digestKey(d schemas.Digest) uint64 { return binary.BigEndian.Uint64(d[:]) }

// textKey is the key of a name.
func textKey(s string) uint64 { return digestKey(schemas.Sum([]byte(s))) }

func (s *keySet) add(k uint64) {
	s.keys = append(s.keys, k)
	if len(s.keys) >= 2*s.sorted+4096 {
		s.sort()
	}
}

func (s *keySet) sort() {
	if s.sorted == len(s.keys) {
		return
	}
	slices.Sort(s.keys)
	s.keys = slices.Compact(s.keys)
	s.sorted = len(s.keys)
}

func (s *keySet) has(k uint64) bool {
	s.sort()
	_, ok := slices.BinarySearch(s.keys, k)
	return ok
}

func (s *keySet) len() int {
	s.sort()
	return len(s.keys)
}
