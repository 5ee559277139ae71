// SPDX-License-Identifier: Apache-2.0

// Package sandboxd runs analyses: it takes a submission, drives a machine
// through its protocol, publishes every step as an event before it acts on it,
// and leaves with everything stored, announced and counted.
//
// [Context] is one analysis' machine as protocol and hooks see it. [Worker]
// takes jobs, runs an analysis for each, and cleans up after those that a crash
// cut short. The package knows neither NATS nor QEMU: it declares what it needs
// of a log, a store and machines, and cmd wires them.
package sandboxd

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

var (
	// ErrFenced is what a [ContextLog] returns when somebody else writes the
	// analysis: it is lost to this sandbox.
	ErrFenced = errors.New("another sandbox has taken the analysis over")
	// ErrLogAway says that the log took no events for too long.
	ErrLogAway = errors.New("the log is away")
)

// A Log is where an analysis' facts go.
type Log interface {
	// OpenContext returns the writer of a new analysis' context events. If there
	// are some already the error wraps [ErrFenced]: it was cancelled while it
	// waited, or somebody else runs it.
	OpenContext(ctx context.Context, tenant, analysis string) (ContextLog, error)
	PublishArtifact(ctx context.Context, e schemas.Event, a *schemas.Artifact) error
	PublishSegment(ctx context.Context, e schemas.Event, s *schemas.Segment) error
	// PublishBehavior shows a live event to whoever watches; it may get lost.
	PublishBehavior(tenant, analysis string, b *schemas.Behavior, e schemas.Event) error
	// Away is how long the log has been out of reach.
	Away() time.Duration
}

// A ContextLog writes one analysis' context events, each behind its own last.
// It is for one goroutine at a time.
type ContextLog interface {
	NextID() string
	Write(ctx context.Context, e schemas.Event) error
}

// A Store keeps bytes by their digest.
type Store interface {
	Put(ctx context.Context, kind schemas.Kind, r io.Reader) (schemas.Digest, int64, error)
	Open(ctx context.Context, d schemas.Digest) (io.ReadCloser, int64, error)
}

// Keeper is a [Store] that removes what nobody refers to. Keep says that
// somebody is about to refer to what was stored long ago; an error says that it
// must be put again.
type Keeper interface {
	Keep(ctx context.Context, d schemas.Digest) error
}

// Roomy is a [Store] that knows the disk below it, which is also that of the
// analyses' own directories. Room fails if n more bytes of what comes in large
// amounts would take what is kept for receipts and endings.
type Roomy interface {
	Room(n int64) error
}

// Machines makes the machines that analyses run on.
type Machines interface {
	// New returns a machine for a guest of that architecture, not yet started.
	// What it reports goes to o.
	New(ctx context.Context, s MachineSpec, o machine.Observer) (machine.Machine, error)
}

// MachineSpec says what kind of machine an analysis needs.
type MachineSpec struct {
	Tenant, Analysis string
	Guest            string // by the catalogue's name
	Sample           schemas.Digest
	Dir              string // the analysis' own directory, for whatever must lie on the disk
	Cold             bool
	Untraced         bool
	Pcap             int64 // bytes of capture
	// Announce publishes an artifact that belongs to the machine, such as the
	// template that it is restored from.
	Announce func(ctx context.Context, a schemas.Artifact) error
}
