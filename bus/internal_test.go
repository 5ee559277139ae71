// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// OnStep calls f behind each step of a move; an error of f ends it there.
func (x *Archiver) OnStep(f func(step string) error) { x.step = f }

// SetLate changes how old late events must be.
func (x *Archiver) SetLate(d time.Duration) { x.late = d }

// SetAbsentGrace changes for how long a wait waits for an analyzer of which
// nothing is heard.
func (b *Bus) SetAbsentGrace(d time.Duration) { b.absentGrace = d }

// LimitDerived changes how much may be derived in an analysis.
func (c *Clerk) LimitDerived(count int, bytes int64) { c.limits.count, c.limits.bytes = count, bytes }

// SetLeaseEvery changes how often leases are renewed.
func (b *Bus) SetLeaseEvery(d time.Duration) { b.leaseEvery = d }

// SetEndingAgain changes how long after its first failure an ending comes again.
func (b *Bus) SetEndingAgain(d time.Duration) { b.endingAgain = d }

// OnStep calls f between two steps of a clerk; an error of f is a crash there.
func (c *Clerk) OnStep(f func(step string) error) { c.step = f }

// TaskMaxDeliver is how often a task is given out.
const TaskMaxDeliver = taskMaxDeliver

// Bounds of the dead letters.
const (
	LettersMax = lettersMax
	MaxAnswers = maxAnswers
	MaxLetters = maxLetters
)

// FinishTogether hands finished tasks in as they are while others are on their way.
func (b *Bus) FinishTogether(ctx context.Context, tasks ...schemas.FinishedTask) error {
	var msgs []batchMsg
	for _, f := range tasks {
		m, err := finishedMsg(f)
		if err != nil {
			return err
		}
		msgs = append(msgs, m)
	}
	_, err := inboxLog{b}.publishBatch(ctx, msgs)
	return err
}

// MaxTogether bounds the finished tasks of one message.
const MaxTogether = maxTogether
