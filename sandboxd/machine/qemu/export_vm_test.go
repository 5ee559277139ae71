// SPDX-License-Identifier: Apache-2.0

//go:build vm

package qemu

import (
	"context"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
)

// Try restores a snapshot as [Snapshot] does with each.
var Try = try

// ToPong returns how long a machine takes from the exec of QEMU to the first
// answer of the guest's agent, and from there to an identity of its own.
func ToPong(ctx context.Context, cfg Config, o machine.Observer, id machine.Identity) (pong, assigned time.Duration, err error) {
	m := New(cfg, o)
	ram := ramAnonymous
	if cfg.Template != nil {
		ram = ramPrivate
	}
	begin := time.Now()
	in, err := m.start(ctx, ram)
	if err != nil {
		return 0, 0, err
	}
	defer in.close()
	in.stopping.Store(true)
	hello := Hello{}
	if cfg.Template == nil {
		hello, err = in.hello(ctx)
	} else {
		hello = cfg.Template.Hello
	}
	if err == nil {
		err = in.client.Ping(ctx)
	}
	if err != nil {
		return 0, 0, in.explain(err)
	}
	pong = time.Since(begin)
	_, err = in.assign(ctx, id, hello)
	return pong, time.Since(begin) - pong, err
}
