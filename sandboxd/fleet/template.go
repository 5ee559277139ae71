// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/sandboxd/guest"
	"github.com/petri-sandbox/petri/sandboxd/internal/flock"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/qemu"
	"github.com/petri-sandbox/petri/sandboxd/machine/supervisor"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
)

// template is a snapshot of a guest that has just become ready, with its
// tracer loaded and its container made.
type template struct {
	schemas.Template
	Hello guest.Hello `json:"hello"`

	dir    string
	digest schemas.Digest // of the manifest
	ram    *os.File       // a sealed copy in memory, which all machines map
}

func (t *template) statePath() string { return filepath.Join(t.dir, "state") }

// key names a template by everything that its restored machine must have in
// common with it.
func (b base) key(cpu string) string {
	h := sha256.New()
	fmt.Fprintf(h, "petri.template.v3\n%s\n%s\n%s\n%s\n%s\n",
		b.qemu.Version, b.spec.Accel, cpu, b.image.Kernel.SHA256, b.image.Initramfs.SHA256)
	for _, a := range qemu.TemplateCommand(b.cpu, b.spec.Accel, b.spec.Memory) {
		fmt.Fprintln(h, a)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// template returns the template of an image, making it if there is none.
func (f *Fleet) template(ctx context.Context, b base) (*template, error) {
	key := b.key(cpuModel())
	f.mu.Lock()
	t := f.templates[key]
	f.mu.Unlock()
	if t != nil {
		return t, nil
	}
	dir := filepath.Join(f.opts.Images.Cache, "warm", key)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := flock.Lock(ctx, lock, func() {}); err != nil { // who makes one has it for as long as a guest boots
		return nil, fmt.Errorf("wait for another process, which makes the guest's template: %w", err)
	}
	f.mu.Lock()
	t = f.templates[key] // meanwhile made by another caller
	f.mu.Unlock()
	if t != nil {
		return t, nil
	}
	t, err = loadTemplate(b, dir)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			f.opts.Slog.Warn("warm template is unusable, making it anew", "dir", dir, "error", err)
		}
		if t, err = f.makeTemplate(ctx, b, dir); err != nil {
			return nil, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.templates[key] = t
	return t, nil
}

// makeTemplate boots a guest and snapshots it.
func (f *Fleet) makeTemplate(ctx context.Context, b base, dir string) (*template, error) {
	if err := b.image.Verify(); err != nil {
		return nil, err
	}
	f.opts.Slog.Info("making the warm template of a guest, once", "guest", b.spec.Guest)
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".new-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return nil, err
	}
	t := &template{dir: tmp}
	kernel, initramfs, err := openImage(b.image)
	if err != nil {
		return nil, err
	}
	defer kernel.Close()
	defer initramfs.Close()
	uid, free, err := f.takeUID()
	if err != nil {
		return nil, err
	}
	defer free()
	ram, err := createFor(filepath.Join(tmp, "ram"), uid)
	if err != nil {
		return nil, err
	}
	defer ram.Close()
	state, err := createFor(t.statePath(), uid)
	if err != nil {
		return nil, err
	}
	defer state.Close()
	priv := f.opts.Supervisor
	priv.UID, priv.Groups = uid, accelGroups(b.spec.Accel)
	spec := b.spec
	spec.Mark = f.Mark("template")
	serial := &serialTail{}
	t.Hello, err = supervisor.Snapshot(ctx, spec, supervisor.Files{Kernel: kernel, Initramfs: initramfs, RAM: ram, State: state}, serial, priv)
	if err != nil {
		return nil, fmt.Errorf("snapshot a guest: %w%s", err, serial)
	}
	t.Template = schemas.Template{
		Schema: schemas.TemplateSchema, Version: b.qemu.Version, Command: qemu.TemplateCommand(b.cpu, spec.Accel, spec.Memory), Image: b.image.Key(),
	}
	for _, x := range []struct {
		path string
		into *schemas.Digest
	}{
		{b.image.KernelPath(), &t.Kernel}, {b.image.InitramfsPath(), &t.Initramfs},
		{ram.Name(), &t.RAM}, {state.Name(), &t.State},
	} {
		if *x.into, err = digestOf(x.path); err != nil {
			return nil, err
		}
	}
	for _, p := range []*os.File{ram, state} {
		if err := os.Chown(p.Name(), os.Geteuid(), os.Getegid()); err != nil {
			return nil, err
		}
		if err := os.Chmod(p.Name(), 0o444); err != nil {
			return nil, err
		}
	}
	if err := writeJSON(filepath.Join(tmp, "template.json"), t); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, err
	}
	return loadTemplate(b, dir)
}

// createFor makes a file that the supervisor's user may write.
func createFor(path string, uid int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if uid != 0 {
		if err := f.Chown(uid, uid); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// serialTail keeps what a guest that does not come up prints.
type serialTail struct{ b []byte }

func (s *serialTail) Event(machine.Event) {}
func (s *serialTail) Data(src schemas.Source, p []byte) {
	if src == schemas.SourceSerial {
		s.b = append(s.b, p...)
		s.b = s.b[max(0, len(s.b)-2<<10):]
	}
}
func (s *serialTail) End(schemas.Source, schemas.SourceCoverage)  {}
func (s *serialTail) File(schemas.DroppedFile) machine.FileWriter { return nil }

func (s *serialTail) String() string {
	if len(s.b) == 0 {
		return ""
	}
	return "; the guest's console: " + string(bytes.TrimSpace(s.b))
}

func digestOf(path string) (schemas.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return schemas.Digest{}, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return schemas.Digest{}, err
	}
	return schemas.Digest(h.Sum(nil)), nil
}

// check compares a template with what it would be made of now.
func (t *template) check(b base) error {
	switch {
	case t.Schema != schemas.TemplateSchema, t.Version != b.qemu.Version, t.Image != b.image.Key(),
		t.Kernel.String() != b.image.Kernel.SHA256, t.Initramfs.String() != b.image.Initramfs.SHA256,
		!slices.Equal(t.Command, qemu.TemplateCommand(b.cpu, b.spec.Accel, b.spec.Memory)):
		return errors.New("it describes another template")
	case t.Hello.Version != wire.Version || t.Hello.Kernel != b.image.KernelRelease:
		return errors.New("it holds the words of another guest")
	}
	return nil
}

// loadTemplate reads a template and copies its RAM into a sealed memory file:
// QEMU opens what it maps for writing, and a file on the disk would have to be
// writable by the guest's user.
func loadTemplate(b base, dir string) (*template, error) {
	t := &template{dir: dir}
	text, err := os.ReadFile(filepath.Join(dir, "template.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, t); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, "template.json"), err)
	}
	if err := t.check(b); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, "template.json"), err)
	}
	manifest, err := json.Marshal(t.Template)
	if err != nil {
		return nil, err
	}
	t.digest = schemas.Sum(manifest)
	sum, err := digestOf(t.statePath())
	if err != nil {
		return nil, fmt.Errorf("read the template's state: %w", err)
	}
	if sum != t.State {
		return nil, fmt.Errorf("%s is not what it was", t.statePath())
	}
	t.ram, err = sealedCopy(filepath.Join(dir, "ram"), t.RAM)
	return t, err
}

// sealedCopy copies a sparse file into memory, checks its digest, and makes it
// immutable.
func sealedCopy(path string, want schemas.Digest) (*os.File, error) {
	src, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	fi, err := src.Stat()
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("template", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make a memory file: %w", err)
	}
	mem := os.NewFile(uintptr(fd), "template")
	err = mem.Truncate(fi.Size())
	if err == nil {
		err = copySparse(mem, src, fi.Size())
	}
	if err == nil {
		h := sha256.New()
		if _, err = io.Copy(h, io.NewSectionReader(mem, 0, fi.Size())); err == nil && schemas.Digest(h.Sum(nil)) != want {
			err = fmt.Errorf("%s is not what it was", path)
		}
	}
	if err == nil {
		err = mem.Chmod(0o666) // sealed all the same
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		mem.Close()
		return nil, fmt.Errorf("load the template's RAM: %w", err)
	}
	return mem, nil
}

func copySparse(dst, src *os.File, size int64) error {
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(int(src.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		w := io.NewOffsetWriter(dst, data)
		if _, err := io.Copy(w, io.NewSectionReader(src, data, hole-data)); err != nil {
			return err
		}
		at = hole
	}
	return nil
}

// announce stores the template's parts, once per store, and announces its
// manifest: whoever has them can make the same machine again.
func (f *Fleet) announce(ctx context.Context, t *template, s sandboxd.MachineSpec) error {
	r, size, err := f.opts.Store.Open(ctx, t.digest)
	if err == nil {
		r.Close()
		err = f.keepTemplate(ctx, t)
	}
	if err != nil {
		img := filepath.Join(f.opts.Images.Cache, "guests", s.Guest, t.Image[:16])
		for _, p := range []string{filepath.Join(img, "kernel"), filepath.Join(img, "initramfs"), t.statePath(), filepath.Join(t.dir, "ram")} {
			if err := f.storeFile(ctx, p); err != nil {
				return err
			}
		}
		manifest, err := json.Marshal(t.Template)
		if err != nil {
			return err
		}
		if _, size, err = f.opts.Store.Put(ctx, schemas.KindTemplate, bytes.NewReader(manifest)); err != nil {
			return fmt.Errorf("store the template: %w", err)
		}
	}
	if s.Announce == nil {
		return nil
	}
	return s.Announce(ctx, schemas.Artifact{
		Kind: schemas.KindTemplate, SHA256: t.digest, Size: size, MediaType: schemas.TemplateMediaType, Name: "warm template",
	})
}

// keepTemplate says that a stored template is in use again.
func (f *Fleet) keepTemplate(ctx context.Context, t *template) error {
	k, ok := f.opts.Store.(sandboxd.Keeper)
	if !ok {
		return nil
	}
	for _, d := range []schemas.Digest{t.digest, t.Kernel, t.Initramfs, t.RAM, t.State} {
		if err := k.Keep(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

func (f *Fleet) storeFile(ctx context.Context, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, _, err := f.opts.Store.Put(ctx, "template-part", file); err != nil {
		return fmt.Errorf("store the template: %w", err)
	}
	return nil
}
