// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/petri-sandbox/petri/sandboxd/machine"
)

// snapshots is how many are taken until one can be restored.
const snapshots = 3

// Snapshot boots a guest whose RAM is the file ram, waits until its agent is
// ready, and writes the devices' state to the file state. The two files and
// the agent's words are what a [Template] needs.
//
// What does not answer when it is restored is no template, and another is made: QEMU
// 7.2 leaves an emulated S/390's pending interrupts out of its state
// (qemu_s390_flic_vmstate in hw/intc/s390_flic.c), and where one of virtio's was,
// there comes no other before the guest has taken that (virtio_ccw_notify in
// hw/s390x/virtio-ccw.c).
func Snapshot(ctx context.Context, cfg Config, o machine.Observer, ram, state *os.File) (Hello, error) {
	for n := 1; ; n++ {
		hello, err := snapshot(ctx, &cfg, o, ram, state)
		if err != nil {
			return Hello{}, err
		}
		if err = try(ctx, &cfg, o, ram, state); err == nil {
			return hello, nil
		}
		if n == snapshots || ctx.Err() != nil {
			return Hello{}, fmt.Errorf("restore the snapshot: %w", err)
		}
	}
}

// try restores a snapshot and waits for its agent's answer.
func try(ctx context.Context, cfg *Config, o machine.Observer, ram, state *os.File) error {
	if _, err := state.Seek(0, io.SeekStart); err != nil { // QEMU inherits the offset
		return err
	}
	in, err := launch(ctx, cfg, o, ramPrivate, ram, state)
	if err != nil {
		return err
	}
	defer in.close()
	in.stopping.Store(true)
	if err := in.restore(ctx); err != nil {
		return in.explain(err)
	}
	in.connect()
	in.nudge()
	return in.explain(in.client.Ping(ctx))
}

// snapshot takes one.
//
// The guest is not paused before: a restored one shall go on by itself. And the
// agent waits in a read with the host connected, so that the first byte after
// the restore wakes it even where an emulated timer does not.
func snapshot(ctx context.Context, cfg *Config, o machine.Observer, ram, state *os.File) (Hello, error) {
	for _, f := range []*os.File{ram, state} { // of what was taken before
		if err := f.Truncate(0); err != nil {
			return Hello{}, err
		}
	}
	if _, err := state.Seek(0, io.SeekStart); err != nil {
		return Hello{}, err
	}
	if err := ram.Truncate(cfg.Memory); err != nil {
		return Hello{}, fmt.Errorf("make the template's RAM: %w", err)
	}
	in, err := launch(ctx, cfg, o, ramShared, ram, nil)
	if err != nil {
		return Hello{}, err
	}
	defer in.close()
	in.stopping.Store(true) // its end is no news
	in.connect()
	hello, err := in.hello(ctx)
	if err != nil {
		return Hello{}, in.explain(err)
	}
	if err := in.client.Ping(ctx); err != nil {
		return Hello{}, in.explain(err)
	}
	if err := in.save(ctx, state); err != nil {
		return Hello{}, in.explain(err)
	}
	return hello, nil
}

func (in *instance) save(ctx context.Context, state *os.File) error {
	caps := []any{
		map[string]any{"capability": "x-ignore-shared", "state": true},
		map[string]any{"capability": "events", "state": true},
	}
	if err := in.monitor.Execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": caps}, nil); err != nil {
		return err
	}
	if err := in.monitor.SendFile(ctx, "state", int(state.Fd())); err != nil {
		return err
	}
	if err := in.monitor.Execute(ctx, "migrate", map[string]any{"uri": "fd:state"}, nil); err != nil {
		return err
	}
	for {
		select {
		case status := <-in.migration:
			switch status {
			case "completed":
				return nil
			case "failed", "cancelled":
				return fmt.Errorf("write the snapshot: migration %s", status)
			}
		case <-in.proc.Done():
			return machine.ErrGone
		case <-ctx.Done():
			return fmt.Errorf("write the snapshot: %w", ctx.Err())
		}
	}
}
