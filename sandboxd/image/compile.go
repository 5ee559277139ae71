// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/catalogue"
)

// compileRecipe is the version of the code that compiles: raise it when it would
// give other bytes.
const compileRecipe = 1

// kernelConfig is what every compiled kernel has.
//
//go:embed kernel.config
var kernelConfig string

// What is compiled, by its name in a [Compiled].
const (
	compiledKernel  = "kernel"
	compiledBusybox = "busybox"
)

// made names how the lock's sources are compiled.
func (l *lock) made(c catalogue.CPU) string {
	h := sha256.New()
	fmt.Fprintf(h, "petri.compiled.v1\n%d\n%s\n%s\n%s\n%s%s\n", compileRecipe, c.GNU, c.Source.Arch, c.Source.File, kernelConfig, c.Source.Config)
	for _, p := range l.Packages {
		if p.Name == c.Kernel || p.Arch == sourceArch {
			fmt.Fprintf(h, "%s %s %s\n", p.Name, p.Version, p.SHA256)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// compiled reports whether everything has been compiled as it would be now, be it
// by another version of the compiler.
func (l *lock) compiled(c catalogue.CPU) bool {
	made := l.made(c)
	for _, name := range []string{compiledKernel, compiledBusybox} {
		if !slices.ContainsFunc(l.Compiled, func(c Compiled) bool { return c.Name == name && c.Made == made }) {
			return false
		}
	}
	return true
}

// haveCompilers says what must be installed to compile for the CPU.
func haveCompilers(ctx context.Context, c catalogue.CPU) error {
	own := c.CompilerPackages()
	var missing, packages []string
	lack := func(what, pkg string) {
		missing, packages = append(missing, what), append(packages, pkg)
	}
	for _, t := range []struct{ tool, pkg, libc string }{
		{c.Compiler(), own[0], own[1]}, {"gcc", "gcc", "libc6-dev"},
		{"make", "make", ""}, {"flex", "flex", ""}, {"bison", "bison", ""}, {"bc", "bc", ""},
		{"tar", "tar", ""}, {"xz", "xz-utils", ""}, {"dpkg-source", "dpkg-dev", ""},
	} {
		if _, err := exec.LookPath(t.tool); err != nil {
			lack(t.tool, t.pkg)
		} else if t.libc != "" {
			// It names the file that it knows, or repeats the name.
			out, err := exec.CommandContext(ctx, t.tool, "-print-file-name=libc.a").Output()
			if err != nil || !filepath.IsAbs(strings.TrimSpace(string(out))) {
				lack("libc.a of "+t.tool, t.libc)
			}
		}
	}
	if missing == nil {
		return nil
	}
	return fmt.Errorf("the guest %s is compiled from source, and %s is not installed (apt-get install --no-install-recommends %s)",
		c.Name, strings.Join(missing, ", "), strings.Join(packages, " "))
}

func (b *Builder) compiledPath(name, sum string) string {
	return filepath.Join(b.aptDir(name), "compiled", sum)
}

func (b *Builder) readCompiled(a catalogue.CPU, all []Compiled, name string) (Compiled, []byte, error) {
	i := slices.IndexFunc(all, func(c Compiled) bool { return c.Name == name })
	if i < 0 {
		return Compiled{}, nil, fmt.Errorf("no %s has been compiled (build it: petri guest build %s)", name, a.Name)
	}
	f := b.compiledPath(a.Name, all[i].SHA256)
	if err := b.intact(a, f, name, all[i].SHA256); err != nil {
		return Compiled{}, nil, err
	}
	data, err := os.ReadFile(f)
	return all[i], data, err
}

// compile compiles what Fetch has left the source of, unless that has been done.
func (b *Builder) compile(ctx context.Context, a catalogue.CPU) error {
	unlock, err := b.take(ctx, a.Name)
	if err != nil {
		return err
	}
	defer unlock()
	l, err := readLock(b.lockPath(a.Name))
	if err != nil {
		return err
	}
	if l.compiled(a) && b.keeps(a, l) {
		return nil
	}
	if err := haveCompilers(ctx, a); err != nil {
		return err
	}
	left, err := filepath.Glob(filepath.Join(b.aptDir(a.Name), "compile-*"))
	if err != nil {
		return err
	}
	for _, d := range left { // of a build that was killed
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp(b.aptDir(a.Name), "compile-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c := compilation{cpu: a, dir: dir, log: b.log}
	version, err := exec.CommandContext(ctx, a.Compiler(), "--version").Output()
	if err != nil {
		return fmt.Errorf("ask %s for its version: %w", a.Compiler(), err)
	}
	compiler, _, _ := strings.Cut(string(version), "\n")

	busybox, err := c.busybox(ctx, b, l)
	if err != nil {
		return fmt.Errorf("compile busybox for %s: %w", a.Name, err)
	}
	kernel, release, err := c.kernel(ctx, b, l)
	if err != nil {
		return fmt.Errorf("compile the kernel of %s: %w", a.Name, err)
	}
	if err := os.MkdirAll(b.compiledPath(a.Name, ""), 0o755); err != nil {
		return err
	}
	l.Compiled = nil
	for _, f := range []struct{ name, path, release string }{{compiledBusybox, busybox, ""}, {compiledKernel, kernel, release}} {
		sum, _, err := hashFile(f.path)
		if err != nil {
			return err
		}
		if err := os.Rename(f.path, b.compiledPath(a.Name, sum)); err != nil {
			return err
		}
		l.Compiled = append(l.Compiled, Compiled{Name: f.name, SHA256: sum, Release: f.release, Compiler: compiler, Made: l.made(a)})
	}
	return writeJSON(b.lockPath(a.Name), l)
}

// keeps reports whether what was compiled is there and whole.
func (b *Builder) keeps(a catalogue.CPU, l *lock) bool {
	return !slices.ContainsFunc(l.Compiled, func(c Compiled) bool {
		return b.intact(a, b.compiledPath(a.Name, c.SHA256), c.Name, c.SHA256) != nil
	})
}

// A compilation compiles for one CPU below one directory.
type compilation struct {
	cpu catalogue.CPU
	dir string
	log func(format string, args ...any)
}

// env is all that the tools are told by their environment. What programs are
// compiled with does not depend on the host, the user, the time or the place.
func (c *compilation) env(built time.Time) []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + c.dir, "TMPDIR=" + c.dir, "LC_ALL=C", "TZ=UTC",
		"SOURCE_DATE_EPOCH=" + strconv.FormatInt(built.Unix(), 10), "KCONFIG_NOTIMESTAMP=1",
		// As Debian's kernels say.
		"KBUILD_BUILD_TIMESTAMP=" + built.Format(time.UnixDate), "KBUILD_BUILD_VERSION=1",
		"KBUILD_BUILD_USER=debian-kernel", "KBUILD_BUILD_HOST=lists.debian.org",
	}
}

// kernel compiles the kernel and returns its file and what uname -r says.
func (c *compilation) kernel(ctx context.Context, b *Builder, l *lock) (file, release string, err error) {
	tree := filepath.Join(c.dir, "linux")
	c.log("unpacking the kernel's source")
	deb, err := b.deb(c.cpu, l.Packages[0])
	if err != nil {
		return "", "", err
	}
	tarball := "/usr/src/" + c.cpu.Kernel + ".tar.xz"
	found, err := readDeb(ctx, deb, func(p string) bool { return p == tarball })
	if err != nil {
		return "", "", err
	}
	if len(found) != 1 {
		return "", "", fmt.Errorf("package %s holds no %s", c.cpu.Kernel, tarball)
	}
	if err := os.Mkdir(tree, 0o755); err != nil {
		return "", "", err
	}
	if err := c.run(ctx, tree, time.Time{}, bytes.NewReader(found[0].data), "tar", "-xJ", "--strip-components=1", "--no-same-owner"); err != nil {
		return "", "", err
	}
	info, err := os.Stat(filepath.Join(tree, "Makefile"))
	if err != nil {
		return "", "", err
	}
	built := info.ModTime().UTC() // the package's date
	config := filepath.Join(c.dir, "kernel.config")
	if err := os.WriteFile(config, []byte(kernelConfig+c.cpu.Source.Config), 0o644); err != nil {
		return "", "", err
	}
	args := []string{"ARCH=" + c.cpu.Source.Arch, "CROSS_COMPILE=" + c.cpu.GNU + "-", "LOCALVERSION="}
	if err := c.run(ctx, tree, built, nil, "make", append(args, "KCONFIG_ALLCONFIG="+config, "allnoconfig")...); err != nil {
		return "", "", err
	}
	c.log("compiling the kernel of %s, some 1,500 steps: ten minutes on two idle cores", c.cpu.Name)
	if err := c.make(ctx, tree, built, append(args, path.Base(c.cpu.Source.File))...); err != nil {
		return "", "", err
	}
	name, err := os.ReadFile(filepath.Join(tree, "include", "config", "kernel.release"))
	if err != nil {
		return "", "", err
	}
	file = filepath.Join(tree, filepath.FromSlash(c.cpu.Source.File))
	if path.Base(file) == "vmlinux" {
		err = c.strip(ctx, file)
	}
	return file, strings.TrimSpace(string(name)), err
}

// busybox compiles what Debian's package busybox-static holds.
func (c *compilation) busybox(ctx context.Context, b *Builder, l *lock) (file string, err error) {
	i := slices.IndexFunc(l.Packages, func(p Package) bool { return p.Arch == sourceArch })
	if i < 0 {
		return "", fmt.Errorf("its source was never fetched (petri guest build %s --update)", c.cpu.Name)
	}
	p := l.Packages[i]
	dsc, err := filepath.Glob(filepath.Join(b.aptDir(c.cpu.Name), "sources", p.SHA256, "*.dsc"))
	if err == nil && len(dsc) != 1 {
		err = fmt.Errorf("its source is not there (fetch it again: petri guest build %s --update)", c.cpu.Name)
	}
	if err == nil {
		err = b.intact(c.cpu, dsc[0], p.Name, p.SHA256)
	}
	if err != nil {
		return "", err
	}
	// dpkg-source compares the other files with their digests in the description.
	if err := c.run(ctx, c.dir, time.Time{}, nil, "dpkg-source", "--no-check", "-x", dsc[0], "busybox"); err != nil {
		return "", err
	}
	tree := filepath.Join(c.dir, "busybox")
	config, err := os.ReadFile(filepath.Join(tree, "debian", "config", "pkg", "static"))
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(tree, ".config"), config, 0o644); err != nil {
		return "", err
	}
	epoch := time.Unix(0, 0).UTC() // busybox tells no date
	// Whatever is asked has its default.
	if err := c.run(ctx, tree, epoch, strings.NewReader(strings.Repeat("\n", 1<<12)), "make", "silentoldconfig"); err != nil {
		return "", err
	}
	c.log("compiling busybox for %s: a minute on two idle cores", c.cpu.Name)
	file = filepath.Join(tree, "busybox")
	err = c.make(ctx, tree, epoch, "CROSS_COMPILE="+c.cpu.GNU+"-", "SKIP_STRIP=y", "BB_EXTRA_VERSION=Debian "+p.Version, "busybox")
	if err == nil {
		err = c.strip(ctx, file)
	}
	return file, err
}

func (c *compilation) strip(ctx context.Context, file string) error {
	return c.run(ctx, c.dir, time.Time{}, nil, c.cpu.GNU+"-strip", "--strip-all", file)
}

// make runs make on all CPUs, behind everything else that the host does.
func (c *compilation) make(ctx context.Context, dir string, built time.Time, args ...string) error {
	args = append([]string{"-n", "10", "make", "-j" + strconv.Itoa(runtime.NumCPU())}, args...)
	return c.run(ctx, dir, built, nil, "nice", args...)
}

// run runs a tool, which ends with ctx together with what it has started.
func (c *compilation) run(ctx context.Context, dir string, built time.Time, stdin io.Reader, tool string, args ...string) error {
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Dir, cmd.Env, cmd.Stdin = dir, c.env(built), stdin
	out := &progress{log: c.log, begun: time.Now()}
	out.said = out.begun
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%s %s: %w: %s", tool, strings.Join(args, " "), err, lastLines(out.tail, 6))
	}
	return nil
}

// progress tells how far a tool is, now and then, and keeps its last words. It is
// for one writer at a time.
type progress struct {
	log         func(format string, args ...any)
	begun, said time.Time
	steps       int
	tail        []byte
}

// How often progress is told, and how much is kept, in bytes.
const (
	progressEvery = 20 * time.Second
	progressTail  = 8 << 10
)

func (p *progress) Write(b []byte) (int, error) {
	p.steps += bytes.Count(b, []byte("\n"))
	p.tail = append(p.tail, b[max(0, len(b)-progressTail):]...)
	p.tail = append(p.tail[:0], p.tail[max(0, len(p.tail)-progressTail):]...)
	if now := time.Now(); now.Sub(p.said) >= progressEvery {
		p.said = now
		p.log("  %d steps in %s: %s", p.steps, now.Sub(p.begun).Round(time.Second), strings.Join(strings.Fields(lastLines(p.tail, 1)), " "))
	}
	return len(b), nil
}
