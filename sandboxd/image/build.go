// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/petri-sandbox/petri/sandboxd/catalogue"
	"github.com/petri-sandbox/petri/sandboxd/internal/flock"
)

// A Builder makes images below one cache directory. It is safe for use by
// several processes at once: they take turns on a lock file of each CPU. Images
// are named as the catalogue names guests.
type Builder struct {
	// Cache holds downloaded packages and built images.
	Cache string
	// Guestd is the directory of the agents, one file guestd-ARCH each.
	Guestd string
	// Log is told what is being done, a line at a time. nil is silence.
	Log func(format string, args ...any)
}

func (b *Builder) log(format string, args ...any) {
	if b.Log != nil {
		b.Log(format, args...)
	}
}

func (b *Builder) archDir(name string) string { return filepath.Join(b.Cache, "guests", name) }
func (b *Builder) aptDir(name string) string  { return filepath.Join(b.Cache, "apt", name) }
func (b *Builder) lockPath(name string) string {
	return filepath.Join(b.archDir(name), "packages.json")
}

// Build fetches what is missing, compiles what has to be, and assembles. With
// refresh it asks apt again for the newest packages even if it has some.
func (b *Builder) Build(ctx context.Context, name string, refresh bool) (*Image, error) {
	c, err := catalogue.Lookup(name)
	if err != nil {
		return nil, err
	}
	for _, guest := range slices.Compact([]string{c.Name, name}) {
		if err := b.provide(ctx, guest, refresh); err != nil {
			return nil, err
		}
	}
	return b.Assemble(ctx, name)
}

// provide fetches and compiles what a guest's image is made of.
func (b *Builder) provide(ctx context.Context, name string, refresh bool) error {
	c, err := catalogue.Lookup(name)
	if err != nil {
		return err
	}
	l, err := b.lockOf(c)
	fetch := refresh || errors.Is(err, fs.ErrNotExist) || err == nil && l.lacks(packagesOf(c)) != ""
	if c.Source != nil && (fetch || err == nil && !l.compiled(c)) {
		if err := haveCompilers(ctx, c); err != nil {
			return err // before anything is downloaded
		}
	}
	if fetch {
		if err := b.Fetch(ctx, name); err != nil {
			return err
		}
	}
	if c.Source != nil {
		return b.compile(ctx, c)
	}
	return nil
}

// lockOf reads what was fetched for a guest: what the usual one of its CPU is made
// of, and what it has besides.
func (b *Builder) lockOf(c catalogue.CPU) (*lock, error) {
	l, err := readLock(b.lockPath(c.Name))
	if err != nil || c.With.Name == "" {
		return l, err
	}
	more, err := readLock(b.lockPath(c.Guest()))
	if err != nil {
		return nil, err
	}
	l.Packages = append(l.Packages, more.Packages...)
	if len(l.Packages) > 0 {
		sortPackages(l.Packages[1:]) // behind the kernel
	}
	return l, nil
}

func sortPackages(list []Package) {
	slices.SortFunc(list, func(a, b Package) int { return strings.Compare(a.Name, b.Name) })
}

// Remove deletes the built images of a guest. The packages stay.
func (b *Builder) Remove(ctx context.Context, name string) error {
	if _, err := catalogue.Lookup(name); err != nil {
		return err
	}
	unlock, err := b.take(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	dirs, err := filepath.Glob(filepath.Join(b.archDir(name), "*", "manifest.json"))
	if err != nil {
		return err
	}
	for _, m := range dirs {
		if err := os.RemoveAll(filepath.Dir(m)); err != nil {
			return fmt.Errorf("remove image: %w", err)
		}
	}
	return nil
}

// Fetch downloads the newest kernel that apt offers, or the next older one
// that can be had (a mirror in the middle of an update can list what it does
// not serve), and the packages of the root file system. Of a guest that has something
// besides it downloads that only. It needs the network.
func (b *Builder) Fetch(ctx context.Context, name string) error {
	a, err := catalogue.Lookup(name)
	if err != nil {
		return err
	}
	unlock, err := b.take(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	apt, err := newApt(b.aptDir(a.Name), aptArch(a), b.log)
	if err != nil {
		return err
	}
	if err := apt.update(ctx); err != nil {
		return err
	}
	if a.With.Name != "" {
		return b.fetchExtra(ctx, apt, a)
	}
	kernel, err := b.fetchKernel(ctx, apt, a)
	if err != nil {
		return err
	}
	root, err := apt.download(ctx, rootPackagesOf(a)...)
	if err != nil {
		return err
	}
	l := lock{Packages: root}
	if a.Source != nil {
		busybox, err := apt.source(ctx, busyboxSource)
		if err != nil {
			return err
		}
		l.Packages = append(l.Packages, busybox)
		if old, err := readLock(b.lockPath(name)); err == nil {
			l.Compiled = old.Compiled // maybe of the same source
		}
	}
	if n := l.lacks(packagesOf(a)); n != "" {
		return fmt.Errorf("apt-get downloaded another package than %s", n)
	}
	sortPackages(l.Packages)
	l.Packages = append([]Package{kernel}, l.Packages...)
	return writeJSON(b.lockPath(name), l)
}

// fetchExtra downloads what a guest has besides.
func (b *Builder) fetchExtra(ctx context.Context, apt *apt, a catalogue.CPU) error {
	got, err := apt.download(ctx, a.With.Packages...)
	if err != nil {
		return err
	}
	l := lock{Packages: got}
	if n := l.lacks(a.With.Packages); n != "" {
		return fmt.Errorf("apt-get downloaded another package than %s", n)
	}
	sortPackages(l.Packages)
	if err := os.MkdirAll(b.archDir(a.Guest()), 0o755); err != nil {
		return err
	}
	return writeJSON(b.lockPath(a.Guest()), l)
}

func (b *Builder) fetchKernel(ctx context.Context, apt *apt, a catalogue.CPU) (Package, error) {
	meta := a.Kernel
	versions, err := apt.versions(ctx, meta)
	if err != nil {
		return Package{}, err
	}
	var errs []error
	for _, v := range versions {
		name, ver, err := meta, v, error(nil)
		if a.Source == nil {
			name, ver, err = apt.kernelPackage(ctx, meta, v)
		}
		if err == nil {
			var got []Package
			if got, err = apt.download(ctx, name+"="+ver); err == nil && got[0].Name == name {
				return got[0], nil
			}
		}
		b.log("kernel %s %s cannot be had, trying the next older one: %v", meta, v, err)
		errs = append(errs, err)
	}
	return Package{}, fmt.Errorf("download a kernel: %w", errors.Join(errs...))
}

// Has reports whether an image of that guest has been built, or can be assembled
// without the network and a compiler.
func (b *Builder) Has(name string) bool {
	c, err := catalogue.Lookup(name)
	if err != nil {
		return false
	}
	l, err := b.lockOf(c)
	return err == nil && (c.Source == nil || l.compiled(c))
}

// Open returns the image that the fetched packages and today's agent give,
// assembling it if need be. It never uses the network; if packages were never
// fetched it returns an error that wraps [ErrNoImage].
func (b *Builder) Open(ctx context.Context, name string) (*Image, error) {
	c, err := catalogue.Lookup(name)
	if err != nil {
		return nil, err
	}
	if _, err := b.lockOf(c); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w for %s in %s (build it: petri guest build %s)", ErrNoImage, name, b.Cache, name)
	}
	return b.Assemble(ctx, name)
}

// Assemble makes the image out of fetched packages and the agent, or returns
// the one that is already there.
func (b *Builder) Assemble(ctx context.Context, name string) (*Image, error) {
	a, err := catalogue.Lookup(name)
	if err != nil {
		return nil, err
	}
	unlock, err := b.take(ctx, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	m, agent, err := b.parts(a)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.archDir(name), m.Key()[:16])
	if img, err := load(dir); err == nil && img.Key() == m.Key() {
		return img, nil
	}
	b.log("assembling the %s guest, because its agent or packages have changed; it takes seconds", name)
	kernel, initramfs, err := b.assemble(ctx, a, &m, agent)
	if err != nil {
		return nil, err
	}
	return b.install(dir, m, kernel, initramfs)
}

// parts says what the image of a guest is made of today, and returns the agent.
func (b *Builder) parts(a catalogue.CPU) (m Manifest, agent []byte, err error) {
	name := a.Guest()
	l, err := b.lockOf(a)
	if err != nil {
		return m, nil, err
	}
	if p := l.lacks(packagesOf(a)); p != "" {
		return m, nil, fmt.Errorf("%w for %s of this version of Petri: its package %s was never fetched (build it: petri guest build %s)", ErrNoImage, name, p, name)
	}
	if a.Source != nil && !l.compiled(a) {
		return m, nil, fmt.Errorf("%w for %s of this version of Petri: its kernel has not been compiled (build it: petri guest build %s)", ErrNoImage, name, name)
	}
	agent, err = b.agent(a)
	if err != nil {
		return m, nil, err
	}
	sum := sha256.Sum256(agent)
	return Manifest{Schema: "petri.image.v1", Arch: a.Name, With: a.With.Name, Recipe: recipe, Packages: l.Packages, Compiled: l.Compiled, Guestd: hex.EncodeToString(sum[:])}, agent, nil
}

func (b *Builder) agent(a catalogue.CPU) ([]byte, error) {
	agent, err := os.ReadFile(filepath.Join(b.Guestd, "guestd-"+a.Name))
	if err != nil {
		return nil, fmt.Errorf("%w: %w (make build GUESTS=%s)", ErrNoAgent, err, a.Name)
	}
	return agent, nil
}

// CheckAgent returns an error that wraps [ErrNoAgent] if the agent of a guest
// cannot be read, whether or not the rest is there.
func (b *Builder) CheckAgent(name string) error {
	a, err := catalogue.Lookup(name)
	if err != nil {
		return err
	}
	_, err = b.agent(a)
	return err
}

// Key returns the key of the image that [Builder.Open] would return, built or not.
// It waits for nobody.
func (b *Builder) Key(name string) (string, error) {
	a, err := catalogue.Lookup(name)
	if err != nil {
		return "", err
	}
	m, _, err := b.parts(a)
	if err != nil {
		return "", err
	}
	return m.Key(), nil
}

func (b *Builder) assemble(ctx context.Context, a catalogue.CPU, m *Manifest, agent []byte) (kernel, initramfs []byte, err error) {
	kernel, offsets, mods, err := b.kernelOf(ctx, a, m)
	if err != nil {
		return nil, nil, err
	}
	order, err := moduleOrder(mods, a.Modules)
	if err != nil {
		return nil, nil, err
	}

	entries := []entry{{path: "/init", mode: 0o755, data: agent}}
	if offsets != nil {
		entries = append(entries, entry{path: TracerOffsets, mode: 0o644, data: offsets})
	}
	m.Modules = nil
	for i, p := range order {
		name := strings.TrimSuffix(path.Base(p), ".ko")
		m.Modules = append(m.Modules, name)
		entries = append(entries, entry{path: fmt.Sprintf("%s/%02d-%s.ko", Modules, i, name), mode: 0o644, data: mods[p]})
	}
	b.log("packing the guest's file system")
	rootFiles, err := b.rootFiles(ctx, a, m)
	if err != nil {
		return nil, nil, err
	}
	root, err := rootEntries(rootFiles)
	if err != nil {
		return nil, nil, err
	}
	var buf bytes.Buffer
	if err := writeCpio(&buf, append(entries, root...)); err != nil {
		return nil, nil, err
	}
	return kernel, buf.Bytes(), nil
}

// deb is where a fetched package is.
func (b *Builder) deb(a catalogue.CPU, p Package) (string, error) {
	f := filepath.Join(b.aptDir(a.Name), "debs", p.SHA256+".deb")
	return f, b.intact(a, f, p.Name, p.SHA256)
}

// intact compares a kept file with its digest.
func (b *Builder) intact(a catalogue.CPU, f, name, sum string) error {
	got, _, err := hashFile(f)
	if err == nil && got != sum {
		err = fmt.Errorf("%s does not have the digest of its name", f)
	}
	if err != nil {
		return fmt.Errorf("cached package %s: %w (fetch it again: petri guest build %s --update)", name, err, a.Guest())
	}
	return nil
}

// kernelOf returns the kernel that QEMU boots, what the tracer must know of it, and
// its modules.
func (b *Builder) kernelOf(ctx context.Context, a catalogue.CPU, m *Manifest) (kernel, offsets []byte, mods map[string][]byte, err error) {
	if a.Source != nil {
		var c Compiled
		c, kernel, err = b.readCompiled(a, m.Compiled, compiledKernel)
		m.KernelRelease = c.Release
		return kernel, nil, nil, err
	}
	b.log("unpacking the kernel")
	deb, err := b.deb(a, m.Packages[0])
	if err != nil {
		return nil, nil, nil, err
	}
	files, err := readDeb(ctx, deb, func(p string) bool {
		return strings.HasPrefix(p, "/boot/vmlinu") || strings.HasSuffix(p, ".ko")
	})
	if err != nil {
		return nil, nil, nil, err
	}
	mods = map[string][]byte{}
	for _, f := range files {
		if base := path.Base(f.path); strings.HasPrefix(base, "vmlinu") {
			kernel = f.data
			_, m.KernelRelease, _ = strings.Cut(base, "-")
		} else {
			mods[f.path] = f.data
		}
	}
	if kernel == nil {
		return nil, nil, nil, fmt.Errorf("package %s holds no /boot/vmlinuz", m.Packages[0].Name)
	}
	kernel, offsets, err = prepare(a, kernel)
	return kernel, offsets, mods, err
}

// rootFiles returns what the sample's root file system is made of.
func (b *Builder) rootFiles(ctx context.Context, a catalogue.CPU, m *Manifest) ([]entry, error) {
	var out []entry
	for _, p := range m.Packages[1:] {
		if p.Arch == sourceArch {
			continue
		}
		deb, err := b.deb(a, p)
		if err != nil {
			return nil, err
		}
		fs, err := readDeb(ctx, deb, keepRoot)
		if err != nil {
			return nil, err
		}
		out = append(out, fs...)
	}
	if a.Also.GNU != "" {
		out = crossEntries(a.Also.GNU, out)
	}
	if a.Source == nil {
		return out, nil
	}
	_, busybox, err := b.readCompiled(a, m.Compiled, compiledBusybox)
	if err != nil {
		return nil, err
	}
	return append(crossEntries(a.GNU, out), entry{path: "/bin/busybox", mode: 0o755, data: busybox}), nil
}

// install writes the image into a new directory and renames it into place, so
// that a cut-short build is never taken for an image.
func (b *Builder) install(dir string, m Manifest, kernel, initramfs []byte) (*Image, error) {
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".new-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	for _, f := range []struct {
		name string
		data []byte
		into *File
	}{{"kernel", kernel, &m.Kernel}, {"initramfs", initramfs, &m.Initramfs}} {
		sum := sha256.Sum256(f.data)
		*f.into = File{Name: f.name, Size: int64(len(f.data)), SHA256: hex.EncodeToString(sum[:])}
		if err := os.WriteFile(filepath.Join(tmp, f.name), f.data, 0o644); err != nil {
			return nil, fmt.Errorf("write guest image: %w", err)
		}
	}
	if err := writeJSON(filepath.Join(tmp, "manifest.json"), m); err != nil {
		return nil, err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, err
	}
	return load(dir)
}

// turn is the lock file of a guest, which all of its CPU's share.
func (b *Builder) turn(name string) string {
	arch, _, _ := strings.Cut(name, "+")
	return filepath.Join(b.archDir(arch), "lock")
}

// take waits for a guest's lock file until ctx is done. Who compiles a kernel has it
// for a long time.
func (b *Builder) take(ctx context.Context, name string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(b.turn(name)), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(b.turn(name), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = flock.Lock(ctx, f, func() { b.log("another process builds the %s guest: waiting for it", name) })
	if err == nil {
		return func() { f.Close() }, nil
	}
	f.Close()
	if ctx.Err() != nil {
		err = fmt.Errorf("wait for another process, which builds the %s guest: %w", name, ctx.Err())
	}
	return nil, err
}

// Building reports whether somebody builds a guest of that one's CPU just now, for
// whom [Builder.Open] would wait.
func (b *Builder) Building(name string) bool { return flock.Locked(b.turn(name)) }

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
