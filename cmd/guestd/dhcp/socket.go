// SPDX-License-Identifier: Apache-2.0

//go:build linux

package dhcp

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/sandboxd/internet/dhcp4"
)

// A socket is a [Conn]. It is an ordinary UDP socket: bound to the interface,
// Linux sends a limited broadcast from 0.0.0.0 and delivers one, although the
// interface has no address. The client asks for broadcast replies for that
// reason. Thus it needs no AF_PACKET, which a small kernel may lack.
type socket struct {
	*os.File
}

func listen(name string) (socket, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return socket{}, os.NewSyscallError("socket", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
		unix.BindToDevice(fd, name),
		unix.Bind(fd, &unix.SockaddrInet4{Port: dhcp4.ClientPort}),
	)
	if err != nil {
		unix.Close(fd)
		return socket{}, err
	}
	return socket{os.NewFile(uintptr(fd), "dhcp")}, nil
}

// Write sends p to every server.
func (s socket) Write(p []byte) (int, error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return 0, err
	}
	to := &unix.SockaddrInet4{Port: dhcp4.ServerPort, Addr: [4]byte{255, 255, 255, 255}}
	var sendErr error
	err = raw.Control(func(fd uintptr) { sendErr = unix.Sendto(int(fd), p, 0, to) })
	if err = errors.Join(err, sendErr); err != nil {
		return 0, err
	}
	return len(p), nil
}

// transient reports whether an error of Write may be gone at the next try: the
// queue is full, or the link is not quite up.
func transient(err error) bool {
	for _, e := range []error{unix.EAGAIN, unix.ENOBUFS, unix.ENETDOWN, unix.ENETUNREACH} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// disableIPv6 switches IPv6 off on the interface, if the kernel has it.
func disableIPv6(name string) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", name, "disable_ipv6"), []byte("1\n"), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
