// SPDX-License-Identifier: Apache-2.0

//go:build vm

package supervisor_test

import (
	"bufio"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/machinetest"
	"github.com/petri-sandbox/petri/sandboxd/machine/supervisor"
	"github.com/petri-sandbox/petri/schemas"
)

// parentCommand makes this binary a sandboxd that is going to be killed.
const parentCommand = "supervisor-parent"

func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == parentCommand {
		if err := parent(os.Args[2], os.Args[3], os.Args[4]); err != nil {
			fmt.Println(err)
		}
		os.Exit(1)
	}
	machinetest.Main(m)
}

// parent starts a machine and stays.
func parent(mark, kernel, initramfs string) error {
	k, err := os.Open(kernel)
	if err != nil {
		return err
	}
	i, err := os.Open(initramfs)
	if err != nil {
		return err
	}
	m, err := supervisor.Start(context.Background(), spec(mark), supervisor.Files{Kernel: k, Initramfs: i}, machinetest.NewRecorder(), machinetest.Supervisor())
	if err != nil {
		return err
	}
	if _, err := m.Poweron(context.Background(), machinetest.Identity(1)); err != nil {
		return err
	}
	fmt.Println("ready")
	select {}
}

const patience = 3 * time.Minute

// user is whom supervisors become, if we may choose.
const user = 2_000_199_999

func spec(mark string) supervisor.Spec {
	return supervisor.Spec{
		Binary: machinetest.QEMU, Version: "test", Accel: "tcg", Guest: machinetest.Arch, Memory: machinetest.Memory, Mark: mark, Pcap: 1 << 20,
	}
}

// start starts a supervisor and its machine from the warm template.
func start(t *testing.T, mark string) (*supervisor.Machine, *machinetest.Recorder) {
	t.Helper()
	cfg := machinetest.WarmConfig(t)
	state, err := cfg.Template.State()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { state.Close() })
	s := spec(mark)
	s.Warm, s.Hello = true, cfg.Template.Hello
	p := machinetest.Supervisor()
	if os.Geteuid() == 0 {
		p.UID = user
	}
	rec := machinetest.NewRecorder()
	m, err := supervisor.Start(t.Context(), s, supervisor.Files{Kernel: cfg.Kernel, Initramfs: cfg.Initramfs, RAM: cfg.Template.RAM, State: state}, rec, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	boot, err := m.Poweron(t.Context(), machinetest.Identity(1))
	if err != nil {
		t.Fatal(err)
	}
	// checkPrivileges looks whether it is true.
	if i := boot.Isolation; i == nil || i.Reason != "" || !slices.Contains(i.Namespaces, "net") || (i.User == schemas.UserOwn) != (p.UID != 0) {
		t.Errorf("isolation %+v", boot.Isolation)
	}
	if boot.Machine.Start != "warm" {
		t.Errorf("started %s: %s", boot.Machine.Start, boot.Fallback)
	}
	return m, rec
}

// gone waits until no process of the mark is left.
func gone(t *testing.T, mark string) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		left := machinetest.Processes(t, mark)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes %v are left", left)
		}
		time.Sleep(5 * time.Millisecond) // they are nobody's children here
	}
}

// TestSupervisor takes a machine in a supervisor through an analysis.
func TestSupervisor(t *testing.T) {
	const mark = "petri-supervisortest-life"
	machinetest.WarmConfig(t)
	m, rec := start(t, mark)
	pids := machinetest.Processes(t, mark)
	if len(pids) != 2 {
		t.Fatalf("processes %v, want a supervisor and a QEMU", pids)
	}
	for _, pid := range pids {
		checkPrivileges(t, pid)
	}
	lease := rec.Await(t, patience, "lease", func(e machine.Event) bool { return e.Lease != nil }).Lease
	if lease.MAC != machinetest.Identity(1).MAC || !strings.HasPrefix(lease.Address, "10.0.2.") {
		t.Errorf("lease %+v", lease)
	}
	sample := machinetest.Program(t, "drops")
	if _, err := m.Run(t.Context(), machinetest.Command(t, sample), sample); err != nil {
		t.Fatal(err)
	}
	rec.AwaitTree(t, patience)
	sum, err := m.Collect(t.Context(), machine.Collect{MaxFile: 1 << 20, MaxFiles: 500, MaxTotal: 8 << 20, MaxList: 1000})
	if err != nil || sum.Sent < 5 {
		t.Errorf("collect: %+v, %v", sum, err)
	}
	if f := rec.Files()["/tmp/created"]; f == nil || string(f.Data) != "created\n" || !f.Ended {
		t.Errorf("file %+v", f)
	}
	core, err := os.Create(filepath.Join(t.TempDir(), "core"))
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	if err := m.DumpMemory(t.Context(), core); err != nil {
		t.Errorf("dump: %v", err)
	} else if e, err := elf.NewFile(core); err != nil || e.Type != elf.ET_CORE {
		t.Errorf("dump is %v, %v", e, err)
	}
	bad := machinetest.Program(t, "self")
	var ne *machine.NotExecuted
	if _, err := m.Run(t.Context(), machinetest.Command(t, bad), bad); err == nil || errors.As(err, &ne) {
		t.Errorf("a second sample: %v", err)
	}
	if err := m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Pause(t.Context()); !errors.Is(err, machine.ErrGone) {
		t.Errorf("pause of what is off: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	gone(t, mark)
	// All that there was has come, and every source has ended.
	for _, src := range []schemas.Source{schemas.SourceStdout, schemas.SourceStderr, schemas.SourcePcap} {
		if c := rec.AwaitEnd(t, 0, src); c.Status != schemas.StatusWhole {
			t.Errorf("%s: %+v", src, c)
		}
	}
	if b := rec.Text(schemas.SourcePcap); !strings.HasPrefix(b, "\x0a\x0d\x0d\x0a") {
		t.Errorf("capture of %d bytes is no pcapng", len(b))
	}
	for _, e := range rec.Events() {
		if e.Off != nil {
			t.Errorf("an end that was asked for was told: %+v", e.Off)
		}
	}
}

// checkPrivileges checks that a process is nobody who may do anything.
func checkPrivileges(t *testing.T, pid string) {
	t.Helper()
	b, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for _, line := range strings.Split(string(b), "\n") {
		k, v, _ := strings.Cut(line, ":")
		status[k] = strings.TrimSpace(v)
	}
	if os.Geteuid() == 0 {
		if uid := strings.Fields(status["Uid"]); len(uid) != 4 || uid[0] != strconv.Itoa(user) || uid[1] != uid[0] {
			t.Errorf("process %s runs as %q", pid, status["Uid"])
		}
		if status["CapEff"] != "0000000000000000" || status["CapPrm"] != "0000000000000000" || status["Groups"] != "" {
			t.Errorf("process %s has capabilities %s %s, groups %q", pid, status["CapPrm"], status["CapEff"], status["Groups"])
		}
	}
	if status["NoNewPrivs"] != "1" {
		t.Errorf("process %s may get new privileges", pid)
	}
	if status["Name"] == "petri-machine" || strings.HasPrefix(status["Name"], "qemu") {
		if status["Seccomp"] != "2" {
			t.Errorf("QEMU has Seccomp %s", status["Seccomp"])
		}
	}
	for _, ns := range []string{"net", "pid", "ipc"} {
		ours, err1 := os.Readlink("/proc/self/ns/" + ns)
		theirs, err2 := os.Readlink("/proc/" + pid + "/ns/" + ns)
		if err1 != nil || err2 != nil || ours == theirs {
			t.Errorf("process %s is in our %s namespace: %v %v", pid, ns, err1, err2)
		}
	}
}

// TestSupervisorKilled kills it: its QEMU goes with it, and that is told.
func TestSupervisorKilled(t *testing.T) {
	const mark = "petri-supervisortest-killed"
	m, rec := start(t, mark)
	for _, pid := range machinetest.Processes(t, mark) {
		name, _ := os.ReadFile("/proc/" + pid + "/comm")
		if n, err := strconv.Atoi(pid); err == nil && !strings.HasPrefix(string(name), "petri-machine") && !strings.HasPrefix(string(name), "qemu") {
			if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	off := rec.AwaitOff(t, patience)
	if off.State != "crashed" || !strings.Contains(off.Reason, "supervisor") || !strings.Contains(off.Reason, "killed") {
		t.Errorf("end %+v", off)
	}
	gone(t, mark)
	if err := m.Pause(t.Context()); !errors.Is(err, machine.ErrGone) {
		t.Errorf("pause: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// TestCloseWhileStarting closes a machine whose guest boots: it does not wait
// for the guest.
func TestCloseWhileStarting(t *testing.T) {
	const mark = "petri-supervisortest-starting"
	cfg := machinetest.Config(t)
	for _, cancelled := range []bool{false, true} {
		m, err := supervisor.Start(t.Context(), spec(mark), supervisor.Files{Kernel: cfg.Kernel, Initramfs: cfg.Initramfs}, machinetest.NewRecorder(), machinetest.Supervisor())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		started := make(chan error, 1)
		go func() {
			_, err := m.Poweron(ctx, machinetest.Identity(1))
			started <- err
		}()
		for deadline := time.Now().Add(patience); len(machinetest.Processes(t, mark)) < 2; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("no QEMU")
			}
		}
		if cancelled {
			cancel()
			if err := <-started; !errors.Is(err, context.Canceled) {
				t.Errorf("poweron that was cancelled: %v", err)
			}
		}
		// A supervisor that waits for its guest is killed in the end, and Close
		// says so.
		if err := m.Close(); err != nil {
			t.Errorf("close, cancelled %v: %v", cancelled, err)
		}
		if !cancelled {
			if err := <-started; !errors.Is(err, machine.ErrGone) {
				t.Errorf("poweron of what was closed: %v", err)
			}
		}
		cancel()
		gone(t, mark)
	}
}

// TestParentKilled kills what started the supervisor: nothing stays.
func TestParentKilled(t *testing.T) {
	const mark = "petri-supervisortest-parent"
	machinetest.NeedQEMU(t)
	img := machinetest.Image(t)
	cmd := exec.Command("/proc/self/exe", parentCommand, mark, img.KernelPath(), img.InitramfsPath())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		_ = cmd.Process.Kill()
		t.Fatalf("the parent says %q, %v", line, err)
	}
	if n := len(machinetest.Processes(t, mark)); n != 3 {
		t.Errorf("%d processes, want a parent, a supervisor and a QEMU", n)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	gone(t, mark)
}

// TestFlood checks that a guest that does much shows only so much of it live,
// that the rest is counted, and that the supervisor stays small.
func TestFlood(t *testing.T) {
	const mark = "petri-supervisortest-flood"
	if b := machinetest.WarmConfig(t).Template.Hello.Tracer; b.Backend != "ebpf" {
		t.Fatalf("the guest has no tracer: %s", b.Error)
	}
	m, rec := start(t, mark)
	sample := machinetest.Program(t, "flood")
	r := machinetest.Command(t, sample)
	r.Trace = true
	begin := time.Now()
	if _, err := m.Run(t.Context(), r, sample); err != nil {
		t.Fatal(err)
	}
	rec.AwaitExit(t, patience)
	if err := m.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	peak := peakMemory(t, mark)
	if err := m.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	took := time.Since(begin)
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	shown := 0
	for _, e := range rec.Events() {
		if e.Behavior != nil {
			shown++
		}
	}
	c := rec.AwaitEnd(t, 0, schemas.SourceTrace)
	var suppressed uint64
	for _, n := range c.Suppressed {
		suppressed += n
	}
	t.Logf("%d records, %d events shown, %d suppressed in %v, supervisor's peak %d MiB; %+v", c.Produced, shown, suppressed, took, peak>>20, c)
	if most := 1000 + 200*int(took.Seconds()+1); shown > most || shown == 0 {
		t.Errorf("%d events were shown, the budget is %d", shown, most)
	}
	if suppressed == 0 {
		t.Error("nothing was suppressed, or it was not counted")
	}
	if peak > 192<<20 {
		t.Errorf("the supervisor took %d bytes", peak)
	}
	if diff := cmp.Diff(int64(rec.Bytes(schemas.SourceTrace)), c.Bytes); c.Bytes != 0 && diff != "" {
		t.Errorf("bytes of the trace (-came +told):\n%s", diff)
	}
}

// peakMemory is the most that the supervisor of a mark has used.
func peakMemory(t *testing.T, mark string) int64 {
	t.Helper()
	for _, pid := range machinetest.Processes(t, mark) {
		exe, _ := os.Readlink("/proc/" + pid + "/exe")
		if strings.Contains(exe, "qemu") {
			continue
		}
		b, err := os.ReadFile("/proc/" + pid + "/status")
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(b), "\n") {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "VmHWM:" {
				kb, _ := strconv.ParseInt(f[1], 10, 64)
				return kb << 10
			}
		}
	}
	t.Fatal("no supervisor")
	return 0
}
