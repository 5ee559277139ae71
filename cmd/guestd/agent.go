// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/sandboxd/wire"
)

func serve(ctx context.Context, p *port) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	conn := wire.NewConn(p, wire.Handler{Request: request})
	go conn.Notify("hello", map[string]any{
		"version": wire.Version, "arch": runtime.GOARCH, "kernel": unix.ByteSliceToString(uts.Release[:]),
	})
	return conn.Run(ctx)
}

func request(_ context.Context, name string, _ json.RawMessage) (any, error) {
	switch name {
	case "ping":
		return nil, nil
	case "poweroff":
		return nil, unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	return nil, fmt.Errorf("no request %q", name)
}
