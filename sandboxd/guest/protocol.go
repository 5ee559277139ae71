// SPDX-License-Identifier: Apache-2.0

// Package guest is the host's side of guestd: the requests that the agent
// understands, as types that both ends share, and the [Client] that makes them.
//
// What a guest answers is testimony. The Client bounds it, checks its form and
// passes it on; it believes none of it.
package guest

import (
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// Requests of the host.
const (
	ReqPing     = "ping"
	ReqAssign   = "assign"   // [Assign] → nothing
	ReqNetwork  = "network"  // nothing → [Lease]
	ReqRun      = "run"      // [machine.Run], bytes on [StreamSample] → [RunResult]
	ReqExec     = "exec"     // [machine.Exec] → [schemas.Exec]
	ReqCollect  = "collect"  // [machine.Collect] → [machine.Collected], files on [StreamFiles]
	ReqFlush    = "flush"    // nothing → nothing, when the trace is out
	ReqPoweroff = "poweroff" // nothing → nothing; then the guest goes down
)

// ReqHeld is the guest's only request: [schemas.PossibleTampering] → nothing. The
// sample stands still until it is answered.
const ReqHeld = "held"

// EventNudge is the host's only event. It says nothing: see [Client.Nudge].
const EventNudge = "nudge"

// Events of the guest.
const (
	EventHello  = "hello"  // [Hello]
	EventExited = "exited" // [schemas.SampleExited]
	EventTree   = "tree"   // [machine.TreeExited]
	EventFault  = "fault"  // [Fault]
)

// Streams of the link, all but StreamSample from the guest.
const (
	StreamStdout uint16 = iota + 1
	StreamStderr
	StreamTrace
	StreamSample
	StreamFiles
)

// Hello is what the agent says first.
type Hello struct {
	Version int            `json:"version"` // [wire.Version]
	Arch    string         `json:"arch"`    // GOARCH of the agent
	Kernel  string         `json:"kernel"`
	Tracer  schemas.Tracer `json:"tracer"`
}

// Assign gives a guest its identity.
type Assign struct {
	machine.Identity
	// TraceStream asks for the trace on [StreamTrace].
	TraceStream bool `json:"trace_stream"`
}

// Lease is what the guest's DHCP client got.
type Lease struct {
	Address string `json:"address"`
	MAC     string `json:"mac"`
}

// Fault is trouble inside the guest that costs coverage.
type Fault struct {
	Text string `json:"text"`
}

// RunResult answers ReqRun: one of the two.
type RunResult struct {
	Started     *machine.Started     `json:"started,omitempty"`
	NotExecuted *machine.NotExecuted `json:"not_executed,omitempty"`
}

// callTimeout is how long the guest may take for what should take
// milliseconds: an emulated guest on a loaded host can be a thousand times
// slower than an idle one.
const callTimeout = 20 * time.Second
