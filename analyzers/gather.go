// SPDX-License-Identifier: Apache-2.0

package analyzers

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/petri-sandbox/petri/schemas"
)

// resultSchema is what a result document's schema looks like.
var resultSchema = regexp.MustCompile(`^petri\.result\.[a-z][a-z0-9_]{0,63}\.v[1-9][0-9]{0,3}$`)

// Lengths of text in derived artifacts.
const (
	maxName      = 512
	maxPath      = 4096
	maxMediaType = 127
	maxOpenIn    = 16 // processes that have a file open
)

// outlet is where gathered bytes go.
type outlet interface {
	open(typ byte, header any) (stream, error)
}

// stream is one run of bytes; exactly one of commit and abort ends it.
type stream interface {
	io.Writer
	commit() error
	abort() error
}

// gather implements [Emit] within limits.
type gather struct {
	limits limits
	out    outlet

	mu       sync.Mutex
	findings findingSet
	cut      schemas.TaskCut
	derived  int
	heads    int   // bytes of their announcements
	bytes    int64 // of derived artifacts
	result   bool
}

var _ Emit = (*gather)(nil)

// Finding implements [Emit].
func (g *gather) Finding(f schemas.Finding) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.Title = text(f.Title, 512)
	for i := range f.Evidence {
		f.Evidence[i].Event = text(f.Evidence[i].Event, 256)
	}
	data, err := normal(f.Data)
	if err != nil {
		return fmt.Errorf("finding %.64q: data: %w", f.Kind, err)
	}
	if f.Data = data; len(f.Data) > schemas.MaxFindingData {
		f.Data = fmt.Appendf(nil, `{"omitted":"%d bytes of data; %d are allowed"}`, len(f.Data), schemas.MaxFindingData)
		g.cut.Findings++
	}
	if err := checkFinding(f); err != nil {
		return err
	}
	g.cut.Findings += g.findings.add(f, g.limits)
	return nil
}

// normal gives JSON the form that it has after any number of encodings, so
// that its size no longer changes.
func normal(data json.RawMessage) (json.RawMessage, error) {
	if len(data) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(data)
	if err != nil {
		return nil, err
	}
	if !utf8.Valid(b) {
		return nil, errors.New("not UTF-8")
	}
	return b, nil
}

// checkFinding reports what is wrong with a finding whose data is normal.
func checkFinding(f schemas.Finding) error {
	if err := f.Check(); err != nil {
		return fmt.Errorf("finding %.64q: %w", f.Kind, err)
	}
	for _, s := range f.Techniques {
		if !technique.MatchString(s) {
			return fmt.Errorf("finding %q: technique %.40q does not look like T1059.004", f.Kind, s)
		}
	}
	return nil
}

var technique = regexp.MustCompile(`^T[0-9]{4}(\.[0-9]{3})?$`)

// findingSet keeps the most severe findings within limits, in their order.
type findingSet struct {
	list  []schemas.Finding
	sizes []int
	bytes int
}

// add takes a finding and returns how many it had to leave out.
func (s *findingSet) add(f schemas.Finding, l limits) (cut int) {
	b, err := json.Marshal(f)
	if err != nil { // data has been checked to be JSON
		return 1
	}
	s.list, s.sizes, s.bytes = append(s.list, f), append(s.sizes, len(b)), s.bytes+len(b)
	for len(s.list) > l.Findings || s.bytes > l.FindingBytes {
		least := 0
		for i := range s.list {
			if rank(s.list[i].Severity) <= rank(s.list[least].Severity) {
				least = i
			}
		}
		s.bytes -= s.sizes[least]
		s.list, s.sizes = slices.Delete(s.list, least, least+1), slices.Delete(s.sizes, least, least+1)
		cut++
	}
	return cut
}

var severities = []schemas.Severity{schemas.SeverityInfo, schemas.SeverityLow, schemas.SeverityMedium, schemas.SeverityHigh, schemas.SeverityCritical}

func rank(s schemas.Severity) int { return max(0, slices.Index(severities, s)) }

// Result implements [Emit].
func (g *gather) Result(schema string, write func(io.Writer) error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !resultSchema.MatchString(schema) {
		return fmt.Errorf("schema %.80q of the result document is not petri.result.<name>.v<N>", schema)
	}
	if g.result {
		return errors.New("there is a result document already")
	}
	g.result = true
	s, err := g.out.open(frameResult, schemas.ResultRef{Schema: schema})
	if err != nil {
		return err
	}
	w := &capped{w: s, left: g.limits.Result}
	err = write(w)
	if w.over {
		err = fmt.Errorf("%w: %d bytes are allowed", ErrTooLarge, g.limits.Result)
	}
	return end(s, err)
}

// end commits a stream, or aborts it because of err.
func end(s stream, err error) error {
	if err != nil {
		return errors.Join(err, s.abort())
	}
	return s.commit()
}

// Derive implements [Emit].
func (g *gather) Derive(d schemas.Derived, r io.Reader) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	d.SHA256, d.Size = schemas.Digest{}, 0
	d.Name, d.MediaType = text(d.Name, maxName), text(d.MediaType, maxMediaType)
	if d.File != nil {
		f := *d.File
		f.Path, f.Target, f.Change = text(f.Path, maxPath), text(f.Target, maxPath), text(f.Change, 16)
		f.From = text(f.From, maxPath)
		d.File = &f
	}
	if err := checkDerived(d); err != nil {
		return err
	}
	head, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encode derived artifact: %w", err)
	}
	if g.derived >= g.limits.Derived || g.heads+len(head) > g.limits.DerivedBytes {
		g.cut.Derived++
		return nil
	}
	s, err := g.out.open(frameDerived, d)
	if err != nil {
		return err
	}
	w := &capped{w: s, left: min(g.limits.DerivedEach, g.limits.DerivedAll-g.bytes)}
	limit := w.left
	_, err = io.Copy(w, r)
	if w.over {
		g.cut.Derived++
		return s.abort()
	}
	if err != nil {
		err = fmt.Errorf("copy derived artifact: %w", err)
	} else {
		g.derived++
		g.heads += len(head)
		g.bytes += limit - w.left
	}
	return end(s, err)
}

// checkDerived reports what is wrong with a derived artifact's announcement.
func checkDerived(d schemas.Derived) error {
	if err := schemas.CheckKind(d.Kind); err != nil {
		return fmt.Errorf("derived artifact: %w", err)
	}
	if len(d.Name) > maxName || len(d.MediaType) > maxMediaType || d.File != nil && (len(d.File.Path) > maxPath || len(d.File.Target) > maxPath || len(d.File.Change) > 16 || len(d.File.From) > maxPath || len(d.File.OpenIn) > maxOpenIn) {
		return errors.New("derived artifact: its name, path or media type is too long")
	}
	for _, c := range d.MediaType {
		if c <= ' ' || c > '~' {
			return fmt.Errorf("derived artifact: media type %q", d.MediaType)
		}
	}
	return nil
}

var errOver = errors.New("over the limit")

// capped writes at most left bytes.
type capped struct {
	w    io.Writer
	left int64
	over bool
}

func (c *capped) Write(b []byte) (int, error) {
	if int64(len(b)) > c.left {
		c.over = true
	}
	if c.over {
		return 0, errOver
	}
	n, err := c.w.Write(b)
	c.left -= int64(n)
	return n, err
}

// text makes a string valid and at most n bytes long.
func text(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	s = s[:n]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}

// line makes a string fit for an error that people read: one line, nothing
// that controls a terminal.
func line(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0:
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	return text(strings.TrimSpace(s), n)
}
