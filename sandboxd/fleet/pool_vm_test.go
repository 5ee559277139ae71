// SPDX-License-Identifier: Apache-2.0

//go:build vm

package fleet_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/sandboxd/fleet"
	"github.com/petri-sandbox/petri/sandboxd/image"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/machinetest"
	"github.com/petri-sandbox/petri/schemas"
)

// keeperCommand makes this binary a sandbox with a pool that is going to be
// killed.
const keeperCommand = "fleet-keeper"

func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == keeperCommand {
		keep(os.Args[2], os.Args[3], os.Args[4])
		os.Exit(1)
	}
	machinetest.Main(m)
}

// keep keeps a machine waiting, and says when it does.
func keep(id, dir, agents string) {
	f := pool(id, dir, agents, fleet.Pool{machinetest.Arch: 1}, fleet.HostMemory, io.Discard)
	if _, err := f.Reap(); err != nil {
		fmt.Println(err)
		return
	}
	go func() {
		for f.Waiting(machinetest.Arch) == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		fmt.Println("waiting")
	}()
	f.KeepPool(context.Background())
}

func pool(id, dir, agents string, p fleet.Pool, memory func() (fleet.Memory, error), log io.Writer) *fleet.Fleet {
	return fleet.New(fleet.Options{
		ID: id, Images: &image.Builder{Cache: dir, Guestd: agents}, Accel: "tcg", Store: &memoryStore{}, Pool: p, HostMemory: memory,
		Supervisor: machinetest.Supervisor(), Slog: slog.New(slog.NewTextHandler(log, nil)),
	})
}

// memoryStore knows what has been put, and keeps nothing of it.
type memoryStore struct{ sync.Map }

func (s *memoryStore) Put(_ context.Context, _ schemas.Kind, r io.Reader) (schemas.Digest, int64, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return schemas.Digest{}, 0, err
	}
	d := schemas.Sum(b)
	s.Store(d, len(b))
	return d, int64(len(b)), nil
}

func (s *memoryStore) Open(_ context.Context, d schemas.Digest) (io.ReadCloser, int64, error) {
	n, ok := s.Load(d)
	if !ok {
		return nil, 0, os.ErrNotExist
	}
	return io.NopCloser(strings.NewReader("")), int64(n.(int)), nil
}

// keeping runs a fleet's pool until the test ends, or stop is called, which
// returns when nothing of it is left.
func keeping(t testing.TB, f *fleet.Fleet) (stop func()) {
	t.Helper()
	if _, err := f.Reap(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.KeepPool(ctx)
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

// await waits until so many machines of a fleet wait.
func await(t testing.TB, f *fleet.Fleet, n int, log *logged) {
	t.Helper()
	for end := time.Now().Add(5 * time.Minute); f.Waiting(machinetest.Arch) != n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d machines wait, want %d: %s", f.Waiting(machinetest.Arch), n, log)
		}
	}
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestPool takes machines out of a pool, and lets the pool look after what
// becomes of them.
func TestPool(t *testing.T) {
	const id, mark = "fleettest-pool", "petri-fleettest-pool-"
	dir, _ := cache(t)
	log := &logged{}
	var memory atomic.Pointer[fleet.Memory]
	memory.Store(&fleet.Memory{Total: 8 << 30, Free: 2 << 30}) // a quarter, and no room for another guest
	f := pool(id, dir, machinetest.Agents(t), fleet.Pool{machinetest.Arch: 2}, func() (fleet.Memory, error) { return *memory.Load(), nil }, log)
	stop := keeping(t, f)
	for end := time.Now().Add(5 * time.Minute); log.count("no memory for a machine that waits") == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("a host without memory: %s", log)
		}
	}
	if n := f.Waiting(machinetest.Arch); n != 0 {
		t.Fatalf("%d machines wait where there is no memory", n)
	}

	spec := sandboxd.MachineSpec{Guest: machinetest.Arch, Pcap: sandboxd.DefaultPcap}
	take := func(analysis string, n int) (machine.Machine, machine.Boot, *machinetest.Recorder) {
		t.Helper()
		rec := machinetest.NewRecorder()
		s := spec
		s.Analysis = analysis
		m, err := f.New(t.Context(), s, rec)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		boot, err := m.Poweron(t.Context(), machinetest.Identity(n))
		if err != nil {
			t.Fatal(err)
		}
		return m, boot, rec
	}

	// A machine that was not there to wait comes all the same; its end wakes the
	// pool, which finds that there is memory now.
	m, boot, _ := take("first", 1)
	if boot.Pooled || boot.Machine.Start != "warm" {
		t.Errorf("without a pool: %+v", boot)
	}
	memory.Store(&fleet.Memory{Total: 8 << 30, Free: 6 << 30})
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, f, 2, log)
	if pids := machinetest.Processes(t, mark+"pool"); len(pids) != 4 {
		t.Fatalf("processes %v, want two supervisors and two QEMUs", pids)
	}
	sharesMemory(t, mark+"pool")

	// One that has died is replaced, whatever of it was killed.
	for _, word := range []string{"guest=" + mark, "machinetest-supervisor"} {
		victim := ""
		for _, pid := range machinetest.Processes(t, mark+"pool") {
			if b, _ := os.ReadFile("/proc/" + pid + "/cmdline"); bytes.Contains(b, []byte(word)) {
				victim = pid
			}
		}
		n, err := strconv.Atoi(victim)
		if err != nil {
			t.Fatalf("no process of the pool has %q", word)
		}
		if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(5 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
			pids := machinetest.Processes(t, mark+"pool")
			if len(pids) == 4 && !strings.Contains(" "+strings.Join(pids, " ")+" ", " "+victim+" ") && f.Waiting(machinetest.Arch) == 2 {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("after process %s was killed: processes %v: %s", victim, pids, log)
			}
		}
	}

	// Two analyses at once get one each; what the machines do is reported to
	// them from the beginning.
	a, bootA, recA := take("a", 2)
	b, bootB, recB := take("b", 3)
	if !bootA.Pooled || !bootB.Pooled || bootA.Machine.Start != "warm" || bootA.Template == nil || bootA.Isolation == nil {
		t.Errorf("machines of the pool: %+v, %+v", bootA, bootB)
	}
	if bootA.Ready.Identity != machinetest.Identity(2).Identity || bootB.Ready.Identity != machinetest.Identity(3).Identity {
		t.Errorf("identities %+v, %+v", bootA.Ready.Identity, bootB.Ready.Identity)
	}
	t.Logf("a machine of the pool took %v, %v", bootA.Took.D(), bootB.Took.D())
	ids := map[string]bool{}
	for m, rec := range map[machine.Machine]*machinetest.Recorder{a: recA, b: recB} {
		x, err := m.Exec(t.Context(), machine.Exec{Command: []string{"/bin/cat", "/proc/sys/kernel/random/boot_id"}, Timeout: time.Minute})
		if err != nil || len(x.Stdout) < 36 {
			t.Fatalf("boot id: %+v, %v", x, err)
		}
		ids[x.Stdout] = true
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if head := rec.Text(schemas.SourcePcap); !strings.HasPrefix(head, "\x0a\x0d\x0d\x0a") {
			t.Errorf("the capture begins with %q", head[:min(len(head), 20)])
		}
		if faults := rec.Faults(); len(faults) > 0 {
			t.Errorf("faults %q", faults)
		}
		for _, e := range rec.Events() {
			if e.Off != nil {
				t.Errorf("the machine's end was reported: %+v", e.Off)
			}
		}
	}
	if len(ids) != 2 {
		t.Errorf("boot ids %v", ids)
	}
	await(t, f, 2, log) // on two CPUs not while both ran

	// What the pool has not is made as ever.
	for _, s := range []sandboxd.MachineSpec{
		{Guest: machinetest.Arch, Analysis: "small", Pcap: 1 << 20},
		{Guest: machinetest.Arch, Analysis: "untraced", Pcap: sandboxd.DefaultPcap, Untraced: true},
		{Guest: machinetest.Arch, Analysis: "cold", Pcap: sandboxd.DefaultPcap, Cold: true},
	} {
		m, err := f.New(t.Context(), s, machinetest.NewRecorder())
		if err != nil {
			t.Fatal(err)
		}
		if n := len(machinetest.Processes(t, mark+s.Analysis)); n != 1 {
			t.Errorf("%d processes are marked for %s, want its supervisor", n, s.Analysis)
		}
		m.Close()
	}

	// Where memory becomes scarce they go.
	memory.Store(&fleet.Memory{Total: 8 << 30, Free: 1<<30 - 1})
	for f.Waiting(machinetest.Arch) > 0 {
		n := f.Waiting(machinetest.Arch)
		m, err := f.New(t.Context(), sandboxd.MachineSpec{Guest: machinetest.Arch, Analysis: "wake", Cold: true}, machinetest.NewRecorder())
		if err != nil {
			t.Fatal(err)
		}
		m.Close()
		for end := time.Now().Add(5 * time.Minute); f.Waiting(machinetest.Arch) >= n; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) { // it may end two: the end of one wakes it too
				t.Fatalf("%d machines wait, want fewer than %d: %s", f.Waiting(machinetest.Arch), n, log)
			}
		}
	}
	memory.Store(&fleet.Memory{Total: 8 << 30, Free: 6 << 30})

	// Another QEMU is no fit for the snapshot, nor are the machines that wait. The
	// pool may have seen it before the analysis that asks.
	before := log.count(making)
	stale(t)
	m, boot, _ = take("stale", 4)
	if boot.Version != "9.9.9 (other)" {
		t.Errorf("after another QEMU was installed an analysis got a machine of %q", boot.Version)
	}
	if n := log.count(making); n != before+1 {
		t.Errorf("the template was made %d times", n-before)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}

	stop()
	if left := machinetest.Processes(t, mark); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if n := f.Waiting(machinetest.Arch); n != 0 {
		t.Errorf("%d machines wait after the end", n)
	}
}

// stale puts another version of QEMU on the PATH.
func stale(t *testing.T) {
	t.Helper()
	real, err := exec.LookPath(machinetest.QEMU)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := "#!/bin/sh\n[ \"$1\" = --version ] && { echo 'QEMU emulator version 9.9.9 (other)'; exit; }\nexec " + real + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, machinetest.QEMU), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// sharesMemory checks that each QEMU of the mark has the template's pages from
// the other: what is mapped of it and unchanged is shared.
func sharesMemory(t *testing.T, mark string) {
	t.Helper()
	n := 0
	for _, pid := range machinetest.Processes(t, mark) {
		m := mapping(t, pid, "memfd:template")
		if m == nil {
			continue // a supervisor
		}
		n++
		if shared := m["Shared_Clean"] + m["Shared_Dirty"]; shared < 8<<10 || m["Private_Clean"]+m["Private_Dirty"] > shared/4 {
			t.Errorf("of the template's pages QEMU has, in KiB, %v", m)
		}
	}
	if n != 2 {
		t.Errorf("%d QEMUs map a template, want 2", n)
	}
}

// mapping sums what smaps(5) says of the mappings of a file, in KiB.
func mapping(t testing.TB, pid, name string) map[string]int64 {
	t.Helper()
	f, err := os.Open("/proc/" + pid + "/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out map[string]int64
	in := false
	for s := bufio.NewScanner(f); s.Scan(); {
		w := strings.Fields(s.Text())
		switch {
		case strings.Contains(w[0], "-"): // a mapping's range of addresses
			if in = strings.Contains(s.Text(), name); in && out == nil {
				out = map[string]int64{}
			}
		case in && len(w) == 3:
			n, err := strconv.ParseInt(w[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			out[strings.TrimSuffix(w[0], ":")] += n
		}
	}
	return out
}

// TestPoolKilled kills a sandbox: nothing of its pool is left.
func TestPoolKilled(t *testing.T) {
	const id = "fleettest-killed"
	dir, _ := cache(t)
	cmd := exec.Command(os.Args[0], keeperCommand, id, dir, machinetest.Agents(t))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	timer := time.AfterFunc(5*time.Minute, func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	timer.Stop()
	if line != "waiting\n" {
		t.Fatalf("the sandbox says %q, %v", line, err)
	}
	if pids := machinetest.Processes(t, "petri-"+id+"-pool"); len(pids) != 2 {
		t.Errorf("processes %v, want a supervisor and a QEMU", pids)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		left := machinetest.Processes(t, "petri-"+id+"-pool")
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("processes %v outlive their sandbox", left)
		}
	}
}
