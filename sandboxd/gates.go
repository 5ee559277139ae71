// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/protocol"
	"github.com/petri-sandbox/petri/schemas"
)

// Gates asks services outside of the sandbox.
type Gates interface {
	// Ask sends an event to a gate and returns the answer as it came. The error
	// wraps [ErrNoGate] if nobody serves the gate; any other is tried again
	// until ctx is done.
	Ask(ctx context.Context, tenant, gate string, e schemas.Event) ([]byte, error)
}

// ErrNoGate says that nobody serves a gate.
var ErrNoGate = errors.New("nobody serves the gate")

// errGate is the failure of a step that a gate stopped. It ends the machine's
// part of the protocol whatever the step's on_failure says.
type errGate struct {
	gate, answer, reason string
}

func (e *errGate) Error() string {
	s := fmt.Sprintf("gate %s: %s", e.gate, e.answer)
	if e.reason != "" {
		s += ": " + e.reason
	}
	return s
}

const (
	maxAnswer = 4 << 10                // bytes
	askPause  = 250 * time.Millisecond // between two questions to a gate that could not be sent
)

// askGates asks the gates of an event that the log has and whose handlers are
// done: the gates see what the hooks have stored, and have the last word. One
// that says stop fails the running step, or the next, whoever published the
// event. A gate is not asked any more when the machine is being ended, and the
// end waits for none.
func (c *Context) askGates(e schemas.Event) error {
	c.mu.Lock()
	gates, over := c.gates, c.halting || c.closed
	c.mu.Unlock()
	if over || c.work.Err() != nil {
		return nil
	}
	for _, g := range gates {
		if !slices.Contains(g.On, e.Name()) {
			continue
		}
		if err := c.askGate(g, e); err != nil {
			var stopped *errGate
			if errors.As(err, &stopped) {
				c.failStep(err)
			}
			return err
		}
	}
	return nil
}

// askGate asks one gate and publishes what it made of that.
func (c *Context) askGate(g protocol.Gate, e schemas.Event) error {
	begin := time.Now()
	d := schemas.GateAnswered{Gate: g.Name, Event: e.ID, Effect: g.Otherwise}
	d.Answer, d.Reason = c.ask(g, e)
	if d.Answer == schemas.GateGo || d.Answer == schemas.GateStop {
		d.Effect = d.Answer
	}
	if d.Answer == gateMoot {
		d.Effect = schemas.GateStop
	}
	d.Waited = schemas.Duration(time.Since(begin).Round(time.Millisecond))
	if err := c.emit(schemas.OriginHost, d); err != nil {
		return err
	}
	if d.Effect == schemas.GateStop {
		return &errGate{g.Name, d.Answer, d.Reason}
	}
	return nil
}

// Answers besides those of a gate itself.
const (
	gateTimeout = "timeout"
	gateAbsent  = "absent"
	gateInvalid = "invalid"
	gateMoot    = "moot"
)

// ask asks a gate until it answers, its time is over, or the machine ends.
func (c *Context) ask(g protocol.Gate, e schemas.Event) (answer, reason string) {
	if c.cfg.Gates == nil {
		return gateAbsent, "this sandbox reaches no gates"
	}
	ctx, cancel := context.WithTimeout(c.work, g.Timeout)
	defer cancel()
	defer context.AfterFunc(c.ending, cancel)()
	for {
		b, err := c.cfg.Gates.Ask(ctx, c.cfg.Tenant, g.Name, e)
		switch {
		case err == nil:
			return readAnswer(b)
		case c.work.Err() != nil || c.ending.Err() != nil:
			return gateMoot, ""
		case errors.Is(err, ErrNoGate):
			return gateAbsent, ""
		case ctx.Err() != nil:
			return gateTimeout, ""
		}
		select {
		case <-ctx.Done():
		case <-time.After(askPause):
		}
	}
}

// readAnswer reads what a stranger wrote.
func readAnswer(b []byte) (answer, reason string) {
	if len(b) > maxAnswer {
		return gateInvalid, fmt.Sprintf("the answer has %d bytes; %d are allowed", len(b), maxAnswer)
	}
	var a schemas.GateAnswer
	if err := json.Unmarshal(b, &a); err != nil {
		return gateInvalid, "the answer is no JSON of a gate's: " + err.Error()
	}
	if err := a.Check(); err != nil {
		return gateInvalid, "the answer's " + err.Error()
	}
	return a.Decision, strings.ToValidUTF8(a.Reason, "\ufffd")
}
