// SPDX-License-Identifier: Apache-2.0

// Package fleet makes the machines of one sandbox: it finds QEMU, chooses the
// accelerator, keeps images and warm templates, and starts each machine under a
// supervisor of its own. It knows no analysis but by the mark that its machines
// carry, by which a later start finds those that a crash has left.
package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/sandboxd/catalogue"
	"github.com/petri-sandbox/petri/sandboxd/image"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/supervisor"
	"github.com/petri-sandbox/petri/schemas"
)

// Options are for [New].
type Options struct {
	ID     string // of the sandbox; part of every machine's mark
	Images *image.Builder
	Store  sandboxd.Store
	Accel  string // auto, kvm or tcg; empty: auto
	Memory int64  // of a guest, bytes; default 256 MiB
	Pool   Pool   // machines that [Fleet.KeepPool] keeps waiting
	// HostMemory says how much memory there is; nil: [HostMemory].
	HostMemory func() (Memory, error)
	// Supervisor is the command that runs [supervisor.Main].
	Supervisor supervisor.Privileges
	Slog       *slog.Logger
}

// defaultMemory is enough for what runs on the devices that samples are made
// for, and small enough to dump often.
const defaultMemory = 256 << 20

// Fleet implements [sandboxd.Machines].
type Fleet struct {
	opts Options

	mu        sync.Mutex
	slots     map[int]bool // user ids in use
	templates map[string]*template
	accel     map[string]Accel // by architecture
	verified  map[string]bool  // images, by key

	pool    map[string][]*waiting // by architecture
	running int                   // machines that analyses have
	said    map[string]bool       // why a guest's machines do not wait

	changed   chan struct{} // something that the pool must look at
	reaped    chan struct{} // closed when no machine of a predecessor is left
	reapedOne sync.Once

	weak sync.Once // said that machines are weakly isolated
}

var _ sandboxd.Machines = (*Fleet)(nil)

// New returns a fleet without machines.
func New(o Options) *Fleet {
	if o.Memory == 0 {
		o.Memory = defaultMemory
	}
	if o.Accel == "" {
		o.Accel = "auto"
	}
	if o.HostMemory == nil {
		o.HostMemory = HostMemory
	}
	return &Fleet{
		opts: o, slots: map[int]bool{}, templates: map[string]*template{}, accel: map[string]Accel{}, verified: map[string]bool{},
		pool: map[string][]*waiting{}, said: map[string]bool{}, changed: make(chan struct{}, 1), reaped: make(chan struct{}),
	}
}

// ErrNoQEMU says that QEMU is not installed.
var ErrNoQEMU = errors.New("QEMU is not installed")

// QEMU is an installed QEMU.
type QEMU struct {
	Path    string `json:"path"`
	Version string `json:"version"` // QEMU 7.2.22 …
}

// FindQEMU looks for the QEMU of an architecture.
func FindQEMU(ctx context.Context, arch string) (QEMU, error) {
	cpu, err := catalogue.Lookup(arch)
	if err != nil {
		return QEMU{}, err
	}
	path, err := exec.LookPath(cpu.Binary)
	if err != nil {
		return QEMU{}, fmt.Errorf("%w: %s is not on the PATH (make setup, or: apt install %s)", ErrNoQEMU, cpu.Binary, cpu.Package)
	}
	limited, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(limited, path, "--version").Output()
	if ctx.Err() != nil {
		return QEMU{}, ctx.Err()
	}
	if err != nil {
		return QEMU{}, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return QEMU{Path: path, Version: strings.TrimSpace(strings.TrimPrefix(line, "QEMU emulator version "))}, nil
}

// Mark is the word that a machine of an analysis carries.
func (f *Fleet) Mark(analysis string) string { return markPrefix(f.opts.ID) + analysis }

func markPrefix(id string) string { return "petri-" + id + "-" }

// Describe says what a machine will be before there is one.
func (f *Fleet) Describe(guest, start string) schemas.MachineSpec {
	s := schemas.MachineSpec{Arch: guest, Backend: "qemu", Start: start, Accel: f.opts.Accel, CPUs: 1, Memory: f.opts.Memory}
	if cpu, err := catalogue.Lookup(guest); err == nil {
		s.Arch, s.With, s.Memory = cpu.Name, cpu.With.Name, max(s.Memory, cpu.Memory)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if a, ok := f.accel[s.Arch]; ok {
		s.Accel = a.Name
	}
	return s
}

// base is what all machines of a guest have in common.
type base struct {
	spec  supervisor.Spec
	cpu   catalogue.CPU
	image *image.Image
	qemu  QEMU
}

func (f *Fleet) base(ctx context.Context, guest string) (base, error) {
	cpu, err := catalogue.Lookup(guest)
	if err != nil {
		return base{}, err
	}
	q, err := FindQEMU(ctx, cpu.Name)
	if err != nil {
		return base{}, err
	}
	img, err := f.opts.Images.Open(ctx, guest)
	if err != nil {
		return base{}, err
	}
	if err := f.verify(img); err != nil {
		return base{}, err
	}
	accel, err := f.accelerator(ctx, cpu.Name, q, img)
	if err != nil {
		return base{}, err
	}
	return base{cpu: cpu, qemu: q, image: img, spec: supervisor.Spec{
		Binary: q.Path, Version: q.Version, Accel: accel.Name, Guest: guest, Memory: max(f.opts.Memory, cpu.Memory), Image: img.Key(),
	}}, nil
}

// verify reads an image once in a fleet's life: a damaged one would boot into
// confusion.
func (f *Fleet) verify(img *image.Image) error {
	f.mu.Lock()
	done := f.verified[img.Key()]
	f.mu.Unlock()
	if done {
		return nil
	}
	if err := img.Verify(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.verified[img.Key()] = true
	return nil
}

// Prepare makes everything that the first machine of a guest would have to wait
// for.
func (f *Fleet) Prepare(ctx context.Context, guest string) error {
	b, err := f.base(ctx, guest)
	if err != nil || b.cpu.Cold != "" {
		return err
	}
	_, err = f.template(ctx, b)
	return err
}

// New implements [sandboxd.Machines].
func (f *Fleet) New(ctx context.Context, s sandboxd.MachineSpec, o machine.Observer) (machine.Machine, error) {
	b, err := f.base(ctx, s.Guest)
	if err != nil {
		return nil, err
	}
	spec := b.spec
	spec.Mark, spec.Untraced, spec.Pcap = f.Mark(s.Analysis), s.Untraced, s.Pcap
	pooled := !s.Cold && !s.Untraced && s.Pcap == sandboxd.DefaultPcap
	var t *template
	switch {
	case s.Cold:
	case b.cpu.Cold != "":
		spec.Fallback = b.cpu.Cold
	default:
		t, err = f.template(ctx, b)
		if err == nil {
			err = f.announce(ctx, t, s)
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			f.opts.Slog.Warn("no warm start", "guest", s.Guest, "error", err)
			spec.Fallback, t, pooled = "no template: "+err.Error(), nil, false
		}
	}
	var own *owned
	if pooled {
		own = f.claim(s.Guest, b.key(cpuModel()), o)
	}
	if own == nil {
		if own, err = f.launch(ctx, b, spec, t, o); err != nil {
			return nil, err
		}
	}
	f.runs(own)
	if i := own.vm.Isolation(); i.Reason != "" {
		f.weak.Do(func() { f.opts.Slog.Warn("machines are isolated less than they should be", "isolation", i.String()) })
	}
	if b.cpu.Display {
		return struct {
			machine.Machine
			machine.Screenshotter
		}{own, own.vm}, nil
	}
	return own, nil
}

// launch starts the supervisor of a machine, which boots without a template.
func (f *Fleet) launch(ctx context.Context, b base, spec supervisor.Spec, t *template, o machine.Observer) (*owned, error) {
	kernel, initramfs, err := openImage(b.image)
	if err != nil {
		return nil, err
	}
	defer kernel.Close()
	defer initramfs.Close()
	files := supervisor.Files{Kernel: kernel, Initramfs: initramfs}
	if t != nil {
		state, err := os.Open(t.statePath())
		if err != nil {
			return nil, err
		}
		defer state.Close()
		spec.Warm, spec.Template, spec.Hello = true, t.digest, t.Hello
		files.RAM, files.State = t.ram, state
	}
	uid, free, err := f.takeUID()
	if err != nil {
		return nil, err
	}
	priv := f.opts.Supervisor
	priv.UID, priv.Groups = uid, accelGroups(spec.Accel)
	m, err := supervisor.Start(ctx, spec, files, o, priv)
	if err != nil {
		free()
		return nil, err
	}
	return &owned{Machine: m, vm: m, free: free}, nil
}

// runs counts a machine as one that an analysis has, until it is closed.
func (f *Fleet) runs(own *owned) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running++
	free := own.free
	own.free = func() {
		free()
		f.mu.Lock()
		f.running--
		f.mu.Unlock()
		f.note()
	}
}

// The users of machines come from a range that no distribution gives to
// anybody. A sandbox has a block of them, which its id chooses, and each of its
// machines one, so that none can touch another's processes. Sandboxes know
// nothing of each other: two on one host share a block by a chance of one in
// [uidBlocks], and their machines may then be the same users. Those have only
// their namespaces between them.
const (
	uidFirst  = 2_000_000_000
	uidBlock  = 1000
	uidBlocks = 100_000
)

// firstUID is the first of a sandbox's block.
func firstUID(id string) int {
	sum := sha256.Sum256([]byte(id))
	return uidFirst + uidBlock*int(binary.BigEndian.Uint64(sum[:])%uidBlocks)
}

// takeUID returns a user id that no other machine of this fleet has, or 0 if we
// may not choose.
func (f *Fleet) takeUID() (uid int, free func(), err error) {
	if os.Geteuid() != 0 {
		return 0, func() {}, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for f.slots[n] {
		n++
	}
	if n >= uidBlock {
		return 0, nil, fmt.Errorf("a sandbox has users for %d machines, and they are all taken", uidBlock)
	}
	f.slots[n] = true
	return firstUID(f.opts.ID) + n, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.slots, n)
	}, nil
}

// Isolation finds out what keeps machines from this host.
func (f *Fleet) Isolation() (schemas.Isolation, error) {
	uid, free, err := f.takeUID()
	if err != nil {
		return schemas.Isolation{}, err
	}
	defer free()
	priv := f.opts.Supervisor
	priv.UID = uid
	return supervisor.Probe(priv, f.Mark("probe"))
}

func openImage(img *image.Image) (kernel, initramfs *os.File, err error) {
	if kernel, err = os.Open(img.KernelPath()); err != nil {
		return nil, nil, fmt.Errorf("open the guest's kernel: %w (rebuild it: petri guest build %s --force)", err, img.Guest())
	}
	if initramfs, err = os.Open(img.InitramfsPath()); err != nil {
		kernel.Close()
		return nil, nil, fmt.Errorf("open the guest's initramfs: %w (rebuild it: petri guest build %s --force)", err, img.Guest())
	}
	return kernel, initramfs, nil
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
