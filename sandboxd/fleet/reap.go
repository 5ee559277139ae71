// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/sandboxd/machine/qemu"
)

// reapTime is how long processes that were killed may take to end.
const reapTime = 30 * time.Second

// Reap ends every process that carries this sandbox' mark: supervisors and
// QEMUs that outlived a sandboxd that was killed. It must run before the first
// machine. It returns how many there were.
//
// A stranger's process that bears the arguments of one of ours is taken for
// one, as far as we may end it.
func (f *Fleet) Reap() (int, error) {
	deadline := time.Now().Add(reapTime)
	n := 0
	for {
		ended, err := f.reap(deadline)
		n += ended
		if err != nil {
			return n, err
		}
		if ended == 0 {
			f.reapedOne.Do(func() { close(f.reaped) })
			return n, nil
		}
	}
}

// reap ends those that there are now: a supervisor may be starting a QEMU.
func (f *Fleet) reap(deadline time.Time) (int, error) {
	pids, err := processes()
	if err != nil {
		return 0, err
	}
	found := map[int]int{} // descriptors, by the process' number
	defer func() {
		for _, fd := range found {
			unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		fd, err := f.open(pid)
		if err != nil {
			return 0, fmt.Errorf("open process %d of a dead sandbox: %w", pid, err)
		}
		if fd >= 0 {
			found[pid] = fd
		}
	}
	for pid, fd := range found {
		err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		if errors.Is(err, unix.EPERM) { // another user's
			unix.Close(fd)
			delete(found, pid)
		} else if err != nil && !errors.Is(err, unix.ESRCH) {
			return 0, fmt.Errorf("end process %d of a dead sandbox: %w", pid, err)
		}
	}
	for pid, fd := range found {
		if err := awaitEnd(fd, deadline); err != nil {
			return 0, fmt.Errorf("end process %d of a dead sandbox: %w", pid, err)
		}
	}
	return len(found), nil
}

// open returns a descriptor of a process of ours, or -1.
func (f *Fleet) open(pid int) (int, error) {
	if !f.marked(pid) {
		return -1, nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	// The number may have become another's before the descriptor was open. What
	// is told of the number now is told of the descriptor's process, or of one
	// that came after its end.
	if !f.marked(pid) {
		unix.Close(fd)
		return -1, nil
	}
	return fd, nil
}

// awaitEnd returns when a process has ended.
func awaitEnd(fd int, deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("it does not end within %v", reapTime)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
	}
}

// marked reports whether a process is a supervisor or a QEMU of this sandbox,
// as its arguments tell. One that has ended has none.
func (f *Fleet) marked(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return false
	}
	args := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
	mark := markPrefix(f.opts.ID)
	return f.opts.Supervisor.Marked(args, mark) || qemu.Marked(args, mark)
}

// processes lists the numbers of all processes but ours.
func processes() ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, d := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(d)); err == nil && pid != os.Getpid() {
			out = append(out, pid)
		}
	}
	return out, nil
}
