// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/petri-sandbox/petri/cmd/guestd/ptracer"
	"github.com/petri-sandbox/petri/cmd/guestd/tracer"
	"github.com/petri-sandbox/petri/sandboxd/guest"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// A recorder records what the sample does. There are two: [tracer.Tracer] and
// [ptracer.Tracer].
type recorder interface {
	// Run hands the trace on in blocks until ctx ends.
	Run(ctx context.Context, emit func(block []byte) error) error
	// Flush brings out what there is while Run runs.
	Flush(ctx context.Context) error
}

// tracerOption on the kernel's command line, with "ptrace", leaves the tracer by
// BPF programs out.
const tracerOption = "petri.tracer="

// openTracer loads BPF programs, or, where the kernel does not take them, starts
// a process that traces by ptrace. If both fail there is no recorder. The error says
// why it is not the best that there is.
func openTracer(offsets []byte) (recorder, error) {
	why := errors.New("the kernel's command line asks for ptrace")
	line, _ := os.ReadFile("/proc/cmdline")
	if !slices.Contains(strings.Fields(string(line)), tracerOption+"ptrace") {
		t, err := tracer.Load(tracer.Config{Offsets: offsets})
		if err == nil {
			return t, t.Interpreted()
		}
		why = err
	}
	t, err := ptracer.Start()
	if err != nil {
		return nil, errors.Join(why, err)
	}
	return t, why
}

// tracing is what the agent says of its tracer.
func (a *agent) tracing() schemas.Tracer {
	s := schemas.Tracer{Backend: "none"}
	switch a.tracer.(type) {
	case *tracer.Tracer:
		s.Backend = "ebpf"
	case *ptracer.Tracer:
		s.Backend = "ptrace"
	}
	if a.noTracer != nil {
		s.Error = a.noTracer.Error()
	}
	return s
}

// follow has what the command starts recorded. The first is the sample; whatever
// else the agent executes in the container from then on is to be followed, too: the
// sample may have replaced it.
func (a *agent) follow(cmd *command) error {
	a.mu.Lock()
	first := !a.followed
	a.followed = true
	a.mu.Unlock()
	// The container's init does what /etc/inittab says, and that is the sample's to
	// write: what it starts is the sample's doing too.
	switch t := a.tracer.(type) {
	case *tracer.Tracer:
		if !first {
			return nil // its thread is still armed
		}
		if err := t.ArmProcess(a.box.init); err != nil {
			return err
		}
		if err := t.Arm(a.box.tid); err != nil {
			return fmt.Errorf("arm the tracer: %w", err)
		}
	case *ptracer.Tracer:
		cmd.attach = func(pid int) error {
			ctx, cancel := context.WithTimeout(context.Background(), attachTime)
			defer cancel()
			if first {
				if err := t.Attach(ctx, a.box.init); err != nil {
					return err
				}
			}
			return t.Attach(ctx, pid)
		}
	}
	return nil
}

// startTrace sends what the tracer records to the host from now on.
func (a *agent) startTrace() error {
	if a.tracer == nil {
		return fmt.Errorf("there is no tracer: %w", a.noTracer)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.endTrace != nil {
		return errors.New("the trace is being sent already")
	}
	w, err := a.conn.Send(guest.StreamTrace)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		var st wire.Status
		err := a.tracer.Run(ctx, func(block []byte) error {
			n, err := w.Write(block)
			st.Size += int64(n)
			if h, herr := trace.ParseHeader(block); herr == nil {
				a.mu.Lock()
				a.records = h.First + uint64(h.Count)
				a.mu.Unlock()
			}
			return err
		})
		if err != nil {
			st.Error = err.Error()
		}
		_ = w.Close(st)
	}()
	a.endTrace = func() {
		cancel()
		<-done
	}
	return nil
}

// attachTime is how long the tracing process may take to attach to another: less
// than the host waits for an answer.
const attachTime = 8 * time.Second

// goTime is how long each part of going down may take; the host has its own
// deadline.
const goTime = 3 * time.Second

// shutDown ends the sample and brings out what is still on its way: the trace
// with its last counts, and the console.
func (a *agent) shutDown(ctx context.Context) {
	kill := func() error {
		return os.WriteFile(filepath.Join(cgroupDir, cgroupName, "cgroup.kill"), []byte("1"), 0)
	}
	if err := kill(); err == nil {
		if a.gather() > 0 { // after most are dead: a fork bomb leaves no time for it
			_ = kill()
		}
		a.waitEmpty(goTime)
	}
	a.tellKilled()
	ctx, cancel := context.WithTimeout(ctx, goTime)
	defer cancel()
	a.mu.Lock()
	end := a.endTrace
	a.mu.Unlock()
	if end != nil {
		if err := a.tracer.Flush(ctx); err != nil {
			a.fault("flush the trace: %v", err)
		}
		end()
	}
	a.mu.Lock()
	watched := a.watched
	a.mu.Unlock()
	if watched != nil {
		select {
		case <-watched: // the sample's end is told, and its output read out
		case <-ctx.Done():
		}
	}
	_ = a.conn.Drain(ctx)
}
