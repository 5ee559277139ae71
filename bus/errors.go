// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

var (
	// ErrFenced says that somebody else has written the analysis' context
	// meanwhile: the caller has lost it and must stop.
	ErrFenced = errors.New("the analysis has another writer")
	// ErrNotFound says that the log or the store has no such thing.
	ErrNotFound = errors.New("not found")
	// ErrCorrupt says that stored bytes do not have their digest.
	ErrCorrupt = errors.New("stored bytes are corrupt")
	// ErrUnreadable says that nobody will ever be able to read something.
	ErrUnreadable = errors.New("unreadable")
	// ErrTooLarge says that an artifact is larger than its kind may be.
	ErrTooLarge = errors.New("artifact is too large")
	// ErrBusy says that the queue of jobs is full; see [BusyError].
	ErrBusy = errors.New("the job queue is full")
	// ErrRunning says that an analysis has not ended.
	ErrRunning = errors.New("the analysis has not ended")
	// ErrDenied says that the connection's credentials do not allow something.
	ErrDenied = errors.New("not allowed by the credentials (petri bus init says which role may do what; if an older Petri made them: run petri bus renew)")
	// ErrUnreachable says that no server is where one was looked for.
	ErrUnreachable = errors.New("no server answers")
	// ErrInUse says that a data directory has a server already.
	ErrInUse = errors.New("the data directory is in use")
)

// A BusyError says that the queue of jobs is full, and when to come again. It
// wraps [ErrBusy].
type BusyError struct {
	Waiting uint64        // jobs that wait or are in work; 0: the submitter may not know
	Retry   time.Duration // in which there should be room
}

func (e *BusyError) Error() string {
	if e.Waiting == 0 {
		return fmt.Sprintf("busy: %v; retry after %s", ErrBusy, e.Retry)
	}
	return fmt.Sprintf("busy: %v, %d submissions wait or are in work; retry after %s", ErrBusy, e.Waiting, e.Retry)
}

func (e *BusyError) Unwrap() error { return ErrBusy }

// Error codes of nats-server (server/errors.json).
const (
	codeNoPeers           jetstream.ErrorCode = 10005 // the cluster has too few servers
	codeNoReplicas        jetstream.ErrorCode = 10074 // there is no cluster
	codeWrongLastSequence jetstream.ErrorCode = 10071
	codeUnavailable       jetstream.ErrorCode = 10008 // the cluster is choosing a leader
	codeMaxConsumers      jetstream.ErrorCode = 10026
	codeSubjectInFlight   jetstream.ErrorCode = 10164 // another message of the subject is being stored: who was first is not known yet
	codeRepeatedInFlight  jetstream.ErrorCode = 10158 // the same message id is being stored
	codeTooManyRequests   jetstream.ErrorCode = 10167
	codeMaxMessages       jetstream.ErrorCode = 10077 // maximum messages exceeded and its kin
)

func hasCode(err error, code jetstream.ErrorCode) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == code
}

// overshare reports whether a message's subject has all the messages that it may
// have: another's may have room.
func overshare(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == codeMaxMessages && strings.Contains(api.Description, "per subject")
}
