// SPDX-License-Identifier: Apache-2.0

package analyzers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"

	"github.com/petri-sandbox/petri/schemas"
)

// Collected is what an analyzer made of a job.
type Collected struct {
	Status   string // schemas.TaskDone or schemas.TaskSkipped
	Error    string // why it was skipped
	Findings []schemas.Finding
	Schema   string // of the result document
	Result   []byte
	Derived  []schemas.Derived
	Cut      schemas.TaskCut
}

// Collect runs an analyzer in this process, under the same limits on what it
// emits, but without any confinement, and holds its result document in memory.
// It is for tests and for bytes that one trusts.
func Collect(ctx context.Context, a Analyzer, job Job) (Collected, error) {
	m := &memoryOutlet{}
	o := Options{}.fill()
	g := &gather{out: m, limits: o.limits()}
	err := a.Analyze(ctx, job, g)
	var skip *SkipError
	if errors.As(err, &skip) {
		return Collected{Status: schemas.TaskSkipped, Error: line(skip.Reason, maxError)}, nil
	}
	if err != nil {
		return Collected{}, err
	}
	return Collected{
		Status: schemas.TaskDone, Findings: g.findings.list, Schema: m.schema, Result: m.result, Derived: m.derived, Cut: g.cut,
	}, nil
}

// memoryOutlet keeps the result document, and the digests of all else.
type memoryOutlet struct {
	schema  string
	result  []byte
	derived []schemas.Derived
}

func (m *memoryOutlet) open(typ byte, header any) (stream, error) {
	s := &memoryStream{outlet: m, hash: sha256.New()}
	s.ref, s.isResult = header.(schemas.ResultRef)
	s.d, _ = header.(schemas.Derived)
	return s, nil
}

type memoryStream struct {
	outlet   *memoryOutlet
	isResult bool
	ref      schemas.ResultRef
	d        schemas.Derived
	doc      bytes.Buffer
	hash     hash.Hash
	size     int64
}

func (s *memoryStream) Write(b []byte) (int, error) {
	s.hash.Write(b)
	s.size += int64(len(b))
	if s.isResult {
		s.doc.Write(b)
	}
	return len(b), nil
}

func (s *memoryStream) commit() error {
	if s.isResult {
		s.outlet.schema, s.outlet.result = s.ref.Schema, s.doc.Bytes()
		return nil
	}
	s.d.SHA256, s.d.Size = schemas.Digest(s.hash.Sum(nil)), s.size
	s.outlet.derived = append(s.outlet.derived, s.d)
	return nil
}

func (s *memoryStream) abort() error { return nil }
