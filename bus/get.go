// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/petri-sandbox/petri/schemas"
)

// Open returns a reader of an object's bytes, in constant memory. At the end
// the reader has compared them with the digest: it returns [io.EOF] only if
// they are the object's, else an error that wraps [ErrCorrupt]. The caller
// closes it.
func (s *Store) Open(ctx context.Context, d schemas.Digest) (io.ReadCloser, Object, error) {
	o, err := s.stat(ctx, d, s.anyRecord)
	if err != nil {
		return nil, Object{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &objectReader{ctx: ctx, cancel: cancel, s: s, o: o, sum: sha256.New(), chunks: make(chan []byte, 4), fail: make(chan error, 1)}
	go r.fetch()
	return r, o, nil
}

// ReadAll is Open for documents of at most limit bytes.
func (s *Store) ReadAll(ctx context.Context, d schemas.Digest, limit int64) ([]byte, error) {
	r, o, err := s.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if o.Size > limit {
		return nil, fmt.Errorf("artifact %s: %w: %d bytes, more than %d", d, ErrTooLarge, o.Size, limit)
	}
	return io.ReadAll(r)
}

type objectReader struct {
	ctx    context.Context // the reader's own life
	cancel context.CancelFunc
	s      *Store
	o      Object
	sum    hash.Hash
	chunks chan []byte // closed by fetch
	fail   chan error
	buf    []byte // of one frame, uncompressed
	frame  []byte // what of buf has not been read yet
	size   int64
	err    error
}

// fetch reads the chunks ahead of the reader. Chunks are read one by one, by
// subject: a consumer would do too, but a server has room for a thousand of
// them, and a missing chunk would be waited for until the deadline.
func (r *objectReader) fetch() {
	defer close(r.chunks)
	next := uint64(1)
	for range r.o.meta.Chunks {
		m, err := r.s.anyChunk(r.ctx, r.o, next)
		if errors.Is(err, ErrNotFound) {
			if _, err = r.s.Stat(r.ctx, r.o.SHA256); err == nil { // else it was removed, which not all had heard
				err = fmt.Errorf("artifact %s: %w: a chunk is missing", r.o.SHA256, ErrCorrupt)
			}
		}
		if err != nil {
			r.fail <- err
			return
		}
		next = m.Sequence + 1
		select {
		case r.chunks <- m.Data:
		case <-r.ctx.Done():
			return
		}
	}
}

func (r *objectReader) Read(p []byte) (int, error) {
	for len(r.frame) == 0 {
		if r.err == nil {
			r.err = r.nextFrame()
		}
		if r.err != nil {
			return 0, r.err
		}
	}
	n := copy(p, r.frame)
	r.frame = r.frame[n:]
	return n, nil
}

func (r *objectReader) nextFrame() error {
	select {
	case b, ok := <-r.chunks:
		if !ok {
			return r.end()
		}
		if r.buf == nil { // most of what there is is small
			r.buf = make([]byte, 0, max(0, min(r.o.Size, frameSize)))
		}
		frame, err := r.s.b.decoder.DecodeAll(b, r.buf)
		if err != nil {
			return fmt.Errorf("artifact %s: %w: %v", r.o.SHA256, ErrCorrupt, err)
		}
		r.buf, r.frame = frame[:0], frame
		r.sum.Write(frame)
		r.size += int64(len(frame))
		return nil
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
}

func (r *objectReader) end() error {
	select {
	case err := <-r.fail:
		return err
	default:
	}
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if schemas.Digest(r.sum.Sum(nil)) != r.o.SHA256 || r.size != r.o.Size {
		return fmt.Errorf("artifact %s: %w: its bytes have another digest", r.o.SHA256, ErrCorrupt)
	}
	return io.EOF
}

func (r *objectReader) Close() error {
	r.cancel()
	for range r.chunks { // fetch has ended when this has
	}
	return nil
}
