// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package hold stops the sample's processes at the beginning of calls by which
// root can change what records it, until whoever listens has let them go
// (seccomp_unotify(2)). Which calls these are is all that it decides: every call
// goes on in the end, as if nothing had been.
//
// A process shows that it is filtered (Seccomp: 2 in its status). It gains and
// loses no right by it, and cannot put the filter off.
package hold

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/schemas/sysno"
)

// A Call is held.
type Call struct {
	TID    int // of the caller, as this process counts
	ABI    sysno.ABI
	Name   string
	Number uint32
	Args   [6]uint64
}

// A Listener hears of held calls.
type Listener struct{ fd int }

// Install filters the calling thread, which must stay locked to its goroutine,
// and all that descends from it. Some thread must [Listener.Serve] before any of
// them makes such a call.
func Install() (*Listener, error) {
	p := filter(runtime.GOARCH, binary.NativeEndian.Uint16([]byte{0, 1}) == 1)
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	// Once a call is held only what ends the process takes it away: a signal would
	// begin it anew, and the wait too.
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(p)
	if errno != 0 {
		return nil, fmt.Errorf("filter system calls: %w", errno)
	}
	return &Listener{fd: int(fd)}, nil
}

// notification is struct seccomp_notif, and answer struct seccomp_notif_resp.
type notification struct {
	id         uint64
	pid, flags uint32
	number     uint32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type answer struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

// Serve calls f with each held call, one after another, and lets it go when f
// returns. It returns if the kernel breaks off.
func (l *Listener) Serve(f func(Call)) error {
	for {
		var n notification
		err := l.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n))
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT): // it has died meanwhile
			continue
		case err != nil:
			return fmt.Errorf("hear of held calls: %w", err)
		}
		c := Call{TID: int(n.pid), Number: n.number, Args: n.args}
		var ok bool
		if c.ABI, c.Name, ok = name(runtime.GOARCH, n.arch, n.number); !ok {
			c.Name = fmt.Sprintf("%d of ABI %#x", n.number, n.arch)
		}
		f(c)
		a := answer{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if err := l.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("let a held call go: %w", err)
		}
	}
}

func (l *Listener) ioctl(request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(l.fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
