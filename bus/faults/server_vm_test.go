// SPDX-License-Identifier: Apache-2.0

//go:build vm

package faults_test

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/petri-sandbox/petri/bus"
)

// TestKillServer kills the only server under eight writers.
func TestKillServer(t *testing.T) {
	w := single(t, t.TempDir())
	kills := rounds(2, 8)
	l, ids := publishing(t, w, 8, func() {
		for range kills {
			time.Sleep(time.Second)
			w.servers[0].kill()
			w.servers[0] = w.restart(0)
		}
		time.Sleep(time.Second)
	})
	lost, doubled := l.audit(t, w.b, ids)
	record(t, row{what: fmt.Sprintf("kill -9 of the server, %d times", kills), acked: len(l.acked), lost: lost, doubled: doubled,
		note: "longest pause " + l.gap.Round(10*time.Millisecond).String()})
}

// trio is a world of three servers, whose routes lead through the test, so that
// it can cut them.
func trio(t testing.TB) (*world, *wires) {
	t.Helper()
	base := t.TempDir()
	var names, client, routes []string
	for i := range 3 {
		names = append(names, fmt.Sprint("n", i))
		client, routes = append(client, freePort(t)), append(routes, freePort(t))
	}
	x := &wires{cut: map[int]bool{}}
	args := make([][]string, 3)
	for i := range args {
		args[i] = []string{names[i], filepath.Join(base, strconv.Itoa(i)), client[i], routes[i]}
		for j := range 3 {
			if i != j {
				args[i] = append(args[i], "nats://"+x.wire(t, i, j, "127.0.0.1:"+routes[j]))
			}
		}
	}
	w := &world{t: t, names: names}
	w.restart = func(i int) *process { return spawn(t, "node", args[i]...) }
	w.servers = make([]*process, 3)
	var wg sync.WaitGroup
	for i := range w.servers {
		wg.Go(func() { w.servers[i] = w.restart(i) })
	}
	wg.Wait()
	w.addr = bus.Address{URL: "nats://127.0.0.1:" + strings.Join(client, ",nats://127.0.0.1:")}
	w.b = connect(t, w.addr)
	end := time.Now().Add(time.Minute)
	for {
		err := w.b.Reconcile(t.Context(), bus.Limits{Replicas: 3, Log: 1 << 30, Store: 1 << 30})
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	for _, port := range client {
		w.clients = append(w.clients, connect(t, bus.Address{URL: "nats://127.0.0.1:" + port}))
	}
	return w, x
}

// serveNode is one server of a cluster.
func serveNode(args []string) error {
	port := func(s string) int {
		n, _ := strconv.Atoi(s)
		return n
	}
	var routes []*url.URL
	for _, r := range args[4:] {
		u, err := url.Parse(r)
		if err != nil {
			return err
		}
		routes = append(routes, u)
	}
	s, err := server.NewServer(&server.Options{
		ServerName: args[0], Host: "127.0.0.1", Port: port(args[2]), NoSigs: true, NoLog: true, MaxPayload: 4 << 20,
		JetStream: true, StoreDir: args[1], SyncAlways: true, JetStreamMaxStore: 1 << 50, JetStreamMaxMemory: 256 << 20,
		// The others are only told of the wires.
		Cluster: server.ClusterOpts{Name: "faults", Host: "127.0.0.1", Port: port(args[3]), NoAdvertise: true}, Routes: routes,
	})
	if err != nil {
		return err
	}
	s.Start()
	if !s.ReadyForConnections(30 * time.Second) {
		return fmt.Errorf("not ready")
	}
	sayReady()
	select {}
}

// leader is the number of the server that leads the log.
func (w *world) leader() int {
	w.t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		st, err := w.b.JetStream().Stream(w.t.Context(), "LOG")
		if err != nil || st.CachedInfo().Cluster == nil {
			continue
		}
		if n := slices.Index(w.names, st.CachedInfo().Cluster.Leader); n >= 0 {
			return n
		}
	}
	w.t.Fatal("the log has no leader")
	return 0
}

// TestKillLeader kills the server that leads the log, of three.
func TestKillLeader(t *testing.T) {
	w, _ := trio(t)
	kills := rounds(1, 5)
	l, ids := publishing(t, w, 8, func() {
		for range kills {
			time.Sleep(2 * time.Second)
			n := w.leader()
			w.servers[n].kill()
			time.Sleep(8 * time.Second)
			w.servers[n] = w.restart(n)
		}
		time.Sleep(3 * time.Second)
	})
	lost, doubled := l.audit(t, w.b, ids)
	record(t, row{what: fmt.Sprintf("kill -9 of the leader of three servers, %d times", kills), acked: len(l.acked), lost: lost, doubled: doubled,
		note: "longest pause " + l.gap.Round(10*time.Millisecond).String()})
	if limit := 15 * time.Second; l.gap > limit {
		t.Errorf("nothing was acknowledged for %s", l.gap)
	}
}

// TestPartition cuts the leader of three servers off from the other two, and
// later puts it back. For a moment there are two then, of which the old one
// refuses what the new one stores: no writer may take itself for overtaken.
func TestPartition(t *testing.T) {
	w, x := trio(t)
	cuts := rounds(1, 3)
	l, ids := publishing(t, w, 8, func() {
		for range cuts {
			time.Sleep(2 * time.Second)
			n := w.leader()
			x.isolate(n, true)
			time.Sleep(12 * time.Second)
			x.isolate(n, false)
			time.Sleep(5 * time.Second)
		}
	})
	lost, doubled := l.audit(t, w.b, ids)
	record(t, row{what: fmt.Sprintf("the leader of three servers cut off, %d times", cuts), acked: len(l.acked), lost: lost, doubled: doubled,
		note: "longest pause " + l.gap.Round(10*time.Millisecond).String()})
}

// wires are the routes between servers.
type wires struct {
	mu    sync.Mutex
	cut   map[int]bool // servers that nobody reaches, and who reach nobody
	conns []wired
}

type wired struct {
	from, to int
	conn     net.Conn
}

// wire listens for server from and connects it to another.
func (x *wires) wire(t testing.TB, from, to int, addr string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d, err := net.Dial("tcp", addr)
			if err != nil || !x.add(from, to, c, d) {
				c.Close()
				if err == nil {
					d.Close()
				}
				continue
			}
			pass := func(a, b net.Conn) {
				_, _ = io.Copy(a, b)
				a.Close()
				b.Close()
			}
			go pass(c, d)
			go pass(d, c)
		}
	}()
	return l.Addr().String()
}

func (x *wires) add(from, to int, conns ...net.Conn) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.cut[from] || x.cut[to] {
		return false
	}
	for _, c := range conns {
		x.conns = append(x.conns, wired{from, to, c})
	}
	return true
}

func (x *wires) isolate(n int, cut bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.cut[n] = cut
	for _, c := range x.conns {
		if cut && (c.from == n || c.to == n) {
			c.conn.Close()
		}
	}
}

// TestPowerCut takes a server's power: what its disk holds at that moment is
// copied as it lies there, without what the kernel still has in memory, and a
// server is started on the copy.
func TestPowerCut(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("the test mounts file systems: run it as root")
	}
	dir := t.TempDir()
	disk, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	sh(t, "truncate", "-s", "1G", disk)
	sh(t, "mkfs.ext4", "-q", disk)
	mount(t, disk, mnt)
	w := single(t, filepath.Join(mnt, "data"))
	l, ids := publishing(t, w, 4, func() {
		time.Sleep(time.Duration(rounds(3, 20)) * time.Second)
		w.servers[0].signal(syscall.SIGSTOP)
		after, mnt2 := filepath.Join(dir, "after"), filepath.Join(dir, "mnt2")
		sh(t, "cp", "--sparse=always", disk, after)
		w.servers[0].kill()
		mount(t, after, mnt2)
		w.servers[0] = spawn(t, "server", filepath.Join(mnt2, "data"), w.listen)
		time.Sleep(time.Second)
	})
	lost, doubled := l.audit(t, w.b, ids)
	record(t, row{what: "power cut", acked: len(l.acked), lost: lost, doubled: doubled})
}

func mount(t testing.TB, disk, mnt string) {
	t.Helper()
	if err := os.MkdirAll(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	sh(t, "mount", "-o", "loop", disk, mnt)
	t.Cleanup(func() { _ = exec.Command("umount", "-l", mnt).Run() })
}

func sh(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}
