// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// Limits bound what one analysis may keep.
type Limits struct {
	schemas.Limits
	Serial int64 // bytes of the serial console
	Listed int   // dropped files that are listed
	Tasks  int   // processes and threads of the sample
}

// DefaultPcap is how many bytes of capture are kept unless a submission says
// otherwise.
const DefaultPcap = 256 << 20

// defaultLimits hold where a submission says nothing else.
var defaultLimits = Limits{
	Limits: schemas.Limits{
		Stdout: 4 << 20, Trace: 512 << 20, Pcap: DefaultPcap, DroppedFile: 32 << 20, DroppedFiles: 500, DroppedTotal: 256 << 20,
	},
	Serial: 1 << 20, Listed: 200_000, Tasks: 4096,
}

// limits are those that were asked for, or else the default ones.
func limits(asked schemas.Limits) Limits {
	l := defaultLimits
	for _, f := range []struct {
		asked int64
		limit *int64
	}{
		{asked.Stdout, &l.Stdout}, {asked.Trace, &l.Trace}, {asked.Pcap, &l.Pcap},
		{asked.DroppedFile, &l.DroppedFile}, {asked.DroppedFiles, &l.DroppedFiles}, {asked.DroppedTotal, &l.DroppedTotal},
	} {
		if f.asked > 0 {
			*f.limit = f.asked
		}
	}
	return l
}

// How much of a source may be lost by a crash: a segment goes out when it has
// this size or this age.
const (
	logSegment   = 64 << 10
	logAge       = 250 * time.Millisecond
	storeSegment = 8 << 20
	storeAge     = 5 * time.Second
)

// source cuts one high-volume stream into segments while it arrives, and
// publishes each. Small sources travel in the log, large ones in the store.
type source struct {
	c     *Context
	name  schemas.Source
	store bool
	media string
	limit int64 // bytes in all
	size  int   // of a segment
	age   time.Duration
	// scan returns how many of b's bytes are whole records, and how many
	// records they hold. nil: every byte is one.
	scan func(b []byte) (n int, records uint64, err error)

	mu       sync.Mutex
	buf      []byte
	from     time.Time // when buf's first byte came
	records  uint64    // in all segments so far
	next     int       // number of the next segment
	prev     *schemas.Digest
	segments []schemas.ManifestSegment
	bytes    int64
	cut      uint64
	lost     uint64 // records that were left out here
	broken   string // why nothing more is kept
	ended    *schemas.SourceCoverage
	spool    *os.File // of small sources, for the artifact
}

func (c *Context) newSources() map[schemas.Source]*source {
	l := c.cfg.Limits
	out := map[schemas.Source]*source{}
	for _, s := range []*source{
		{name: schemas.SourceTrace, store: true, media: schemas.TraceMediaType, limit: l.Trace, scan: scanTrace},
		{name: schemas.SourcePcap, store: true, media: schemas.PcapMediaType, limit: l.Pcap, scan: scanPcapng},
		{name: schemas.SourceStdout, limit: l.Stdout},
		{name: schemas.SourceStderr, limit: l.Stdout},
		{name: schemas.SourceSerial, limit: l.Serial},
	} {
		s.c, s.size, s.age = c, logSegment, logAge
		if s.store {
			s.size, s.age = storeSegment, storeAge
		}
		out[s.name] = s
	}
	return out
}

// Data implements [machine.Observer].
func (c *Context) Data(src schemas.Source, p []byte) {
	s := c.sources[src]
	if s == nil {
		return
	}
	switch src {
	case schemas.SourceStdout, schemas.SourceStderr, schemas.SourceTrace:
		c.news()
	}
	s.add(p)
}

// End implements [machine.Observer].
func (c *Context) End(src schemas.Source, cov schemas.SourceCoverage) {
	if s := c.sources[src]; s != nil {
		c.mu.Lock()
		if src == schemas.SourceTrace && !c.tailLost && powerTaken(cov) {
			cov.Status, cov.Reason = schemas.StatusWhole, ""
		}
		c.mu.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.merge(cov)
	}
}

// linkEnded begins the reason of a source that ended with its guest's link
// (package wire).
const linkEnded = "the link ended"

// powerTaken reports whether all that a trace lacks is its writer's own end, as
// when the power is taken. If the guest had sent all that it had before that,
// and counts what it lost, the trace is whole.
func powerTaken(c schemas.SourceCoverage) bool {
	return c.Status == schemas.StatusPartial && strings.HasPrefix(c.Reason, linkEnded) && c.Lost == 0 && c.Cut == 0 && len(c.PerCPU) > 0
}

// merge adds what the machine says of a source. A machine that was started
// twice has two of them.
func (s *source) merge(cov schemas.SourceCoverage) {
	if s.ended == nil {
		s.ended = &cov
		return
	}
	e := s.ended
	e.Produced += cov.Produced
	e.Lost += cov.Lost
	e.Cut += cov.Cut
	e.Unreadable += cov.Unreadable
	e.PerCPU = append(e.PerCPU, cov.PerCPU...)
	if cov.Status != schemas.StatusWhole {
		e.Status, e.Reason = cov.Status, cov.Reason
	}
	e.Suppressed = sum(e.Suppressed, cov.Suppressed)
}

// sum adds the counts of b to those of a, in a new map if there are any.
func sum(a, b map[string]uint64) map[string]uint64 {
	if len(b) == 0 {
		return a
	}
	out := maps.Clone(b)
	for k, v := range a {
		out[k] += v
	}
	return out
}

func (s *source) add(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != "" {
		s.cut += uint64(len(p))
		return
	}
	if len(s.buf) == 0 {
		s.from = time.Now()
	}
	s.buf = append(s.buf, p...)
	for len(s.buf) >= s.size && s.broken == "" {
		if !s.flush(false) {
			break
		}
	}
}

// flushOld publishes what has waited long enough.
func (s *source) flushOld(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.buf) > 0 && now.Sub(s.from) >= s.age {
		s.flush(false)
	}
}

// flushSources runs until the machine has gone.
func (c *Context) flushSources(done <-chan struct{}) {
	t := time.NewTicker(logAge / 2)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case now := <-t.C:
			for _, s := range c.sources {
				s.flushOld(now)
			}
		}
	}
}

// flush publishes the whole records in the buffer as one segment, at most
// s.size bytes of them. It reports whether anything went out.
func (s *source) flush(final bool) bool {
	n, records := min(len(s.buf), s.size), uint64(0)
	if s.scan == nil {
		records = uint64(n)
	} else {
		var err error
		n, records, err = s.scan(s.buf[:n])
		if err != nil {
			s.fail("malformed: " + err.Error())
			return false
		}
	}
	if final && n < len(s.buf) && s.scan != nil {
		s.cut += uint64(len(s.buf) - n) // half a record at the very end
		s.buf = s.buf[:n]
	}
	if n == 0 && !final {
		if len(s.buf) > 1<<20 {
			s.fail("malformed: a record of more than 1 MiB")
		}
		return false
	}
	if s.bytes+int64(n) > s.limit {
		s.lost += records
		s.fail(fmt.Sprintf("more than %d bytes", s.limit))
		return false
	}
	if n == 0 && s.next == 0 {
		return false // nothing ever came
	}
	if err := s.publish(s.buf[:n], records, final && n == len(s.buf)); err != nil {
		s.lost += records
		s.fail(err.Error())
		return false
	}
	s.buf = append(s.buf[:0], s.buf[n:]...)
	s.from = time.Now()
	return true
}

// fail gives the source up: what comes is read and counted, no more.
func (s *source) fail(why string) {
	s.broken = why
	s.cut += uint64(len(s.buf))
	s.buf = nil
}

func (s *source) publish(p []byte, records uint64, final bool) error {
	seg := schemas.Segment{
		Source: s.name, N: s.next, SHA256: schemas.Sum(p), Size: int64(len(p)), First: s.records, Records: records,
		Produced: s.records + records + s.lost, Lost: s.lost, Prev: s.prev, From: s.from.UTC(), Final: final,
	}
	if seg.From.IsZero() {
		seg.From = time.Now().UTC()
	}
	if r, ok := s.c.cfg.Store.(Roomy); ok {
		if err := r.Room(seg.Size); err != nil {
			return fmt.Errorf("no room: %w", err)
		}
	}
	if s.store {
		if _, _, err := s.c.cfg.Store.Put(s.c.life, "segment", bytes.NewReader(p)); err != nil {
			return fmt.Errorf("store a segment: %w", err)
		}
	} else {
		seg.Data = p
		if err := s.spoolWrite(p); err != nil {
			return err
		}
	}
	e, err := schemas.NewEvent(s.c.cfg.Tenant, s.c.cfg.Analysis, seg.ID(s.c.cfg.Analysis), time.Now(), s.origin(), seg)
	if err != nil {
		return err
	}
	err = s.c.persist(s.c.life, func(ctx context.Context) error { return s.c.cfg.Log.PublishSegment(ctx, e, &seg) })
	if err != nil {
		return fmt.Errorf("publish a segment: %w", err)
	}
	s.next++
	s.prev = &seg.SHA256
	s.records += records
	s.bytes += seg.Size
	s.segments = append(s.segments, schemas.ManifestSegment{SHA256: seg.SHA256, Size: seg.Size, First: seg.First, Records: records})
	return nil
}

func (s *source) origin() schemas.Origin {
	if s.name == schemas.SourcePcap {
		return schemas.OriginHost
	}
	return schemas.OriginGuest
}

// spoolWrite keeps a small source's bytes for its artifact.
func (s *source) spoolWrite(p []byte) error {
	if s.spool == nil {
		f, err := os.OpenFile(filepath.Join(s.c.cfg.Dir, string(s.name)), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return fmt.Errorf("keep %s: %w", s.name, err)
		}
		s.spool = f
	}
	_, err := s.spool.Write(p)
	return err
}

// read returns everything that has been spooled, after publishing what waits.
func (s *source) read() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.broken == "" && len(s.buf) > 0 && s.flush(false) {
	}
	if s.spool == nil {
		return nil, nil
	}
	b := make([]byte, s.bytes)
	_, err := s.spool.ReadAt(b, 0)
	return b, err
}

// finish publishes the rest and returns what became of the source. The machine
// is gone by then.
func (s *source) finish() schemas.SourceCoverage {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.broken == "" && len(s.buf) > s.size && s.flush(false) {
	}
	if s.broken == "" {
		s.flush(true)
	}
	cov := schemas.SourceCoverage{Source: s.name, Status: schemas.StatusWhole}
	if s.ended != nil {
		cov = *s.ended
		cov.Source = s.name
	}
	if s.name == schemas.SourceTrace {
		s.c.mu.Lock()
		cov.Suppressed = sum(cov.Suppressed, s.c.suppressed)
		s.c.mu.Unlock()
	}
	cov.Segments, cov.Bytes = len(s.segments), s.bytes
	cov.Cut += s.cut
	cov.Lost += s.lost
	cov.Produced = max(cov.Produced, s.records+cov.Lost)
	switch {
	case s.broken != "":
		cov.Status, cov.Reason = schemas.StatusPartial, s.broken
	case s.ended == nil && s.name == schemas.SourceTrace:
		cov.Status, cov.Reason = schemas.StatusMissing, "nothing was traced"
	case s.ended == nil && s.next > 0:
		cov.Status, cov.Reason = schemas.StatusPartial, "its end was never told"
	case cov.Status == schemas.StatusWhole && (cov.Lost > 0 || cov.Cut > 0):
		cov.Status = schemas.StatusPartial
		cov.Reason = fmt.Sprintf("%d records lost, %d bytes cut", cov.Lost, cov.Cut)
	}
	return cov
}

func (s *source) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spool != nil {
		s.spool.Close()
	}
}

// manifest announces the artifact that stands for a large source's segments.
func (s *source) manifest(cov schemas.SourceCoverage) error {
	if !s.store || len(s.segments) == 0 {
		return nil
	}
	m := schemas.Manifest{Schema: schemas.ManifestSchema, Source: s.name, MediaType: s.media, Segments: s.segments, Size: s.bytes, Coverage: cov}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	kind := schemas.KindTrace
	if s.name == schemas.SourcePcap {
		kind = schemas.KindPcap
	}
	return s.c.Store(s.c.life, schemas.Artifact{Kind: kind, MediaType: schemas.ManifestMediaType, Name: string(s.name)}, bytes.NewReader(b))
}

// scanTrace walks over whole blocks of a trace.
func scanTrace(b []byte) (n int, records uint64, err error) {
	for rest := b; ; {
		h, block, next, err := trace.NextBlock(rest)
		if err != nil || block == nil {
			return n, records, err
		}
		n += len(block)
		records += uint64(h.Count)
		rest = next
	}
}

// pcapngPacket is the type of an enhanced packet block (pcapng, section 4.3).
const pcapngPacket = 6

// scanPcapng walks over whole blocks of a capture, which our own writer made:
// little-endian, type and total length first (pcapng, section 3.1).
func scanPcapng(b []byte) (n int, packets uint64, err error) {
	for {
		if len(b)-n < 12 {
			return n, packets, nil
		}
		size := binary.LittleEndian.Uint32(b[n+4:])
		if size < 12 || size%4 != 0 || size > 1<<20 {
			return n, packets, fmt.Errorf("a pcapng block of %d bytes", size)
		}
		if len(b)-n < int(size) {
			return n, packets, nil
		}
		if binary.LittleEndian.Uint32(b[n:]) == pcapngPacket {
			packets++
		}
		n += int(size)
	}
}
