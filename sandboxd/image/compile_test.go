// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/sandboxd/catalogue"
)

// compiledCPU is a CPU whose kernel is compiled.
func compiledCPU(t *testing.T) catalogue.CPU {
	t.Helper()
	for _, c := range catalogue.All() {
		if c.Source != nil {
			return c
		}
	}
	t.Fatal("no kernel is compiled")
	return catalogue.CPU{}
}

// tools makes a PATH of programs that answer -print-file-name as a compiler does.
func tools(t *testing.T, libc string, names ...string) {
	t.Helper()
	dir := t.TempDir()
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("#!/bin/sh\necho "+libc+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
}

func TestHaveCompilers(t *testing.T) {
	c := compiledCPU(t)
	other := []string{"gcc", "make", "flex", "bison", "bc", "tar", "xz", "dpkg-source"}
	tools(t, "/usr/lib/libc.a", append(other, c.Compiler())...)
	if err := haveCompilers(t.Context(), c); err != nil {
		t.Error(err)
	}
	tools(t, "/usr/lib/libc.a", other...)
	if err := haveCompilers(t.Context(), c); err == nil || !strings.Contains(err.Error(), "apt-get install --no-install-recommends "+c.CompilerPackages()[0]+")") {
		t.Errorf("no cross compiler: %v", err)
	}
	tools(t, "libc.a", append(other, c.Compiler())...)
	if err := haveCompilers(t.Context(), c); err == nil || !strings.Contains(err.Error(), c.CompilerPackages()[1]+" libc6-dev)") {
		t.Errorf("no libraries: %v", err)
	}
	// Nothing is downloaded first.
	b := Builder{Cache: t.TempDir()}
	tools(t, "")
	if _, err := b.Build(t.Context(), c.Name, false); err == nil || !strings.Contains(err.Error(), c.Compiler()+", gcc, make") {
		t.Errorf("build without tools: %v", err)
	}
}

// TestCompiled: what was compiled is used as long as nothing of how it is made has
// changed, and a sandbox never compiles.
func TestCompiled(t *testing.T) {
	c := compiledCPU(t)
	var l lock
	for _, n := range append(rootPackagesOf(c), c.Kernel) {
		l.Packages = append(l.Packages, Package{Name: n, Version: "1", SHA256: "00"})
	}
	if n := l.lacks(packagesOf(c)); n != busyboxSource {
		t.Errorf("without the source of busybox it lacks %q", n)
	}
	l.Packages = append(l.Packages, Package{Name: busyboxSource, Version: "1", Arch: sourceArch, SHA256: "01"})
	if n := l.lacks(packagesOf(c)); n != "" {
		t.Errorf("it lacks %q", n)
	}
	if l.compiled(c) {
		t.Error("compiled before it was")
	}
	b := Builder{Cache: t.TempDir()}
	if err := os.MkdirAll(b.archDir(c.Name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(b.lockPath(c.Name), l); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Open(t.Context(), c.Name); err == nil || !strings.Contains(err.Error(), "not been compiled (build it: petri guest build "+c.Name+")") || b.Has(c.Name) {
		t.Errorf("opened before it was compiled: %v", err)
	}
	for _, n := range []string{compiledKernel, compiledBusybox} {
		l.Compiled = append(l.Compiled, Compiled{Name: n, Made: l.made(c)})
	}
	if !l.compiled(c) {
		t.Error("not compiled after it was")
	}
	l.Packages[0].SHA256 = "02" // a library
	if !l.compiled(c) {
		t.Error("compiled again for another library")
	}
	source := *c.Source
	source.Config += "CONFIG_X=y\n"
	changed := c
	changed.Source = &source
	if l.compiled(changed) {
		t.Error("not compiled again with other options")
	}
	l.Packages[len(l.Packages)-1].SHA256 = "03"
	if l.compiled(c) {
		t.Error("not compiled again of other source")
	}
}

// toolchain makes a PATH of tools that do as little as a build can see. What they
// make is in dir: count has a line for each kernel.
func toolchain(t *testing.T, c catalogue.CPU, dir string) (count string) {
	t.Helper()
	bin := filepath.Join(dir, "bin")
	count = filepath.Join(dir, "count")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	applets := "\\000[\\000[[\\000"
	for i := range 60 {
		applets += fmt.Sprintf("a%02d\\000", i)
	}
	const said = "echo /usr/lib/libc.a"
	for name, script := range map[string]string{
		c.Compiler(): said, "gcc": said, "flex": said, "bison": said, "bc": said, "xz": said,
		c.GNU + "-strip": "test -f \"$2\"",
		"dpkg-deb":       "exec /bin/cat \"$2\"",
		"dpkg-source":    "test -f \"$3\" && /bin/mkdir -p busybox/debian/config/pkg && echo CONFIG_STATIC=y > busybox/debian/config/pkg/static",
		"nice":           "shift 2; exec \"$@\"",
		"tar":            "/bin/cat > Makefile; /usr/bin/touch -d @1700000000 Makefile",
		"make": `for a; do :; done
case $a in
allnoconfig) test -f "${4#KCONFIG_ALLCONFIG=}" ;;
silentoldconfig) /bin/cat > answers ;;
busybox) printf '` + applets + `\000' > busybox ;;
vmlinux) /bin/mkdir -p include/config; echo 6.1.7 > include/config/kernel.release
	echo "$2 $3 $KBUILD_BUILD_TIMESTAMP" > vmlinux; echo one >> ` + count + ` ;;
*) echo "no rule for $a"; exit 2 ;;
esac`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin)
	return count
}

// keptDeb puts a package with one file into a builder's cache.
func keptDeb(t *testing.T, b *Builder, c catalogue.CPU, name, file string) Package {
	t.Helper()
	dir := filepath.Join(b.aptDir(c.Name), "debs")
	tmp := filepath.Join(dir, "new")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	tarball := archive(t, tar.Header{Name: "." + file, Typeflag: tar.TypeReg, Mode: 0o644, Linkname: "of " + name})
	if err := os.WriteFile(tmp, tarball, 0o644); err != nil {
		t.Fatal(err)
	}
	sum, _, err := hashFile(tmp)
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, sum+".deb"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return Package{Name: name, Version: "1", Arch: "all", SHA256: sum}
}

// TestCompile builds an image with tools that are none: once, however often it is
// assembled, and again when what was made is broken.
func TestCompile(t *testing.T) {
	c, dir := compiledCPU(t), t.TempDir()
	count := toolchain(t, c, dir)
	b := &Builder{Cache: filepath.Join(dir, "cache"), Guestd: dir}
	l := lock{Packages: []Package{keptDeb(t, b, c, c.Kernel, "/usr/src/"+c.Kernel+".tar.xz")}}
	for _, n := range rootPackagesOf(c) {
		l.Packages = append(l.Packages, keptDeb(t, b, c, n, "/usr/"+c.GNU+"/lib/"+n+".so"))
	}
	dsc := []byte("Format: 3.0 (quilt)\nVersion: 1\n")
	sum := sha256.Sum256(dsc)
	source := Package{Name: busyboxSource, Version: "1", Arch: sourceArch, SHA256: hex.EncodeToString(sum[:])}
	l.Packages = append(l.Packages, source)
	kept := filepath.Join(b.aptDir(c.Name), "sources", source.SHA256)
	for _, d := range []string{kept, b.archDir(c.Name), filepath.Join(b.aptDir(c.Name), "compile-left")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range map[string][]byte{filepath.Join(kept, "busybox.dsc"): dsc, filepath.Join(dir, "guestd-"+c.Name): []byte("agent")} {
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeJSON(b.lockPath(c.Name), l); err != nil {
		t.Fatal(err)
	}
	built := func(times int) *Image {
		t.Helper()
		img, err := b.Build(t.Context(), c.Name, false)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := os.ReadFile(count); err != nil || len(n) != len("one\n")*times {
			t.Errorf("%q compiled, want %d: %v", n, times, err)
		}
		return img
	}
	img := built(1)
	kernel, err := os.ReadFile(img.KernelPath())
	if err != nil || !strings.HasPrefix(string(kernel), "ARCH="+c.Source.Arch+" CROSS_COMPILE="+c.GNU+"- ") || img.KernelRelease != "6.1.7" {
		t.Errorf("kernel %q of %s: %v", kernel, img.KernelRelease, err)
	}
	initramfs, err := os.ReadFile(img.InitramfsPath())
	if err != nil || !bytes.Contains(initramfs, []byte("/usr/lib/"+c.GNU+"/libc6-")) || !bytes.Contains(initramfs, []byte("/usr/bin/a59\x00")) {
		t.Errorf("the initramfs of %d bytes lacks something: %v", len(initramfs), err)
	}
	if left, _ := filepath.Glob(filepath.Join(b.aptDir(c.Name), "compile-*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if err := os.WriteFile(filepath.Join(dir, "guestd-"+c.Name), []byte("another agent"), 0o644); err != nil {
		t.Fatal(err)
	}
	if again := built(1); again.Dir == img.Dir || len(again.Compiled) != 2 {
		t.Errorf("with another agent: %s, %+v", again.Dir, again.Compiled)
	}
	broken := b.compiledPath(c.Name, img.Compiled[1].SHA256)
	if err := os.WriteFile(broken, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	built(2)
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	failing := filepath.Join(dir, "bin", "make")
	if err := os.WriteFile(failing, []byte("#!/bin/sh\necho no such option\nexit 2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Build(t.Context(), c.Name, false); err == nil || !strings.Contains(err.Error(), "exit status 2: no such option") {
		t.Errorf("a failing make: %v", err)
	}
}

func TestCrossEntries(t *testing.T) {
	var got []string
	for _, e := range crossEntries("mips-linux-gnu", []entry{
		{path: "/etc/debian_version"},
		{path: "/usr/mips-linux-gnu/lib"},
		{path: "/usr/mips-linux-gnu/lib/libc.so.6"},
		{path: "/usr/mips-linux-gnu/lib/libdl.so.2"},
		{path: "/usr/mips-linux-gnu/lib/ld.so.1"},
		{path: "/usr/mips-linux-gnu/lib64/ld64.so.1", link: "../lib/ld64.so.1"},
		{path: "/usr/share/gdb/auto-load/usr/mips-linux-gnu/lib/libstdc++.so.6.0.30-gdb.py"},
	}) {
		got = append(got, strings.TrimSuffix(e.path+" "+e.link, " "))
	}
	want := []string{
		"/etc/debian_version", "/usr/lib/mips-linux-gnu/libc.so.6", "/usr/lib/mips-linux-gnu/libdl.so.2",
		"/usr/lib/mips-linux-gnu/ld.so.1", "/usr/lib/ld.so.1 mips-linux-gnu/ld.so.1",
		"/usr/lib64/ld64.so.1 ../lib/mips-linux-gnu/ld64.so.1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		p := progress{log: func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }}
		p.begun = time.Now()
		p.said = p.begun
		for range 3 * progressTail {
			fmt.Fprint(&p, "CC\n")
		}
		if len(said) > 0 || len(p.tail) > progressTail {
			t.Errorf("said %q at once, kept %d bytes", said, len(p.tail))
		}
		time.Sleep(progressEvery)
		_, _ = p.Write(append(bytes.Repeat([]byte("x"), 2*progressTail), "\n  LD   vmlinux\n"...))
		if want := fmt.Sprintf("  %d steps in %s: LD vmlinux", 3*progressTail+2, progressEvery); len(said) != 1 || said[0] != want || len(p.tail) > progressTail {
			t.Errorf("said %q, want %q; kept %d bytes", said, want, len(p.tail))
		}
	})
}
