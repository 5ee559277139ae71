// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// The collector removes what nobody refers to. That a put or an announcement is
// under way at the same time does no harm, by four rules:
//
//   - an object is collected only if it is old, and whoever is about to refer to
//     it makes it young first ([Store.Put] and [Store.Keep]);
//   - what is old is reckoned from before the references were read, so that an
//     object that was announced while they were read is not old;
//   - the mark of a deletion is written only behind the very meta record that was
//     found old: who has made the object young since has written another;
//   - who finds the mark, or nothing, puts the bytes again.

// GCOptions are for [Bus.Collect]. The zero value removes what is a day old.
type GCOptions struct {
	DryRun bool          // look only
	Age    time.Duration // of what may be removed; 0: 24 h
	// Alone says that nobody else uses the server: then any age will do.
	Alone bool
	// Progress is told what is looked at, and how much of it there was so far; it
	// may be nil.
	Progress func(what string, n int)
}

// MinGCAge is the least age that can be asked for while others use the server:
// the time in which what was put must be announced, and as long again as an
// object that is young is not made younger.
const MinGCAge = 3 * freshFor

// GCResult is what [Bus.Collect] found and did.
type GCResult struct {
	DryRun     bool       `json:"dry_run"`
	References int        `json:"references"` // objects that are referred to
	Buckets    []GCBucket `json:"buckets"`
}

// GCBucket is what became of one bucket.
type GCBucket struct {
	Bucket   string `json:"bucket"`
	Objects  int    `json:"objects"`
	Used     int    `json:"used"`     // referred to
	Young    int    `json:"young"`    // not referred to, and left alone for their age
	Foreign  int    `json:"foreign"`  // not Petri's, and left alone
	Removed  int    `json:"removed"`  // objects; with DryRun: that would be
	Bytes    int64  `json:"bytes"`    // of these
	Orphans  int    `json:"orphans"`  // sets of chunks without a meta record that were removed
	Chunks   int    `json:"chunks"`   // of these
	Snatched int    `json:"snatched"` // somebody came to use them at the last moment
}

// Collect removes from the store what nothing refers to: artifacts, segments and
// result documents of deleted analyses, uploads that came to nothing, reports
// and files of the archive that have been replaced. It may run at any time,
// anywhere, and twice at once. Its memory is 16 bytes per object.
func (b *Bus) Collect(ctx context.Context, o GCOptions) (GCResult, error) {
	if o.Age == 0 {
		o.Age = gcAge
	}
	if o.Age < MinGCAge && !o.Alone {
		return GCResult{}, fmt.Errorf("an age of %s is less than %s: what is just being stored could be taken for garbage", o.Age, MinGCAge)
	}
	if o.Progress == nil {
		o.Progress = func(string, int) {}
	}
	if err := b.sameClock(ctx); err != nil {
		return GCResult{}, err
	}
	c := &collection{b: b, o: o, cutoff: b.now().Add(-o.Age), wall: time.Now().Add(-o.Age), used: map[string]*keySet{}}
	res := GCResult{DryRun: o.DryRun}
	for _, bucket := range []string{bucketArtifacts, bucketReports, bucketArchive} {
		c.used[bucket] = &keySet{}
	}
	n := 0
	err := b.references(ctx, func(r reference) error {
		if n++; n%1000 == 0 {
			o.Progress("references", n)
		}
		c.used[r.bucket].add(digestKey(r.digest))
		return nil
	})
	if err != nil {
		return res, fmt.Errorf("what is referred to is not known, so nothing was removed: %w (petri audit names what is damaged)", err)
	}
	for _, bucket := range []string{bucketArtifacts, bucketReports, bucketArchive} {
		res.References += c.used[bucket].len()
		r, err := c.bucket(ctx, &Store{b: b, bucket: bucket}, c.used[bucket])
		res.Buckets = append(res.Buckets, r)
		if err != nil {
			return res, fmt.Errorf("collect garbage of %s: %w", bucket, err)
		}
	}
	return res, nil
}

// sameClock refuses to reckon ages where the clocks do not agree.
func (b *Bus) sameClock(ctx context.Context) error {
	st, err := b.js.Stream(ctx, streamLog)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	at := st.CachedInfo().TimeStamp
	if d := time.Since(at).Abs(); !at.IsZero() && d > freshFor {
		return fmt.Errorf("the clocks of this host and of the NATS server are %s apart: set them right", d.Round(time.Second))
	}
	return nil
}

// collection is a collection in progress.
type collection struct {
	b      *Bus
	o      GCOptions
	cutoff time.Time // what is younger stays
	wall   time.Time // the same by the clock of who stored the chunks
	used   map[string]*keySet
}

func (c *collection) bucket(ctx context.Context, s *Store, used *keySet) (GCBucket, error) {
	res := GCBucket{Bucket: s.bucket}
	sets := &keySet{} // chunks that a meta record names
	err := c.b.scan(ctx, s.stream(), []string{s.metaSubject("") + ">"}, func(m message) error {
		if res.Objects++; res.Objects%1000 == 0 {
			c.o.Progress("objects of "+s.bucket, res.Objects)
		}
		return c.object(ctx, s, used, sets, m, &res)
	})
	if err != nil {
		return res, err
	}
	sets.sort()
	n := 0
	err = c.b.subjects(ctx, s.stream(), s.chunkSubject("*"), func(subject string, chunks uint64) error {
		if n++; n%1000 == 0 {
			c.o.Progress("uploads of "+s.bucket, n)
		}
		id := subject[strings.LastIndexByte(subject, '.')+1:]
		if sets.has(textKey(id)) || !validNUID(id) {
			return nil
		}
		return c.orphan(ctx, s, id, chunks, &res)
	})
	return res, err
}

// object judges one object by its meta record.
func (c *collection) object(ctx context.Context, s *Store, used, sets *keySet, m message, res *GCBucket) error {
	var info jetstream.ObjectInfo
	if json.Unmarshal(m.data, &info) != nil {
		res.Foreign++ // audit has a word for it
		return nil
	}
	sets.add(textKey(info.NUID))
	if info.Deleted { // a removal that was cut short
		res.Objects--
		if c.o.DryRun {
			return nil
		}
		return s.finishRemoval(ctx, info, m.seq)
	}
	d, err := schemas.ParseDigest(info.Name)
	switch {
	case err != nil || m.subject != s.metaSubject(info.Name):
		res.Foreign++
		return nil
	case used.has(digestKey(d)):
		res.Used++
		return nil
	case info.ModTime.After(c.cutoff) || m.time.After(c.cutoff):
		res.Young++
		return nil
	}
	if !c.o.DryRun {
		gone, err := s.remove(ctx, Object{SHA256: d, meta: info, seq: m.seq})
		if err != nil {
			return err
		}
		if !gone {
			res.Snatched++
			return nil
		}
	}
	res.Removed++
	res.Bytes += int64(info.Size)
	return nil
}

// orphan removes chunks that no meta record names, if the last of them is old:
// no upload takes so long.
func (c *collection) orphan(ctx context.Context, s *Store, id string, chunks uint64, res *GCBucket) error {
	m, err := c.b.lookupIn(ctx, s.stream(), lookup{Last: s.chunkSubject(id)})
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if m.Time.After(c.wall) {
		return nil
	}
	if !c.o.DryRun {
		st, err := c.b.js.Stream(ctx, s.stream())
		if err != nil {
			return err
		}
		err = retry(ctx, func(ctx context.Context) error {
			return st.Purge(ctx, jetstream.WithPurgeSubject(s.chunkSubject(id)))
		})
		if err != nil {
			return err
		}
	}
	res.Orphans++
	res.Chunks += int(chunks)
	return nil
}

// When the bus process collects: often enough that nothing lies about for more
// than a day and a half.
const (
	gcFirst = 15 * time.Minute // after its start
	gcEvery = 6 * time.Hour
)

// KeepClean collects garbage now and again until ctx is done.
func (b *Bus) KeepClean(ctx context.Context, log *slog.Logger) error {
	t := time.NewTimer(gcFirst)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		res, err := b.Collect(ctx, GCOptions{})
		if err != nil && ctx.Err() == nil {
			log.Error("collect garbage", "error", err)
		}
		for _, r := range res.Buckets {
			if r.Removed+r.Orphans > 0 {
				log.Info("collected garbage", "bucket", r.Bucket, "objects", r.Removed, "bytes", r.Bytes, "orphans", r.Orphans)
			}
		}
		t.Reset(gcEvery)
	}
}
