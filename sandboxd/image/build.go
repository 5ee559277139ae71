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
	"sort"
	"strings"
	"syscall"

	"github.com/petri-sandbox/petri/sandboxd/catalogue"
)

// A Builder makes images below one cache directory. It is safe for use by
// several processes at once: they take turns on a lock file.
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

// Build fetches what is missing and assembles. With refresh it asks apt again
// for the newest packages even if it has some.
func (b *Builder) Build(ctx context.Context, name string, refresh bool) (*Image, error) {
	l, err := readLock(b.lockPath(name))
	if refresh || errors.Is(err, fs.ErrNotExist) || err == nil && l.lacks() != "" {
		if err := b.Fetch(ctx, name); err != nil {
			return nil, err
		}
	}
	return b.Assemble(ctx, name)
}

// Remove deletes the built images of an architecture. The packages stay.
func (b *Builder) Remove(name string) error {
	if _, err := catalogue.Lookup(name); err != nil {
		return err
	}
	unlock, err := b.take(name)
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
// not serve), and the packages of the root file system. It needs the network.
func (b *Builder) Fetch(ctx context.Context, name string) error {
	a, err := catalogue.Lookup(name)
	if err != nil {
		return err
	}
	unlock, err := b.take(name)
	if err != nil {
		return err
	}
	defer unlock()
	apt, err := newApt(b.aptDir(name), a.Name, b.log)
	if err != nil {
		return err
	}
	if err := apt.update(ctx); err != nil {
		return err
	}
	kernel, err := b.fetchKernel(ctx, apt, a.Kernel)
	if err != nil {
		return err
	}
	root, err := apt.download(ctx, rootPackages...)
	if err != nil {
		return err
	}
	for _, n := range rootPackages {
		if !slices.ContainsFunc(root, func(p Package) bool { return p.Name == n }) {
			return fmt.Errorf("apt-get downloaded another package than %s", n)
		}
	}
	sort.Slice(root, func(i, j int) bool { return root[i].Name < root[j].Name })
	l := lock{Packages: append([]Package{kernel}, root...)}
	return writeJSON(b.lockPath(name), l)
}

func (b *Builder) fetchKernel(ctx context.Context, apt *apt, meta string) (Package, error) {
	versions, err := apt.versions(ctx, meta)
	if err != nil {
		return Package{}, err
	}
	var errs []error
	for _, v := range versions {
		name, ver, err := apt.kernelPackage(ctx, meta, v)
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

// Has reports whether an image of that architecture has been built, or can be
// assembled without the network.
func (b *Builder) Has(name string) bool {
	_, err := os.Stat(b.lockPath(name))
	return err == nil
}

// Open returns the image that the fetched packages and today's agent give,
// assembling it if need be. It never uses the network; if packages were never
// fetched it returns an error that wraps [ErrNoImage].
func (b *Builder) Open(ctx context.Context, name string) (*Image, error) {
	if _, err := catalogue.Lookup(name); err != nil {
		return nil, err
	}
	if _, err := os.Stat(b.lockPath(name)); errors.Is(err, fs.ErrNotExist) {
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
	unlock, err := b.take(name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	l, err := readLock(b.lockPath(name))
	if err != nil {
		return nil, err
	}
	if p := l.lacks(); p != "" {
		return nil, fmt.Errorf("%w for %s of this version of Petri: its package %s was never fetched (build it: petri guest build %s)", ErrNoImage, name, p, name)
	}
	agentPath := filepath.Join(b.Guestd, "guestd-"+name)
	agent, err := os.ReadFile(agentPath)
	if err != nil {
		return nil, fmt.Errorf("read the guest agent: %w (build it: make build)", err)
	}
	sum := sha256.Sum256(agent)
	m := Manifest{Schema: "petri.image.v1", Arch: name, Recipe: recipe, Packages: l.Packages, Guestd: hex.EncodeToString(sum[:])}
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

func (b *Builder) assemble(ctx context.Context, a catalogue.CPU, m *Manifest, agent []byte) (kernel, initramfs []byte, err error) {
	debPath := func(p Package) (string, error) {
		f := filepath.Join(b.aptDir(a.Name), "debs", p.SHA256+".deb")
		got, _, err := hashFile(f)
		if err == nil && got != p.SHA256 {
			err = fmt.Errorf("%s does not have the digest of its name", f)
		}
		if err != nil {
			return "", fmt.Errorf("cached package %s: %w (fetch it again: petri guest build %s --update)", p.Name, err, a.Name)
		}
		return f, nil
	}

	b.log("unpacking the kernel")
	deb, err := debPath(m.Packages[0])
	if err != nil {
		return nil, nil, err
	}
	files, err := readDeb(ctx, deb, func(p string) bool {
		return strings.HasPrefix(p, "/boot/vmlinu") || strings.HasSuffix(p, ".ko")
	})
	if err != nil {
		return nil, nil, err
	}
	mods := map[string][]byte{}
	for _, f := range files {
		if base := path.Base(f.path); strings.HasPrefix(base, "vmlinu") {
			kernel = f.data
			_, m.KernelRelease, _ = strings.Cut(base, "-")
		} else {
			mods[f.path] = f.data
		}
	}
	if kernel == nil {
		return nil, nil, fmt.Errorf("package %s holds no /boot/vmlinuz", m.Packages[0].Name)
	}
	var offsets []byte
	if kernel, offsets, err = prepare(a, kernel); err != nil {
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
	var rootFiles []entry
	for _, p := range m.Packages[1:] {
		deb, err := debPath(p)
		if err != nil {
			return nil, nil, err
		}
		fs, err := readDeb(ctx, deb, keepRoot)
		if err != nil {
			return nil, nil, err
		}
		rootFiles = append(rootFiles, fs...)
	}
	b.log("packing the guest's file system")
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

// take waits for this architecture's lock file.
func (b *Builder) take(name string) (unlock func(), err error) {
	if err := os.MkdirAll(b.archDir(name), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(b.archDir(name), "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

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
