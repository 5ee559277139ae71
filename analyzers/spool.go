// SPDX-License-Identifier: Apache-2.0

package analyzers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/schemas"
)

const (
	maxManifest = 16 << 20 // bytes
	maxSegments = 200_000
	maxOthers   = 64 // artifacts for a job of scope analysis
)

// inputError says that a task cannot be done because of what it is about: to
// try again would not help.
type inputError struct{ msg string }

func (e *inputError) Error() string { return e.msg }

func badInput(format string, args ...any) error { return &inputError{fmt.Sprintf(format, args...)} }

// spool holds the files of a job, none of which has a name.
type spool struct {
	dir   string
	store Store
	limit func(schemas.Kind) int64
	files []*os.File
}

func (s *spool) close() { closeAll(s.files...) }

// file makes a file without a name, has it filled, and returns its size. What
// is kept of it can only be read.
func (s *spool) file(fill func(io.Writer) error) (int64, error) {
	w, r, err := tempFile(s.dir)
	if err != nil {
		return 0, fmt.Errorf("make temporary file: %w", err)
	}
	s.files = append(s.files, r)
	defer w.Close()
	if err := fill(w); err != nil {
		return 0, err
	}
	n, err := w.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, fmt.Errorf("size of temporary file: %w", err)
	}
	return n, nil
}

// tempFile returns one file twice, for writing and for reading.
func tempFile(dir string) (w, r *os.File, err error) {
	if fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600); err == nil {
		w = os.NewFile(uintptr(fd), "spool")
		readable(w)
		if r, err = os.Open(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil {
			return w, r, nil
		}
		w.Close()
	}
	w, err = os.CreateTemp(dir, "petri-spool-") // a file system without O_TMPFILE
	if err != nil {
		return nil, nil, err
	}
	readable(w)
	r, err = os.Open(w.Name())
	if err := errors.Join(err, os.Remove(w.Name())); err != nil {
		closeAll(w, r)
		return nil, nil, err
	}
	return w, r, nil
}

// readable permits a program that was given a spooled file to open it again as
// /dev/fd/N, though it is another user's. Nobody else finds a file without a
// name.
func readable(f *os.File) { _ = f.Chmod(0o444) } // else there is standard input

// artifact spools an artifact, or the bytes that its manifest stands for. Only
// the sandbox's own manifests count: an analyzer's could name anything.
func (s *spool) artifact(ctx context.Context, a schemas.Artifact) (inputRef, error) {
	ref := inputRef{Artifact: a}
	limit := s.limit(a.Kind)
	if a.MediaType == schemas.ManifestMediaType && a.Analyzer == "" && a.Parent == nil {
		m, err := s.manifest(ctx, a)
		if err != nil {
			return ref, err
		}
		if m.Size > limit {
			return ref, badInput("artifact of %d bytes is over the limit of %d for %s", m.Size, limit, a.Kind)
		}
		ref.Manifest = m
		ref.Size, err = s.file(func(w io.Writer) error {
			for i, seg := range m.Segments {
				if err := s.copy(ctx, w, seg.SHA256, seg.Size); err != nil {
					return fmt.Errorf("segment %d: %w", i, err)
				}
			}
			return nil
		})
		return ref, err
	}
	if a.Size > limit {
		return ref, badInput("artifact of %d bytes is over the limit of %d for %s", a.Size, limit, a.Kind)
	}
	var err error
	ref.Size, err = s.file(func(w io.Writer) error { return s.copy(ctx, w, a.SHA256, a.Size) })
	return ref, err
}

// copy copies an object, which must have size bytes.
func (s *spool) copy(ctx context.Context, w io.Writer, d schemas.Digest, size int64) error {
	r, err := s.store.Open(ctx, d)
	if err != nil {
		return s.openError(d, err)
	}
	defer r.Close()
	n, err := io.Copy(w, io.LimitReader(r, size+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", d, err)
	}
	if n != size {
		return badInput("%s has not the %d bytes that its announcement says", d, size)
	}
	return nil
}

func (s *spool) openError(d schemas.Digest, err error) error {
	if errors.Is(err, ErrNotFound) {
		return badInput("the store does not have %s", d)
	}
	return fmt.Errorf("open %s: %w", d, err)
}

func (s *spool) manifest(ctx context.Context, a schemas.Artifact) (*schemas.Manifest, error) {
	if a.Size > maxManifest {
		return nil, badInput("manifest of %d bytes; %d are allowed", a.Size, maxManifest)
	}
	r, err := s.store.Open(ctx, a.SHA256)
	if err != nil {
		return nil, s.openError(a.SHA256, err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", a.SHA256, err)
	}
	var m schemas.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, badInput("manifest %s: %v", a.SHA256, err)
	}
	if m.Schema != schemas.ManifestSchema {
		return nil, badInput("manifest %s: its schema is %.40q, not %s", a.SHA256, m.Schema, schemas.ManifestSchema)
	}
	if len(m.Segments) > maxSegments {
		return nil, badInput("manifest %s has %d segments; %d are allowed", a.SHA256, len(m.Segments), maxSegments)
	}
	var size int64
	for i, seg := range m.Segments {
		if seg.Size < 0 || size+seg.Size < size {
			return nil, badInput("manifest %s: segment %d has %d bytes", a.SHA256, i, seg.Size)
		}
		size += seg.Size
	}
	m.Size = size
	return &m, nil
}

// events spools an analysis' log as JSON lines.
func (s *spool) events(ctx context.Context, h History, t schemas.TaskRef, limit int64) (int64, error) {
	return s.file(func(f io.Writer) error {
		w := &capped{w: f, left: limit}
		for e, err := range h.Events(ctx, t) {
			if err != nil {
				return fmt.Errorf("read log: %w", err)
			}
			b, err := json.Marshal(e)
			if err != nil {
				return fmt.Errorf("encode event %s: %w", e.ID, err)
			}
			_, err = w.Write(append(b, '\n'))
			if w.over {
				return badInput("the log of the analysis has more than %d bytes", limit)
			}
			if err != nil {
				return fmt.Errorf("write log: %w", err)
			}
		}
		return nil
	})
}
