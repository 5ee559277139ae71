// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/cmd/guestd/dhcp"
	"github.com/petri-sandbox/petri/sandboxd/guest"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/wire"
	"github.com/petri-sandbox/petri/schemas"
)

// agent answers the host.
type agent struct {
	box       *container
	conn      *wire.Conn
	tracer    recorder  // nil: nothing is traced
	devices   link.Link // refuses memory and the port to the sample; nil: noDevices says why
	noDevices error
	noTracer  error // why, or why it is not the one by BPF programs

	mu       sync.Mutex
	own      map[string]schemas.Digest // files in the container that we wrote
	ran      bool
	followed bool    // what the agent executes in the container is recorded
	kept     *keeper // nil: the sample has not started
	killed   int64   // processes of the sample that the kernel killed for memory, as told
	mac      string
	endTrace func()   // ends the trace's stream; nil: there is none
	records  uint64   // of the trace that have been sent
	console  *console // nil: the sample has not started
	holds    map[string]int
	watched  chan struct{} // closed when the sample's end has been told; nil: it has not run
}

// remember notes that path holds b because we wrote it.
func (a *agent) remember(path string, b []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.own == nil {
		a.own = map[string]schemas.Digest{}
	}
	a.own[path] = schemas.Sum(b)
}

// serve announces the guest and answers until the link ends.
func (a *agent) serve(ctx context.Context, p *port) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	// Reading a type for the first time takes long: a warm guest has it behind it.
	if err := json.Unmarshal([]byte("{}"), new(guest.Assign)); err != nil {
		return err
	}
	a.conn = wire.NewConn(p, wire.Handler{Request: a.request})
	hello := guest.Hello{
		Version: wire.Version, Arch: runtime.GOARCH,
		Kernel: unix.ByteSliceToString(uts.Release[:]), Tracer: a.tracing(),
	}
	go func() { _ = a.conn.Notify(guest.EventHello, hello) }()
	if l := a.box.held; l != nil {
		go func() {
			if err := l.Serve(a.hold); err != nil {
				a.fault("the sample's calls that may be tampering are not held any more: %v", err)
			}
		}()
	}
	return a.conn.Run(ctx)
}

// fault tells the host about trouble that costs coverage.
func (a *agent) fault(format string, args ...any) {
	_ = a.conn.Notify(guest.EventFault, guest.Fault{Text: fmt.Sprintf(format, args...)})
}

func (a *agent) request(ctx context.Context, name string, params json.RawMessage) (any, error) {
	switch name {
	case guest.ReqPing:
		return nil, nil
	case guest.ReqAssign:
		return answer(params, func(p guest.Assign) (any, error) {
			a.mu.Lock()
			a.mac = p.MAC
			a.mu.Unlock()
			if p.TraceStream {
				if err := a.startTrace(); err != nil {
					return nil, err
				}
			}
			return nil, a.take(p.Identity)
		})
	case guest.ReqNetwork:
		return a.network(ctx)
	case guest.ReqRun:
		return answer(params, a.run)
	case guest.ReqExec:
		return answer(params, func(p machine.Exec) (any, error) { return a.exec(ctx, p) })
	case guest.ReqCollect:
		return answer(params, a.collect)
	case guest.ReqFlush:
		a.mu.Lock()
		traced := a.endTrace != nil
		a.mu.Unlock()
		if !traced {
			return nil, nil
		}
		return nil, a.tracer.Flush(ctx)
	case guest.ReqPoweroff:
		a.shutDown(ctx)
		return nil, unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	return nil, fmt.Errorf("guestd knows no request %q", name)
}

// answer decodes a request's parameters and calls f with them.
func answer[P any](params json.RawMessage, f func(P) (any, error)) (any, error) {
	var p P
	if err := json.Unmarshal(params, &p); err != nil {
		return nil, fmt.Errorf("read parameters: %w", err)
	}
	out, err := f(p)
	return out, withErrno(err)
}

// withErrno lets the host see which system call error is behind err.
func withErrno(err error) error {
	var errno syscall.Errno
	if err != nil && errors.As(err, &errno) {
		return &wire.Error{Text: err.Error(), Errno: unix.ErrnoName(errno)}
	}
	return err
}

// interfaceName is the guest's only network card.
const interfaceName = "eth0"

// network takes on the MAC and asks for an address.
func (a *agent) network(ctx context.Context) (any, error) {
	a.mu.Lock()
	mac := a.mac
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	l, err := dhcp.Configure(ctx, interfaceName, mac)
	if err != nil {
		return nil, withErrno(err)
	}
	var dns strings.Builder
	for _, d := range l.DNS {
		fmt.Fprintf(&dns, "nameserver %s\n", d)
	}
	err = a.box.do(func() error { return a.ownFile("/etc/resolv.conf", []byte(dns.String()), 0o644) })
	return guest.Lease{Address: l.Address.Addr().String(), MAC: mac}, err
}
