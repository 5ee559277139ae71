// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// AuditOptions are for [Bus.Audit].
type AuditOptions struct {
	Deep bool // read every byte and compare digests
	// Found is told of each problem as it is found.
	Found func(AuditProblem)
	// Progress is told what is looked at, and how much of it there was so far; it
	// may be nil.
	Progress func(what string, n int)
}

// An AuditProblem is something that is not in the store as it should be.
type AuditProblem struct {
	Problem  string          `json:"problem"`
	Bucket   string          `json:"bucket"`
	Kind     schemas.Kind    `json:"kind,omitempty"`
	SHA256   *schemas.Digest `json:"sha256,omitempty"`
	Tenant   string          `json:"tenant,omitempty"` // whose analysis names it
	Analysis string          `json:"analysis,omitempty"`
	Upload   string          `json:"upload,omitempty"` // id of chunks that no record names
}

// AuditResult is what [Bus.Audit] looked at.
type AuditResult struct {
	Deep     bool  `json:"deep"`
	Named    int   `json:"named"`    // how often the log and the archive name an object
	Objects  int   `json:"objects"`  // different ones
	Bytes    int64 `json:"bytes"`    // of these, uncompressed
	Absent   int   `json:"absent"`   // that imported analyses name and came without
	Problems int   `json:"problems"` // that were found
}

// orphanAge is how old chunks without a meta record must be to be a problem:
// before that they are an upload, or garbage that is about to be collected.
const orphanAge = 2 * gcAge

// Audit checks that everything that the log and the archive name is in the store:
// it has a record, of the right size, and all its chunks; with Deep its bytes
// have its digest. And it looks for chunks that no record names. What comes or
// goes meanwhile is no problem.
func (b *Bus) Audit(ctx context.Context, o AuditOptions) (AuditResult, error) {
	if o.Progress == nil {
		o.Progress = func(string, int) {}
	}
	a := &audit{b: b, o: o, good: map[uint64]bool{}, bad: map[string]string{}}
	a.res.Deep = o.Deep
	err := b.Queued(ctx, func(q QueuedJob) error {
		return submissionRefs(q.Submission, func(r reference) error { return a.reference(ctx, r) })
	})
	if err == nil {
		err = b.history(ctx, a.damaged, func(r reference) error { return a.reference(ctx, r) })
	}
	for _, bucket := range []string{bucketArtifacts, bucketReports, bucketArchive} {
		if err == nil {
			err = a.orphans(ctx, &Store{b: b, bucket: bucket})
		}
	}
	if err != nil {
		return a.res, fmt.Errorf("audit: %w", err)
	}
	return a.res, nil
}

// audit is an audit in progress.
type audit struct {
	b    *Bus
	o    AuditOptions
	res  AuditResult
	good map[uint64]bool   // objects that are as they should be
	bad  map[string]string // what is wrong with the others
}

func (a *audit) reference(ctx context.Context, r reference) error {
	if a.res.Named++; a.res.Named%100 == 0 {
		a.o.Progress("objects", a.res.Objects)
	}
	name := objectName(r.bucket, r.digest, r.size)
	if a.good[textKey(name)] {
		return nil
	}
	problem, known := a.bad[name]
	if !known {
		var err error
		if problem, err = a.object(ctx, r); err != nil {
			return err
		}
		a.res.Objects++
		if problem == "" {
			a.good[textKey(name)] = true
			return nil
		}
	}
	if problem == problemMissing && r.imported {
		a.res.Absent++
		return nil
	}
	dead, err := a.b.tombstone(ctx, r.tenant, r.analysis)
	if err != nil || dead != nil { // deleted meanwhile
		return err
	}
	a.bad[name] = problem
	a.found(AuditProblem{Problem: problem, Bucket: r.bucket, Kind: r.kind, SHA256: &r.digest, Tenant: r.tenant, Analysis: r.analysis})
	return nil
}

// damaged reports a file of the archive that cannot be read to its end. The file
// itself is a reference too, and what its object lacks has been said.
func (a *audit) damaged(e schemas.ArchiveEntry, why error) error {
	if _, known := a.bad[objectName(bucketArchive, e.File, e.Size)]; !known {
		a.found(AuditProblem{Problem: why.Error(), Bucket: bucketArchive, Kind: kindPetri, SHA256: &e.File, Tenant: e.Tenant, Analysis: e.Analysis})
	}
	return nil
}

func objectName(bucket string, d schemas.Digest, size int64) string {
	return fmt.Sprintf("%s/%s/%d", bucket, d, size)
}

func (a *audit) found(p AuditProblem) {
	a.res.Problems++
	a.o.Found(p)
}

const problemMissing = "it is not in the store"

// object says what is wrong with an object; nothing is the empty text.
func (a *audit) object(ctx context.Context, r reference) (string, error) {
	s := &Store{b: a.b, bucket: r.bucket}
	o, err := s.Stat(ctx, r.digest)
	switch {
	case errors.Is(err, ErrNotFound):
		return problemMissing, nil
	case errors.Is(err, ErrCorrupt):
		return err.Error(), nil
	case err != nil:
		return "", err
	case r.size >= 0 && o.Size != r.size:
		return fmt.Sprintf("it has %d bytes, and was announced with %d", o.Size, r.size), nil
	}
	chunks := uint64(0)
	err = a.b.subjects(ctx, s.stream(), s.chunkSubject(o.meta.NUID), func(_ string, n uint64) error {
		chunks = n
		return nil
	})
	if err != nil {
		return "", err
	}
	if chunks != uint64(o.meta.Chunks) {
		return fmt.Sprintf("%d of its %d chunks are there", chunks, o.meta.Chunks), nil
	}
	a.res.Bytes += o.Size
	if !a.o.Deep {
		return "", nil
	}
	rd, _, err := s.Open(ctx, r.digest)
	if err == nil {
		_, err = io.Copy(io.Discard, rd)
		rd.Close()
	}
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt) {
		return err.Error(), nil
	}
	return "", err
}

// orphans looks for chunks that no meta record names.
func (a *audit) orphans(ctx context.Context, s *Store) error {
	sets, n := &keySet{}, 0
	err := a.b.scan(ctx, s.stream(), []string{s.metaSubject("") + ">"}, func(m message) error {
		var info jetstream.ObjectInfo
		if json.Unmarshal(m.data, &info) != nil {
			a.found(AuditProblem{Problem: fmt.Sprintf("the record at %d cannot be read", m.seq), Bucket: s.bucket})
			return nil
		}
		sets.add(textKey(info.NUID))
		return nil
	})
	if err != nil {
		return err
	}
	return a.b.subjects(ctx, s.stream(), s.chunkSubject("*"), func(subject string, chunks uint64) error {
		if n++; n%1000 == 0 {
			a.o.Progress("uploads of "+s.bucket, n)
		}
		id := subject[strings.LastIndexByte(subject, '.')+1:]
		if sets.has(textKey(id)) {
			return nil
		}
		m, err := a.b.lookupIn(ctx, s.stream(), lookup{Last: subject})
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err == nil && a.b.now().Sub(m.Time) > orphanAge {
			a.found(AuditProblem{Problem: fmt.Sprintf("%d chunks that no record names (petri gc removes them)", chunks), Bucket: s.bucket, Upload: id})
		}
		return err
	})
}

// String says for people how an audit went.
func (r AuditResult) String() string {
	how := "records and chunks"
	if r.Deep {
		how = "every byte"
	}
	s := fmt.Sprintf("%d objects checked (%s)", r.Objects, how)
	if r.Absent > 0 {
		s += fmt.Sprintf(", %d that imported analyses came without", r.Absent)
	}
	return s + fmt.Sprintf(", %d problems", r.Problems)
}
