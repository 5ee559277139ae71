// SPDX-License-Identifier: Apache-2.0

package analyzers

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"syscall"

	"github.com/petri-sandbox/petri/analyzers/internal/jail"
	"github.com/petri-sandbox/petri/schemas"
)

// childArg is what makes a process a child, as its only argument.
const childArg = "__petri_analyzer_child"

// Descriptors of a child beyond the standard ones.
const (
	outputFD = 3
	inputFD  = 4
)

// Child does the work of a child process of [Run] and ends the process, if
// this is one. In any other process it returns at once. A program that calls
// Run must call it first thing in main, before it reads flags, with the same
// list of analyzers.
func Child(list []Analyzer) {
	if !isChild() {
		return
	}
	if err := child(list); err != nil {
		fmt.Fprintln(os.Stderr, line(err.Error(), 1000))
		os.Exit(1)
	}
	os.Exit(0)
}

func isChild() bool { return len(os.Args) == 2 && os.Args[1] == childArg }

func child(list []Analyzer) error {
	out := os.NewFile(outputFD, "output")
	if st, err := out.Stat(); err != nil || st.Mode()&os.ModeNamedPipe == 0 {
		return errors.New("this is how Petri starts itself to run an analyzer; it is of no use by hand")
	}
	var req request
	if err := json.NewDecoder(io.LimitReader(os.Stdin, maxRequest)).Decode(&req); err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	status, err := confine(req)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(out, dataSize)
	if err := writeJSONFrame(w, frameHello, helloFrame{Jail: status}); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	if req.Analyzer == "" {
		return nil
	}
	end, err := work(list, req, w)
	if err != nil {
		return err
	}
	if err := writeJSONFrame(w, frameEnd, end); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	return nil
}

// confine gives up everything that the work does not take.
func confine(req request) (jail.Status, error) {
	jail.Threads(req.Threads)
	files := inputFD + len(req.Others) + 2
	for fd := outputFD; fd < files; fd++ {
		syscall.CloseOnExec(fd) // a program that the analyzer starts gets what it is given
	}
	req.Jail.Files += uint64(files)
	s, err := jail.Enter(req.Jail)
	if err != nil {
		return s, fmt.Errorf("confine: %w", err)
	}
	return s, nil
}

// work runs the analyzer and writes all but the end.
func work(list []Analyzer, req request, w *bufio.Writer) (endFrame, error) {
	a, err := find(list, req)
	if err != nil {
		return endFrame{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), req.Deadline.D())
	defer cancel()
	g := &gather{limits: req.Limits, out: pipeOutlet{w}}
	err = a.Analyze(ctx, req.job(), g)
	g.mu.Lock()
	defer g.mu.Unlock()
	end := endFrame{Status: schemas.TaskDone}
	if g.cut != (schemas.TaskCut{}) {
		end.Cut = &g.cut
	}
	var skip *SkipError
	switch {
	case errors.As(err, &skip):
		return endFrame{Status: schemas.TaskSkipped, Error: line(skip.Reason, maxError)}, nil
	case err != nil && ctx.Err() != nil:
		return endFrame{Status: schemas.TaskFailed, Error: line(deadlineText(req.Deadline.D())+": "+err.Error(), maxError)}, nil
	case err != nil:
		return endFrame{Status: schemas.TaskFailed, Error: line(err.Error(), maxError)}, nil
	}
	for _, f := range g.findings.list {
		if err := writeJSONFrame(w, frameFinding, f); err != nil {
			return end, err
		}
	}
	return end, nil
}

// find returns the analyzer that a request asks for.
func find(list []Analyzer, req request) (Analyzer, error) {
	for _, a := range list {
		if req.Config != nil {
			m, ok := a.(Maker)
			if name := a.Info().Name; !ok || name != "" && name != req.Analyzer {
				continue
			}
			made, err := m.Make(req.Config)
			if err != nil {
				return nil, fmt.Errorf("make analyzer %q: %w", req.Analyzer, err)
			}
			a = made
		}
		if i := a.Info(); i.Name == req.Analyzer && i.Version == req.Version {
			return a, nil
		}
	}
	return nil, fmt.Errorf("the child has no analyzer %q of version %s", req.Analyzer, req.Version)
}

// job makes the analyzer's job from the request and the inherited files.
func (r request) job() Job {
	fd := uintptr(inputFD)
	file := func(name string) *os.File {
		f := os.NewFile(fd, name)
		fd++
		return f
	}
	job := Job{Task: r.Task, Omitted: r.Omitted}
	if r.Input != nil {
		job.Artifact, job.Manifest = r.Input.Artifact, r.Input.Manifest
		job.Input = NewInput(file("input"), r.Input.Size)
	}
	for _, o := range r.Others {
		job.Artifacts = append(job.Artifacts, Item{Artifact: o.Artifact, Manifest: o.Manifest, Input: NewInput(file("artifact"), o.Size)})
	}
	if r.Events >= 0 {
		job.Events = ReadEvents(NewInput(file("events"), r.Events))
	}
	return job
}

// maxEvent bounds one event of a log, encoded.
const maxEvent = 4 << 20

// ReadEvents returns the events in an input of JSON lines. It can be ranged
// over more than once.
func ReadEvents(in *Input) iter.Seq2[schemas.Event, error] {
	return func(yield func(schemas.Event, error) bool) {
		s := bufio.NewScanner(in.Reader())
		s.Buffer(nil, maxEvent)
		for s.Scan() {
			if e, err := schemas.ParseEvent(s.Bytes()); !yield(e, err) {
				return
			}
		}
		if err := s.Err(); err != nil {
			yield(schemas.Event{}, fmt.Errorf("read events: %w", err))
		}
	}
}

// pipeOutlet writes streams as frames.
type pipeOutlet struct{ w *bufio.Writer }

func (p pipeOutlet) open(typ byte, header any) (stream, error) {
	if err := writeJSONFrame(p.w, typ, header); err != nil {
		return nil, err
	}
	return pipeStream(p), nil
}

type pipeStream struct{ w *bufio.Writer }

func (p pipeStream) Write(b []byte) (int, error) {
	n := 0
	for len(b) > 0 {
		k := min(len(b), dataSize)
		if err := writeFrame(p.w, frameData, b[:k]); err != nil {
			return n, err
		}
		b, n = b[k:], n+k
	}
	return n, nil
}

func (p pipeStream) commit() error { return writeFrame(p.w, frameCommit, nil) }
func (p pipeStream) abort() error  { return writeFrame(p.w, frameAbort, nil) }
