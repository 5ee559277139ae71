// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/petri-sandbox/petri/bus/petrifile"
	"github.com/petri-sandbox/petri/schemas"
)

// ExportOptions are for [Bus.Export]. The zero value takes everything along.
type ExportOptions struct {
	Without []schemas.Kind // objects of these kinds are left out, and listed as such
	// Object is told of each object that the file names, with the reason if its
	// bytes are not in it; it may be nil.
	Object func(o petrifile.Object, absent string)
}

// Export writes an ended analysis to w as one .petri file: its log as it is
// now, and the bytes that it names. It takes constant memory. Of an analysis that
// is not there, or has not ended, nothing is written. After another error what w
// got is no whole file, and a reader notices.
func (b *Bus) Export(ctx context.Context, tenant, analysis string, w io.Writer, o ExportOptions) (petrifile.Trailer, error) {
	if err := b.mustHaveEnded(ctx, tenant, analysis); err != nil {
		return petrifile.Trailer{}, fmt.Errorf("export %s: %w", analysis, err)
	}
	f, err := petrifile.NewWriter(w, petrifile.Header{Tenant: tenant, Analysis: analysis})
	if err != nil {
		return petrifile.Trailer{}, err
	}
	foreign, err := b.ReadCounting(ctx, tenant, analysis, 0, func(e Entry) error {
		_, err := f.Event(petrifile.Entry{Seq: e.Seq, Subject: e.Subject, Body: e.Body})
		return err
	})
	if err != nil {
		return petrifile.Trailer{}, fmt.Errorf("export %s: %w", analysis, err)
	}
	f.Log().SetForeign(foreign)
	for obj, ok := f.Due(); ok; obj, ok = f.Due() {
		absent, err := b.exportObject(ctx, analysis, f, obj, o.Without)
		if err != nil {
			return petrifile.Trailer{}, fmt.Errorf("export %s: %w", analysis, err)
		}
		if o.Object != nil {
			o.Object(obj, absent)
		}
	}
	return f.Close()
}

// mustHaveEnded reports an error if an analysis is not there or has not ended.
func (b *Bus) mustHaveEnded(ctx context.Context, tenant, analysis string) error {
	if err := checkTokens(tenant, analysis); err != nil {
		return err
	}
	there, ended := false, false
	r := &reading{b: b, tenant: tenant, analysis: analysis, family: "context", fn: func(e Entry) error {
		there = true
		if ended = schemas.Ending(e.Event.Name()); ended {
			return ErrStop
		}
		return nil
	}}
	switch err := r.run(ctx); {
	case err != nil:
		return err
	case !there:
		return ErrNotFound
	case !ended:
		return fmt.Errorf("%w: wait for its end (petri watch %s)", petrifile.ErrUnfinished, analysis)
	}
	return nil
}

// exportObject writes the object that is due.
func (b *Bus) exportObject(ctx context.Context, analysis string, f *petrifile.Writer, o petrifile.Object, without []schemas.Kind) (absent string, err error) {
	if o.Is(without) {
		return petrifile.AbsentLeftOut, f.Absent(petrifile.AbsentLeftOut)
	}
	r, _, err := b.Artifacts().For(analysis).Open(ctx, o.SHA256)
	if errors.Is(err, ErrNotFound) {
		return petrifile.AbsentMissing, f.Absent(petrifile.AbsentMissing)
	}
	if err != nil {
		return "", err
	}
	defer r.Close()
	return "", f.Object(r)
}

// Imported is what [Bus.Import] did.
type Imported struct {
	Tenant   string              `json:"tenant"`
	Analysis string              `json:"analysis"`
	Already  bool                `json:"already"` // the same events were there before
	Trailer  petrifile.Trailer   `json:"file"`
	Stored   int                 `json:"stored"` // objects that the store did not have
	Absent   map[string]int      `json:"absent"` // objects whose bytes are neither in the file nor in the store, by kind
	Coverage *petrifile.Coverage `json:"coverage"`
}

var (
	// ErrOther says that the analysis is there already, with other events.
	ErrOther = errors.New("the analysis is here already, with other events")
	// ErrTampered says that a checkpoint in a log does not sign the events
	// before it.
	ErrTampered = errors.New("a checkpoint does not match the events before it")
)

// ImportOptions are for [Bus.Import].
type ImportOptions struct {
	Tenant string // whose analysis it must be; empty: anybody's
	Caps   Caps   // of objects, by kind
}

// Import reads a .petri file and puts the analysis into the archive, from where
// every reader finds it. Nothing is published: nobody is woken. It takes
// constant memory. The analysis appears as a whole, once the file has been read
// to its end; objects that were stored before an error are left to the
// collector. An analysis that is there already with the same events is left as
// it is, but for objects that the store lacked; with other events it is an error
// that wraps [ErrOther].
func (b *Bus) Import(ctx context.Context, r io.Reader, o ImportOptions) (Imported, error) {
	f, err := petrifile.NewReader(r, "")
	if err != nil {
		return Imported{}, err
	}
	defer f.Close()
	h := f.Header()
	if o.Tenant != "" && h.Tenant != o.Tenant {
		return Imported{}, fmt.Errorf("the file is tenant %s's, not %s's", h.Tenant, o.Tenant)
	}
	im := Imported{Tenant: h.Tenant, Analysis: h.Analysis, Absent: map[string]int{}}
	before, err := b.archived(ctx, h.Tenant, h.Analysis)
	if err != nil {
		return im, err
	}
	imp := &importing{b: b, ctx: ctx, file: f, caps: o.Caps, im: &im, index: newIndex(), summary: Summary{Tenant: h.Tenant, Analysis: h.Analysis, Imported: true}}
	thin, d, size, err := b.writeThin(ctx, h.Tenant, h.Analysis, imp.copy)
	if err != nil {
		return im, err
	}
	im.Trailer = f.Trailer()
	if im.Already { // no entry names the file, and the archiver finds it
		return im, nil
	}
	e := imp.index.entry(h, thin, d, size)
	e.Imported, e.Archived, e.Submitted = true, time.Now().UTC(), imp.summary.Submitted
	if err := b.putEntry(ctx, e, before.revision); err != nil {
		return im, fmt.Errorf("import %s: %w (try again)", h.Analysis, err)
	}
	return im, b.putSummary(ctx, imp.summary)
}

// importing is an import in progress.
type importing struct {
	b       *Bus
	ctx     context.Context
	file    *petrifile.Reader
	caps    Caps
	im      *Imported
	index   *index
	summary Summary
	judged  bool
}

// copy reads the whole file, writes the events to w and the objects to the
// store.
func (i *importing) copy(w *petrifile.Writer) error {
	for {
		item, err := i.file.Next()
		if errors.Is(err, io.EOF) {
			w.Log().SetForeign(i.file.Log().Foreign())
			return i.judge()
		}
		if err != nil {
			return err
		}
		if item.Entry != nil {
			if _, err := w.Event(*item.Entry); err != nil {
				return err
			}
			i.summary.follow(item.Event)
			if err := i.index.add(item.Event); err != nil {
				return err
			}
			continue
		}
		if err := i.judge(); err != nil {
			return err
		}
		if err := i.object(*item.Object, item.Absent); err != nil {
			return err
		}
	}
}

// judge decides, once all events have been read, whether they may come in.
func (i *importing) judge() error {
	if i.judged {
		return nil
	}
	i.judged = true
	log := i.file.Log()
	c := log.Coverage()
	i.im.Coverage = &c
	for _, p := range c.Checkpoints {
		if p.Problem != "" {
			return fmt.Errorf("event %d: %w: %s (petri verify shows all that is wrong with the file)", p.Event, ErrTampered, p.Problem)
		}
	}
	n, root, err := i.b.logRoot(i.ctx, i.im.Tenant, i.im.Analysis)
	switch {
	case err != nil:
		return err
	case n == 0:
		return nil
	case n == log.Events() && root == log.Root():
		i.im.Already = true
		return nil
	}
	return fmt.Errorf("%w: %d here, hashing to %s; %d in the file, hashing to %s", ErrOther, n, root, log.Events(), log.Root())
}

// object stores the bytes that follow, unless the store has them. The reader
// compares those with their digest that are not read here.
func (i *importing) object(o petrifile.Object, absent string) error {
	store := i.b.Artifacts().WithCaps(i.caps)
	have, err := store.Stat(i.ctx, o.SHA256)
	switch {
	case err == nil:
		err = store.touch(i.ctx, have)
	}
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, ErrNotFound):
		return err
	case absent != "":
		i.im.Absent[string(o.Kinds[0])]++
		return nil
	}
	if limit := store.caps.of(o.Kinds[0]); o.Size > limit {
		return fmt.Errorf("object %s: %w: %d bytes; a %s may have %d", o.SHA256, ErrTooLarge, o.Size, o.Kinds[0], limit)
	}
	if _, _, err := store.Put(i.ctx, o.Kinds[0], i.file); err != nil {
		return err
	}
	i.im.Stored++
	return nil
}

// logRoot is how many events there are of an analysis and what they hash to.
func (b *Bus) logRoot(ctx context.Context, tenant, analysis string) (uint64, schemas.Digest, error) {
	var tree petrifile.Tree
	err := b.Read(ctx, tenant, analysis, 0, func(e Entry) error {
		tree.Append(petrifile.LeafHash(e.Body))
		return nil
	})
	var dead *DeletedError
	if errors.As(err, &dead) { // who imports it again wants it back
		err = nil
	}
	return tree.Size(), tree.Root(), err
}

// errStoreClosed says that the archive's store takes no more of a file.
var errStoreClosed = errors.New("the archive's store takes no more")

// writeThin writes a thin file to the archive's store: the events that fill
// gives. The file is whole if there is no error, and in nobody's way if there is
// one.
func (b *Bus) writeThin(ctx context.Context, tenant, analysis string, fill func(*petrifile.Writer) error) (petrifile.Trailer, schemas.Digest, int64, error) {
	pr, pw := io.Pipe()
	var t petrifile.Trailer
	var failed error // of fill, without the store's words around it
	done := make(chan struct{})
	go func() {
		defer close(done)
		f, err := petrifile.NewWriter(pw, petrifile.Header{Tenant: tenant, Analysis: analysis, Thin: true})
		if err == nil {
			err = fill(f)
		}
		if err == nil {
			t, err = f.Close()
		}
		failed = err
		pw.CloseWithError(err) // nil is the end
	}()
	d, size, err := b.archive().Put(ctx, kindPetri, pr)
	pr.CloseWithError(errStoreClosed) // frees the writer
	<-done
	if failed != nil && !errors.Is(failed, errStoreClosed) {
		err = failed
	}
	return t, d, size, err
}
