// SPDX-License-Identifier: Apache-2.0

package analyzers

import (
	"errors"
	"fmt"
)

// ErrUnavailable says that an analyzer cannot work on this host.
var ErrUnavailable = errors.New("analyzer unavailable")

// ErrTooLarge says that a result document is over the limit.
var ErrTooLarge = errors.New("result document is too large")

// ErrNotFound is what a [Store] returns for bytes that it does not have and
// will not have later.
var ErrNotFound = errors.New("no such artifact")

// ErrUnconfined says that nothing here would keep an analyzer from the network.
var ErrUnconfined = errors.New("analyzers cannot be confined here")

// SkipError says that a job is not for this analyzer.
type SkipError struct{ Reason string }

func (e *SkipError) Error() string { return "skipped: " + e.Reason }

// Skip is what Analyze returns for a job that is not for it: another format,
// nothing in it. The reason is for people.
func Skip(format string, args ...any) error {
	return &SkipError{fmt.Sprintf(format, args...)}
}
