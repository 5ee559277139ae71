// SPDX-License-Identifier: Apache-2.0

//go:build vm

package dhcp_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/cmd/guestd/dhcp"
	"github.com/petri-sandbox/petri/sandboxd/capture"
	"github.com/petri-sandbox/petri/sandboxd/internet"
)

// TestConfigure does what guestd does, with a real kernel and sandboxd's
// switch: in a network namespace of its own, whose only cable is a TAP device
// that the switch is on. The namespace is that of another process of this test.
func TestConfigure(t *testing.T) {
	if os.Getenv(insideVar) == "" {
		outside(t)
		return
	}
	tap, err := openTAP("eth0")
	if err != nil {
		t.Fatalf("make a TAP device: %v (the test needs /dev/net/tun, for its user too: modprobe tun, chmod 666 /dev/net/tun)", err)
	}
	leasing := 0 // frames to the DHCP server; the client repeats one that is not answered soon
	n, err := internet.New(internet.Options{Frame: func(_ capture.Direction, _ time.Time, frame []byte, _ int) {
		if len(frame) > 38 && frame[12] == 8 && frame[13] == 0 && frame[23] == unix.IPPROTO_UDP && frame[36] == 0 && frame[37] == 67 {
			leasing++
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- n.Run(ctx, &tapLink{File: tap}) }()
	defer func() {
		cancel()
		if err := <-ran; !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
		// Two leases, ARP and a ping, and nothing that the kernel adds.
		if s := n.Stats(); leasing < 4 || s.Answered != s.In || s.In != uint64(leasing)+2 {
			t.Errorf("stats %+v, %d for leases", s, leasing)
		}
	}()

	limited, stop := context.WithTimeout(ctx, 2*time.Minute)
	defer stop()
	start := time.Now()
	for _, hw := range []string{"52:54:00:01:02:03", "52:54:00:01:02:04"} { // and again, from up
		lease, err := dhcp.Configure(limited, "eth0", hw)
		if err != nil || !reflect.DeepEqual(lease, wantLease) {
			t.Fatalf("lease %+v, %v", lease, err)
		}
		t.Logf("configured after %s", time.Since(start))
		iface, err := net.InterfaceByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		addrs, err := iface.Addrs()
		if err != nil || len(addrs) != 1 || addrs[0].String() != "10.0.2.15/24" {
			t.Errorf("addresses %v, %v", addrs, err)
		}
		if iface.HardwareAddr.String() != hw || iface.Flags&(net.FlagUp|net.FlagRunning) != net.FlagUp|net.FlagRunning {
			t.Errorf("interface %+v", iface)
		}
	}
	lo, err := net.InterfaceByName("lo")
	if err != nil || lo.Flags&net.FlagUp == 0 {
		t.Errorf("loopback %+v, %v", lo, err)
	}
	routes, err := os.ReadFile("/proc/self/net/route")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"eth0 00000000 0202000A 0003", "eth0 0002000A 00000000 0001"}; !slices.Equal(fields(string(routes)), want) {
		t.Errorf("routes %q, want %q", fields(string(routes)), want)
	}
	if off, err := os.ReadFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6"); err == nil && string(off) != "1\n" {
		t.Errorf("disable_ipv6 is %q", off)
	}
	ping(t)

	if _, err := dhcp.Configure(limited, "eth7", "52:54:00:01:02:03"); err == nil || !strings.Contains(err.Error(), "eth7") {
		t.Errorf("missing interface: %v", err)
	}
	for _, hw := range []string{"", "ff:ff:ff:ff:ff:ff"} {
		if _, err := dhcp.Configure(limited, "eth0", hw); err == nil {
			t.Errorf("address %q: no error", hw)
		}
	}
}

// insideVar is set for the process in the namespace.
const insideVar = "PETRI_TEST_INSIDE_NAMESPACE"

// outside runs this test in a namespace, and a user namespace if need be.
func outside(t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), insideVar+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in a network namespace, which root may make, or anybody where users have namespaces: %v\n%s", err, out)
	}
}

// ping asks the gateway for an echo, for which the kernel first needs ARP.
func ping(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		t.Fatal(err)
	}
	request := []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0} // with its checksum
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrInet4{Addr: [4]byte{10, 0, 2, 2}}); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := unix.Read(fd, b)
	if err != nil || n != 28 || string(b[20:n]) != "\x00\x00\xff\xff\x00\x00\x00\x00" {
		t.Errorf("answer to the ping: % x, %v", b[:max(n, 0)], err)
	}
}

// fields are the routes' interface, destination, gateway and flags.
func fields(table string) (out []string) {
	for _, line := range strings.Split(strings.TrimSpace(table), "\n")[1:] {
		out = append(out, strings.Join(strings.Fields(line)[:4], " "))
	}
	return out
}

func openTAP(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "tap"), nil
}

// A tapLink speaks QEMU's framing for a TAP device, which gives a frame each
// read and takes one each write.
type tapLink struct {
	*os.File
	rest []byte
}

func (l *tapLink) Read(p []byte) (int, error) {
	if len(l.rest) == 0 {
		frame := make([]byte, 4+internet.MaxFrame)
		n, err := l.File.Read(frame[4:])
		if err != nil {
			return 0, err
		}
		binary.BigEndian.PutUint32(frame, uint32(n))
		l.rest = frame[:4+n]
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

func (l *tapLink) Write(p []byte) (int, error) {
	if _, err := l.File.Write(p[4:]); err != nil {
		return 0, err
	}
	return len(p), nil
}

var _ io.ReadWriteCloser = (*tapLink)(nil)
