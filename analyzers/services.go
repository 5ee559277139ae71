// SPDX-License-Identifier: Apache-2.0

package analyzers

import (
	"context"
	"io"
	"iter"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// Services are what the runner needs of the world. All of them are used by
// many goroutines at once, and end soon after their context.
type Services struct {
	Registry Registry
	Queue    Queue
	Store    Store
	Uploads  Uploads
	Inbox    Inbox
	History  History // only analyzers of scope analysis need it
	Memo     Memo    // nil: all work is done
}

// Registry takes the registrations.
type Registry interface {
	// Register puts an analyzer's interest in the log and returns when it is
	// there. It is called at each start; the same again changes nothing.
	Register(ctx context.Context, r schemas.Registration) error
}

// Queue hands out tasks.
type Queue interface {
	// Next waits for a task of an analyzer. An error other than the context's
	// is tried again after a while.
	Next(ctx context.Context, analyzer string) (Delivery, error)
}

// A Delivery is a task that was handed out: at least once in all, and again if
// it is neither kept, acknowledged nor given back for longer than the queue
// waits.
type Delivery interface {
	Task() Task
	// InProgress keeps the task for as long again.
	InProgress(ctx context.Context) error
	// Ack ends the task.
	Ack(ctx context.Context) error
	// Begin says that the work begins. If the runner dies of it, it has been an
	// attempt.
	Begin(ctx context.Context) error
	// Nak gives the task back, to be delivered again after the delay. It has been
	// an attempt.
	Nak(ctx context.Context, delay time.Duration) error
	// Return gives the task back, to be delivered again at once. It has been no
	// attempt.
	Return(ctx context.Context) error
}

// A Task is what an analyzer owes.
type Task struct {
	Ref       schemas.TaskRef
	Artifact  schemas.Artifact   // its announcement; of scope artifact
	Artifacts []schemas.Artifact // all of the analysis; of scope analysis
	Omitted   int                // artifacts that are not among these, because they are too many
	Attempt   int                // this is the n-th, from 1, of those that were begun and not returned
	Force     bool               // do the work, whatever was answered before
}

// Store holds artifacts.
type Store interface {
	// Open returns the bytes, verified: reading ends with an error, not with
	// io.EOF, if they are not what the digest says. [ErrNotFound] if they are
	// not there. The caller closes it.
	Open(ctx context.Context, d schemas.Digest) (io.ReadCloser, error)
}

// Uploads takes what analyzers write.
type Uploads interface {
	// Put stores all of r in the analyzer's own place, and returns its digest
	// and size. It reads r to the end, or until r or the store fails; then
	// nothing stays.
	Put(ctx context.Context, analyzer string, r io.Reader) (schemas.Digest, int64, error)
}

// Inbox takes answers.
type Inbox interface {
	// Finish hands in an answer and returns when it is safe. It may be called
	// more than once for a task.
	Finish(ctx context.Context, t schemas.FinishedTask) error
}

// Memo knows what was answered before.
type Memo interface {
	// Earlier returns a task of the same work as t, which has its task, version,
	// rules and configuration, and no answer yet; nil: there is none.
	Earlier(ctx context.Context, t schemas.FinishedTask) (*schemas.TaskRef, error)
}

// History reads the log.
type History interface {
	// Events returns the events of the task's analysis up to the one that
	// opened the task, in order.
	Events(ctx context.Context, t schemas.TaskRef) iter.Seq2[schemas.Event, error]
}
