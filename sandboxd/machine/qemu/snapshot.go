// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"fmt"
	"os"

	"github.com/petri-sandbox/petri/sandboxd/machine"
)

// Snapshot boots a guest whose RAM is the file ram, waits until its agent is
// ready, and writes the devices' state to the file state. The two files and
// the agent's words are what a [Template] needs.
//
// The guest is not paused before: a restored one shall go on by itself. And the
// agent waits in a read with the host connected, so that the first byte after
// the restore wakes it even where an emulated timer does not (the MIPS ones).
func Snapshot(ctx context.Context, cfg Config, o machine.Observer, ram, state *os.File) (Hello, error) {
	if err := ram.Truncate(cfg.Memory); err != nil {
		return Hello{}, fmt.Errorf("make the template's RAM: %w", err)
	}
	in, err := launch(ctx, &cfg, o, ramShared, ram, nil)
	if err != nil {
		return Hello{}, err
	}
	defer in.close()
	in.stopping.Store(true) // its end is no news
	if err := in.connect(true); err != nil {
		return Hello{}, in.explain(err)
	}
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
