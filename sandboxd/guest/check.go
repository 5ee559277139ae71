// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
)

// What a guest says is cut to these lengths, in bytes: its words end in events
// and reports.
const (
	maxName    = 64
	maxReason  = 512
	maxPath    = 4096 // PATH_MAX of Linux
	maxMissing = 64   // libraries
	maxOpenIn  = 16   // processes
	maxOutput  = 16 << 10
)

// clip makes s valid UTF-8 of at most n bytes, and marks a cut.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

func clipAll(list []string, n, each int) []string {
	list = slices.Clone(list[:min(len(list), n)])
	for i := range list {
		list[i] = clip(list[i], each)
	}
	return list
}

func (h Hello) checked() Hello {
	h.Arch, h.Kernel = clip(h.Arch, maxName), clip(h.Kernel, maxName)
	h.Tracer.Backend, h.Tracer.Error = clip(h.Tracer.Backend, maxName), clip(h.Tracer.Error, maxReason)
	return h
}

// checkExited holds an exit to what wait(2) can say.
func checkExited(e schemas.SampleExited) (schemas.SampleExited, error) {
	if !slices.Contains([]string{"exited", "killed", "reboot"}, e.Reason) {
		return e, fmt.Errorf("reason %q", clip(e.Reason, maxName))
	}
	if (e.Reason == "exited") != (e.ExitCode != nil) || (e.Reason == "killed") != (e.Signal != "") {
		return e, fmt.Errorf("reason %q with exit code %v and signal %q", e.Reason, e.ExitCode != nil, clip(e.Signal, maxName))
	}
	if e.ExitCode != nil && (*e.ExitCode < 0 || *e.ExitCode > 255) || e.Left < 0 || e.Ran < 0 {
		return e, fmt.Errorf("a number out of range")
	}
	e.Signal = clip(e.Signal, maxName)
	e.Error, e.Errno, e.Missing = "", "", nil // of a sample that never began
	return e, nil
}

// checkTampering clips the words. A guest that says no more than that has said what
// counts.
func checkTampering(p schemas.PossibleTampering) schemas.PossibleTampering {
	p.Call, p.Request, p.ABI = clip(p.Call, maxName), clip(p.Request, maxName), clip(p.ABI, maxName)
	p.Comm, p.Behind, p.PID = clip(p.Comm, maxName), clip(p.Behind, maxReason), max(0, p.PID)
	return p
}

func checkNotExecuted(e *machine.NotExecuted) *machine.NotExecuted {
	return &machine.NotExecuted{Reason: clip(e.Reason, maxReason), Errno: clip(e.Errno, maxName), Missing: clipAll(e.Missing, maxMissing, maxReason)}
}

// checkStarted holds a proof to the way in which the sample was to be run.
func checkStarted(r machine.Run, s machine.Started) (machine.Started, error) {
	if s.How != r.Load || s.Forced && r.Load != schemas.HowLoaded {
		return s, fmt.Errorf("%w: a sample that it ran as %q", wire.ErrProtocol, clip(s.How, maxName))
	}
	if s.PID <= 0 {
		return s, fmt.Errorf("%w: process number %d", wire.ErrProtocol, s.PID)
	}
	s.Path = clip(s.Path, maxPath)
	return s, nil
}

// checkExec puts the command that was asked for in place of the guest's.
func checkExec(asked []string, e schemas.Exec) schemas.Exec {
	return schemas.Exec{
		Command: asked, ExitCode: e.ExitCode, Signal: clip(e.Signal, maxName),
		Stdout: clip(e.Stdout, maxOutput), Stderr: clip(e.Stderr, maxOutput), Cut: max(0, e.Cut),
	}
}

// checkFile holds a file's description to what a file system can hold.
func checkFile(f schemas.DroppedFile) (schemas.DroppedFile, error) {
	if !strings.HasPrefix(f.Path, "/") || path.Clean(f.Path) != f.Path || len(f.Path) > maxPath {
		return f, fmt.Errorf("path %q", clip(f.Path, maxName))
	}
	if !slices.Contains(schemas.FileChanges, f.Change) {
		return f, fmt.Errorf("change %q", clip(f.Change, maxName))
	}
	if !slices.Contains(schemas.DroppedTypes, f.Type) {
		return f, fmt.Errorf("type %q", clip(f.Type, maxName))
	}
	if f.Size < 0 || f.Mode > 0o7777 {
		return f, fmt.Errorf("size %d, mode %o", f.Size, f.Mode)
	}
	if b := f.Before; b != nil && (b.Size < 0 || b.Mode > 0o7777) {
		return f, fmt.Errorf("size %d, mode %o before", b.Size, b.Mode)
	}
	f.Path, f.Target, f.Reason = clip(f.Path, maxPath), clip(f.Target, maxPath), clip(f.Reason, maxReason)
	f.From, f.OpenIn = clip(f.From, maxPath), f.OpenIn[:min(len(f.OpenIn), maxOpenIn)]
	return f, nil
}

// checkCollected holds a sum to what has come.
func checkCollected(c machine.Collected, listed, sent int) (machine.Collected, error) {
	if c.Listed != listed || c.Sent != sent || c.Omitted < 0 {
		return c, fmt.Errorf("%w: it says that it sent %d of %d files, and sent %d of %d", wire.ErrProtocol, c.Sent, c.Listed, sent, listed)
	}
	return c, nil
}
