// SPDX-License-Identifier: Apache-2.0

// Package machinetest gives tests a guest: its image with the agent of this
// source tree, a warm template, tester programs, and a [Recorder] of what a
// machine reports. It makes each of them once per test binary.
//
// What a test needs and the host lacks fails the test and says what to do; it
// never skips. Only tests import this package.
package machinetest

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/catalogue"
	"github.com/petri-sandbox/petri/sandboxd/image"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/qemu"
	"github.com/petri-sandbox/petri/sandboxd/machine/supervisor"
	"github.com/petri-sandbox/petri/schemas"
)

// Arch is the guest that most tests run.
const Arch = catalogue.Default

// Arches are the guests of tests of every CPU: those that make guest builds, or
// what PETRI_TEST_GUESTS names, in one word each or as all.
func Arches() []string {
	switch names := os.Getenv("PETRI_TEST_GUESTS"); names {
	case "":
		return []string{"amd64", "i386", "s390x"}
	case "all":
		return catalogue.Names()
	default:
		return strings.Fields(names)
	}
}

// Memory of a test's guest, in bytes: the product's default.
const Memory = 256 << 20

// QEMU is the program that most tests' machines are.
const QEMU = "qemu-system-x86_64"

// supervisorCommand makes a test binary be a supervisor.
const supervisorCommand = "machinetest-supervisor"

// Main is for TestMain: it runs the tests with a directory that all of them
// share, or is the supervisor that one of them has started.
func Main(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == supervisorCommand {
		if err := supervisor.Main(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if shared, err = os.MkdirTemp("", "machinetest-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(shared)
	// Supervisors of another user look for this binary's directory too.
	if err := os.Chmod(shared, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// shared is the directory of everything that is made once.
var shared string

// Supervisor starts this test binary as a supervisor; its TestMain must be
// [Main].
func Supervisor() supervisor.Privileges {
	return supervisor.Privileges{Args: []string{supervisorCommand}}
}

// once makes something at the first call and gives every caller the same.
type once[T any] struct {
	sync.Once
	v   T
	err error
}

func (o *once[T]) get(t testing.TB, f func() (T, error)) T {
	t.Helper()
	o.Do(func() { o.v, o.err = f() })
	if o.err != nil {
		t.Fatal(o.err)
	}
	return o.v
}

// root is the top of the source tree.
func root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "..")
}

// perArch makes something of each architecture once.
type perArch[T any] struct {
	mu sync.Mutex
	m  map[string]*once[T]
}

func (p *perArch[T]) get(t testing.TB, arch string, f func() (T, error)) T {
	t.Helper()
	p.mu.Lock()
	if p.m == nil {
		p.m = map[string]*once[T]{}
	}
	if p.m[arch] == nil {
		p.m[arch] = new(once[T])
	}
	o := p.m[arch]
	p.mu.Unlock()
	return o.get(t, f)
}

var agents perArch[string]

// Agents is [AgentsOf] the guest that most tests run.
func Agents(t testing.TB) string { return AgentsOf(t, Arch) }

// AgentsOf is a directory with the agent of an architecture, built from this
// source tree as the Makefile does: the same source gives the image that the
// product has.
func AgentsOf(t testing.TB, arch string) string {
	t.Helper()
	return agents.get(t, arch, func() (string, error) {
		dir := filepath.Join(shared, "agents")
		cmd := exec.Command("go", "run", "./cmd/internal/agents", dir, arch)
		cmd.Dir = root()
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build guestd: %w\n%s", err, out)
		}
		return dir, nil
	})
}

var guestImages perArch[*image.Image]

// Image is [ImageOf] the guest that most tests run.
func Image(t testing.TB) *image.Image { return ImageOf(t, Arch) }

// ImageOf is a guest's, from the product's cache of packages.
func ImageOf(t testing.TB, arch string) *image.Image {
	t.Helper()
	dir := AgentsOf(t, arch)
	return guestImages.get(t, arch, func() (*image.Image, error) {
		b := image.Builder{Cache: image.DefaultCache(), Guestd: dir}
		img, err := b.Open(context.Background(), arch)
		if err != nil {
			return nil, fmt.Errorf("open the guest's image: %w (make guest, of all CPUs: make guests)", err)
		}
		return img, img.Verify()
	})
}

// NeedQEMU fails the test where there is no QEMU.
func NeedQEMU(t testing.TB) {
	t.Helper()
	needQEMU(t, cpu(t, Arch))
}

func needQEMU(t testing.TB, c catalogue.CPU) {
	t.Helper()
	if _, err := exec.LookPath(c.Binary); err != nil {
		t.Fatalf("%v: these tests start guests (make setup, or: apt install %s)", err, c.Package)
	}
}

func cpu(t testing.TB, arch string) catalogue.CPU {
	t.Helper()
	c, err := catalogue.Lookup(arch)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Config is [ConfigOf] the guest that most tests run.
func Config(t testing.TB) qemu.Config { return ConfigOf(t, Arch) }

// ConfigOf is that of a machine that boots cold.
func ConfigOf(t testing.TB, arch string) qemu.Config {
	t.Helper()
	c := cpu(t, arch)
	needQEMU(t, c)
	img := ImageOf(t, arch)
	return qemu.Config{
		CPU: c, Binary: c.Binary, Version: "test", Accel: "tcg", Memory: max(Memory, c.Memory), Image: img.Key(), Mark: "machinetest",
		Kernel: Open(t, img.KernelPath()), Initramfs: Open(t, img.InitramfsPath()),
	}
}

// Open opens a file until the test ends.
func Open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

var warm perArch[qemu.Hello]

// WarmConfig is [WarmConfigOf] the guest that most tests run.
func WarmConfig(t testing.TB) qemu.Config { return WarmConfigOf(t, Arch) }

// WarmConfigOf is that of a machine that is restored from a template.
func WarmConfigOf(t testing.TB, arch string) qemu.Config {
	t.Helper()
	cfg := ConfigOf(t, arch)
	ramPath, statePath := filepath.Join(shared, "ram-"+arch), filepath.Join(shared, "state-"+arch)
	hello := warm.get(t, arch, func() (qemu.Hello, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		ram, err := os.Create(ramPath)
		if err != nil {
			return qemu.Hello{}, err
		}
		defer ram.Close()
		if err := ram.Chmod(0o666); err != nil { // a supervisor's user opens it
			return qemu.Hello{}, err
		}
		state, err := os.Create(statePath)
		if err != nil {
			return qemu.Hello{}, err
		}
		defer state.Close()
		rec := NewRecorder()
		h, err := qemu.Snapshot(ctx, cfg, rec, ram, state)
		if err != nil {
			return h, fmt.Errorf("snapshot a guest: %w; its console: %s", err, rec.Text(schemas.SourceSerial))
		}
		return h, nil
	})
	ram, err := os.OpenFile(ramPath, os.O_RDWR, 0) // QEMU opens it so, whatever it does with it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ram.Close() })
	cfg.Template = &qemu.Template{RAM: ram, State: func() (*os.File, error) { return os.Open(statePath) }, Hello: hello}
	return cfg
}

// Identity is the n-th of different ones.
func Identity(n int) machine.Identity {
	return machine.Identity{
		Identity: schemas.Identity{
			Hostname: fmt.Sprintf("host-%d", n), MachineID: fmt.Sprintf("%032x", 0xabc000+n),
			MAC: fmt.Sprintf("52:54:00:aa:bb:%02x", n), Uptime: schemas.Duration(time.Duration(80+n) * time.Hour), FirstPID: 700 + 100*n,
		},
		Entropy: []byte(strings.Repeat(fmt.Sprintf("%08d", n), 8)),
	}
}

var (
	programsMu sync.Mutex
	programs   = map[string]string{}
)

// Program is [ProgramOf] the guest that most tests run.
func Program(t testing.TB, name string) *os.File { return ProgramOf(t, Arch, name) }

// ProgramOf compiles a tester program of sandboxd/testdata/progs, statically,
// and opens it.
func ProgramOf(t testing.TB, arch, name string) *os.File {
	t.Helper()
	programsMu.Lock()
	defer programsMu.Unlock()
	path, ok := programs[arch+"-"+name]
	if !ok {
		path = filepath.Join(shared, "prog-"+arch+"-"+name)
		src := filepath.Join(root(), "sandboxd", "testdata", "progs", name+".c")
		if out, err := exec.Command(cpu(t, arch).Compiler(), "-static", "-O1", "-s", "-o", path, src).CombinedOutput(); err != nil {
			t.Fatalf("compile the tester program %s: %v (make setup)\n%s", name, err, out)
		}
		programs[arch+"-"+name] = path
	}
	return Open(t, path)
}

// Command is the run of a sample with its arguments, untraced, as root, with
// the product's limits.
func Command(t testing.TB, sample *os.File, args ...string) machine.Run {
	t.Helper()
	fi, err := sample.Stat()
	if err != nil {
		t.Fatal(err)
	}
	const path = "/root/sample"
	return machine.Run{
		RunSample: schemas.RunSample{Path: path, Command: append([]string{path}, args...), Dir: "/root"},
		Name:      "sample", Size: fi.Size(),
		Limits: machine.Limits{Stdout: 4 << 20, Tasks: 500},
	}
}

// A File is one that a machine has collected.
type File struct {
	schemas.DroppedFile
	Data  []byte
	Cut   int64
	Err   error
	Ended bool
}

// maxKept is how much a Recorder keeps of one source or file.
const maxKept = 32 << 20

// A Recorder keeps what a machine reports; of bytes the first, and their
// number. It implements [machine.Observer].
type Recorder struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every change
	data    map[schemas.Source][]byte
	bytes   map[schemas.Source]int64
	ends    map[schemas.Source][]schemas.SourceCoverage
	events  []machine.Event
	files   []*File
}

var _ machine.Observer = (*Recorder)(nil)

// NewRecorder returns one that has seen nothing.
func NewRecorder() *Recorder {
	return &Recorder{
		changed: make(chan struct{}), data: map[schemas.Source][]byte{}, bytes: map[schemas.Source]int64{},
		ends: map[schemas.Source][]schemas.SourceCoverage{},
	}
}

// change runs f alone and wakes whoever awaits something.
func (r *Recorder) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.changed)
	r.changed = make(chan struct{})
}

// Event implements [machine.Observer].
func (r *Recorder) Event(e machine.Event) {
	r.change(func() {
		if len(r.events) < 100_000 {
			r.events = append(r.events, e)
		}
	})
}

// Data implements [machine.Observer].
func (r *Recorder) Data(src schemas.Source, p []byte) {
	r.change(func() {
		r.bytes[src] += int64(len(p))
		r.data[src] = append(r.data[src], p[:min(len(p), maxKept-len(r.data[src]))]...)
	})
}

// End implements [machine.Observer].
func (r *Recorder) End(src schemas.Source, c schemas.SourceCoverage) {
	r.change(func() { r.ends[src] = append(r.ends[src], c) })
}

// File implements [machine.Observer].
func (r *Recorder) File(f schemas.DroppedFile) machine.FileWriter {
	file := &File{DroppedFile: f}
	r.change(func() { r.files = append(r.files, file) })
	return &fileWriter{r, file}
}

type fileWriter struct {
	r *Recorder
	f *File
}

func (w *fileWriter) Write(p []byte) (int, error) {
	w.r.change(func() { w.f.Data = append(w.f.Data, p[:min(len(p), maxKept-len(w.f.Data))]...) })
	return len(p), nil
}

func (w *fileWriter) Close(cut int64, err error) {
	w.r.change(func() { w.f.Cut, w.f.Err, w.f.Ended = cut, err, true })
}

// Text is what has come of a source.
func (r *Recorder) Text(src schemas.Source) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return string(r.data[src])
}

// Bytes counts what has come of a source.
func (r *Recorder) Bytes(src schemas.Source) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes[src]
}

// Files are the collected ones, by path.
func (r *Recorder) Files() map[string]*File {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]*File{}
	for _, f := range r.files {
		out[f.Path] = f
	}
	return out
}

// Events are all so far.
func (r *Recorder) Events() []machine.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]machine.Event(nil), r.events...)
}

// Faults are the texts of all faults so far.
func (r *Recorder) Faults() []string {
	var out []string
	for _, e := range r.Events() {
		if e.Fault != "" {
			out = append(out, e.Fault)
		}
	}
	return out
}

// await returns when f does; f is called alone.
func (r *Recorder) await(t testing.TB, limit time.Duration, what string, f func() bool) {
	t.Helper()
	timeout := time.After(limit)
	for {
		r.mu.Lock()
		ok, changed := f(), r.changed
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			serial := r.Text(schemas.SourceSerial)
			t.Fatalf("no %s within %v; events %+v; the guest's console ends in %q", what, limit, r.Events(), serial[max(0, len(serial)-2000):])
		}
	}
}

// Await waits for an event.
func (r *Recorder) Await(t testing.TB, limit time.Duration, what string, is func(machine.Event) bool) machine.Event {
	t.Helper()
	var found machine.Event
	r.await(t, limit, what, func() bool {
		for _, e := range r.events {
			if is(e) {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

// AwaitExit waits for the end of the sample's first process.
func (r *Recorder) AwaitExit(t testing.TB, limit time.Duration) schemas.SampleExited {
	t.Helper()
	return *r.Await(t, limit, "exit of the sample", func(e machine.Event) bool { return e.Exited != nil }).Exited
}

// AwaitTree waits for the end of the sample's last process.
func (r *Recorder) AwaitTree(t testing.TB, limit time.Duration) {
	t.Helper()
	r.Await(t, limit, "end of the sample's tree", func(e machine.Event) bool { return e.Tree != nil })
}

// AwaitOff waits for the machine's own end.
func (r *Recorder) AwaitOff(t testing.TB, limit time.Duration) schemas.MachineOff {
	t.Helper()
	return *r.Await(t, limit, "end of the machine", func(e machine.Event) bool { return e.Off != nil }).Off
}

// AwaitEnd waits for the end of a source.
func (r *Recorder) AwaitEnd(t testing.TB, limit time.Duration, src schemas.Source) schemas.SourceCoverage {
	t.Helper()
	var c schemas.SourceCoverage
	r.await(t, limit, "end of "+string(src), func() bool {
		if len(r.ends[src]) > 0 {
			c = r.ends[src][0]
		}
		return len(r.ends[src]) > 0
	})
	return c
}

// AwaitText waits until a source has said something.
func (r *Recorder) AwaitText(t testing.TB, limit time.Duration, src schemas.Source, text string) {
	t.Helper()
	r.await(t, limit, fmt.Sprintf("%q in %s", text, src), func() bool { return strings.Contains(string(r.data[src]), text) })
}

// Descriptors lists what this process has open, but for what the Go runtime
// and the test itself keep; two lists before and after a deed are equal if it
// left nothing behind.
func Descriptors(t testing.TB) map[string]int {
	t.Helper()
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, n := range names {
		link, err := os.Readlink("/proc/self/fd/" + n)
		if err != nil || strings.HasPrefix(link, "anon_inode:") || strings.Contains(link, "/fd") {
			continue
		}
		kind, _, _ := strings.Cut(link, ":")
		out[kind]++
	}
	return out
}

// Processes lists the numbers of all processes of whose arguments one holds
// mark.
func Processes(t testing.TB, mark string) []string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range dirs {
		f, err := os.Open(d)
		if err != nil {
			continue // gone meanwhile
		}
		b, _ := io.ReadAll(io.LimitReader(f, 64<<10))
		f.Close()
		if strings.Contains(string(b), mark) {
			out = append(out, filepath.Base(filepath.Dir(d)))
		}
	}
	return out
}
