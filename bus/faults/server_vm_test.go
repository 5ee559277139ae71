// SPDX-License-Identifier: Apache-2.0

//go:build vm

package faults_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
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
	"github.com/petri-sandbox/petri/bus/faults"
)

// TestKillServer kills the only server under eight writers.
func TestKillServer(t *testing.T) {
	w := single(t, t.TempDir())
	kills := rounds(2, 8)
	l := publishing(t, w, 8, func(l *ledger) {
		for range kills {
			l.more(t, 500, 4*time.Minute)
			w.servers[0].murder(t)
			w.servers[0] = w.restart(0)
		}
		l.more(t, 500, 4*time.Minute)
	})
	faults.Account(t.Context(), t, w.b.JetStream(), fmt.Sprintf("%d kills, %s", kills, l.pause()), &l.Books)
}

// trio is a world of three servers, whose routes lead through the test, so that
// it can cut them.
func trio(t testing.TB) (*world, *wires) {
	t.Helper()
	base := t.TempDir()
	return trioOn(t, func(i int) string { return filepath.Join(base, strconv.Itoa(i)) })
}

// trioOn is trio on directories, of which each is asked for whenever its server is
// started.
func trioOn(t testing.TB, dir func(i int) string) (*world, *wires) {
	t.Helper()
	var names, client, routes, monitors []string
	for i := range 3 {
		names = append(names, fmt.Sprint("n", i))
		client, routes, monitors = append(client, faults.FreePort(t)), append(routes, faults.FreePort(t)), append(monitors, faults.FreePort(t))
	}
	x := &wires{cut: map[int]bool{}, held: map[way]int{}}
	x.freed = sync.NewCond(&x.mu)
	t.Cleanup(x.free)
	args := make([][]string, 3)
	for i := range args {
		args[i] = []string{names[i], "", client[i], routes[i], monitors[i]}
		for j := range 3 {
			if i != j {
				args[i] = append(args[i], "nats://"+x.wire(t, i, j, "127.0.0.1:"+routes[j]))
			}
		}
	}
	w := &world{t: t, names: names}
	w.restart = func(i int) *process {
		args := slices.Clone(args[i])
		args[1] = dir(i)
		return spawn(t, "node", args...)
	}
	w.routed = func(i int) map[string]bool { return routed(monitors[i]) }
	w.servers = make([]*process, 3)
	var wg sync.WaitGroup
	for i := range w.servers {
		wg.Go(func() { w.servers[i] = w.restart(i) })
	}
	wg.Wait()
	w.addr = bus.Address{URL: "nats://127.0.0.1:" + strings.Join(client, ",nats://127.0.0.1:")}
	w.b = connect(t, w.addr)
	end := time.Now().Add(4 * time.Minute)
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

// routed are the servers to which a server has a route, as it says on its monitor.
func routed(monitor string) map[string]bool {
	client := http.Client{Timeout: 2 * time.Second}
	r, err := client.Get("http://127.0.0.1:" + monitor + "/routez")
	if err != nil {
		return nil
	}
	defer r.Body.Close()
	var routes server.Routez
	if json.NewDecoder(r.Body).Decode(&routes) != nil {
		return nil
	}
	out := map[string]bool{}
	for _, r := range routes.Routes {
		out[r.RemoteName] = true
	}
	return out
}

// serveNode is one server of a cluster.
func serveNode(args []string) error {
	port := func(s string) int {
		n, _ := strconv.Atoi(s)
		return n
	}
	var routes []*url.URL
	for _, r := range args[5:] {
		u, err := url.Parse(r)
		if err != nil {
			return err
		}
		routes = append(routes, u)
	}
	s, err := server.NewServer(&server.Options{
		ServerName: args[0], Host: "127.0.0.1", Port: port(args[2]), NoSigs: true, NoLog: true, MaxPayload: 4 << 20,
		HTTPHost: "127.0.0.1", HTTPPort: port(args[4]),
		JetStream: true, StoreDir: args[1], SyncAlways: true, JetStreamMaxStore: 1 << 50, JetStreamMaxMemory: 256 << 20,
		// The others know the wires only: what servers tell each other of their
		// addresses leads nowhere, or else some routes would not be cut.
		Cluster: server.ClusterOpts{Name: "faults", Host: "127.0.0.1", Port: port(args[3]), NoAdvertise: true, Advertise: "127.0.0.1:1"}, Routes: routes,
	})
	if err != nil {
		return err
	}
	s.Start()
	if !s.ReadyForConnections(2 * time.Minute) {
		return fmt.Errorf("not ready")
	}
	sayReady()
	select {}
}

// leader is the number of the server that leads the log.
func (w *world) leader() int {
	w.t.Helper()
	return w.leaderOf(w.b, -1)
}

// leaderOf is the same as a client sees it, once it is another one than before.
func (w *world) leaderOf(b *bus.Bus, before int) int {
	w.t.Helper()
	n := -1
	within(w.t, 4*time.Minute, "the log has a leader", func() bool {
		st, err := b.JetStream().Stream(w.t.Context(), "LOG")
		if err != nil || st.CachedInfo().Cluster == nil {
			return false
		}
		n = slices.Index(w.names, st.CachedInfo().Cluster.Leader)
		return n >= 0 && n != before
	})
	return n
}

// another is a client of another server.
func (w *world) another(n int) *bus.Bus { return w.clients[(n+1)%len(w.clients)] }

// failover kills the server that leads the log, runs while until another leads,
// and starts it again. It returns when all have everything.
func (w *world) failover(t testing.TB, while func()) {
	t.Helper()
	n := w.leader()
	w.servers[n].murder(t)
	w.leaderOf(w.b, n)
	while()
	w.servers[n] = w.restart(n)
	within(t, 4*time.Minute, "the log has all three servers again", w.whole)
}

// TestKillLeader kills the server that leads the log, of three, and one that does
// not.
func TestKillLeader(t *testing.T) {
	w, _ := trio(t)
	kills := rounds(1, 5)
	l := publishing(t, w, 8, func(l *ledger) {
		for range kills {
			l.more(t, 500, 4*time.Minute)
			w.failover(t, func() { l.more(t, 500, 4*time.Minute) })
		}
		n := (w.leader() + 1) % len(w.servers)
		w.servers[n].murder(t)
		l.more(t, 500, 4*time.Minute)
		if n == w.leader() {
			t.Error("a server that is dead leads the log")
		}
		w.servers[n] = w.restart(n)
		within(t, 4*time.Minute, "the log has all three servers again", w.whole)
		l.more(t, 500, 4*time.Minute)
	})
	faults.Account(t.Context(), t, w.b.JetStream(), fmt.Sprintf("%d kills of the leader, %s", kills, l.pause()), &l.Books)
	if limit := time.Minute; l.gap > limit {
		t.Errorf("nothing was acknowledged for %s", l.gap)
	}
}

// TestPartition cuts the leader of three servers off from the other two, and
// later puts it back. For a moment there are two then, of which the old one
// refuses what the new one stores: no writer may take itself for overtaken.
func TestPartition(t *testing.T) {
	w, x := trio(t)
	cuts := rounds(1, 3)
	l := publishing(t, w, 8, func(l *ledger) {
		for range cuts {
			l.more(t, 500, 4*time.Minute)
			within(t, 4*time.Minute, "the log has all three servers", w.whole)
			n := w.leader()
			if conns := x.isolate(n, true); conns < 2 {
				t.Fatalf("%d connections of the leader were cut", conns)
			}
			within(t, 4*time.Minute, "the leader reaches nobody", func() bool {
				routes := w.routed(n)
				return routes != nil && len(routes) == 0
			})
			w.leaderOf(w.another(n), n)
			l.more(t, 500, 4*time.Minute)
			x.isolate(n, false)
		}
		l.more(t, 500, 4*time.Minute)
		within(t, 4*time.Minute, "the log has all three servers again", w.whole)
	})
	faults.Account(t.Context(), t, w.b.JetStream(), fmt.Sprintf("%d cuts, %s", cuts, l.pause()), &l.Books)
}

// TestMuteLeader has what the leader of three servers sends to the others get
// stuck, while it hears them: they choose another one.
func TestMuteLeader(t *testing.T) {
	oneWay(t, false, func(w *world, l *ledger, n int) {
		w.leaderOf(w.another(n), n)
		l.more(t, 500, 4*time.Minute)
	})
}

// TestDeafLeader has what the others send to the leader get stuck, while they hear
// it. For some seconds they follow it, and nothing is acknowledged; then it gives
// up.
func TestDeafLeader(t *testing.T) {
	oneWay(t, true, func(w *world, l *ledger, n int) {
		if full {
			w.leaderOf(w.another(n), n)
			return
		}
		time.Sleep(3 * time.Second) // the fault is that time
	})
}

// oneWay cuts the leader's routes in one direction during a disturbance. In the
// end all that was stuck arrives after all, as it does when packets are sent again.
func oneWay(t *testing.T, deaf bool, disturb func(w *world, l *ledger, leader int)) {
	t.Helper()
	w, x := trio(t)
	cuts, meanwhile := rounds(1, 3), 0
	l := publishing(t, w, 8, func(l *ledger) {
		l.more(t, 500, 4*time.Minute)
		for range cuts {
			within(t, 4*time.Minute, "the log has all three servers", w.whole)
			n, before := w.leader(), l.Acked()
			x.hold(n, deaf)
			within(t, 4*time.Minute, "something is stuck", func() bool { return x.stuck() > 0 })
			disturb(w, l, n)
			meanwhile += l.Acked() - before
			x.free()
			l.more(t, 500, 4*time.Minute)
		}
		within(t, 4*time.Minute, "the log has all three servers again", w.whole)
	})
	faults.Account(t.Context(), t, w.b.JetStream(), fmt.Sprintf("%d cuts, %d acknowledged meanwhile, %s", cuts, meanwhile, l.pause()), &l.Books)
}

// wires are the routes between servers.
type wires struct {
	mu    sync.Mutex
	cut   map[int]bool // servers that nobody reaches, and who reach nobody
	conns []wired
	held  map[way]int // on which nothing gets through, and how often something should have
	freed *sync.Cond  // something is held no longer
}

// way is from one server to another.
type way struct{ from, to int }

// hold lets nothing through that a server sends to the others, or, if it is to be
// deaf, that they send to it.
func (x *wires) hold(n int, deaf bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range 3 {
		switch {
		case i == n:
		case deaf:
			x.held[way{i, n}] = 0
		default:
			x.held[way{n, i}] = 0
		}
	}
}

// free lets everything through, also what was held.
func (x *wires) free() {
	x.mu.Lock()
	defer x.mu.Unlock()
	clear(x.held)
	x.freed.Broadcast()
}

// stuck is how often something was held on the way on which that was least often.
func (x *wires) stuck() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Min(slices.Collect(maps.Values(x.held)))
}

// through writes to a connection what may get through.
type through struct {
	x *wires
	way
	net.Conn
}

func (g through) Write(b []byte) (int, error) {
	g.x.mu.Lock()
	if _, held := g.x.held[g.way]; held {
		g.x.held[g.way]++
	}
	for {
		if _, held := g.x.held[g.way]; !held {
			break
		}
		g.x.freed.Wait()
	}
	g.x.mu.Unlock()
	return g.Conn.Write(b)
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
			pass := func(a, b net.Conn, w way) {
				_, _ = io.Copy(through{x, w, a}, b)
				a.Close()
				b.Close()
			}
			go pass(c, d, way{to, from})
			go pass(d, c, way{from, to})
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

// isolate cuts a server off from the others, or lets it be reached again, and
// returns how many of its connections were cut by that.
func (x *wires) isolate(n int, cut bool) (conns int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.cut[n] = cut
	for _, c := range x.conns {
		if cut && (c.from == n || c.to == n) && c.conn.Close() == nil {
			conns++
		}
	}
	return conns
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
	l := publishing(t, w, 4, func(l *ledger) {
		l.more(t, rounds(2000, 20000), 4*time.Minute)
		w.servers[0].freeze(t)
		after, mnt2 := filepath.Join(dir, "after"), filepath.Join(dir, "mnt2")
		sh(t, "cp", "--sparse=always", disk, after)
		w.servers[0].murder(t)
		mount(t, after, mnt2)
		w.servers[0] = spawn(t, "server", filepath.Join(mnt2, "data"), w.listen)
		l.more(t, 500, 4*time.Minute)
	})
	faults.Account(t.Context(), t, w.b.JetStream(), l.pause(), &l.Books)
}

// TestPowerCutAll takes the power of all three servers of a cluster at the same
// moment: what is acknowledged is on at least two of the disks.
func TestPowerCutAll(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("the test mounts file systems: run it as root")
	}
	dir := t.TempDir()
	disks, mnts := make([]string, 3), make([]string, 3)
	place := func(i int, what string) (disk, mnt string) {
		return filepath.Join(dir, fmt.Sprint("disk", i, what)), filepath.Join(dir, fmt.Sprint("mnt", i, what))
	}
	for i := range disks {
		disks[i], mnts[i] = place(i, "")
		sh(t, "truncate", "-s", "1G", disks[i])
		sh(t, "mkfs.ext4", "-q", disks[i])
		mount(t, disks[i], mnts[i])
	}
	w, _ := trioOn(t, func(i int) string { return filepath.Join(mnts[i], "data") })
	cuts := rounds(1, 3)
	l := publishing(t, w, 8, func(l *ledger) {
		for cut := range cuts {
			l.more(t, rounds(1000, 5000), 4*time.Minute)
			for i := range w.servers {
				w.servers[i].freeze(t)
			}
			for i := range w.servers {
				disk, mnt := place(i, fmt.Sprint("after", cut))
				sh(t, "cp", "--sparse=always", disks[i], disk)
				disks[i], mnts[i] = disk, mnt
			}
			var wg sync.WaitGroup
			for i := range w.servers {
				w.servers[i].murder(t)
				mount(t, disks[i], mnts[i])
			}
			for i := range w.servers {
				wg.Go(func() { w.servers[i] = w.restart(i) })
			}
			wg.Wait()
			within(t, 4*time.Minute, "the log has all three servers again", w.whole)
			l.more(t, 500, 4*time.Minute)
		}
	})
	faults.Account(t.Context(), t, w.b.JetStream(), fmt.Sprintf("%d cuts, %s", cuts, l.pause()), &l.Books)
}

// TestDiskFull has somebody else fill the disk under the server, which ends: what
// it acknowledged is there, and its writers, who have waited, go on when there is
// room again.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("the test mounts file systems: run it as root")
	}
	dir := t.TempDir()
	disk, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	sh(t, "truncate", "-s", "128M", disk)
	sh(t, "mkfs.ext4", "-q", "-m", "0", disk)
	mount(t, disk, mnt)
	w := single(t, filepath.Join(mnt, "data"))
	times := rounds(1, 5)
	l := publishing(t, w, 4, func(l *ledger) {
		for range times {
			l.more(t, 500, 4*time.Minute)
			filler := filepath.Join(mnt, "filler")
			if err := fill(filler); !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("the disk is not full: %v", err)
			}
			select {
			case <-w.servers[0].gone:
			case <-time.After(4 * time.Minute):
				t.Fatal("the server does not notice that the disk is full")
			}
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			w.servers[0] = w.restart(0)
			l.more(t, 500, 4*time.Minute)
		}
	})
	faults.Account(t.Context(), t, w.b.JetStream(), fmt.Sprintf("full %d times, %s", times, l.pause()), &l.Books)
}

// fill writes to a file until its disk is full, and returns the error of that.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for size := 1 << 20; ; {
		_, err = f.Write(make([]byte, size))
		if err == nil {
			err = f.Sync()
		}
		switch {
		case err != nil && size > 4096:
			size /= 2 // for what is left
		case err != nil:
			return err
		}
	}
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
