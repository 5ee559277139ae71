// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A server's memory for batches is a directory petri-… in memoryDir. The server
// has it locked for as long as it lives, and memoryLink names the link in the data
// directory that sends batches to it. A server that was killed leaves it to the
// next one on that data directory; if the data directory is gone too it is anybody's
// to sweep.
const (
	memoryPrefix  = "petri-"
	memoryBatches = "batches" // where the batches lie
	memoryLink    = "of"
)

// ownMemory makes a directory for the batches of a link, and locks it before it
// says whose it is: nobody else takes it for left.
func ownMemory(link string) (dir string, lock *os.File, err error) {
	if dir, err = os.MkdirTemp(memoryDir, memoryPrefix); err != nil {
		return "", nil, err
	}
	lock, err = lockMemory(dir, syscall.LOCK_EX) // whoever looks at it is soon done
	if err == nil {
		err = errors.Join(os.Mkdir(filepath.Join(dir, memoryBatches), 0o700), os.Symlink(link, filepath.Join(dir, memoryLink)))
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		if lock != nil {
			lock.Close()
		}
		return "", nil, err
	}
	return dir, lock, nil
}

// memoryOf returns the directory that a link's target is of, or nothing: a link
// is only a file, and could say anything. An older Petri's target is the directory
// itself.
func memoryOf(target string) string {
	if filepath.Base(target) == memoryBatches {
		target = filepath.Dir(target)
	}
	if filepath.Dir(target) != memoryDir || !strings.HasPrefix(filepath.Base(target), memoryPrefix) {
		return ""
	}
	return target
}

// lockMemory locks a directory as flock(2) does.
func lockMemory(dir string, how int) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// hold locks what a server before this one has left, until that is finished.
func hold(all []staging) []staging {
	for i := range all {
		if own := memoryOf(all[i].target); own != "" {
			all[i].held, _ = lockMemory(own, syscall.LOCK_EX|syscall.LOCK_NB)
		}
	}
	return all
}

// A Leftover is memory in which a server that was killed staged batches.
type Leftover struct {
	Dir  string
	Link string // that led to it, and does no more; empty: an older Petri's, which does not say whether it lives
}

// Leftovers returns this user's leftovers that no server on their data directory
// will take away: that is gone, or unknown.
func Leftovers() []Leftover {
	var out []Leftover
	leftovers(func(l Leftover) { out = append(out, l) })
	return out
}

// leftovers calls fn with each while no server can have it.
func leftovers(fn func(Leftover)) {
	dirs, err := filepath.Glob(filepath.Join(memoryDir, memoryPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		lock, err := lockMemory(dir, syscall.LOCK_SH|syscall.LOCK_NB)
		if err != nil { // a server lives, or it is no directory
			continue
		}
		fi, err := lock.Stat()
		if err == nil && ours(fi) {
			if l := (Leftover{Dir: dir, Link: linkOf(dir)}); l.Link == "" || !leads(l) {
				fn(l)
			}
		}
		lock.Close()
	}
}

// ours reports whether a directory is this user's.
func ours(fi os.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

func linkOf(dir string) string {
	link, _ := os.Readlink(filepath.Join(dir, memoryLink))
	return link
}

// leads reports whether the link still leads to the memory.
func leads(l Leftover) bool {
	target, err := os.Readlink(l.Link)
	return err == nil && memoryOf(target) == l.Dir
}

// sweep frees what servers have left whose data directories are gone.
func sweep(log *slog.Logger) {
	leftovers(func(l Leftover) {
		if l.Link == "" {
			return
		}
		if err := os.RemoveAll(l.Dir); err != nil {
			log.Warn("memory of a server that was killed cannot be freed", "dir", l.Dir, "error", err)
			return
		}
		log.Info("memory of a server that was killed is free", "dir", l.Dir, "of", l.Link)
	})
}
