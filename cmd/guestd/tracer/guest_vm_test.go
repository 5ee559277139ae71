// SPDX-License-Identifier: Apache-2.0

//go:build vm && linux

package tracer_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/cmd/guestd/tracer"
	"github.com/petri-sandbox/petri/sandboxd/image"
)

// progs are the tester programs.
const progs = "../../../sandboxd/testdata/progs"

// built is the guest's image, the same for all tests.
var built struct {
	once                sync.Once
	dir, kernel, initrd string
	offsets             []byte
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// machine is a booted guest whose PID 1 is testdata/traceinit.
type machine struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
	boot time.Duration
	seen map[string]uint64 // what the tracer has counted so far
}

// request and result are those of testdata/traceinit.
type request struct {
	Op      string        `json:"op"`
	Argv    []string      `json:"argv,omitempty"`
	Arm     bool          `json:"arm,omitempty"`
	PIDNS   bool          `json:"pidns,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"`
	Ring    int           `json:"ring,omitempty"`
	Slow    time.Duration `json:"slow,omitempty"`

	Calibrate bool `json:"calibrate,omitempty"`
	PTrace    bool `json:"ptrace,omitempty"`
}

type result struct {
	Error   string
	Took    time.Duration
	Drain   time.Duration
	Status  int
	PID     int
	Stats   []tracer.CPUStats
	Clock   string
	TimeOut bool
	Offsets map[string]uint32

	Trace  []byte
	Output string
}

// start boots a guest with every tester program in /usr/bin of its root.
func start(t testing.TB) *machine {
	t.Helper()
	built.once.Do(func() {
		var err error
		if built.dir, err = os.MkdirTemp("", "tracer-test-"); err != nil {
			t.Fatal(err)
		}
		built.kernel, built.initrd = buildGuest(t, image.DefaultCache(), built.dir)
	})
	if built.initrd == "" {
		t.Fatal("the guest's image could not be built")
	}
	dir := t.TempDir()
	sock := filepath.Join(dir, "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	console := filepath.Join(dir, "console.log")
	cmd := exec.Command("qemu-system-x86_64", "-M", "q35", "-cpu", cpuModel(), "-accel", "tcg,thread=single", "-smp", "1", "-m", "256",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-kernel", built.kernel, "-initrd", built.initrd,
		"-append", "console=ttyS0 panic=-1 quiet loglevel=4 mitigations=off "+os.Getenv("PETRI_APPEND"),
		"-device", "virtio-serial-pci,id=vs0", "-chardev", "socket,id=ag,path="+sock,
		"-device", "virtserialport,bus=vs0.0,chardev=ag", "-serial", "file:"+console)
	cmd.Args = append(cmd.Args, strings.Fields(os.Getenv("PETRI_QEMU"))...)
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatalf("start QEMU: %v (make setup)", err)
	}
	m := &machine{t: t, seen: map[string]uint64{}}
	t.Cleanup(func() {
		if m.conn != nil {
			_ = json.NewEncoder(m.conn).Encode(request{Op: "off"})
		}
		kill := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		_ = cmd.Wait()
		if b, _ := os.ReadFile(console); len(b) > 0 && (t.Failed() || testing.Verbose()) {
			t.Logf("console:\n%s", b)
		}
	})
	_ = l.(*net.UnixListener).SetDeadline(time.Now().Add(2 * time.Minute))
	if m.conn, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	m.in = bufio.NewReaderSize(m.conn, 1<<20)
	// The first request waits until the guest reads its port.
	m.must(request{Op: "hello"})
	m.boot = time.Since(begun)
	return m
}

// do sends a request and collects everything up to its result.
func (m *machine) do(r request) (result, error) {
	var res result
	_ = m.conn.SetDeadline(time.Now().Add(5 * time.Minute))
	if err := json.NewEncoder(m.conn).Encode(r); err != nil {
		return res, err
	}
	for {
		var h [5]byte
		if _, err := io.ReadFull(m.in, h[:]); err != nil {
			return res, err
		}
		b := make([]byte, binary.LittleEndian.Uint32(h[1:]))
		if _, err := io.ReadFull(m.in, b); err != nil {
			return res, err
		}
		switch h[0] {
		case 't':
			res.Trace = append(res.Trace, b...)
		case 'o':
			res.Output = string(b)
		case 'r':
			if err := json.Unmarshal(b, &res); err != nil {
				return res, err
			}
			if res.Error != "" {
				return res, errors.New(res.Error)
			}
			return res, nil
		}
	}
}

func (m *machine) must(r request) result {
	m.t.Helper()
	res, err := m.do(r)
	if err != nil {
		m.t.Fatalf("%s %v: %v", r.Op, r.Argv, err)
	}
	return res
}

// load loads the tracer, which counts from 0 again.
func (m *machine) load(r request) {
	m.t.Helper()
	r.Op = "load"
	clear(m.seen)
	m.must(r)
}

func (m *machine) unload() {
	m.t.Helper()
	m.must(request{Op: "unload"})
}

// buildGuest makes the image with traceinit as its agent and adds the tester
// programs and the offsets. It needs no network: the packages must be there.
func buildGuest(t testing.TB, cache, dir string) (kernel, initrd string) {
	t.Helper()
	own := filepath.Join(dir, "cache")
	agents := filepath.Join(dir, "agents")
	for _, d := range []string{agents, filepath.Join(own, "guests", "amd64")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lock, err := os.ReadFile(filepath.Join(cache, "guests", "amd64", "packages.json"))
	if err != nil {
		t.Fatalf("%v (fetch the packages: petri guest build amd64)", err)
	}
	if err := os.WriteFile(filepath.Join(own, "guests", "amd64", "packages.json"), lock, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(cache, "apt"), filepath.Join(own, "apt")); err != nil {
		t.Fatal(err)
	}
	run(t, []string{"CGO_ENABLED=0"}, "go", "build", "-ldflags=-s -w", "-o", filepath.Join(agents, "guestd-amd64"), "./testdata/traceinit")
	img, err := (&image.Builder{Cache: own, Guestd: agents}).Open(t.Context(), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	elf, err := os.ReadFile(img.KernelPath())
	if err != nil {
		t.Fatal(err)
	}
	offsets, err := image.KernelOffsets(elf)
	if err != nil {
		t.Fatal(err)
	}
	built.offsets = offsets
	more := cpio(t, dir, offsets)
	old, err := os.ReadFile(img.InitramfsPath())
	if err != nil {
		t.Fatal(err)
	}
	initrd = filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, append(old, more...), 0o644); err != nil {
		t.Fatal(err)
	}
	return img.KernelPath(), initrd
}

// cpio packs the compiled tester programs and the offsets (newc format).
func cpio(t testing.TB, dir string, offsets []byte) []byte {
	var b bytes.Buffer
	pad := func() { b.Write(make([]byte, -b.Len()&3)) }
	add := func(name string, mode, nlink int, data []byte) {
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", 0, mode, 0, 0, nlink, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		pad()
		b.Write(data)
		pad()
	}
	add("tracer.json", 0o100644, 1, offsets)
	sources, err := filepath.Glob(progs + "/*.c")
	if err != nil || len(sources) == 0 {
		t.Fatalf("no tester programs in %s", progs)
	}
	for _, src := range sources {
		name := strings.TrimSuffix(filepath.Base(src), ".c")
		bin := filepath.Join(dir, "prog-"+name)
		run(t, nil, "gcc", "-O1", "-static", "-s", "-o", bin, src)
		data, err := os.ReadFile(bin)
		if err != nil {
			t.Fatal(err)
		}
		add("rom/usr/bin/"+name, 0o100755, 1, data)
	}
	add("TRAILER!!!", 0, 1, nil)
	return b.Bytes()
}

func run(t testing.TB, env []string, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func cpuModel() string {
	if c := os.Getenv("PETRI_CPU"); c != "" {
		return c
	}
	return "max"
}
