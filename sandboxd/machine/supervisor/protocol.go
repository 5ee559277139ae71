// SPDX-License-Identifier: Apache-2.0

// Package supervisor runs a machine in a process of its own, and is the client
// of that process.
//
// A supervisor owns one QEMU, its network, its capture and the link to its
// guest. It is unprivileged, in namespaces of its own, under limits of memory
// and descriptors, knows nothing of the log, and dies with its parent; its QEMU
// dies with it. So a guest that floods or breaks what reads it takes one
// analysis with it and no more. To sandboxd it speaks package wire, and
// sandboxd believes it as little as it believes a guest.
package supervisor

import (
	"time"

	"github.com/petri-sandbox/petri/sandboxd/guest"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// Spec is what a supervisor is told about its machine. The files come as
// inherited descriptors.
type Spec struct {
	Binary   string `json:"binary"`
	Version  string `json:"version"`
	Accel    string `json:"accel"`
	Guest    string `json:"guest"`
	Memory   int64  `json:"memory"`
	Image    string `json:"image"`
	Mark     string `json:"mark"`
	Untraced bool   `json:"untraced"`
	Pcap     int64  `json:"pcap"` // bytes of capture

	Warm     bool           `json:"warm"` // the template's files are there
	Template schemas.Digest `json:"template"`
	Hello    guest.Hello    `json:"hello"`    // what the template's guest had said
	Fallback string         `json:"fallback"` // why there is no template
}

// Inherited descriptors of a supervisor, from 3 on.
const (
	fdLink      = 3 + iota // package wire
	fdFiles                // carries descriptors
	fdKernel               //
	fdInitramfs            //
	fdRAM                  // with a template, or to make one
	fdState                //
)

// Requests to a supervisor.
const (
	reqStart    = "start"   // [Spec], once, first
	reqStandby  = "standby" // a start without an identity, before the first poweron
	reqPoweron  = "poweron"
	reqPause    = "pause"
	reqResume   = "resume"
	reqRestart  = "restart"
	reqShutdown = "shutdown"
	reqPoweroff = "poweroff"
	reqRun      = "run" // the sample comes as a descriptor before
	reqExec     = "exec"
	reqCollect  = "collect" // files on streamFiles
	reqFlush    = "flush"
	reqDump     = "dump"     // to the descriptor sent before
	reqScreen   = "screen"   // likewise
	reqSnapshot = "snapshot" // boots, writes RAM and state → [guest.Hello]
	reqClose    = "close"    // ends the machine and then every stream
)

// params are a request's parameters: a time to live and what the request needs.
type params[T any] struct {
	Timeout time.Duration `json:"timeout"`
	Value   T             `json:"value"`
}

// result is a request's answer. The errors that callers tell apart have fields.
type result[T any] struct {
	Value       T                    `json:"value"`
	Error       string               `json:"error,omitempty"`
	Gone        bool                 `json:"gone,omitempty"` // the error wraps machine.ErrGone
	NotExecuted *machine.NotExecuted `json:"not_executed,omitempty"`
}

// eventFact is a supervisor's event: a [machine.Event].
const eventFact = "fact"

// Streams of the link. Those of sources end with an [ends] as the status'
// detail: nothing else orders a source's coverage behind its last bytes.
const (
	streamTrace uint16 = iota + 1
	streamPcap
	streamStdout
	streamStderr
	streamSerial

	streamFiles
)

// ends are what became of a source, once for each start of the machine.
type ends []schemas.SourceCoverage

// noEnd is the coverage of a source whose own word of its end never came.
func noEnd(reason string) schemas.SourceCoverage {
	return schemas.SourceCoverage{Status: schemas.StatusPartial, Reason: reason}
}

var streamOf = map[schemas.Source]uint16{
	schemas.SourceTrace:  streamTrace,
	schemas.SourcePcap:   streamPcap,
	schemas.SourceStdout: streamStdout,
	schemas.SourceStderr: streamStderr,
	schemas.SourceSerial: streamSerial,
}
