// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/archive"
	"github.com/petri-sandbox/petri/schemas"
)

// Archive says which files of an archive are the samples.
type Archive struct {
	Password string // tried before the common ones
	Member   string // the name of the one that is meant; empty: there must be only one
	All      bool   // every file is a sample of its own
}

// PrepareArchive takes files out of the archive r.Path, in a child that may do
// nothing else, and prepares each as r says. Its errors are [ErrBadInput] if they
// are the archive's.
func PrepareArchive(ctx context.Context, r Request, a Archive) (list []*Prepared, err error) {
	limit := r.Options.MaxSample
	if limit == 0 {
		limit = DefaultMaxSample
	}
	f, size, err := openSample(r.Path, limit)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	dir, err := os.MkdirTemp("", "petri-unpacked-")
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	defer os.RemoveAll(dir) // what is prepared is open
	files, contents, err := unpack(ctx, f, size, r.Path, dir, a)
	if err != nil {
		return nil, err
	}
	if err := chosen(files, contents, r.Path, a); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			for _, p := range list {
				p.Close()
			}
			list = nil
		}
	}()
	for _, d := range files {
		one := r
		one.Path, one.Called = filepath.Join(dir, d.SHA256.String()), path.Base(path.Clean("/"+d.Name))
		p, err := Prepare(one)
		if err != nil {
			return list, BadInput("%q in %q: %w", d.Name, r.Path, err)
		}
		list = append(list, p)
	}
	return list, nil
}

// unpack takes the files out, each to the file in dir that has its digest for a
// name: no name of the archive's is one of a path.
func unpack(ctx context.Context, f *os.File, size int64, name, dir string, a Archive) ([]schemas.Derived, schemas.ArchiveContents, error) {
	var contents schemas.ArchiveContents
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, size)); err != nil {
		return nil, contents, BadInput("read %q: %w", name, err)
	}
	artifact := schemas.Artifact{Kind: schemas.KindSample, SHA256: schemas.Digest(h.Sum(nil)), Size: size, Name: filepath.Base(name)}
	got, err := analyzers.RunSingle(ctx, archive.NewUnpacker(a.Password, a.Member), f, artifact, func(_ context.Context, r io.Reader) (schemas.Digest, int64, error) {
		return keep(dir, r)
	})
	var skip *analyzers.SkipError
	switch {
	case errors.As(err, &skip):
		return nil, contents, BadInput("unpack %q: %s (zip, tar, gzip, xz, zstd and bzip2 are known)", name, skip.Reason)
	case err != nil:
		return nil, contents, fmt.Errorf("unpack %q: %w", name, err)
	}
	for _, f := range got.Findings {
		if f.Kind == "archive_contents" {
			if err := json.Unmarshal(f.Data, &contents); err != nil {
				return nil, contents, fmt.Errorf("unpack %q: %w", name, err)
			}
		}
	}
	return got.Derived, contents, nil
}

func keep(dir string, r io.Reader) (schemas.Digest, int64, error) {
	f, err := os.CreateTemp(dir, "new-")
	if err != nil {
		return schemas.Digest{}, 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), r)
	if err != nil {
		return schemas.Digest{}, 0, err
	}
	sum := schemas.Digest(h.Sum(nil))
	return sum, n, os.Rename(f.Name(), filepath.Join(dir, sum.String()))
}

// chosen reports whether the files are those that were asked for.
func chosen(files []schemas.Derived, c schemas.ArchiveContents, name string, a Archive) error {
	var names []string
	for _, n := range c.Names {
		names = append(names, fmt.Sprintf("%q", n))
	}
	if c.Unnamed > 0 {
		names = append(names, fmt.Sprintf("and %d more", c.Unnamed))
	}
	listed := strings.Join(names, ", ")
	missing := c.Locked + c.Unknown + c.LeftOut + c.Damaged
	switch {
	case c.Locked > 0 && (len(files) == 0 || a.All):
		return BadInput("%d files of %q are encrypted, and the password does not open them (--password)", c.Locked, name)
	case c.Damaged > 0 && (len(files) == 0 || a.All):
		return BadInput("%q is damaged: %s", name, c.Damage)
	case a.All && missing > 0:
		return BadInput("%d of %d files of %q cannot be taken out: they are too large, too many, or compressed in an unknown way (choose one: --member)", missing, c.Files, name)
	case a.Member != "" && len(files) == 0:
		return BadInput("%q has no file %q that can be taken out; it has %s", name, a.Member, listed)
	case a.Member != "" && len(files) > 1:
		return BadInput("%q has %d files %q", name, len(files), a.Member)
	case len(files) == 0:
		return BadInput("there is no file in %q that can be taken out", name)
	case !a.All && a.Member == "" && c.Files > 1:
		return BadInput("%q has %d files: choose one with --member NAME, or submit each with petri submit --all: %s", name, c.Files, listed)
	}
	return nil
}
