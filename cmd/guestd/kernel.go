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

// Where things lie in guestd's own file system. The image builder knows the
// first three (package image: Rom, Modules, TracerOffsets). The names of the others show in
// the sample's mount table; they are those of an OpenWrt device.
const (
	romDir    = "/rom"
	moduleDir = "/modules"
	// tracerOffsets is what the tracer must know of this kernel.
	tracerOffsets = "/tracer.json"
	overlayDir    = "/overlay"
	cgroupDir     = "/cgroup"
)

// overlayOptions bound what a sample can write: the guest's RAM holds it, each
// file in pages of its own.
const overlayOptions = "mode=0755,size=60%,nr_inodes=250000"

// prepareKernel loads the modules, mounts guestd's own view of the kernel, and
// moves guestd off the initramfs, which nobody can pivot away from.
func prepareKernel() error {
	if err := mountAll([]mountSpec{
		{"proc", "/proc", "proc", unix.MS_NOSUID, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, ""},
	}); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := bindHelpers(); err != nil {
		return err
	}
	const base = "/base"
	if err := mountAll([]mountSpec{
		{"tmpfs", base, "tmpfs", 0, "mode=0755"},
		{romDir, base + romDir, "", unix.MS_BIND, ""},
		{"tmpfs", base + overlayDir, "tmpfs", 0, overlayOptions},
		{"cgroup2", base + cgroupDir, "cgroup2", 0, ""},
	}); err != nil {
		return err
	}
	for _, d := range []string{"/proc", "/sys", "/dev"} {
		if err := os.MkdirAll(base+d, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(d, base+d, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", d, err)
		}
	}
	if err := os.Chdir(base); err != nil {
		return err
	}
	if err := unix.Mount(base, "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(overlayDir, d), 0o755); err != nil {
			return err
		}
	}
	// The agent outlives whatever the sample does to memory.
	return os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
}

// bindHelpers takes all capabilities from programs that the kernel itself starts,
// such as that of core_pattern: a sample names them, they run outside of its
// container, and nothing holds their calls. What is gone does not come back
// (https://docs.kernel.org/admin-guide/sysctl/kernel.html, usermodehelper).
func bindHelpers() error {
	for _, set := range []string{"bset", "inheritable"} {
		err := os.WriteFile("/proc/sys/kernel/usermodehelper/"+set, []byte("0 0"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

type mountSpec struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func mountAll(specs []mountSpec) error {
	for _, m := range specs {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

func loadModules() error {
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
