// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/schemas"
)

// before is what the image has at a path, if it has something there.
func before(p string, old bool) *schemas.FileBefore {
	var st unix.Stat_t
	if !old || unix.Lstat(romDir+p, &st) != nil {
		return nil
	}
	b := &schemas.FileBefore{Size: st.Size, Mode: st.Mode &^ unix.S_IFMT, UID: int(st.Uid), GID: int(st.Gid)}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		if f, err := os.Open(romDir + p); err == nil {
			h := sha256.New()
			if _, err := io.Copy(h, f); err == nil {
				sum := schemas.Digest(h.Sum(nil))
				b.SHA256 = &sum
			}
			f.Close()
		}
	}
	return b
}

// maxGone is of how many deleted files of the image's the bytes are looked for
// elsewhere.
const maxGone = 2000

// findDeleted notes the image's files that the sample has deleted, so that those
// that it has only renamed can be told.
func (c *collector) findDeleted(upper string) {
	c.gone = map[schemas.Digest]string{}
	_ = filepath.WalkDir(upper, func(at string, d os.DirEntry, err error) error {
		if err != nil || len(c.gone) >= maxGone || strings.Count(at, "/") > maxDepth {
			return filepath.SkipDir
		}
		if d.Type()&os.ModeCharDevice == 0 {
			return nil
		}
		var st unix.Stat_t
		if unix.Lstat(at, &st) == nil && st.Rdev == 0 {
			p := strings.TrimPrefix(at, upper)
			if b := before(p, true); b != nil && b.SHA256 != nil && b.Size > 0 {
				c.gone[*b.SHA256] = p
			}
		}
		return nil
	})
}

// nameless sends files that have no name any more, or never had one: those that
// the sample has deleted since it wrote them, and those that its processes run or
// have open.
func (c *collector) nameless() error {
	seen := map[fileID]bool{}
	open := c.agent.box.openNameless()
	if c.kept != nil {
		lost, err := c.kept.deleted(func(f *os.File, st *unix.Stat_t) error {
			seen[idOf(st)] = true
			name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
			if err != nil {
				return nil
			}
			return c.sendNameless(f, st, name, open[idOf(st)].pids)
		})
		if err != nil {
			return err
		}
		if lost > 0 {
			c.agent.fault("up to %d files that the sample has written were not kept from before their deletion: more than %d of them, or more than %d MiB", lost, maxKept, maxKeptBytes>>20)
			c.sum.Omitted += int64(lost)
		}
	}
	byPath := func(a, b fileID) int { return strings.Compare(open[a].path, open[b].path) }
	for _, id := range slices.SortedFunc(maps.Keys(open), byPath) {
		o := open[id]
		if seen[id] {
			continue
		}
		f, err := os.Open(o.path)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err == nil && idOf(&st) == id {
			err = c.sendNameless(f, &st, o.name, o.pids)
			if err != nil {
				f.Close()
				return err
			}
		}
		f.Close()
	}
	return nil
}

// sendNameless sends the bytes of a file under the name that it had.
func (c *collector) sendNameless(file *os.File, st *unix.Stat_t, name string, pids []int) error {
	if st.Size == 0 {
		return nil
	}
	f := schemas.DroppedFile{
		FileMeta: schemas.FileMeta{
			Path: clipPath(path.Clean("/" + strings.TrimSuffix(name, " (deleted)"))), Mode: st.Mode &^ unix.S_IFMT, UID: int(st.Uid), GID: int(st.Gid),
			Modified: time.Unix(st.Mtim.Unix()).UTC(), Change: "deleted", OpenIn: pids,
		},
		Type: "file", Size: st.Size,
	}
	if strings.HasPrefix(f.Path, "/memfd:") {
		f.Change = "created" // it never had another name
	}
	if st.Size-st.Blocks*512 > c.q.MaxTotal-c.holes {
		f.Reason = fmt.Sprintf("sparse: %d bytes of it were written, and it was not read", st.Blocks*512)
		return c.list(f)
	}
	c.holes += max(0, st.Size-st.Blocks*512)
	sum, err := c.digest(file, st, &f)
	if err != nil {
		f.Reason = fmt.Sprintf("read: %v", err)
		return c.list(f)
	}
	f.SHA256 = &sum
	return c.send(file, f)
}

// nameless is a file without a name that processes hold.
type nameless struct {
	path string // by which it can be opened
	name string // that it had, as the kernel tells it
	pids []int  // in the container
}

// Limits of what is looked at in processes.
const (
	maxProcesses   = 4096
	maxDescriptors = 1024 // of each
	maxHolders     = 16   // of a file
)

// openNameless finds the deleted and the anonymous files that the sample's
// processes run or have open.
func (c *container) openNameless() map[fileID]nameless {
	out := map[fileID]nameless{}
	b, err := os.ReadFile(filepath.Join(cgroupDir, cgroupName, "cgroup.procs"))
	if err != nil {
		return out
	}
	pids := strings.Fields(string(b))
	for _, pid := range pids[:min(len(pids), maxProcesses)] {
		links := []string{"/proc/" + pid + "/exe"}
		if d, err := os.Open("/proc/" + pid + "/fd"); err == nil {
			names, err := d.Readdirnames(maxDescriptors)
			d.Close()
			if err == nil || errors.Is(err, io.EOF) {
				for _, n := range names {
					links = append(links, "/proc/"+pid+"/fd/"+n)
				}
			}
		}
		for _, link := range links {
			name, err := os.Readlink(link)
			if err != nil || !strings.HasSuffix(name, " (deleted)") || !strings.HasPrefix(name, "/") {
				continue
			}
			var st unix.Stat_t
			if unix.Stat(link, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 0 {
				continue
			}
			n, ok := out[idOf(&st)]
			if !ok {
				n = nameless{path: link, name: name}
			}
			if pid := innerPID(pid); pid > 0 && len(n.pids) < maxHolders && (len(n.pids) == 0 || n.pids[len(n.pids)-1] != pid) {
				n.pids = append(n.pids, pid)
			}
			out[idOf(&st)] = n
		}
	}
	return out
}
