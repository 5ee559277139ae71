// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/sandboxd/image"
)

// TestChoose shows the current images, and counts those of earlier builds.
func TestChoose(t *testing.T) {
	t.Parallel()
	img := func(arch, agent string) *image.Image {
		return &image.Image{Manifest: image.Manifest{Arch: arch, Guestd: agent, Kernel: image.File{Size: 1}, Initramfs: image.File{Size: 2}}}
	}
	list := []*image.Image{img("amd64", "old"), img("amd64", "new"), img("i386", "old")}
	current := func(guest string) string {
		if guest != "amd64" {
			return "" // it has no agent
		}
		return list[1].Key()
	}
	show, others, size := choose(list, false, current)
	if len(show) != 1 || !show[0].Current || show[0].Guestd != "new" || len(others) != 2 || size != 6 {
		t.Errorf("shown %+v, not shown %+v of %d bytes", show, others, size)
	}
	show, others, _ = choose(list, true, current)
	if len(show) != 3 || show[0].Current || !show[1].Current || show[2].Current || len(others) != 2 {
		t.Errorf("with --all shown %+v, not current %+v", show, others)
	}
}

// TestDoctorBuilding names the agent that is missing also while a guest is built.
func TestDoctorBuilding(t *testing.T) {
	t.Parallel()
	cfg := app.Config{Cache: t.TempDir(), Guestd: t.TempDir()}
	building := func() check { return checkImage(t.Context(), cfg, "amd64") }
	if err := os.MkdirAll(filepath.Join(cfg.Cache, "guests", "amd64"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(cfg.Cache, "guests", "amd64", "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if k := building(); k.Status != "error" || !strings.Contains(k.Detail, "builds it just now") || !strings.Contains(k.Detail, "make build GUESTS=amd64") {
		t.Errorf("without an agent: %+v", k)
	}
	if err := os.WriteFile(filepath.Join(cfg.Guestd, "guestd-amd64"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if k := building(); k.Status != "warning" || strings.Contains(k.Detail, "agent") {
		t.Errorf("with an agent: %+v", k)
	}
}

// TestDoctorLeftovers says what becomes of memory that killed runs have left.
func TestDoctorLeftovers(t *testing.T) {
	t.Parallel()
	gone, older := bus.Leftover{Dir: "/dev/shm/petri-1", Link: "/gone"}, bus.Leftover{Dir: "/dev/shm/petri-2"}
	for _, c := range []struct {
		left        []bus.Leftover
		status, fix string
	}{
		{nil, "ok", ""},
		{[]bus.Leftover{gone}, "warning", "the next petri run or petri up frees them"},
		{[]bus.Leftover{gone, older}, "warning", "if no older Petri runs: rm -r /dev/shm/petri-2"},
	} {
		k := checkLeftovers(c.left)
		if k.Status != c.status || k.Fix != c.fix {
			t.Errorf("%+v: %+v", c.left, k)
		}
		for _, l := range c.left {
			if !strings.Contains(k.Detail, l.Dir) {
				t.Errorf("%s is not in %q", l.Dir, k.Detail)
			}
		}
	}
}
