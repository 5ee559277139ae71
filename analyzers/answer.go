// SPDX-License-Identifier: Apache-2.0

package analyzers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/petri-sandbox/petri/analyzers/internal/jail"
	"github.com/petri-sandbox/petri/schemas"
)

// maxError bounds the error of a task, in bytes.
const maxError = 500

// answer is what a child has said, checked.
type answer struct {
	jail     jail.Status
	status   string // empty: it never came to an end
	err      string
	findings []schemas.Finding
	derived  []schemas.Derived
	result   *schemas.ResultRef
	cut      *schemas.TaskCut
	printed  string // to standard error
}

func failed(format string, args ...any) answer {
	return answer{status: schemas.TaskFailed, err: line(fmt.Sprintf(format, args...), maxError)}
}

func deadlineText(d time.Duration) string { return fmt.Sprintf("deadline of %v exceeded", d) }

// uploadError says that our own store failed, not the child.
type uploadError struct{ err error }

func (e *uploadError) Error() string { return "upload: " + e.err.Error() }
func (e *uploadError) Unwrap() error { return e.err }

// put stores all of a reader.
type put func(context.Context, io.Reader) (schemas.Digest, int64, error)

// readAnswer reads what a child writes, to its end, and hands the bytes of
// results and derived artifacts on as they come. An error that is no
// uploadError is the child's fault or its death. What it returns besides an
// error is not to be used.
func readAnswer(ctx context.Context, r io.Reader, l limits, store put) (answer, error) {
	a := &answers{r: r, limits: l}
	a.put = func(r io.Reader) (schemas.Digest, int64, error) { return store(ctx, r) }
	for {
		typ, b, err := readFrame(r, &a.buf)
		if err != nil {
			return a.answer, err
		}
		done, err := a.frame(typ, b)
		if err != nil {
			return a.answer, err
		}
		if done {
			return a.answer, a.rest()
		}
	}
}

// answers is an answer that is being read.
type answers struct {
	answer
	r      io.Reader
	limits limits
	put    func(io.Reader) (schemas.Digest, int64, error)
	buf    []byte
	hello  bool
	bytes  int   // of findings
	heads  int   // of announcements of derived artifacts
	stored int64 // of derived artifacts
}

func garbage(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errGarbage, fmt.Sprintf(format, args...))
}

func unpack(b []byte, into any) error {
	if err := json.Unmarshal(b, into); err != nil {
		return garbage("%v", err)
	}
	return nil
}

// frame takes one frame and reports whether it was the last.
func (a *answers) frame(typ byte, b []byte) (bool, error) {
	if a.hello != (typ != frameHello) {
		return false, garbage("frame %q is out of order", typ)
	}
	switch typ {
	case frameHello:
		var h helloFrame
		a.hello = true
		err := unpack(b, &h)
		a.jail = h.Jail
		return false, err
	case frameFinding:
		return false, a.finding(b)
	case frameResult, frameDerived:
		return false, a.stream(typ, b)
	case frameEnd:
		return true, a.end(b)
	}
	return false, garbage("frame %q is out of order", typ)
}

func (a *answers) finding(b []byte) error {
	var f schemas.Finding
	if err := unpack(b, &f); err != nil {
		return err
	}
	data, err := normal(f.Data)
	if err != nil {
		return garbage("data of a finding: %v", err)
	}
	f.Data = bytes.Clone(data)
	if err := checkFinding(f); err != nil {
		return garbage("%v", err)
	}
	if a.bytes += len(b); len(a.findings) >= a.limits.Findings || a.bytes > 2*a.limits.FindingBytes {
		return garbage("more findings than are allowed")
	}
	a.findings = append(a.findings, f)
	return nil
}

// stream takes a result document or a derived artifact, bytes and all.
func (a *answers) stream(typ byte, head []byte) error {
	var (
		ref   schemas.ResultRef
		d     schemas.Derived
		limit = a.limits.Result
		err   error
	)
	if typ == frameResult {
		if err = unpack(head, &ref); err == nil && !resultSchema.MatchString(ref.Schema) {
			err = garbage("schema %.80q of the result document", ref.Schema)
		}
		if a.result != nil {
			err = garbage("a second result document")
		}
	} else {
		limit = min(a.limits.DerivedEach, a.limits.DerivedAll-a.stored)
		if err = unpack(head, &d); err == nil {
			if bad := checkDerived(d); bad != nil {
				err = garbage("%v", bad)
			}
		}
		if len(a.derived) >= a.limits.Derived || a.heads+len(head) > 2*a.limits.DerivedBytes {
			err = garbage("more derived artifacts than are allowed")
		}
	}
	if err != nil {
		return err
	}
	sum, size, stored, err := a.upload(limit)
	if err != nil || !stored {
		return err
	}
	if typ == frameResult {
		a.result = &schemas.ResultRef{Schema: ref.Schema, SHA256: sum, Size: size}
		return nil
	}
	d.SHA256, d.Size = sum, size
	a.derived = append(a.derived, d)
	a.heads += len(head)
	a.stored += size
	return nil
}

var errAborted = errors.New("the analyzer did not finish it")

// upload hands the data frames that follow to the store, until the child
// commits or aborts.
func (a *answers) upload(limit int64) (sum schemas.Digest, size int64, stored bool, err error) {
	pr, pw := io.Pipe()
	type outcome struct {
		sum  schemas.Digest
		size int64
		err  error
	}
	done := make(chan outcome, 1)
	go func() {
		sum, size, err := a.put(pr)
		if err == nil {
			pr.CloseWithError(errors.New("the store has stopped reading"))
		} else {
			pr.CloseWithError(err)
		}
		done <- outcome{sum, size, err}
	}()
	drop := func(err error) (schemas.Digest, int64, bool, error) {
		pw.CloseWithError(errAborted)
		<-done
		return schemas.Digest{}, 0, false, err
	}
	var n int64
	for {
		typ, b, err := readFrame(a.r, &a.buf)
		if err != nil {
			return drop(err)
		}
		switch typ {
		case frameData:
			if n += int64(len(b)); n > limit {
				return drop(garbage("more bytes than the %d that are allowed", limit))
			}
			if _, err := pw.Write(b); err != nil {
				return drop(&uploadError{err})
			}
		case frameAbort:
			return drop(nil)
		case frameCommit:
			pw.Close()
			o := <-done
			if o.err == nil && o.size != n {
				o.err = fmt.Errorf("the store took %d of %d bytes", o.size, n)
			}
			if o.err != nil {
				return o.sum, 0, false, &uploadError{o.err}
			}
			return o.sum, n, true, nil
		default:
			return drop(garbage("frame %q within a stream", typ))
		}
	}
}

func (a *answers) end(b []byte) error {
	var e endFrame
	if err := unpack(b, &e); err != nil {
		return err
	}
	switch e.Status {
	case schemas.TaskDone:
		if e.Error != "" {
			return garbage("it is done, and yet there is an error")
		}
	case schemas.TaskFailed, schemas.TaskSkipped:
		a.findings, a.derived, a.result, e.Cut = nil, nil, nil, nil
		if e.Error == "" {
			return garbage("it is %s without a reason", e.Status)
		}
	default:
		return garbage("status %.40q", e.Status)
	}
	if c := e.Cut; c != nil && (c.Findings < 0 || c.Derived < 0) {
		return garbage("counts below zero")
	}
	a.status, a.err, a.cut = e.Status, line(e.Error, maxError), e.Cut
	return nil
}

// rest checks that nothing follows.
func (a *answers) rest() error {
	typ, _, err := readFrame(a.r, &a.buf)
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	}
	return garbage("frame %q behind the end", typ)
}
