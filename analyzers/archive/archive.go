// SPDX-License-Identifier: Apache-2.0

// Package archive takes files out of archives and compressed streams: zip, also
// with a password, tar, gzip, xz, zstd and bzip2, told apart by what they begin
// with and not by a name.
//
// What it takes out are artifacts of the kind extracted, which it takes itself
// again: an archive within an archive is the next task, within the clerk's
// limits of depth, number and bytes. A name in an archive is text for people and
// never a path; links and devices are counted and not made. An archive that
// grows too much is left where it does.
package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/schemas"
)

// Limits of one archive.
const (
	maxFiles = schemas.MaxDerived // that are taken out
	maxLook  = 50_000             // entries that are looked at
	maxEach  = 64 << 20           // bytes of a file
	maxAll   = 256 << 20          // bytes of all files
	// maxRatio is how many times its size in the archive a file may have, if it
	// has more than freeRatio bytes. Deflate gets to 1032 on zeros, and real
	// files rarely over 50.
	maxRatio  = 250
	freeRatio = 4 << 20

	maxNames = 64
	maxName  = 256 // bytes
)

// commonPasswords are what malware is sent under, so that no scanner on the way
// opens it.
var commonPasswords = []string{"infected", "malware", "virus"}

// Analyzer implements [analyzers.Analyzer].
type Analyzer struct {
	passwords []string
	only      string
}

var _ analyzers.Analyzer = Analyzer{}

// New returns an Analyzer that tries some passwords beside the common ones.
func New(passwords ...string) Analyzer {
	return Analyzer{passwords: slices.Concat(passwords, commonPasswords)}
}

// Info implements [analyzers.Analyzer].
func (Analyzer) Info() analyzers.Info {
	return analyzers.Info{
		Name:    "archive",
		Version: "1.0.0",
		Impure:  true, // what is inside gets its name from the file's
		Kinds:   []schemas.Kind{schemas.KindSample, schemas.KindDropped, schemas.KindExtracted},
		Memory:  256 << 20,
	}
}

// Analyze implements [analyzers.Analyzer].
func (a Analyzer) Analyze(ctx context.Context, job analyzers.Job, emit analyzers.Emit) error {
	head := make([]byte, min(512, job.Input.Size()))
	if _, err := job.Input.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read file: %w", err)
	}
	format, open := detect(head)
	if open == nil {
		return analyzers.Skip("it is no archive that is known here")
	}
	x := &extraction{ctx: ctx, in: job.Input, emit: emit, passwords: a.passwords, name: job.Artifact.Name, only: a.only}
	x.Format = format
	if err := open(x); err != nil {
		return err
	}
	return x.report(job.Artifact.SHA256)
}

// detect tells what a file is by its beginning.
func detect(head []byte) (string, func(*extraction) error) {
	for _, f := range []struct {
		name   string
		magic  string
		offset int
		open   func(*extraction) error
	}{
		{"zip", "PK\x03\x04", 0, (*extraction).zip},
		{"zip", "PK\x05\x06", 0, (*extraction).zip}, // an empty one
		{"gzip", "\x1f\x8b\x08", 0, (*extraction).stream},
		{"xz", "\xfd7zXZ\x00", 0, (*extraction).stream},
		{"zstd", "\x28\xb5\x2f\xfd", 0, (*extraction).stream},
		{"bzip2", "BZh", 0, (*extraction).stream},
		{"tar", "ustar", 257, (*extraction).tar},
	} {
		if len(head) >= f.offset && bytes.HasPrefix(head[f.offset:], []byte(f.magic)) {
			return f.name, f.open
		}
	}
	return "", nil
}

// extraction is one archive in work.
type extraction struct {
	schemas.ArchiveContents
	ctx       context.Context // of Analyze, which is on the stack all the time
	in        *analyzers.Input
	emit      analyzers.Emit
	passwords []string
	name      string // of the archive
	only      string // the file to take out; empty: all
	bomb      string // what grew too much
}

var (
	errBomb  = errors.New("it grows too much")
	errLarge = errors.New("it is too large")
)

// damage notes that a file cannot be read, or not to its end.
func (x *extraction) damage(err error) {
	if x.Damaged++; x.Damage == "" {
		x.Damage = clip(err.Error(), 200)
	}
}

func clip(s string, n int) string { return s[:min(len(s), n)] }

// note counts a regular file and keeps its name.
func (x *extraction) note(name string) {
	x.Files++
	if len(x.Names) >= maxNames {
		x.Unnamed++
		return
	}
	x.Names = append(x.Names, clip(name, maxName))
}

// full reports whether no more files can be taken out.
func (x *extraction) full() bool {
	return x.Extracted >= maxFiles || x.Bytes >= maxAll
}

// derive makes an artifact of a file that has packed bytes in the archive. What
// can be read of a damaged one is taken. strict leaves that, and returns the
// damage: the wrong password looks like it.
func (x *extraction) derive(name string, packed int64, r io.Reader, strict bool) error {
	if x.only != "" && x.only != name {
		return nil
	}
	if x.full() {
		x.LeftOut++
		return nil
	}
	g := &guard{r: r, ctx: x.ctx, packed: max(packed, 1), left: min(maxEach, maxAll-x.Bytes), strict: strict}
	first := make([]byte, 1)
	n, err := io.ReadFull(g, first)
	if n == 0 { // nothing, or nothing that can be read
		if errors.Is(err, io.EOF) && g.damage == nil {
			x.Files--
			x.Empty++
			return nil
		}
		if g.damage == nil {
			g.damage = err
		}
		if strict || x.ctx.Err() != nil {
			return g.damage
		}
		x.damage(g.damage)
		return nil
	}
	err = x.emit.Derive(schemas.Derived{Kind: schemas.KindExtracted, Name: name}, io.MultiReader(bytes.NewReader(first), g))
	switch {
	case errors.Is(err, errBomb):
		x.LeftOut++
		if x.bomb == "" {
			x.bomb = fmt.Sprintf("%q grows to more than %d times its %d bytes", clip(name, maxName), maxRatio, packed)
		}
		return nil
	case errors.Is(err, errLarge):
		x.LeftOut++
		return nil
	case err != nil:
		return err
	}
	x.Extracted++
	x.Bytes += g.n
	if g.damage != nil {
		x.damage(g.damage)
	}
	return nil
}

// guard reads within limits, and takes damage for the end.
type guard struct {
	r      io.Reader
	ctx    context.Context
	packed int64
	left   int64
	n      int64
	strict bool
	damage error
}

func (g *guard) Read(p []byte) (int, error) {
	if err := g.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := g.r.Read(p)
	g.n += int64(n)
	switch {
	case g.n > freeRatio && g.n/g.packed > maxRatio:
		return 0, errBomb
	case g.n > g.left:
		return 0, errLarge
	case err != nil && !errors.Is(err, io.EOF):
		g.damage = err
		if !g.strict {
			err = io.EOF
		}
	}
	return n, err
}

// report emits the findings.
func (x *extraction) report(sum schemas.Digest) error {
	say := func(kind, title string, severity schemas.Severity, techniques ...string) error {
		f, err := analyzers.NewFinding(kind, title, severity, x.ArchiveContents)
		if err != nil {
			return err
		}
		f.Techniques, f.Evidence = techniques, []schemas.Evidence{{Artifact: &sum}}
		return x.emit.Finding(f)
	}
	err := say("archive_contents", fmt.Sprintf("%s with %d files, %d of them taken out", x.Format, x.Files, x.Extracted), schemas.SeverityInfo)
	if err == nil && x.Encrypted > 0 {
		title := fmt.Sprintf("%d files are encrypted; all open with a common password", x.Encrypted)
		severity := schemas.SeverityInfo
		if x.Locked > 0 {
			title, severity = fmt.Sprintf("%d of %d encrypted files open with no known password", x.Locked, x.Encrypted), schemas.SeverityLow
		}
		err = say("archive_encrypted", title, severity, "T1027.013")
	}
	if err == nil && x.bomb != "" {
		err = say("archive_bomb", "made to exhaust who unpacks it: "+x.bomb, schemas.SeverityMedium, "T1499")
	}
	if err == nil && x.Damaged > 0 {
		err = say("archive_damaged", fmt.Sprintf("%d files are damaged: %s", x.Damaged, x.Damage), schemas.SeverityLow)
	}
	return err
}
