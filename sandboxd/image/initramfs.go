// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"sort"
)

// writeCpio writes entries as an uncompressed "newc" archive, the format of
// the kernel's initramfs (Documentation/driver-api/early-userspace/
// buffer-format.rst). Owners are root, times zero and inodes counted, so that
// equal entries give equal bytes. Directories that entries need are added;
// of two entries with one path the later wins.
func writeCpio(w io.Writer, entries []entry) error {
	byPath := map[string]entry{}
	for _, e := range entries {
		byPath[e.path] = e
		for d := path.Dir(e.path); d != "/"; d = path.Dir(d) {
			if _, ok := byPath[d]; !ok {
				byPath[d] = entry{path: d, mode: os.ModeDir | 0o755}
			}
		}
	}
	delete(byPath, "/")
	paths := make([]string, 0, len(byPath))
	for p := range byPath {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	cw := &cpioWriter{w: w}
	for _, p := range paths {
		cw.add(byPath[p])
	}
	cw.record("TRAILER!!!", 0, 1, [2]int{}, nil)
	return cw.err
}

type cpioWriter struct {
	w   io.Writer
	n   int64
	ino int
	err error
}

func (c *cpioWriter) add(e entry) {
	mode, nlink, data := uint32(e.mode.Perm()), 1, e.data
	if e.mode&os.ModeSetuid != 0 {
		mode |= 0o4000
	}
	if e.mode&os.ModeSetgid != 0 {
		mode |= 0o2000
	}
	if e.mode&os.ModeSticky != 0 {
		mode |= 0o1000
	}
	switch {
	case e.mode.IsDir():
		mode, nlink, data = mode|0o040000, 2, nil
	case e.mode&os.ModeSymlink != 0:
		mode, data = 0o120777, []byte(e.link)
	case e.mode&os.ModeCharDevice != 0:
		mode, data = mode|0o020000, nil
	default:
		mode |= 0o100000
	}
	c.ino++
	c.record(e.path[1:], mode, nlink, e.dev, data)
}

func (c *cpioWriter) record(name string, mode uint32, nlink int, dev [2]int, data []byte) {
	ino := c.ino
	if mode == 0 {
		ino = 0
	}
	// magic ino mode uid gid nlink mtime filesize devmajor devminor
	// rdevmajor rdevminor namesize check
	c.write([]byte(fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		ino, mode, 0, 0, nlink, 0, len(data), 0, 0, dev[0], dev[1], len(name)+1, 0)))
	c.write(append([]byte(name), 0))
	c.pad()
	c.write(data)
	c.pad()
}

func (c *cpioWriter) pad() { c.write(make([]byte, -c.n&3)) }

func (c *cpioWriter) write(b []byte) {
	if c.err != nil {
		return
	}
	_, c.err = c.w.Write(b)
	c.n += int64(len(b))
}

// busyboxApplets reads the applet names out of a busybox binary, whatever its
// CPU: they are one table of sorted, NUL-ended names that starts with "[" and
// "[[" and ends in an empty name (busybox, libbb/appletlib.c, applet_names).
func busyboxApplets(bin []byte) ([]string, error) {
	start := bytes.Index(bin, []byte("\x00[\x00[[\x00"))
	if start < 0 {
		return nil, fmt.Errorf("no applet table in busybox")
	}
	var names []string
	for rest := bin[start+1:]; ; {
		i := bytes.IndexByte(rest, 0)
		if i <= 0 {
			break
		}
		name := string(rest[:i])
		if i > 32 || len(names) > 1000 || (len(names) > 0 && name <= names[len(names)-1]) {
			break // behind the table
		}
		names = append(names, name)
		rest = rest[i+1:]
	}
	if len(names) < 50 {
		return nil, fmt.Errorf("only %d applets in busybox's table", len(names))
	}
	return names, nil
}
