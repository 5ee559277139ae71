// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"

	"golang.org/x/sys/unix"
)

// moduleDir is where the image builder puts the kernel modules, numbered in
// loading order (package image, Modules).
const moduleDir = "/modules"

// prepareKernel mounts guestd's own view of the kernel and loads the modules.
func prepareKernel() error {
	mounts := []struct{ source, target, fstype string }{
		{"proc", "/proc", "proc"},
		{"sysfs", "/sys", "sysfs"},
		{"devtmpfs", "/dev", "devtmpfs"},
	}
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.fstype, unix.MS_NOSUID, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	files, err := filepath.Glob(moduleDir + "/*.ko")
	if err != nil {
		return err
	}
	sort.Strings(files)
	for _, f := range files {
		if err := loadModule(f); err != nil {
			return fmt.Errorf("load module %s: %w", filepath.Base(f), err)
		}
	}
	return os.RemoveAll(moduleDir)
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
