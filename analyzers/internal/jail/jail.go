// SPDX-License-Identifier: Apache-2.0

// Package jail confines the process that an analyzer runs in. The parent
// starts it with [Level.Attr], in namespaces of its own where that is
// permitted; the child calls [Enter] before it looks at anything hostile and
// gives up what it holds: root, memory, CPU time, files, network, and every
// system call that parsing bytes does not take.
//
// It knows nothing of analyzers and starts nothing itself.
package jail

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Nobody is the user and group that a child of root becomes.
const Nobody = 65534

// DefaultProcesses bounds what programs that an analyzer starts can start,
// where nothing is said.
const DefaultProcesses = 4096

// A Level says which namespaces children are started in.
type Level int

// Levels, from the strongest. Which one is permitted depends on the kernel and
// the container around us: try them in this order.
const (
	Namespaces     Level = iota // network, processes and IPC of its own; takes root
	UserNamespaces              // the same, without root
	Plain                       // none; the system-call filter still holds
)

// Levels lists those that this process may try.
func Levels() []Level {
	if os.Geteuid() == 0 {
		return []Level{Namespaces, Plain}
	}
	return []Level{UserNamespaces, Plain}
}

func (l Level) String() string {
	switch l {
	case Namespaces:
		return "network, process and IPC namespaces"
	case UserNamespaces:
		return "user, network, process and IPC namespaces"
	}
	return "no namespaces"
}

// Network reports whether children have a network namespace of their own, with
// nothing in it.
func (l Level) Network() bool { return l != Plain }

// Attr is how to start a child at that level, with the host's network if that is
// asked for. It is killed with the thread
// that started it, which for a goroutine that is not locked to its thread
// means with the process, and leads a process group of its own.
func (l Level) Attr(network bool) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if l == Plain {
		return a
	}
	a.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC
	if !network {
		a.Cloneflags |= syscall.CLONE_NEWNET
	}
	if l == UserNamespaces {
		a.Cloneflags |= syscall.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: Nobody, HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: Nobody, HostID: os.Getegid(), Size: 1}}
	}
	return a
}

// Limits are what a child may use.
type Limits struct {
	Memory int64         // bytes beyond what the program needs to start
	Mapped int64         // bytes of files that it may map besides
	CPU    time.Duration // of all threads together
	Files  uint64        // descriptors
	Exec   bool          // it may open files and start programs, which inherit the limits

	// Of programs that it starts:

	Network   bool   // they may use the network
	Processes uint64 // processes and threads of the user, all jails together; zero: [DefaultProcesses]
}

// Status says what is in force in a child.
type Status struct {
	UID     int  `json:"uid"`
	Root    bool `json:"root"`    // nothing of the file system is left
	Filter  bool `json:"filter"`  // of system calls
	Memory  bool `json:"memory"`  // limited; not under the race detector
	Network bool `json:"network"` // it has no way to any
}

// Enter confines the calling process for good. What it cannot do without
// privileges it leaves out and says so in the status; an error means that it
// is not confined and must not go on.
//
// The race detector maps terabytes, so that under it there is no memory limit.
func Enter(l Limits) (Status, error) {
	s := Status{}
	// Some calls are about one thread. The death signal stays with that of this
	// one, which Go does not end.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0) // if memory runs out after all, the host loses us first
	if err := setLimits(l, &s); err != nil {
		return s, err
	}
	if os.Geteuid() == 0 {
		if !l.Exec {
			if err := errors.Join(syscall.Chroot("."), syscall.Chdir("/")); err != nil {
				return s, fmt.Errorf("change root to the empty directory: %w", err)
			}
			s.Root = true
		}
		if err := drop(); err != nil {
			return s, err
		}
	}
	s.UID = os.Getuid()
	// A change of credentials clears the death signal.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return s, fmt.Errorf("set death signal: %w", err)
	}
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // no core, and no peer may trace us
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return s, fmt.Errorf("give up new privileges: %w", err)
	}
	var err error
	if s.Filter, err = filter(l.Exec, l.Network); err != nil {
		return s, fmt.Errorf("filter system calls: %w", err)
	}
	s.Network = s.Filter && !l.Network
	return s, nil
}

func drop() error {
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("drop groups: %w", err)
	}
	if err := syscall.Setresgid(Nobody, Nobody, Nobody); err != nil {
		return fmt.Errorf("drop group: %w", err)
	}
	if err := syscall.Setresuid(Nobody, Nobody, Nobody); err != nil {
		return fmt.Errorf("drop user: %w", err)
	}
	return nil
}

func setLimits(l Limits, s *Status) error {
	type limit struct {
		what  string
		res   int
		value uint64
	}
	cpu := uint64(max(1, math.Ceil(l.CPU.Seconds())))
	limits := []limit{
		{"core size", syscall.RLIMIT_CORE, 0},
		{"open files", syscall.RLIMIT_NOFILE, l.Files},
		{"CPU time", syscall.RLIMIT_CPU, cpu},
		{"file size", syscall.RLIMIT_FSIZE, 0},
		{"locked memory", unix.RLIMIT_MEMLOCK, 0},
		{"message queues", unix.RLIMIT_MSGQUEUE, 0},
	}
	if l.Exec {
		n := l.Processes
		if n == 0 {
			n = DefaultProcesses
		}
		limits = append(limits, limit{"processes", unix.RLIMIT_NPROC, n}) // of the user, all jails together
	}
	if !raceEnabled {
		size, data, err := memory()
		if err != nil {
			return err
		}
		// Go reserves more than a gigabyte of addresses that it never touches.
		// RLIMIT_DATA does not count those, and counts all private memory that
		// is writable; RLIMIT_AS bounds shared memory besides.
		limits = append(limits,
			limit{"memory", syscall.RLIMIT_DATA, uint64(data + l.Memory)},
			limit{"address space", syscall.RLIMIT_AS, uint64(size + l.Memory + l.Mapped + 256<<20)})
		s.Memory = true
		debug.SetMemoryLimit(l.Memory - l.Memory/8) // collect harder before it is too late
	}
	for _, x := range limits {
		r := syscall.Rlimit{Cur: x.value, Max: x.value}
		if x.res == syscall.RLIMIT_CPU {
			r.Max++ // SIGXCPU, whose effect tells what it was, before SIGKILL
		}
		var now syscall.Rlimit
		if err := syscall.Getrlimit(x.res, &now); err == nil && now.Max < r.Max {
			r = syscall.Rlimit{Cur: min(r.Cur, now.Max), Max: now.Max}
		}
		if err := syscall.Setrlimit(x.res, &r); err != nil {
			return fmt.Errorf("limit %s: %w", x.what, err)
		}
	}
	return nil
}

// memory returns how much address space and how much writable private memory
// the process has.
func memory() (size, data int64, err error) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, 0, fmt.Errorf("read memory size: %w", err)
	}
	f := strings.Fields(string(b))
	if len(f) < 6 {
		return 0, 0, fmt.Errorf("read memory size: %q has too few fields", b)
	}
	size, err1 := strconv.ParseInt(f[0], 10, 64)
	data, err2 := strconv.ParseInt(f[5], 10, 64)
	page := int64(os.Getpagesize())
	return size * page, data * page, errors.Join(err1, err2)
}

// Threads bounds how many threads of the process run at once.
func Threads(n int) { runtime.GOMAXPROCS(max(1, n)) }

// Shrink bounds the private memory of a process that this one has started to
// bytes in all: it has inherited what was reckoned for a larger program. What it
// has already it keeps.
func Shrink(pid int, bytes int64) {
	if !raceEnabled {
		// A process that has ended needs no limit.
		_ = unix.Prlimit(pid, syscall.RLIMIT_DATA, &unix.Rlimit{Cur: uint64(bytes), Max: uint64(bytes)}, nil)
	}
}
