// SPDX-License-Identifier: Apache-2.0

package command

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/schemas"
)

// line is what a command prints one of per line: a finding as it is, or one of
// the other two.
type line struct {
	Result json.RawMessage `json:"result"` // the result document; its field schema says of which kind
	Derive *derived        `json:"derive"`
}

// derived is an artifact that a command made.
type derived struct {
	Kind      schemas.Kind `json:"kind"`
	Name      string       `json:"name"`
	MediaType string       `json:"media_type"`
	Data      []byte       `json:"data"` // base64
}

// reader turns a command's output into what it means.
type reader struct {
	emit  analyzers.Emit
	limit int64 // bytes
	n     int   // lines
}

// read reads to the end, or up to the first line that is wrong.
func (r *reader) read(out io.Reader) error {
	in := &io.LimitedReader{R: out, N: r.limit + 1}
	b := bufio.NewReaderSize(in, 64<<10)
	for {
		text, err := b.ReadBytes('\n')
		if in.N <= 0 {
			return fmt.Errorf("more than %d bytes of output", r.limit)
		}
		r.n++
		if text = bytes.TrimSpace(text); len(text) > 0 {
			if err := r.line(text); err != nil {
				return fmt.Errorf("line %d of the output: %w", r.n, err)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the output: %w", err)
		}
	}
}

func (r *reader) line(text []byte) error {
	var keys map[string]json.RawMessage
	if err := schemas.Decode(text, &keys, false); err != nil {
		return err
	}
	_, result := keys["result"]
	_, derive := keys["derive"]
	if !result && !derive {
		var f schemas.Finding
		if err := schemas.Decode(text, &f, true); err != nil {
			return err
		}
		return r.emit.Finding(f)
	}
	var l line
	if err := schemas.Decode(text, &l, true); err != nil {
		return err
	}
	if len(keys) > 1 {
		return errors.New("it holds more than one of a finding, result and derive: each takes a line of its own")
	}
	if derive {
		if l.Derive == nil {
			return errors.New("field derive: it is empty")
		}
		d := schemas.Derived{Kind: l.Derive.Kind, Name: l.Derive.Name, MediaType: l.Derive.MediaType}
		return r.emit.Derive(d, bytes.NewReader(l.Derive.Data))
	}
	var head struct {
		Schema string `json:"schema"`
	}
	if err := schemas.Decode(l.Result, &head, false); err != nil {
		return fmt.Errorf("field result: %w", err)
	}
	return r.emit.Result(head.Schema, func(w io.Writer) error {
		_, err := w.Write(append(bytes.TrimSpace(l.Result), '\n'))
		return err
	})
}

// Read takes what a command has printed, at most limit bytes of it. The error
// says in which line what is wrong.
func Read(out io.Reader, emit analyzers.Emit, limit int64) error {
	r := reader{emit: emit, limit: limit}
	return r.read(out)
}
