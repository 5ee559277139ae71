// SPDX-License-Identifier: Apache-2.0

package schemas

import "fmt"

// Schemas of what travels inside of other messages.
const (
	ControlSchema    = "petri.control.request.v1" // of a [ControlRequest]
	GateAnswerSchema = "petri.gate.answer.v1"     // of a [GateAnswer]
)

// ControlKind is the kind of a finding whose data is a [ControlRequest].
const ControlKind = "control"

// ControlRequest asks the sandbox for something while the sample runs. The
// protocol says what may be granted; what was decided is a [ControlDecided].
type ControlRequest struct {
	Action   string   `json:"action"`             // one of ControlActions
	Duration Duration `json:"duration,omitempty"` // of extend: how much longer
	Reason   string   `json:"reason,omitempty"`
}

// Actions of a [ControlRequest].
const (
	ControlExtend     = "extend"      // let the sample run longer
	ControlStop       = "stop"        // end the run now
	ControlDumpMemory = "dump_memory" // store the guest's RAM
	ControlScreenshot = "screenshot"  // store a picture of the guest's display
)

// ControlActions lists them.
var ControlActions = []string{ControlExtend, ControlStop, ControlDumpMemory, ControlScreenshot}

// GateAnswer is what a gate replies: a service that a protocol lets decide
// whether the analysis goes on.
type GateAnswer struct {
	Decision string `json:"decision"`         // go or stop
	Reason   string `json:"reason,omitempty"` // for people, at most 512 bytes
}

// Decisions of a [GateAnswer].
const (
	GateGo   = "go"
	GateStop = "stop"
)

// Check reports what is wrong with an answer that a stranger wrote.
func (g *GateAnswer) Check() error {
	switch {
	case g.Decision != GateGo && g.Decision != GateStop:
		return fmt.Errorf("decision %.40q is neither go nor stop", g.Decision)
	case len(g.Reason) > 512:
		return fmt.Errorf("reason has %d bytes; 512 are allowed", len(g.Reason))
	}
	return nil
}
