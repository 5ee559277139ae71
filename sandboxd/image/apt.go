// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// apt runs the machine's apt on a state of our own: it reads the machine's
// sources, keys and proxies, but its lists, cache and dpkg status lie below
// root, so that packages of any CPU can be had without touching the host.
type apt struct {
	root string
	arch string
	log  func(format string, args ...any)
}

func newApt(root, arch string, log func(string, ...any)) (*apt, error) {
	for _, d := range []string{"state/lists/partial", "cache/archives/partial", "log"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return nil, fmt.Errorf("prepare apt root: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "status"), nil, 0o644); err != nil {
		return nil, fmt.Errorf("prepare apt root: %w", err)
	}
	conf := fmt.Sprintf(`APT::Architecture %[2]q;
APT::Architectures { %[2]q; };
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "%[1]s/state";
Dir::State::status "%[1]s/status";
Dir::Cache "%[1]s/cache";
Dir::Log "%[1]s/log";
`, root, arch)
	if err := os.WriteFile(filepath.Join(root, "apt.conf"), []byte(conf), 0o644); err != nil {
		return nil, fmt.Errorf("prepare apt root: %w", err)
	}
	return &apt{root: root, arch: arch, log: log}, nil
}

func (a *apt) run(ctx context.Context, dir, tool string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(a.root, "apt.conf"), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%s is not installed: guest images are built on Debian and its derivatives only", tool)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", tool, strings.Join(args, " "), err, lastLines(stderr.Bytes(), 4))
	}
	return out, nil
}

func (a *apt) update(ctx context.Context) error {
	a.log("reading apt's package lists (%s)", a.arch)
	// A third-party source that fails makes apt-get exit with 100 although
	// Debian's own lists arrived. What is missing shows when it is asked for.
	if _, err := a.run(ctx, a.root, "apt-get", "-q", "update"); err != nil {
		a.log("apt-get update: %v; going on with the lists that there are", err)
	}
	return ctx.Err()
}

// versions lists what apt offers of a package, newest first.
func (a *apt) versions(ctx context.Context, name string) ([]string, error) {
	out, err := a.run(ctx, a.root, "apt-cache", "madison", name)
	if err != nil {
		return nil, err
	}
	var vs []string
	for _, line := range strings.Split(string(out), "\n") {
		if f := strings.Split(line, "|"); len(f) == 3 {
			v := strings.TrimSpace(f[1])
			if len(vs) == 0 || vs[len(vs)-1] != v {
				vs = append(vs, v)
			}
		}
	}
	if len(vs) == 0 {
		return nil, fmt.Errorf("apt knows no package %s for %s (are Debian's main sources configured in /etc/apt?)", name, a.arch)
	}
	return vs, nil
}

// kernelPackage resolves a version of the kernel's meta package to the
// package that holds the kernel.
func (a *apt) kernelPackage(ctx context.Context, meta, version string) (name, ver string, err error) {
	out, err := a.run(ctx, a.root, "apt-cache", "show", meta+"="+version)
	if err != nil {
		return "", "", err
	}
	for _, line := range strings.Split(string(out), "\n") {
		deps, ok := strings.CutPrefix(line, "Depends: ")
		if !ok {
			continue
		}
		for _, d := range strings.Split(deps, ",") {
			if f := strings.Fields(d); len(f) == 3 && strings.HasPrefix(f[0], "linux-image-") && f[1] == "(=" {
				return f[0], strings.TrimSuffix(f[2], ")"), nil
			}
		}
	}
	return "", "", fmt.Errorf("package %s %s depends on no linux-image-… of one version", meta, version)
}

// download fetches packages, whose checksums apt verifies, in one go: apt reads
// its lists anew each time. A name may be followed by = and a version.
func (a *apt) download(ctx context.Context, specs ...string) ([]Package, error) {
	dir, err := os.MkdirTemp(a.root, "get-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	args := []string{"-q", "download"}
	for _, spec := range specs {
		name, version, versioned := strings.Cut(spec, "=")
		arg := name + ":" + a.arch
		if versioned {
			arg += "=" + version
		}
		args = append(args, arg)
	}
	a.log("downloading %s (%s)", strings.Join(specs, ", "), a.arch)
	if _, err := a.run(ctx, dir, "apt-get", args...); err != nil {
		return nil, err
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
	if len(files) != len(specs) {
		return nil, fmt.Errorf("apt-get %s left %d files instead of %d", strings.Join(args, " "), len(files), len(specs))
	}
	var out []Package
	for _, f := range files {
		p, err := a.keep(ctx, f)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// source downloads the newest source package of that name, whose checksums apt
// verifies, and returns its description, the .dsc file. The machine's sources may
// be of binary packages only, so that Debian's of them are read as sources too.
func (a *apt) source(ctx context.Context, name string) (Package, error) {
	out, err := a.run(ctx, a.root, "apt-get", "indextargets", "--format", "deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)",
		"Created-By: Packages", "Origin: Debian", "Component: main")
	if err != nil {
		return Package{}, err
	}
	lists := filepath.Join(a.root, "source-lists")
	dir, err := os.MkdirTemp(a.root, "get-")
	if err != nil {
		return Package{}, err
	}
	defer os.RemoveAll(dir)
	if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o755); err != nil {
		return Package{}, err
	}
	if err := os.WriteFile(filepath.Join(a.root, "sources.list"), out, 0o644); err != nil {
		return Package{}, err
	}
	options := []string{
		"-q", "-o", "Dir::State::Lists=" + lists, "-o", "Dir::Etc::SourceParts=/dev/null",
		"-o", "Dir::Etc::SourceList=" + filepath.Join(a.root, "sources.list"),
	}
	a.log("downloading the source of %s", name)
	if _, err := a.run(ctx, dir, "apt-get", append(options, "update")...); err != nil {
		return Package{}, err
	}
	if _, err := a.run(ctx, dir, "apt-get", append(options, "source", "--download-only", "--only-source", name)...); err != nil {
		return Package{}, err
	}
	dscs, _ := filepath.Glob(filepath.Join(dir, "*.dsc"))
	if len(dscs) != 1 {
		return Package{}, fmt.Errorf("apt-get source %s left %d descriptions", name, len(dscs))
	}
	b, err := os.ReadFile(dscs[0])
	if err != nil {
		return Package{}, err
	}
	sum, _, err := hashFile(dscs[0])
	if err != nil {
		return Package{}, err
	}
	p := Package{Name: name, Arch: sourceArch, SHA256: sum}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Version: "); ok {
			p.Version = strings.TrimSpace(v)
		}
	}
	if p.Version == "" {
		return Package{}, fmt.Errorf("%s names no version", filepath.Base(dscs[0]))
	}
	kept := a.sourceDir(p)
	if err := os.RemoveAll(kept); err != nil {
		return Package{}, err
	}
	if err := os.MkdirAll(filepath.Dir(kept), 0o755); err != nil {
		return Package{}, err
	}
	return p, os.Rename(dir, kept)
}

// sourceArch stands in a [Package] of source for the CPU.
const sourceArch = "source"

// sourceDir is where a source package's files are.
func (a *apt) sourceDir(p Package) string { return filepath.Join(a.root, "sources", p.SHA256) }

// keep puts a downloaded package among the others, by its digest.
func (a *apt) keep(ctx context.Context, file string) (Package, error) {
	out, err := a.run(ctx, a.root, "dpkg-deb", "--show", "--showformat=${Package}\\n${Version}\\n${Architecture}\\n", file)
	if err != nil {
		return Package{}, err
	}
	f := strings.Fields(string(out))
	if len(f) != 3 {
		return Package{}, fmt.Errorf("%s says that it is %q", filepath.Base(file), f)
	}
	sum, _, err := hashFile(file)
	if err != nil {
		return Package{}, err
	}
	store := filepath.Join(a.root, "debs")
	if err := os.MkdirAll(store, 0o755); err != nil {
		return Package{}, err
	}
	return Package{Name: f[0], Version: f[1], Arch: f[2], SHA256: sum}, os.Rename(file, filepath.Join(store, sum+".deb"))
}

// lock is what Fetch leaves, and compile: the exact packages of an
// architecture's images.
type lock struct {
	Packages []Package  `json:"packages"` // kernel first, then by name
	Compiled []Compiled `json:"compiled,omitempty"`
}

// lacks names one of the packages that was not fetched, because an earlier
// version of Petri did not use it; empty: there is none.
func (l *lock) lacks(packages []string) string {
	for _, n := range packages {
		if !slices.ContainsFunc(l.Packages, func(p Package) bool { return p.Name == n }) {
			return n
		}
	}
	return ""
}

func readLock(path string) (*lock, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	l := new(lock)
	if err := json.Unmarshal(b, l); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return l, nil
}

func lastLines(b []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}
