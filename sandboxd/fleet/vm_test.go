// SPDX-License-Identifier: Apache-2.0

//go:build vm

package fleet_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/sandboxd/fleet"
	"github.com/petri-sandbox/petri/sandboxd/image"
	"github.com/petri-sandbox/petri/sandboxd/machine/machinetest"
)

// cache is one of its own, with a copy of the guest's image that a test may
// break.
func cache(t *testing.T) (dir string, img *image.Image) {
	t.Helper()
	machinetest.NeedQEMU(t)
	from := machinetest.Image(t)
	dir = t.TempDir()
	arch := filepath.Join(dir, "guests", machinetest.Arch)
	copied := *from
	copied.Dir = filepath.Join(arch, filepath.Base(from.Dir))
	if err := os.CopyFS(copied.Dir, os.DirFS(from.Dir)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(filepath.Dir(from.Dir), "packages.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(arch, "packages.json"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, &copied
}

// logged is what a fleet has logged.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

func newFleet(t *testing.T, id, dir, accel string, log *logged) *fleet.Fleet {
	t.Helper()
	return fleet.New(fleet.Options{
		ID: id, Images: &image.Builder{Cache: dir, Guestd: machinetest.Agents(t)}, Accel: accel,
		Supervisor: machinetest.Supervisor(), Slog: slog.New(slog.NewTextHandler(log, nil)),
	})
}

const making = "making the warm template"

// TestTemplate makes it once for callers of one fleet and of another, and again
// when it is damaged.
func TestTemplate(t *testing.T) {
	dir, img := cache(t)
	log := &logged{}
	one, two := newFleet(t, "fleettest-one", dir, "tcg", log), newFleet(t, "fleettest-two", dir, "tcg", log)
	var wg sync.WaitGroup
	for _, f := range []*fleet.Fleet{one, one, two, two} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := f.Prepare(t.Context(), machinetest.Arch); err != nil {
				t.Errorf("prepare: %v", err)
			}
		}()
	}
	wg.Wait()
	if n := log.count(making); n != 1 {
		t.Fatalf("the template was made %d times: %s", n, log.b.String())
	}
	if left := machinetest.Processes(t, "petri-fleettest"); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}

	for n, name := range []string{"ram", "state", "template.json"} {
		files, err := filepath.Glob(filepath.Join(dir, "warm", "*", name))
		if err != nil || len(files) != 1 {
			t.Fatalf("templates %q, %v", files, err)
		}
		damage(t, files[0])
		if err := newFleet(t, "fleettest-three", dir, "tcg", log).Prepare(t.Context(), machinetest.Arch); err != nil {
			t.Errorf("prepare after %s was damaged: %v", name, err)
		}
		if made := log.count(making); made != n+2 || log.count("warm template is unusable") != n+1 {
			t.Errorf("after %s was damaged the template has been made %d times: %s", name, made, log.b.String())
		}
	}

	// A machine of the mended template is warm; what its guest is made of is
	// looked at first.
	f := newFleet(t, "fleettest-four", dir, "tcg", log)
	damage(t, img.InitramfsPath())
	for _, cold := range []bool{false, true} {
		_, err := f.New(t.Context(), sandboxd.MachineSpec{Guest: machinetest.Arch, Analysis: "x", Cold: cold}, machinetest.NewRecorder())
		if err == nil || !strings.Contains(err.Error(), "initramfs does not match its manifest (rebuild it: petri guest build amd64 --force)") {
			t.Errorf("a damaged initramfs, cold %v: %v", cold, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "warm", ".new-*")); len(left) > 0 {
		t.Errorf("files are left: %q", left)
	}
}

// damage changes one byte in the middle of a file.
func damage(t *testing.T, path string) {
	t.Helper()
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, fi.Size()/2); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x80
	if _, err := f.WriteAt(b, fi.Size()/2); err != nil {
		t.Fatal(err)
	}
}

// TestMachine starts one of a fleet.
func TestMachine(t *testing.T) {
	dir, _ := cache(t)
	f := newFleet(t, "fleettest-machine", dir, "tcg", &logged{})
	m, err := f.New(t.Context(), sandboxd.MachineSpec{Guest: machinetest.Arch, Analysis: "one", Cold: true}, machinetest.NewRecorder())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	boot, err := m.Poweron(t.Context(), machinetest.Identity(1))
	if err != nil {
		t.Fatal(err)
	}
	if i, err := f.Isolation(); err != nil || boot.Isolation == nil || boot.Isolation.String() != i.String() {
		t.Errorf("the machine says that it is isolated by %v, the fleet %v, %v", boot.Isolation, i, err)
	}
	if n := len(machinetest.Processes(t, f.Mark("one"))); n != 2 {
		t.Errorf("%d processes carry the mark", n)
	}
	// Another sandbox's reaper leaves it alone, its own ends it.
	if n, err := newFleet(t, "fleettest-mach", dir, "tcg", &logged{}).Reap(); n != 0 || err != nil {
		t.Errorf("a stranger reaped %d, %v", n, err)
	}
	if n, err := newFleet(t, "fleettest-machine", dir, "tcg", &logged{}).Reap(); n != 2 || err != nil {
		t.Errorf("reaped %d, %v", n, err)
	}
	if left := machinetest.Processes(t, f.Mark("one")); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if err := m.Close(); err != nil {
		t.Errorf("close after the reaper: %v", err)
	}
}

// TestAccel checks that the search for an accelerator is remembered for as
// long as it holds.
func TestAccel(t *testing.T) {
	dir, _ := cache(t)
	first, err := newFleet(t, "fleettest-accel", dir, "auto", &logged{}).ChooseAccel(t.Context(), machinetest.Arch)
	if err != nil {
		t.Fatal(err)
	}
	if first.Reason == "" || first.Name != "kvm" && first.Name != "tcg" {
		t.Errorf("accelerator %+v", first)
	}
	path := filepath.Join(dir, "accel-amd64.json")
	if first.Probed.IsZero() {
		// Nothing to try: /dev/kvm does not open. Then there is nothing to remember.
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("remembered without a probe: %v", err)
		}
		return
	}
	write := func(a fleet.Accel) {
		t.Helper()
		b, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	choose := func() fleet.Accel {
		t.Helper()
		a, err := newFleet(t, "fleettest-accel", dir, "auto", &logged{}).ChooseAccel(t.Context(), machinetest.Arch)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	remembered := first
	remembered.Reason = "remembered"
	write(remembered)
	if a := choose(); a.Reason != "remembered" {
		t.Errorf("what holds was not used: %+v", a)
	}
	remembered.BootID = "another boot"
	write(remembered)
	if a := choose(); a.Reason == "remembered" {
		t.Errorf("the word of another boot was used: %+v", a)
	}
	if err := os.WriteFile(path, []byte("{broken"), 0o644); err != nil {
		t.Fatal(err)
	}
	if a := choose(); a.Name != first.Name {
		t.Errorf("after a broken file: %+v", a)
	}
	for _, name := range []string{"tcg", "kvm"} {
		if a, err := newFleet(t, "x", dir, name, &logged{}).ChooseAccel(t.Context(), machinetest.Arch); err != nil || a.Name != name || a.Reason != "asked for" {
			t.Errorf("%s was asked for: %+v, %v", name, a, err)
		}
	}
	if _, err := newFleet(t, "x", dir, "fast", &logged{}).ChooseAccel(t.Context(), machinetest.Arch); err == nil || !strings.Contains(err.Error(), "none of auto, kvm, tcg") {
		t.Errorf("an unknown accelerator: %v", err)
	}
}

// TestCancel checks that a caller who gives up does not leave half a template.
func TestCancel(t *testing.T) {
	dir, _ := cache(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	prepared := make(chan error, 1)
	go func() {
		prepared <- newFleet(t, "fleettest-cancel", dir, "tcg", &logged{}).Prepare(ctx, machinetest.Arch)
	}()
	// The caller gives up as soon as there is a guest, which has to boot yet.
	for len(machinetest.Processes(t, "petri-fleettest-cancel")) < 2 {
		select {
		case err := <-prepared:
			t.Fatalf("prepare: %v, before a guest was seen", err)
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if err := <-prepared; !errors.Is(err, context.Canceled) {
		t.Errorf("prepare: %v", err)
	}
	if left := machinetest.Processes(t, "petri-fleettest-cancel"); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "warm", "*")); len(left) != 1 { // the lock
		t.Errorf("files are left: %q", left)
	}
}
