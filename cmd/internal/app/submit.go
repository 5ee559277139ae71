// SPDX-License-Identifier: Apache-2.0

package app

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/sandboxd/catalogue"
	"github.com/petri-sandbox/petri/sandboxd/hooks"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/protocol"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/elfid"
)

// ErrBadInput says that what was submitted cannot be analysed, and that it is
// the submitter's to mend.
var ErrBadInput = errors.New("bad input")

// BadInput is an error of what was submitted.
func BadInput(format string, args ...any) error {
	return badInput{fmt.Errorf(format, args...)}
}

type badInput struct{ error }

func (b badInput) Is(target error) bool { return target == ErrBadInput }
func (b badInput) Unwrap() error        { return b.error }

// DefaultMaxSample is how large a sample may be, in bytes.
const DefaultMaxSample = 100 << 20

// Bounds of the runtime that may be asked for.
const (
	MinRuntime     = time.Second
	MaxRuntime     = time.Hour
	DefaultRuntime = 20 * time.Second
)

// Request is what a user submits.
type Request struct {
	Path     string // of the sample on this host
	Called   string // the sample's name; empty: the last part of Path
	Protocol string // path of a protocol; empty: the default one
	Hooks    string // path of a hooks' configuration; empty: the default one
	Stdin    string // path of what the sample reads; empty: nothing
	Options  schemas.Options
}

// Prepared is a checked request with its sample open.
type Prepared struct {
	Submission schemas.Submission
	file       *os.File
}

// Prepare opens and checks everything that can be checked before anything is
// started. Its errors are [ErrBadInput].
func Prepare(r Request) (*Prepared, error) {
	o := r.Options
	if o.Runtime == 0 {
		o.Runtime = schemas.Duration(DefaultRuntime)
	}
	if d := o.Runtime.D(); d < MinRuntime || d > MaxRuntime {
		return nil, BadInput("--runtime %s is not between %s and %s", d, MinRuntime, MaxRuntime)
	}
	text, err := readConfig(r.Protocol, protocol.Default)
	if err != nil {
		return nil, err
	}
	proto, err := protocol.Parse(text)
	if err != nil {
		return nil, BadInput("protocol %s: %w", name(r.Protocol), err)
	}
	hooksText, err := readConfig(r.Hooks, "")
	if err != nil {
		return nil, err
	}
	if r.Hooks != "" && strings.TrimSpace(hooksText) == "" { // an empty text would mean the default ones
		return nil, BadInput("hooks %s: the file is empty (for none write: hooks: [])", r.Hooks)
	}
	if hooksText != "" {
		cfg, err := hooks.Parse(hooksText)
		if err == nil {
			err = cfg.Check(proto.Events())
		}
		if err != nil {
			return nil, BadInput("hooks %s: %w", r.Hooks, err)
		}
	}
	if r.Stdin != "" {
		if o.Stdin, err = readFile(r.Stdin, machine.MaxStdin); err != nil {
			return nil, err
		}
	}
	if o.MaxSample == 0 {
		o.MaxSample = DefaultMaxSample
	}
	f, size, err := openSample(r.Path, o.MaxSample)
	if err != nil {
		return nil, err
	}
	typ, err := elfid.Classify(f, size)
	if err != nil {
		f.Close()
		return nil, BadInput("read %q: %w", r.Path, err)
	}
	profile, err := profile(f, size, &typ, len(o.Command) > 0)
	if err != nil {
		f.Close()
		return nil, BadInput("read %q: %w", r.Path, err)
	}
	now := time.Now().UTC()
	p := &Prepared{file: f, Submission: schemas.Submission{
		ID: schemas.NewID(now), Tenant: schemas.DefaultTenant, Profile: profile,
		Sample:   schemas.Sample{Name: cmp.Or(r.Called, filepath.Base(r.Path)), Size: size, Type: typ},
		Protocol: text, Hooks: hooksText, Options: o, Submitted: now,
	}}
	if err := checkSize(&p.Submission); err != nil {
		f.Close()
		return nil, err
	}
	return p, nil
}

// What a submission may take up, encoded: in the guest's one message that says
// what to run, which must also have room for what the sample's loader asks for,
// and in the log's first event of the analysis.
const (
	maxRun       = wire.MaxPayload - 12<<10
	maxSubmitted = bus.MaxEvent - 12<<10
)

// checkSize refuses what would fail only when a machine has been made for it.
func checkSize(s *schemas.Submission) error {
	o := s.Options
	parts := []part{
		{"the sample's arguments", jsonSize(o.Args)}, {"--command", jsonSize(o.Command)}, {"--env", jsonSize(o.Env)},
		{"--stdin", jsonSize(o.Stdin)}, {"--dir", jsonSize(o.Dir)}, {"--user", jsonSize(o.User)},
	}
	if n := total(parts); n > maxRun {
		return BadInput("what the guest is told to run takes %d bytes, encoded; %d are possible (shorten %s; what is longer can be a part of the sample)", n, maxRun, largest(parts))
	}
	parts = append(parts, part{"the protocol", jsonSize(s.Protocol)}, part{"the hooks' configuration", jsonSize(s.Hooks)}, part{"the sample's name", jsonSize(s.Sample)})
	if n := total(parts); n > maxSubmitted {
		return BadInput("the submission takes %d bytes, encoded; an event of the log has %d at most (shorten %s)", n, maxSubmitted, largest(parts))
	}
	return nil
}

// part is a part of a submission and its length in JSON.
type part struct {
	name string
	size int
}

func jsonSize(v any) int {
	b, _ := json.Marshal(v) // texts, and maps and lists of them
	return len(b)
}

func total(parts []part) int {
	n := 0
	for _, p := range parts {
		n += p.size
	}
	return n
}

// largest names the part to shorten.
func largest(parts []part) string {
	p := slices.MaxFunc(parts, func(a, b part) int { return cmp.Compare(a.size, b.size) })
	return fmt.Sprintf("%s, %d bytes", p.name, p.size)
}

func name(path string) string {
	if path == "" {
		return "default"
	}
	return path
}

// profile says which guest a sample needs, and if there is none why. With a
// command of its own a sample need not be a program.
func profile(f *os.File, size int64, t *schemas.SampleType, command bool) (string, error) {
	if command {
		t.Unsupported = ""
	}
	if t.Format != elfid.FormatELF {
		return catalogue.Default, nil
	}
	id, err := elfid.Read(f, size)
	if err != nil {
		return "", err
	}
	guest, why := catalogue.Guest(id)
	switch {
	case why == "":
		return guest, nil
	case !command && t.Unsupported == "":
		t.Unsupported = why
	}
	return catalogue.Default, nil
}

// CheckName reports what is wrong with a name that the sample shall have in the
// guest; none is right.
func CheckName(s string) error {
	if s == "" || s == sandboxd.RandomName {
		return nil
	}
	return sandboxd.CheckGuestName(s)
}

const maxConfig = 1 << 20

func readConfig(path, def string) (string, error) {
	if path == "" {
		return def, nil
	}
	b, err := readFile(path, maxConfig)
	return string(b), err
}

// readFile reads a small file of the user's.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, BadInput("read %q: %w", path, unwrapPath(err))
	}
	if int64(len(b)) > limit {
		return nil, BadInput("%q has more than %d bytes", path, limit)
	}
	return b, nil
}

// openRegular opens a file without hanging on a pipe or a device.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, BadInput("read %q: %w", path, unwrapPath(err))
	}
	fi, err := f.Stat()
	switch {
	case err != nil:
		f.Close()
		return nil, BadInput("read %q: %w", path, unwrapPath(err))
	case fi.IsDir():
		f.Close()
		return nil, BadInput("%q is a directory: name a file in it", path)
	case !fi.Mode().IsRegular():
		f.Close()
		return nil, BadInput("%q is no regular file", path)
	}
	return f, nil
}

func unwrapPath(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func openSample(path string, limit int64) (*os.File, int64, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, BadInput("read %q: %w", path, unwrapPath(err))
	}
	switch n := fi.Size(); {
	case n == 0:
		f.Close()
		return nil, 0, BadInput("%q is empty: there is nothing to run", path)
	case n > limit:
		f.Close()
		return nil, 0, BadInput("%q has %d bytes; %d are allowed (raise it: --max-sample %dM)", path, n, limit, n>>20+1)
	}
	return f, fi.Size(), nil
}

// Submit stores the sample and puts the submission into the queue. The
// submission's digest is known from then on.
func (p *Prepared) Submit(ctx context.Context, b *bus.Bus) error {
	if _, err := p.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if room, err := b.Room(ctx); err == nil { // before the sample takes what there is
		if err := room.Err(); err != nil {
			return err
		}
	}
	p.Submission.Tenant = b.Tenant()
	d, n, err := b.SubmitSample(ctx, p.Submission, p.file)
	if err != nil {
		return err
	}
	if n != p.Submission.Sample.Size {
		return BadInput("%q changed while it was read", p.Submission.Sample.Name)
	}
	p.Submission.Sample.SHA256 = d
	return nil
}

// Close closes the sample.
func (p *Prepared) Close() { p.file.Close() }
