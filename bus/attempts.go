// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus/auth"
)

// The bucket ATTEMPTS says how often the work on a task has begun and was not
// given back. The server's own count is of deliveries: it counts those to
// whoever was stopped before he was done, too, and those of a task that is held,
// and somebody who restarts three times would make an innocent task poison.
//
// Most tasks are given out once, and nothing is written for these: who is given
// a task over an artifact again, of which nothing is written, takes the first
// time as begun. A record that is lost costs an attempt more or less; what is
// given out for ever the server ends, after [taskMaxDeliver].

// attemptsWait is how long a process waits for the bucket. The work is done
// without it.
const attemptsWait = 5 * time.Second

// attemptsSubject is that of a task's record. Every user has his own: a right for
// each of the analyzers that Petri brings would not fit in their credentials.
func (t *Task) attemptsSubject() string {
	user := strings.TrimPrefix(cmp.Or(t.b.user, "none"), string(auth.Analyzer)+"-")
	return "$KV." + kvAttempts + "." + user + "." + taskToken(t.Ref)
}

// counted reports whether the attempts of a task are written down already now.
func (t *Task) counted() bool { return t.delivered > 1 || t.Ref.SHA256 == nil }

// countAttempts says which attempt this is.
func (b *Bus) countAttempts(ctx context.Context, t *Task) {
	t.Attempt = 1
	if t.delivered == 1 {
		return
	}
	begun := 0
	if t.Ref.SHA256 != nil {
		begun = 1
	}
	// Also for whoever has just been told to end: he gives it back by this count.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attemptsWait)
	defer cancel()
	m, err := b.lookupIn(ctx, "KV_"+kvAttempts, lookup{Last: t.attemptsSubject()})
	if err == nil {
		if n, err := strconv.Atoi(string(m.Data)); err == nil && n >= 0 {
			begun = n
		}
	} else if !errors.Is(err, ErrNotFound) {
		begun = t.delivered - 1
	}
	t.Attempt = begun + 1
}

// Begin says that the work on the task begins. If this process dies of it, it has
// been an attempt.
func (t *Task) Begin(ctx context.Context) error {
	if !t.counted() {
		return nil
	}
	return t.begun(ctx, t.Attempt)
}

// Return gives the task back, to be given out again at once, and it has been no
// attempt: whoever had it ends for another reason.
func (t *Task) Return(ctx context.Context) error {
	return errors.Join(t.begun(ctx, t.Attempt-1), t.msg.Nak())
}

// begun writes down how often the work was begun.
func (t *Task) begun(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, attemptsWait)
	defer cancel()
	subject := t.attemptsSubject()
	err := t.b.allowed(ctx, []string{subject}, func(ctx context.Context) error { // an older Petri's credentials do not allow it
		return retry(ctx, func(ctx context.Context) error {
			_, err := t.b.js.PublishMsg(ctx, &nats.Msg{Subject: subject, Data: []byte(strconv.Itoa(n))}, jetstream.WithRetryAttempts(0))
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("write down the attempts of a task of %s: %w", t.Ref.Analyzer, err)
	}
	return nil
}
