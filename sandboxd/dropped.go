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
	"slices"
	"sync"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// dropSet takes the files of one collection: each to a file of our own, under
// no name of the guest's choosing, and from there to the store.
type dropSet struct {
	c     *Context
	ctx   context.Context // of the collection
	event string

	// Files are stored side by side, for each waits for the disk, and announced
	// in the order in which they came.
	queue   chan *dropWriter // to announce; closed by close
	idle    chan struct{}    // closed when everything in queue has been announced
	sending sync.RWMutex     // held for reading while something is put into queue
	closed  bool             // queue is; under sending

	mu   sync.Mutex
	list []schemas.DroppedFile
	errs []error
}

// dropParallel is how many files are on their way to the store at once.
const dropParallel = 8

// lastEvents are the types of the events before the end of a machine.
var lastEvents = []string{
	schemas.ContextType(schemas.EventPreShutdown), schemas.ContextType(schemas.EventPrePoweroff), schemas.ContextType(schemas.EventPreRestart),
}

// CollectFiles stores the files that the sample changed, and the list of all
// of them, for the event e. Of a machine that has been collected it does
// nothing. The sample stands still meanwhile, and for good if e tells that the
// machine goes down.
func (c *Context) CollectFiles(ctx context.Context, e schemas.Event) error {
	if s := c.State(); s != Running {
		return fmt.Errorf("collect files: the machine is %s, and only a running guest can send them", s)
	}
	m, err := c.living()
	if err != nil {
		return err
	}
	d := &dropSet{c: c, ctx: ctx, event: e.ID, queue: make(chan *dropWriter, dropParallel), idle: make(chan struct{})}
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
	go d.announce()
	l := c.cfg.Limits
	sum, err := m.Collect(ctx, machine.Collect{
		MaxFile: l.DroppedFile, MaxFiles: int(l.DroppedFiles), MaxTotal: l.DroppedTotal, MaxList: l.Listed,
		Final: slices.Contains(lastEvents, e.Type),
	})
	if err != nil {
		err = fmt.Errorf("collect files: %w", err)
	}
	d.close()
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
	c.dropped = addCoverage(c.dropped, cov)
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
		case f.Type == "file" && f.Change != "attributes": // the image's bytes
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

// addCoverage adds a collection to those before it: each start of the machine has
// its own.
func addCoverage(before *schemas.SourceCoverage, c schemas.SourceCoverage) *schemas.SourceCoverage {
	if before == nil {
		return &c
	}
	c.Produced += before.Produced
	c.Lost += before.Lost
	c.Cut += before.Cut
	c.Bytes += before.Bytes
	c.Segments += before.Segments
	if c.Status == schemas.StatusWhole {
		c.Status, c.Reason = before.Status, before.Reason
	}
	return &c
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
	if len(d.list) >= d.c.cfg.Limits.Listed {
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

// close ends the collection: a file that is not complete by now is lost.
func (d *dropSet) close() {
	d.sending.Lock()
	d.closed = true
	close(d.queue)
	d.sending.Unlock()
	<-d.idle
}

// announce announces what has been stored, in order.
func (d *dropSet) announce() {
	defer close(d.idle)
	for w := range d.queue {
		<-w.stored
		if w.err == nil {
			w.err = d.c.Announce(d.ctx, w.artifact)
		}
		d.finish(w)
	}
}

func (d *dropSet) finish(w *dropWriter) {
	if w.file != nil {
		w.file.Close()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f := &d.list[w.index]
	if w.err != nil {
		f.Stored, f.Reason = false, w.err.Error()
		d.errs = append(d.errs, fmt.Errorf("%q: %w", f.Path, w.err))
		return
	}
	f.SHA256, f.Size = &w.artifact.SHA256, w.artifact.Size // ours, whatever the guest said
}

// dropWriter is one file on its way.
type dropWriter struct {
	d     *dropSet
	index int
	file  *os.File
	size  int64
	err   error

	stored   chan struct{} // closed when the store has it, or err is set
	artifact schemas.Artifact
}

func (w *dropWriter) Write(p []byte) (int, error) {
	if w.err == nil && w.size+int64(len(p)) > w.d.c.cfg.Limits.DroppedFile {
		w.err = fmt.Errorf("the guest sent more than %d bytes", w.d.c.cfg.Limits.DroppedFile)
	}
	if w.err == nil {
		_, w.err = w.file.Write(p)
	}
	w.size += int64(len(p))
	return len(p), nil // the guest's stream goes on whatever becomes of this file
}

// Close has the file stored and announced. It blocks while too many are on
// their way.
func (w *dropWriter) Close(cut int64, err error) {
	if w.err == nil {
		w.err = err
	}
	if w.err != nil {
		w.d.finish(w)
		return
	}
	w.stored = make(chan struct{})
	go func() {
		defer close(w.stored)
		w.err = w.store(cut)
	}()
	w.d.sending.RLock()
	closed := w.d.closed
	if !closed {
		w.d.queue <- w
	}
	w.d.sending.RUnlock()
	if closed {
		<-w.stored
		w.err = errors.New("it came when the collection was over")
		w.d.finish(w)
	}
}

func (w *dropWriter) store(cut int64) error {
	if _, err := w.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	w.d.mu.Lock()
	meta := w.d.list[w.index].FileMeta
	w.d.mu.Unlock()
	d, n, err := w.d.c.cfg.Store.Put(w.d.ctx, schemas.KindDropped, w.file)
	w.artifact = schemas.Artifact{Kind: schemas.KindDropped, SHA256: d, Size: n, Name: meta.Path, File: &meta, Cut: cut, Event: w.d.event}
	return err
}
