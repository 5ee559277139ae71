// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/sandboxd/machine"
)

// take makes the guest another machine than all that were restored from the
// same snapshot: clock, random numbers, names, uptime and process numbers.
// The MAC changes with the network.
func (a *agent) take(id machine.Identity) error {
	// The boot id is made from the random generator when somebody first reads
	// it, so new entropy before that is a new boot id.
	if err := addEntropy(id.Entropy); err != nil {
		return fmt.Errorf("add entropy: %w", err)
	}
	if !id.Time.IsZero() {
		ts := unix.NsecToTimespec(id.Time.UnixNano())
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
			return fmt.Errorf("set the clock: %w", err)
		}
	}
	err := a.box.do(func() error {
		if err := unix.Sethostname([]byte(id.Hostname)); err != nil {
			return fmt.Errorf("set the host name: %w", err)
		}
		for path, text := range map[string]string{
			"/etc/hostname":   id.Hostname + "\n",
			"/etc/hosts":      "127.0.0.1\tlocalhost\n127.0.1.1\t" + id.Hostname + "\n",
			"/etc/machine-id": id.MachineID + "\n",
		} {
			if err := a.ownFile(path, []byte(text), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	// The init makes it, empty, when it first reaps a process that lost its
	// parent: no doing of the sample's.
	a.remember("/var/run/utmp", nil)
	if err := a.box.age(id.Uptime.D()); err != nil {
		return fmt.Errorf("date the mounts: %w", err)
	}
	if err := a.countPIDsFrom(id.FirstPID); err != nil {
		return fmt.Errorf("set the first process number: %w", err)
	}
	if err := a.box.shiftUptime(id.Uptime.D()); err != nil {
		return fmt.Errorf("shift the uptime: %w", err)
	}
	return nil
}

// ownFile writes a file inside the container and remembers that it was not
// the sample who did.
func (a *agent) ownFile(path string, b []byte, mode os.FileMode) error {
	if err := os.WriteFile(path, b, mode); err != nil {
		return err
	}
	if err := os.Chmod(path, mode); err != nil {
		return err
	}
	a.remember(path, b)
	return nil
}

// addEntropy credits b to the kernel's generator and reseeds it (random(4),
// RNDADDENTROPY and RNDRESEEDCRNG).
func addEntropy(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// struct rand_pool_info { int entropy_count; int buf_size; __u32 buf[]; }
	info := binary.NativeEndian.AppendUint32(nil, uint32(len(b)*8))
	info = binary.NativeEndian.AppendUint32(info, uint32(len(b)))
	info = append(info, b...)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info[0]))); errno != 0 {
		return errno
	}
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), unix.RNDRESEEDCRNG, 0); errno != 0 {
		return errno
	}
	return nil
}

// shiftUptime gives what runs in the container from now on a time namespace in
// which the machine has been up for longer (time_namespaces(7)). Not every CPU's
// kernel has those: there the uptime stays what it is (docs/guests.md).
func (c *container) shiftUptime(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	err := c.do(func() error { return unix.Unshare(unix.CLONE_NEWTIME) })
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return err
	}
	// From outside: the container's /proc does not show the agent's thread.
	var text string
	for _, clock := range []struct {
		name string
		id   int32
	}{{"monotonic", unix.CLOCK_MONOTONIC}, {"boottime", unix.CLOCK_BOOTTIME}} {
		var now unix.Timespec
		if err := unix.ClockGettime(clock.id, &now); err != nil {
			return err
		}
		offset := unix.NsecToTimespec(int64(d))
		// How long the template had been up must not show.
		text += fmt.Sprintf("%s %d 0\n", clock.name, int64(offset.Sec)-int64(now.Sec))
	}
	return os.WriteFile(fmt.Sprintf("/proc/%d/timens_offsets", c.tid), []byte(text), 0)
}

// age dates what the kernel dated when the template was made, and by which all
// machines of a template could be told to be one. A process' directory takes
// no other time than the kernel's: /proc/1 keeps the template's.
func (c *container) age(uptime time.Duration) error {
	boot := time.Now().Add(-uptime).Truncate(time.Second)
	times := []unix.Timeval{unix.NsecToTimeval(boot.UnixNano()), unix.NsecToTimeval(boot.UnixNano())}
	return c.do(func() error {
		for _, p := range []string{"/", "/proc", "/proc/self", "/proc/thread-self", "/sys", "/dev/pts", "/dev/pts/ptmx"} {
			if err := unix.Lutimes(p, times); err != nil {
				return fmt.Errorf("%s: %w", p, err)
			}
		}
		return nil
	})
}

// countPIDsFrom sets the next process number of the container
// (ns_last_pid, https://docs.kernel.org/admin-guide/sysctl/kernel.html).
func (a *agent) countPIDsFrom(pid int) error {
	if pid <= 0 {
		return nil
	}
	return a.box.writeFromChild("/proc/sys/kernel/ns_last_pid", strconv.Itoa(pid-1))
}
