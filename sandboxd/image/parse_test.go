// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// archive makes a tar file.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		data := h.Linkname
		if h.Typeflag == tar.TypeReg {
			h.Size, h.Linkname = int64(len(data)), ""
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(data)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func all(string) bool { return true }

func TestReadTar(t *testing.T) {
	got, err := readTar(bytes.NewReader(archive(t,
		tar.Header{Name: "./usr/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "./usr/a", Typeflag: tar.TypeReg, Mode: 0o644, Linkname: "content"},
		tar.Header{Name: "./usr/hard", Typeflag: tar.TypeLink, Linkname: "./usr/a"},
		tar.Header{Name: "../../etc/passwd", Typeflag: tar.TypeSymlink, Linkname: "/root"},
	)), all)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range got {
		lines = append(lines, fmt.Sprintf("%s %v %s%s", e.path, e.mode, e.data, e.link))
	}
	want := []string{"/usr drwxr-xr-x ", "/usr/a -rw-r--r-- content", "/usr/hard -rw-r--r-- content", "/etc/passwd L--------- /root"}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	for name, bad := range map[string][]byte{
		"hard link to nothing": archive(t, tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: "gone"}),
		"device":               archive(t, tar.Header{Name: "a", Typeflag: tar.TypeBlock}),
		"cut":                  archive(t, tar.Header{Name: "a", Typeflag: tar.TypeReg, Linkname: strings.Repeat("x", 2000)})[:1000],
	} {
		if _, err := readTar(bytes.NewReader(bad), all); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// FuzzReadTar feeds anything to the reader of packages: it returns clean
// absolute paths or an error, and only what was asked for.
func FuzzReadTar(f *testing.F) {
	f.Add(archive(f, tar.Header{Name: "./usr/a", Typeflag: tar.TypeReg, Linkname: "content"}))
	f.Add(archive(f, tar.Header{Name: "a", Typeflag: tar.TypeReg, Linkname: "x"}, tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "a"}))
	f.Add(archive(f, tar.Header{Name: "../x", Typeflag: tar.TypeSymlink, Linkname: "/"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := readTar(bytes.NewReader(b), func(p string) bool { return p != "/secret" })
		if err != nil && entries != nil {
			t.Error("entries with an error")
		}
		for _, e := range entries {
			if !path.IsAbs(e.path) || path.Clean(e.path) != e.path || e.path == "/secret" || len(e.data) > len(b) {
				t.Errorf("entry %q of %d bytes", e.path, len(e.data))
			}
		}
	})
}

// readCpio is an independent reader of the newc format, for what writeCpio
// writes.
func readCpio(b []byte) (out []entry, err error) {
	for {
		if len(b) < 110 || string(b[:6]) != "070701" {
			return nil, fmt.Errorf("no header at %d bytes before the end", len(b))
		}
		var f [13]int
		for i := range f {
			v, err := strconv.ParseUint(string(b[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				return nil, err
			}
			f[i] = int(v)
		}
		mode, size, nameSize := f[1], f[6], f[11]
		data := (110 + nameSize + 3) &^ 3
		next := (data + size + 3) &^ 3
		if next > len(b) {
			return nil, fmt.Errorf("an entry of %d bytes, %d are left", next, len(b))
		}
		name := string(b[110 : 110+nameSize-1])
		if name == "TRAILER!!!" {
			if next != len(b) {
				return nil, fmt.Errorf("%d bytes behind the trailer", len(b)-next)
			}
			return out, nil
		}
		e := entry{path: "/" + name, mode: os.FileMode(mode & 0o777), dev: [2]int{f[9], f[10]}}
		switch mode & 0o170000 {
		case 0o040000:
			e.mode |= os.ModeDir
		case 0o120000:
			e.mode |= os.ModeSymlink
			e.link = string(b[data : data+size])
		case 0o020000:
			e.mode |= os.ModeDevice | os.ModeCharDevice
		default:
			e.data = bytes.Clone(b[data : data+size])
		}
		out = append(out, e)
		b = b[next:]
	}
}

// FuzzCpio writes an archive of any names and contents, and reads it again:
// what was put in comes out, sorted, with the directories that it needs.
func FuzzCpio(f *testing.F) {
	f.Add("etc/hosts", []byte("127.0.0.1"), "bin/sh", "busybox")
	f.Add("a", []byte{}, "a/b/c", "")
	f.Fuzz(func(t *testing.T, name string, data []byte, link, target string) {
		name, link = path.Clean("/"+name), path.Clean("/"+link)
		if name == "/" || link == "/" || under(link, name) || under(name, link) || strings.ContainsRune(name+link, 0) || path.Base(name) == "TRAILER!!!" || path.Base(link) == "TRAILER!!!" {
			t.Skip()
		}
		in := []entry{{path: name, mode: 0o644, data: data}, {path: link, mode: os.ModeSymlink | 0o777, link: target}}
		var b, again bytes.Buffer
		if err := writeCpio(&b, in); err != nil {
			t.Fatal(err)
		}
		if err := writeCpio(&again, []entry{in[1], in[0]}); err != nil || !bytes.Equal(b.Bytes(), again.Bytes()) {
			t.Errorf("the order of the entries shows, %v", err)
		}
		out, err := readCpio(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if !sort.SliceIsSorted(out, func(i, j int) bool { return out[i].path < out[j].path }) {
			t.Error("not sorted")
		}
		have := map[string]entry{}
		for _, e := range out {
			have[e.path] = e
		}
		if !bytes.Equal(have[name].data, data) || have[link].link != target {
			t.Errorf("%q holds %q, %q leads to %q", name, have[name].data, link, have[link].link)
		}
		for _, p := range []string{name, link} {
			for d := path.Dir(p); d != "/"; d = path.Dir(d) {
				if !have[d].mode.IsDir() {
					t.Errorf("no directory %q", d)
				}
			}
		}
	})
}

// kernelELF is a small ELF file with one segment that ends in zeros, and one
// at the end.
func kernelELF() []byte {
	b := make([]byte, 64+2*56+1000)
	copy(b, "\x7fELF\x02\x01\x01")
	le := binary.LittleEndian
	le.PutUint16(b[16:], 2)    // ET_EXEC
	le.PutUint16(b[18:], 62)   // EM_X86_64
	le.PutUint32(b[20:], 1)    // version
	le.PutUint64(b[0x20:], 64) // phoff
	le.PutUint16(b[0x34:], 64)
	le.PutUint16(b[0x36:], 56)
	le.PutUint16(b[0x38:], 2)
	ph := func(i int, off, filesz, memsz uint64) {
		h := b[64+56*i:]
		le.PutUint32(h, 1) // PT_LOAD
		le.PutUint64(h[8:], off)
		le.PutUint64(h[0x20:], filesz)
		le.PutUint64(h[0x28:], memsz)
	}
	ph(0, 176, 500, 500)
	ph(1, 676, 500, 600)
	copy(b[176:], "code")
	copy(b[676:], "data")
	return b
}

func TestTrimSegments(t *testing.T) {
	in := kernelELF()
	out, err := trimSegments(bytes.Clone(in))
	if err != nil {
		t.Fatal(err)
	}
	if len(out) != 680 {
		t.Errorf("%d bytes are left of %d, want 680", len(out), len(in))
	}
	checkTrimmed(t, in, out)
}

// checkTrimmed checks that a kernel means the same as before: each segment
// has the same bytes in memory.
func checkTrimmed(t *testing.T, in, out []byte) {
	t.Helper()
	before, err := elf.NewFile(bytes.NewReader(in))
	if err != nil {
		t.Fatal(err)
	}
	after, err := elf.NewFile(bytes.NewReader(out))
	if err != nil {
		t.Fatalf("what is left is no ELF file: %v", err)
	}
	for i, p := range before.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		q := after.Progs[i]
		was, is := in[p.Off:p.Off+p.Filesz], out[q.Off:q.Off+q.Filesz]
		if q.Memsz != p.Memsz || !bytes.Equal(bytes.TrimRight(was, "\x00"), is) {
			t.Errorf("segment %d had %d of %d bytes and has %d of %d", i, p.Filesz, p.Memsz, q.Filesz, q.Memsz)
		}
	}
}

// FuzzKernel feeds anything to what reads Debian's kernels.
func FuzzKernel(f *testing.F) {
	f.Add(kernelELF())
	outside := kernelELF()
	binary.LittleEndian.PutUint64(outside[64+56+8:], 1<<62)
	f.Add(outside)
	boot := make([]byte, 0x300)
	copy(boot[0x202:], "HdrS\x0f\x02")
	f.Add(boot)
	overlap := kernelELF()
	binary.LittleEndian.PutUint64(overlap[64+8:], 0)
	f.Add(overlap)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := unpackBzImage(b); err == nil {
			t.Log("a kernel, by chance")
		}
		if out, err := trimSegments(bytes.Clone(b)); err == nil && (len(out) > len(b) || len(out) < 64) {
			t.Errorf("%d bytes of %d are left", len(out), len(b))
		}
		if order, err := moduleOrder(map[string][]byte{"/lib/a.ko": b}, []string{"a"}); err == nil && len(order) != 1 {
			t.Errorf("order %q", order)
		}
		if raw, ok := findBTF(b); ok && len(raw) < minKernelBTF {
			t.Errorf("types of %d bytes", len(raw))
		}
		if names, err := busyboxApplets(b); err == nil && (!sort.StringsAreSorted(names) || len(names) > 1001) {
			t.Errorf("%d applets", len(names))
		}
	})
}

func TestModuleOrder(t *testing.T) {
	// Modules without dependencies that can be read are an error, and a name
	// that is no module is taken as built in.
	if _, err := moduleOrder(map[string][]byte{"/lib/a.ko": []byte("no ELF")}, []string{"a"}); err == nil {
		t.Error("no error of a module that is no ELF file")
	}
	if order, err := moduleOrder(nil, []string{"builtin"}); err != nil || len(order) != 0 {
		t.Errorf("order %q, %v", order, err)
	}
}
