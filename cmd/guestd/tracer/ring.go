// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tracer

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A ring reads a BPF ring buffer (kernel/bpf/ringbuf.c). The library's reader
// takes the positions for 64 bits, but they are the kernel's longs; and it wakes
// for every record.
type ring struct {
	fd       int
	consumer []byte // one page: the position that we have read to
	producer []byte // one page with the position written to, then the data twice
	data     []byte
	mask     uintptr
	epoll    int
	wake     int // eventfd
}

const (
	ringBusy    = 1 << 31
	ringDiscard = 1 << 30
	ringHeader  = 8
)

func newRing(m *ebpf.Map) (*ring, error) {
	if m == nil {
		return nil, errors.New("open BPF ring: the object has none")
	}
	r := &ring{fd: m.FD(), mask: uintptr(m.MaxEntries()) - 1, epoll: -1, wake: -1}
	if err := r.open(int(m.MaxEntries())); err != nil {
		return nil, errors.Join(fmt.Errorf("open BPF ring: %w", err), r.close())
	}
	return r, nil
}

func (r *ring) open(size int) (err error) {
	if r.consumer, err = unix.Mmap(r.fd, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return err
	}
	if r.producer, err = unix.Mmap(r.fd, int64(pageSize), pageSize+2*size, unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return err
	}
	r.data = r.producer[pageSize:]
	if r.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return err
	}
	if r.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	// Edge-triggered: only the programs' wake-up counts, not that there is data,
	// or else a busy sample would make us read it record by record.
	for _, fd := range []int{r.fd, r.wake} {
		ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)}
		if err = unix.EpollCtl(r.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
			return err
		}
	}
	return nil
}

func (r *ring) close() error {
	var errs []error
	for _, m := range [][]byte{r.consumer, r.producer} {
		if m != nil {
			errs = append(errs, unix.Munmap(m))
		}
	}
	for _, fd := range []int{r.epoll, r.wake} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// wait returns when the programs or interrupt wake it, or after the time.
func (r *ring) wait(limit time.Duration) error {
	var ev [2]unix.EpollEvent
	_, err := unix.EpollWait(r.epoll, ev[:], int(limit.Milliseconds()))
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}

// interrupt wakes whoever waits.
func (r *ring) interrupt() {
	_, _ = unix.Write(r.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // any 64 bits but 0 and all ones
}

func (r *ring) positions() (consumer, producer *uintptr) {
	return (*uintptr)(unsafe.Pointer(&r.consumer[0])), (*uintptr)(unsafe.Pointer(&r.producer[0]))
}

// empty reports whether there is nothing to read.
func (r *ring) empty() bool {
	c, p := r.positions()
	return atomic.LoadUintptr(c) == atomic.LoadUintptr(p)
}

// read hands what is in the ring now to f, piece by piece, until f fails. The
// bytes are f's for the time of the call.
func (r *ring) read(f func(b []byte) error) error {
	consumer, producer := r.positions()
	pos, end := atomic.LoadUintptr(consumer), atomic.LoadUintptr(producer)
	for pos != end {
		off := pos & r.mask
		head := atomic.LoadUint32((*uint32)(unsafe.Pointer(&r.data[off])))
		if head&ringBusy != 0 {
			return nil // it is being written
		}
		n := uintptr(head &^ ringDiscard)
		var err error
		if head&ringDiscard == 0 {
			err = f(r.data[off+ringHeader : off+ringHeader+n])
		}
		pos += (ringHeader + n + 7) &^ 7
		atomic.StoreUintptr(consumer, pos)
		if err != nil {
			return err
		}
	}
	return nil
}
