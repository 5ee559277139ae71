// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/petri-sandbox/petri/bus/petrifile"
	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/recorded"
	"github.com/petri-sandbox/petri/schemas"
)

// recordings are the machines of a sandbox that replays: it takes the samples
// that it has a recording of, and refuses all others.
type recordings struct {
	speed    float64
	bySample map[schemas.Digest]*recorded.Recording
}

var _ sandboxd.Machines = (*recordings)(nil)

// CheckSpeed checks a replay's.
func CheckSpeed(speed float64) error {
	if !(speed >= 0 && speed <= maxSpeed) { // nor NaN
		return fmt.Errorf("--speed %g is not between 0 and %g", speed, float64(maxSpeed))
	}
	return nil
}

const maxSpeed = 1e6

// loadRecordings reads .petri files. What their logs name is unpacked into dir,
// which is made anew.
func loadRecordings(ctx context.Context, paths []string, speed float64, dir string) (*recordings, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	rs := &recordings{speed: speed, bySample: map[schemas.Digest]*recorded.Recording{}}
	for _, path := range paths {
		r, err := loadRecording(ctx, path, unpacked(dir))
		if err != nil {
			return nil, fmt.Errorf("recording %s: %w", path, err)
		}
		if _, twice := rs.bySample[r.Sample]; twice {
			return nil, fmt.Errorf("recording %s: there is another of sample %s", path, r.Sample)
		}
		rs.bySample[r.Sample] = r
	}
	return rs, nil
}

func loadRecording(ctx context.Context, path string, dir unpacked) (*recorded.Recording, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in, err := petrifile.NewReader(f, "")
	if err != nil {
		return nil, err
	}
	defer in.Close()
	if in.Header().Thin {
		return nil, errors.New("it has no artifacts: export it with petri export")
	}
	var events []schemas.Event
	for {
		item, err := in.Next()
		if errors.Is(err, io.EOF) {
			return recorded.Load(ctx, events, dir)
		}
		if err != nil {
			return nil, err
		}
		switch {
		case item.Entry != nil:
			events = append(events, item.Event)
		case item.Object != nil && item.Absent == "" && !item.Object.Is([]schemas.Kind{schemas.KindSample, schemas.KindTemplate, "template-part"}):
			if err := dir.write(item.Object.SHA256, in); err != nil {
				return nil, err
			}
		}
	}
}

// New implements [sandboxd.Machines].
func (rs *recordings) New(_ context.Context, s sandboxd.MachineSpec, o machine.Observer) (machine.Machine, error) {
	r := rs.bySample[s.Sample]
	if r == nil {
		return nil, fmt.Errorf("this sandbox replays recordings (--recorded), and has none of sample %s", s.Sample)
	}
	return recorded.New(r, rs.speed, o), nil
}

// describe says what a machine will be before there is one.
func (*recordings) describe(guest, _ string) schemas.MachineSpec {
	return schemas.MachineSpec{Arch: guest, Backend: recorded.Backend}
}

// guests are those that were recorded.
func (rs *recordings) guests() []string {
	have := map[string]bool{}
	for _, r := range rs.bySample {
		have[r.Arch()] = true
	}
	return slices.Sorted(maps.Keys(have))
}

// unpacked is a directory with a file for each digest.
type unpacked string

func (u unpacked) path(d schemas.Digest) string { return filepath.Join(string(u), d.Token()) }

func (u unpacked) write(d schemas.Digest, r io.Reader) error {
	f, err := os.OpenFile(u.path(d), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil // of another recording: the digest is the same
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// Open implements [recorded.Objects].
func (u unpacked) Open(_ context.Context, d schemas.Digest) (io.ReadCloser, int64, error) {
	f, err := os.Open(u.path(d))
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, fmt.Errorf("the file was exported without %s (export it whole: petri export ID, without --without)", d)
	}
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}
