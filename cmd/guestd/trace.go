// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/guest"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
)

// tracing is what the agent says of its tracer.
func (a *agent) tracing() schemas.Tracer {
	if a.tracer == nil {
		return schemas.Tracer{Backend: "none", Error: fmt.Sprint(a.noTracer)}
	}
	return schemas.Tracer{Backend: "ebpf"}
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

// goTime is how long each part of going down may take; the host has its own
// deadline.
const goTime = 3 * time.Second

// shutDown ends the sample and brings out what is still on its way: the trace
// with its last counts, and the console.
func (a *agent) shutDown(ctx context.Context) {
	if err := os.WriteFile(filepath.Join(cgroupDir, cgroupName, "cgroup.kill"), []byte("1"), 0); err == nil {
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
