// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a keeper holds at most: descriptors, and bytes of files that have no name
// any more, which take of the room that the sample may fill.
const (
	maxKept      = 1000
	maxKeptBytes = 32 << 20
	maxAway      = 100_000 // files that are remembered after they were let go of
)

// keeper holds what the sample has written open, so that the bytes are there to
// be collected if the sample deletes the file. The kernel tells it of every file
// that was open for writing when it is closed (fanotify(7)), and keeps the file
// until the keeper has its descriptor: nothing is missed between the two.
type keeper struct {
	group *os.File
	done  chan struct{} // closed when the group has ended

	mu    sync.Mutex
	buf   [4096]byte
	files map[fileID]*os.File
	order []fileID // the oldest first
	// away are the files that were let go of while they had a name, by inode: all are
	// the overlay's, which shows its upper directory's number under a device of its
	// own, and a tmpfs uses none twice.
	away  map[uint64]bool
	lost  int  // files that were let go of deleted, or are too many to be remembered
	flood bool // the kernel's queue has overflowed
}

type fileID struct{ dev, ino uint64 }

func idOf(st *unix.Stat_t) fileID { return fileID{uint64(st.Dev), st.Ino} }

// keep starts a keeper of the container's root file system.
func (c *container) keep() (*keeper, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_LARGEFILE|unix.O_CLOEXEC|unix.O_NOATIME)
	if err != nil {
		return nil, fmt.Errorf("watch files: %w", err)
	}
	k := &keeper{group: os.NewFile(uintptr(fd), "fanotify"), done: make(chan struct{}), files: map[fileID]*os.File{}, away: map[uint64]bool{}}
	if err := c.do(func() error {
		return unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_CLOSE_WRITE, unix.AT_FDCWD, "/")
	}); err != nil {
		k.group.Close()
		return nil, fmt.Errorf("watch files: %w", err)
	}
	// Files without any name, memfd_create(2)'s, are on a file system of the
	// kernel's own. Newer kernels refuse to have it watched.
	if mem, err := unix.MemfdCreate("", unix.MFD_CLOEXEC); err == nil {
		_ = unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_CLOSE_WRITE, mem, "")
		unix.Close(mem)
	}
	go k.run()
	return k, nil
}

const eventSize = int(unsafe.Sizeof(unix.FanotifyEventMetadata{}))

func (k *keeper) run() {
	defer close(k.done)
	raw, err := k.group.SyscallConn()
	if err != nil {
		return
	}
	for err == nil {
		err = raw.Read(func(fd uintptr) bool { return k.read(int(fd)) })
	}
}

// read takes what the kernel has to tell, and reports whether it had anything.
// Nothing is between having read it and having taken it.
func (k *keeper) read(fd int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	n, err := unix.Read(fd, k.buf[:])
	if errors.Is(err, unix.EAGAIN) {
		return false
	}
	k.events(k.buf[:max(n, 0)])
	return true
}

// drain takes what the kernel has still to tell. The sample stands still.
func (k *keeper) drain() {
	raw, err := k.group.SyscallConn()
	for more := err == nil; more; {
		if err := raw.Control(func(fd uintptr) { more = k.read(int(fd)) }); err != nil {
			return
		}
	}
}

// events takes records of struct fanotify_event_metadata.
func (k *keeper) events(b []byte) {
	for len(b) >= eventSize {
		size := int(binary.NativeEndian.Uint32(b))
		if size < eventSize || size > len(b) {
			return
		}
		mask, fd := binary.NativeEndian.Uint64(b[8:]), int32(binary.NativeEndian.Uint32(b[16:]))
		b = b[size:]
		if mask&unix.FAN_Q_OVERFLOW != 0 {
			k.flood = true
		}
		if fd >= 0 {
			k.take(os.NewFile(uintptr(fd), ""))
		}
	}
}

// take holds a file that is not held yet.
func (k *keeper) take(f *os.File) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 {
		f.Close()
		return
	}
	id := idOf(&st)
	if _, ok := k.files[id]; ok {
		f.Close()
		return
	}
	k.files[id] = f
	k.order = append(k.order, id)
	if len(k.order) > maxKept {
		k.letGo()
	}
	if n := len(k.order); n < 32 || n%32 == 0 {
		k.shrink()
	}
}

// letGo closes the oldest file.
func (k *keeper) letGo() {
	id := k.order[0]
	var st unix.Stat_t
	err := unix.Fstat(int(k.files[id].Fd()), &st)
	if err == nil && st.Nlink > 0 && len(k.away) < maxAway {
		k.away[id.ino] = true
	} else {
		k.lost++
	}
	k.drop(0)
}

// named notes that a file still has a name: nothing of it is missing.
func (k *keeper) named(ino uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.away, ino)
}

func (k *keeper) drop(i int) {
	id := k.order[i]
	k.files[id].Close()
	delete(k.files, id)
	k.order = append(k.order[:i], k.order[i+1:]...)
}

// shrink lets go of deleted files beyond the bytes that may be held; what was
// written first stays.
func (k *keeper) shrink() {
	var sum int64
	for i := 0; i < len(k.order); {
		var st unix.Stat_t
		err := unix.Fstat(int(k.files[k.order[i]].Fd()), &st)
		if err == nil && st.Nlink == 0 && sum+st.Blocks*512 > maxKeptBytes {
			k.drop(i)
			k.lost++
			continue
		}
		if st.Nlink == 0 {
			sum += st.Blocks * 512
		}
		i++
	}
}

// deleted calls f with each file that has no name any more, the oldest first,
// and returns how many are missing, or may be. It comes after named.
func (k *keeper) deleted(f func(*os.File, *unix.Stat_t) error) (lost int, err error) {
	k.drain()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range k.order {
		file := k.files[id]
		var st unix.Stat_t
		if serr := unix.Fstat(int(file.Fd()), &st); serr != nil || st.Nlink != 0 {
			continue
		}
		if err = errors.Join(err, f(file, &st)); err != nil {
			break
		}
	}
	lost = k.lost + len(k.away)
	if k.flood {
		lost++
	}
	return lost, err
}
