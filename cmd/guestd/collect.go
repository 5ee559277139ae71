// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/sandboxd/guest"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
)

// maxDepth bounds the nesting of directories that collect follows.
const maxDepth = 128

// collect sends what the sample changed: everything in the overlay's upper
// directory, read from outside of the container, so that no link or mount of
// the sample leads it anywhere. The sample stands still meanwhile, for what it
// wrote behind the walk's back would be lost unseen.
func (a *agent) collect(q machine.Collect) (any, error) {
	if err := a.box.freeze(); err != nil {
		a.fault("stop the sample while its files are collected: %v", err)
	}
	if !q.Final {
		defer func() {
			if err := a.box.thaw(); err != nil {
				a.fault("let the sample go on: %v", err)
			}
		}()
	}
	a.tellKilled()
	w, err := a.conn.Send(guest.StreamFiles)
	if err != nil {
		return nil, err
	}
	c := &collector{agent: a, q: q, files: guest.NewFilesWriter(w), buf: make([]byte, 32<<10)}
	upper := filepath.Join(overlayDir, "upper")
	c.agent.mu.Lock()
	c.kept = c.agent.kept
	c.agent.mu.Unlock()
	c.findDeleted(upper)
	err = c.walkRoot(upper)
	if err == nil {
		err = c.nameless()
	}
	if ferr := c.files.Flush(); err == nil {
		err = ferr
	}
	s := wire.Status{}
	if err != nil {
		s.Error = err.Error()
	}
	if cerr := w.Close(s); err == nil {
		err = cerr
	}
	return c.sum, err
}

type collector struct {
	agent *agent
	q     machine.Collect
	files *guest.FilesWriter
	buf   []byte
	sum   machine.Collected
	bytes int64
	holes int64                     // bytes of sparse files that were read
	links map[fileID]schemas.Digest // of files with several names
	gone  map[schemas.Digest]string // the image's files that were deleted
	kept  *keeper                   // nil: nothing is held open
}

func (c *collector) walkRoot(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open the overlay: %w", err)
	}
	d := os.NewFile(uintptr(fd), dir)
	defer d.Close()
	return c.walk(d, "/", true, false, 0)
}

// walk visits an open directory by descriptors only. Names are sorted, so that
// two collections of the same files are the same. old says that the image has
// this directory too, and anew that the sample has deleted that one and made
// another.
func (c *collector) walk(dir *os.File, at string, old, anew bool, depth int) error {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		c.agent.fault("list %s: %v", at, err)
	}
	slices.Sort(names)
	if old && anew {
		if err := c.hidden(dir, at, names); err != nil {
			return err
		}
	}
	for _, name := range names {
		p := path.Join(at, name)
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			continue // gone meanwhile
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := c.walkDir(dir, name, p, &st, old, anew, depth); err != nil {
				return err
			}
			continue
		}
		if err := c.file(dir, name, p, &st, old && inImage(p)); err != nil {
			return err
		}
	}
	return nil
}

// inImage reports whether the image has a file of this path.
func inImage(p string) bool {
	var st unix.Stat_t
	return unix.Lstat(romDir+p, &st) == nil // an error: or the path is too long for any in there
}

// isDirInImage reports whether the image has a directory of this path.
func isDirInImage(p string) bool {
	var st unix.Stat_t
	return unix.Lstat(romDir+p, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

func (c *collector) walkDir(dir *os.File, name, p string, st *unix.Stat_t, old, anew bool, depth int) error {
	old = old && inImage(p)
	f := c.meta(p, st, old)
	if f.Before = before(p, old); f.Before != nil {
		f.Change = "attributes"
	}
	if f.Before == nil || f.Before.Mode != f.Mode || f.Before.UID != f.UID || f.Before.GID != f.GID {
		if err := c.list(f); err != nil {
			return err
		}
	}
	if depth >= maxDepth {
		c.agent.fault("%s is nested deeper than %d; what is below was not collected", p, maxDepth)
		c.sum.Omitted++
		return nil
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil // gone meanwhile, or no directory any more
	}
	sub := os.NewFile(uintptr(fd), p)
	defer sub.Close()
	return c.walk(sub, p, old && isDirInImage(p), anew || isOpaque(sub), depth+1)
}

// isOpaque reports whether overlayfs shows nothing of what the image has in a
// directory, which says so once, for itself and all below
// (Documentation/filesystems/overlayfs.rst).
func isOpaque(dir *os.File) bool {
	var v [2]byte
	n, err := unix.Fgetxattr(int(dir.Fd()), "trusted.overlay.opaque", v[:])
	return err == nil && string(v[:n]) == "y"
}

// hidden lists what the image has in a directory and the one that the sample made
// in its place has not. A directory is listed as one, as if it had been deleted
// alone.
func (c *collector) hidden(dir *os.File, at string, names []string) error {
	was, err := os.ReadDir(romDir + at)
	if err != nil {
		c.agent.fault("list what the image has in %s: %v", at, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil
	}
	for _, e := range was {
		if _, there := slices.BinarySearch(names, e.Name()); there {
			continue
		}
		p := path.Join(at, e.Name())
		f := schemas.DroppedFile{
			FileMeta: schemas.FileMeta{Path: clipPath(p), Modified: time.Unix(st.Mtim.Unix()).UTC(), Change: "deleted"},
			Type:     "none", Reason: "deleted",
		}
		if c.sum.Listed < c.q.MaxList {
			f.Before = before(p, true)
		}
		if err := c.list(f); err != nil {
			return err
		}
	}
	return nil
}

func (c *collector) meta(p string, st *unix.Stat_t, old bool) schemas.DroppedFile {
	change := "created"
	if old {
		change = "modified"
	}
	mode := st.Mode &^ unix.S_IFMT
	return schemas.DroppedFile{
		FileMeta: schemas.FileMeta{
			Path: clipPath(p), Mode: mode, UID: int(st.Uid), GID: int(st.Gid),
			Modified: time.Unix(st.Mtim.Unix()).UTC(), Change: change,
		},
		Type: fileTypes[st.Mode&unix.S_IFMT], Size: st.Size,
	}
}

var fileTypes = map[uint32]string{
	unix.S_IFREG: "file", unix.S_IFDIR: "directory", unix.S_IFLNK: "link", unix.S_IFCHR: "device", unix.S_IFBLK: "device", unix.S_IFIFO: "fifo", unix.S_IFSOCK: "socket",
}

// clipPath makes a path fit into a record: by descriptors a sample can nest
// directories deeper than any path that the kernel takes.
func clipPath(p string) string {
	const most, part = 4096, 1024 // PATH_MAX, and what is kept of each end
	p = strings.ToValidUTF8(p, "\ufffd")
	if len(p) <= most {
		return p
	}
	return path.Clean(strings.ToValidUTF8(p[:part], "") + "/…/" + strings.ToValidUTF8(p[len(p)-part:], ""))
}

// list sends a line without bytes, or counts it where the list is full.
func (c *collector) list(f schemas.DroppedFile) error {
	if c.sum.Listed >= c.q.MaxList {
		c.sum.Omitted++
		return nil
	}
	c.sum.Listed++
	return c.files.File(f)
}

func (c *collector) file(dir *os.File, name, p string, st *unix.Stat_t, old bool) error {
	f := c.meta(p, st, old)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if c.kept != nil {
			c.kept.named(st.Ino)
		}
		return c.regular(dir, name, p, st, f)
	case unix.S_IFLNK:
		b := make([]byte, 4096)
		if n, err := unix.Readlinkat(int(dir.Fd()), name, b); err == nil {
			f.Target = strings.ToValidUTF8(string(b[:n]), "\ufffd")
		}
		f.Reason = "symbolic link"
	case unix.S_IFCHR:
		if st.Rdev == 0 { // a whiteout: overlayfs' mark of a deleted file
			f.Type, f.Change, f.Reason = "none", "deleted", "deleted"
			f.Before = before(p, true)
		} else {
			f.Reason = "character device"
		}
	case unix.S_IFBLK:
		f.Reason = "block device"
	case unix.S_IFIFO:
		f.Reason = "fifo"
	case unix.S_IFSOCK:
		f.Reason = "socket"
	}
	return c.list(f)
}

// regular sends one file's bytes, or only its digest where a limit is reached.
func (c *collector) regular(dir *os.File, name, p string, st *unix.Stat_t, f schemas.DroppedFile) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		f.Reason = fmt.Sprintf("open: %v", err)
		return c.list(f)
	}
	file := os.NewFile(uintptr(fd), p)
	defer file.Close()
	// What lies in the guest's memory is soon read, but a file can be a
	// terabyte that nobody wrote.
	if hole := f.Size - st.Blocks*512; hole > 0 {
		if hole > c.q.MaxTotal-c.holes {
			f.Reason = fmt.Sprintf("sparse: %d bytes of it were written, and it was not read", st.Blocks*512)
			return c.list(f)
		}
		c.holes += hole
	}
	sum, err := c.digest(file, st, &f)
	if err != nil {
		f.Reason = fmt.Sprintf("read: %v", err)
		return c.list(f)
	}
	f.SHA256 = &sum
	if c.agent.wrote(p, sum) {
		return nil
	}
	f.Before = before(p, f.Change == "modified")
	if b := f.Before; b != nil && b.SHA256 != nil && *b.SHA256 == sum {
		f.Change, f.Reason = "attributes", "its bytes are the image's"
		return c.list(f)
	}
	if f.Change == "created" && f.Size > 0 {
		f.From = c.gone[sum]
	}
	return c.send(file, f)
}

// send sends the bytes of a file, or says why not.
func (c *collector) send(file *os.File, f schemas.DroppedFile) error {
	switch {
	case f.Size > c.q.MaxFile:
		f.Reason = fmt.Sprintf("larger than %d bytes", c.q.MaxFile)
	case c.sum.Sent >= c.q.MaxFiles:
		f.Reason = fmt.Sprintf("more than %d files", c.q.MaxFiles)
	case c.bytes+f.Size > c.q.MaxTotal:
		f.Reason = fmt.Sprintf("more than %d bytes in all", c.q.MaxTotal)
	}
	if f.Reason != "" || c.sum.Listed >= c.q.MaxList {
		return c.list(f)
	}
	f.Stored = true
	c.sum.Sent++
	c.bytes += f.Size
	if err := c.list(f); err != nil {
		return err
	}
	sent, err := io.CopyBuffer(c.files, io.NewSectionReader(file, 0, f.Size), c.buf)
	end := wire.Status{Size: sent}
	if err != nil {
		end.Error = err.Error()
	} else if sent < f.Size {
		end.Error = "it shrank while it was read"
	}
	return c.files.End(end)
}

// digest reads a file, and one of many names only once.
func (c *collector) digest(file *os.File, st *unix.Stat_t, f *schemas.DroppedFile) (schemas.Digest, error) {
	if sum, ok := c.links[idOf(st)]; ok {
		return sum, nil
	}
	h := sha256.New()
	n, err := io.CopyBuffer(h, io.NewSectionReader(file, 0, f.Size), c.buf)
	if err != nil {
		return schemas.Digest{}, err
	}
	f.Size = n
	sum := schemas.Digest(h.Sum(nil))
	if st.Nlink > 1 {
		if c.links == nil {
			c.links = map[fileID]schemas.Digest{}
		}
		c.links[idOf(st)] = sum
	}
	return sum, nil
}

// wrote reports whether path still holds what the agent wrote there.
func (a *agent) wrote(path string, sum schemas.Digest) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	own, ok := a.own[path]
	return ok && own == sum
}
