// SPDX-License-Identifier: Apache-2.0

package analyzers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/petri-sandbox/petri/schemas"
)

// RunSingle runs an analyzer over one file in a child, as [Run] does with its
// tasks and within the same limits, but outside of any analysis: nothing is
// registered or published. What the analyzer derives goes to store, which
// returns its digest and size; it is called for one artifact at a time. A child
// that fails, or says that there is nothing for it, is an error, in the second
// case a [SkipError].
//
// The program's main must call [Child] first, with a list that has or makes a.
func RunSingle(ctx context.Context, a Analyzer, file *os.File, artifact schemas.Artifact, store func(context.Context, io.Reader) (schemas.Digest, int64, error)) (Collected, error) {
	if isChild() {
		return Collected{}, errors.New("this is a child process: main must call analyzers.Child first")
	}
	o := Options{}.fill()
	sp, err := newSpawner(ctx, o.Dir)
	if err != nil {
		return Collected{}, err
	}
	defer sp.close()
	if !sp.status.Network {
		return Collected{}, fmt.Errorf("%w: neither network namespaces nor system-call filters are permitted", ErrUnconfined)
	}
	t := task{
		Task:   Task{Ref: schemas.TaskRef{Analyzer: a.Info().Name, Kind: artifact.Kind, SHA256: &artifact.SHA256}, Artifact: artifact},
		runner: &runner{opts: o, spawner: sp}, info: a.Info().fill(), gate: &gate{analyzer: a},
	}
	req, err := t.request()
	if err != nil {
		return Collected{}, err
	}
	req.Input = &inputRef{Artifact: artifact, Size: artifact.Size}
	req.Jail.Mapped = artifact.Size
	got, err := sp.run(ctx, req, []*os.File{file}, store)
	switch {
	case err != nil:
		return Collected{}, err
	case got.status == schemas.TaskSkipped:
		return Collected{}, Skip("%s", got.err)
	case got.status != schemas.TaskDone:
		return Collected{}, fmt.Errorf("analyzer %s: %s", t.info.Name, got.err)
	}
	c := Collected{Status: got.status, Findings: got.findings, Derived: got.derived}
	if got.cut != nil {
		c.Cut = *got.cut
	}
	return c, nil
}
