// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"fmt"
	"os"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// readEvents keeps what QEMU says of the guest's end, and hands on what others
// wait for. QEMU docs/interop/qmp-ref: run-state.json, dump.json.
func (in *instance) readEvents() {
	for e := range in.monitor.Notifications() {
		switch e.Event {
		case "GUEST_PANICKED":
			in.shutdown.CompareAndSwap(nil, &schemas.MachineOff{State: "crashed", Reason: "guest-panic"})
		case "SHUTDOWN":
			if guest, _ := e.Data["guest"].(bool); guest {
				reason, _ := e.Data["reason"].(string)
				in.shutdown.CompareAndSwap(nil, &schemas.MachineOff{State: "off", Reason: reason})
			}
		case "MIGRATION":
			text, _ := e.Data["status"].(string)
			select {
			case in.migration <- text:
			default:
			}
		case "DUMP_COMPLETED":
			text, _ := e.Data["error"].(string)
			select {
			case in.dumps <- dumpResult{err: text}:
			default:
			}
		}
	}
}

type dumpResult struct{ err string }

// DumpMemory implements [machine.Machine].
func (m *Machine) DumpMemory(ctx context.Context, f *os.File) error {
	in, err := m.instance()
	if err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("prepare the dump's file: %w", err)
	}
	if _, err := f.Seek(0, 0); err != nil {
		return fmt.Errorf("prepare the dump's file: %w", err)
	}
	select {
	case <-in.dumps: // of a dump that nobody waited for
	default:
	}
	if err := in.monitor.SendFile(ctx, "dump", int(f.Fd())); err != nil {
		return in.explain(err)
	}
	args := map[string]any{"paging": false, "protocol": "fd:dump", "detach": true}
	if err := in.monitor.Execute(ctx, "dump-guest-memory", args, nil); err != nil {
		return in.explain(err)
	}
	select {
	case r := <-in.dumps:
		if r.err != "" {
			return fmt.Errorf("dump the guest's memory: %s", r.err)
		}
		return nil
	case <-in.proc.Done():
		return in.explain(machine.ErrGone)
	case <-ctx.Done():
		return fmt.Errorf("dump the guest's memory: %w", ctx.Err())
	}
}

// Screenshot implements [machine.Screenshotter].
func (m *Machine) Screenshot(ctx context.Context, f *os.File) error {
	in, err := m.instance()
	if err != nil {
		return err
	}
	err = in.monitor.WithFile(ctx, int(f.Fd()), func(path string) error {
		return in.monitor.Execute(ctx, "screendump", map[string]any{"filename": path, "format": "png"}, nil)
	})
	if err != nil {
		return in.explain(fmt.Errorf("take a picture of the display: %w", err))
	}
	return nil
}
