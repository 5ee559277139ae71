// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/petri-sandbox/petri/cmd/guestd/hold"
	"github.com/petri-sandbox/petri/cmd/guestd/procfs"
	"github.com/petri-sandbox/petri/sandboxd/guest"
	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/sysno"
)

const (
	// maxHolds is how many calls of one name are held, or of an ABI that is not
	// known. Who makes more has been called a possible tamperer by then, and need
	// not be slow.
	maxHolds = 64
	// holdTime bounds each half of a hold: bringing out, and the host's answer.
	holdTime = 10 * time.Second
)

// hold is called when the sample stands at the beginning of a call by which root
// can change what records it. It returns when all that was recorded before is out
// of the guest, or the time for that is over.
func (a *agent) hold(c hold.Call) {
	if a.holds == nil {
		a.holds = map[string]int{}
	}
	what := c.Name
	if !c.ABI.Valid() { // the sample makes up as many numbers as it likes
		what = "what this program does not know"
	}
	a.holds[what]++
	if n := a.holds[what]; n > maxHolds {
		if n == maxHolds+1 {
			a.fault("the sample has called %s more than %d times; later calls were not held", what, maxHolds)
		}
		return
	}
	p := schemas.PossibleTampering{Call: c.Name, Request: requestOf(c)}
	if c.ABI.Valid() {
		p.ABI = c.ABI.String()
	}
	p.PID, p.Comm = inner(c.TID)
	if err := bounded(a.bringOut); err != nil {
		p.Behind = err.Error()
	}
	a.mu.Lock()
	p.Records = a.records
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), holdTime)
	defer cancel()
	if err := a.conn.Call(ctx, guest.ReqHeld, p, nil); err != nil {
		// Nobody may read the link, and the sample is not to wait for that.
		go a.fault("a call of %s was let go, although the host had not answered: %v", c.Name, err)
	}
}

// requestOf names what a call of many uses is to do.
func requestOf(c hold.Call) string {
	switch c.Name {
	case "ptrace":
		return c.ABI.Enum(sysno.SetPtrace, uint64(uint32(c.Args[0])))
	case "bpf":
		return c.ABI.Enum(sysno.SetBpf, uint64(uint32(c.Args[0])))
	}
	return ""
}

// inner is the process of a thread as it is numbered in the container, and the
// thread's name.
func inner(tid int) (pid int, comm string) {
	const most = 16 << 10
	for line := range strings.SplitSeq(string(procfs.Read(uint32(tid), "status", most)), "\n") {
		key, text, _ := strings.Cut(line, ":")
		switch key {
		case "Name":
			comm = strings.TrimSpace(text)
		case "NStgid":
			if f := strings.Fields(text); len(f) > 0 {
				_, _ = fmt.Sscan(f[len(f)-1], &pid)
			}
		}
	}
	return pid, comm
}

// bringOut sends what has been traced and printed.
func (a *agent) bringOut(ctx context.Context) error {
	a.mu.Lock()
	out, traced := a.console, a.endTrace != nil
	a.mu.Unlock()
	if traced {
		if err := a.tracer.Flush(ctx); err != nil {
			return fmt.Errorf("flush the trace: %w", err)
		}
	}
	if out != nil {
		if err := out.flush(ctx); err != nil {
			return fmt.Errorf("flush the sample's output: %w", err)
		}
	}
	return nil
}

// bounded calls f and gives up on it after holdTime: it may wait for a host that
// does not read.
func bounded(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), holdTime)
	defer cancel() // here: were it done beside f's answer, select could take it for a timeout
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.New("it took too long")
	}
}
