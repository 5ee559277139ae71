// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// dropSet takes the files of one collection: each to a file of our own, under
// no name of the guest's choosing, and from there to the store.
type dropSet struct {
	c     *Context
	ctx   context.Context //nolint:containedctx // of the collection
	event string

	mu   sync.Mutex
	list []schemas.DroppedFile
	errs []error
}

// CollectFiles stores the files that the sample changed, and the list of all
// of them. Of a machine that has been collected it does nothing.
func (c *Context) CollectFiles(ctx context.Context, event string) error {
	if s := c.State(); s != Running {
		return fmt.Errorf("collect files: the machine is %s, and only a running guest can send them", s)
	}
	m, err := c.living()
	if err != nil {
		return err
	}
	d := &dropSet{c: c, ctx: ctx, event: event}
	c.mu.Lock()
	busy, done := c.drops != nil, c.collected
	if !busy {
		c.drops = d
	}
	c.mu.Unlock()
	switch {
	case done:
		return nil
	case busy:
		return errors.New("files are being collected already")
	}
	defer func() {
		c.mu.Lock()
		c.drops = nil
		c.mu.Unlock()
	}()
	l := c.cfg.Limits
	sum, err := m.Collect(ctx, machine.Collect{MaxFile: l.DropFile, MaxFiles: l.DropFiles, MaxTotal: l.DropTotal, MaxList: l.DropListed})
	if err != nil {
		err = fmt.Errorf("collect files: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.errs) > 0 && err == nil {
		err = fmt.Errorf("%d files were not kept, the first because: %w", len(d.errs), d.errs[0])
	}
	if lerr := d.announceList(sum); lerr != nil && err == nil {
		err = lerr
	}
	cov := d.coverage(sum, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropped = &cov
	c.collected = err == nil
	return err
}

// coverage counts the files of which the bytes should be there and are not.
func (d *dropSet) coverage(sum machine.Collected, err error) schemas.SourceCoverage {
	c := schemas.SourceCoverage{Source: schemas.SourceDropped, Status: schemas.StatusWhole, Lost: uint64(sum.Omitted)}
	for _, f := range d.list {
		c.Produced++
		switch {
		case f.Stored:
			c.Bytes += f.Size
			c.Segments++
		case f.SHA256 != nil: // a regular file
			c.Lost++
			c.Cut += uint64(f.Size)
		}
	}
	c.Produced += uint64(sum.Omitted)
	switch {
	case err != nil:
		c.Status, c.Reason = schemas.StatusPartial, err.Error()
	case c.Lost > 0:
		c.Status, c.Reason = schemas.StatusPartial, fmt.Sprintf("%d of %d changed files are over the limits: listed, not stored", c.Lost, c.Produced)
	}
	return c
}

// announceList stores the list of everything that was changed.
func (d *dropSet) announceList(sum machine.Collected) error {
	if len(d.list) == 0 && sum.Omitted == 0 {
		return nil
	}
	r, w := io.Pipe()
	go func() {
		b := bufio.NewWriter(w)
		err := json.NewEncoder(b).Encode(schemas.DropList{Schema: schemas.DropsSchema, Files: d.list, Omitted: sum.Omitted})
		if err == nil {
			err = b.Flush()
		}
		w.CloseWithError(err)
	}()
	defer r.Close()
	return d.c.Store(d.ctx, schemas.Artifact{Kind: schemas.KindDrops, MediaType: schemas.DropsMediaType, Name: "changed files", Event: d.event}, r)
}

// File implements [machine.Observer].
func (c *Context) File(f schemas.DroppedFile) machine.FileWriter {
	c.mu.Lock()
	d := c.drops
	c.mu.Unlock()
	if d == nil {
		return discardFile{}
	}
	return d.begin(f)
}

type discardFile struct{}

func (discardFile) Write(p []byte) (int, error) { return len(p), nil }
func (discardFile) Close(int64, error)          {}

func (d *dropSet) begin(f schemas.DroppedFile) machine.FileWriter {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.list) >= d.c.cfg.Limits.DropListed {
		return discardFile{}
	}
	w := &dropWriter{d: d, index: len(d.list)}
	d.list = append(d.list, f)
	if !f.Stored {
		return discardFile{}
	}
	w.file, w.err = os.CreateTemp(d.c.cfg.Dir, "drop-")
	if w.err == nil {
		w.err = os.Remove(w.file.Name())
	}
	return w
}

// dropWriter is one file on its way.
type dropWriter struct {
	d     *dropSet
	index int
	file  *os.File
	size  int64
	err   error
}

func (w *dropWriter) Write(p []byte) (int, error) {
	if w.err == nil && w.size+int64(len(p)) > w.d.c.cfg.Limits.DropFile {
		w.err = fmt.Errorf("the guest sent more than %d bytes", w.d.c.cfg.Limits.DropFile)
	}
	if w.err == nil {
		_, w.err = w.file.Write(p)
	}
	w.size += int64(len(p))
	return len(p), nil // the guest's stream goes on whatever becomes of this file
}

// Close stores the file and announces it.
func (w *dropWriter) Close(cut int64, err error) {
	if w.err == nil {
		w.err = err
	}
	if w.err == nil {
		w.err = w.store(cut)
	}
	if w.file != nil {
		w.file.Close()
	}
	if w.err == nil {
		return
	}
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	f := &w.d.list[w.index]
	f.Stored, f.Reason = false, w.err.Error()
	w.d.errs = append(w.d.errs, fmt.Errorf("%q: %w", f.Path, w.err))
}

func (w *dropWriter) store(cut int64) error {
	if _, err := w.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	w.d.mu.Lock()
	meta := w.d.list[w.index].FileMeta
	w.d.mu.Unlock()
	d, n, err := w.d.c.cfg.Store.Put(w.d.ctx, schemas.KindDropped, w.file)
	if err != nil {
		return err
	}
	w.d.mu.Lock()
	w.d.list[w.index].SHA256, w.d.list[w.index].Size = &d, n // ours, whatever the guest said
	w.d.mu.Unlock()
	return w.d.c.Announce(w.d.ctx, schemas.Artifact{
		Kind: schemas.KindDropped, SHA256: d, Size: n, Name: meta.Path, File: &meta, Cut: cut, Event: w.d.event,
	})
}
