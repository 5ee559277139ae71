// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/catalogue"
	"github.com/petri-sandbox/petri/sandboxd/image"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/supervisor"
	"github.com/petri-sandbox/petri/schemas"
)

// Accel is the accelerator that guests run on, and why.
type Accel struct {
	Name   string    `json:"name"` // kvm or tcg
	Reason string    `json:"reason"`
	Probed time.Time `json:"probed,omitzero"`
	// What the answer holds for.
	QEMU   string `json:"qemu"`
	CPU    string `json:"cpu"`
	BootID string `json:"boot_id"`
}

// probeTime is how long a guest on KVM may take to its agent's first words: on
// working hardware it takes a tenth of it.
const probeTime = 5 * time.Second

// accelerator decides once per start and architecture.
func (f *Fleet) accelerator(ctx context.Context, arch string, q QEMU, img *image.Image) (Accel, error) {
	f.mu.Lock()
	have, ok := f.accel[arch]
	f.mu.Unlock()
	if ok {
		return have, nil
	}
	a, err := f.chooseAccel(ctx, arch, q, img)
	if err != nil {
		return Accel{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.accel[arch] = a
	return a, nil
}

// ChooseAccel says which accelerator guests run on. KVM is taken only after a
// guest has come up on it: there are machines whose /dev/kvm opens and whose
// guests hang. QEMU's own fallback looks no further than the opening.
func (f *Fleet) ChooseAccel(ctx context.Context, arch string) (Accel, error) {
	q, err := FindQEMU(ctx, arch)
	if err != nil {
		return Accel{}, err
	}
	img, err := f.opts.Images.Open(ctx, arch)
	if err != nil {
		return Accel{}, err
	}
	return f.accelerator(ctx, arch, q, img)
}

func (f *Fleet) chooseAccel(ctx context.Context, arch string, q QEMU, img *image.Image) (Accel, error) {
	a := Accel{QEMU: q.Version, CPU: cpuModel(), BootID: bootID()}
	cpu, err := catalogue.Lookup(arch)
	if err != nil {
		return Accel{}, err
	}
	native := slices.Contains(cpu.KVM, runtime.GOARCH)
	switch asked := f.opts.Accel; {
	case asked != "auto" && asked != "kvm" && asked != "tcg":
		return Accel{}, fmt.Errorf("accelerator %q is none of auto, kvm, tcg", asked)
	case asked != "tcg" && !native:
		a.Name, a.Reason = "tcg", "this host's CPU is another one"
		return a, nil
	case asked != "auto":
		a.Name, a.Reason = asked, "asked for"
		return a, nil
	}
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		a.Name, a.Reason = "tcg", "/dev/kvm cannot be opened: "+errors.Unwrap(err).Error()
		return a, nil
	}
	kvm.Close()
	cache := filepath.Join(f.opts.Images.Cache, "accel-"+arch+".json")
	if b, err := os.ReadFile(cache); err == nil {
		var have Accel
		if json.Unmarshal(b, &have) == nil && have.QEMU == a.QEMU && have.CPU == a.CPU && have.BootID == a.BootID && have.Name != "" {
			return have, nil
		}
	}
	f.opts.Slog.Info("trying whether guests run on KVM, once per boot of the host")
	a.Name, a.Reason = "kvm", "a guest came up on it"
	if err := f.probe(ctx, arch, q, img); err != nil {
		if ctx.Err() != nil {
			return Accel{}, ctx.Err()
		}
		a.Name, a.Reason = "tcg", "no guest came up on KVM: "+firstLine(err.Error())
	}
	a.Probed = time.Now().UTC()
	if err := writeJSON(cache, a); err != nil {
		f.opts.Slog.Warn("remember the accelerator", "error", err)
	}
	return a, nil
}

// probe boots a guest on KVM.
func (f *Fleet) probe(ctx context.Context, arch string, q QEMU, img *image.Image) error {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	kernel, initramfs, err := openImage(img)
	if err != nil {
		return err
	}
	defer kernel.Close()
	defer initramfs.Close()
	// As the user that machines run as: who has no right to KVM has no use of it.
	priv := f.opts.Supervisor
	uid, free, err := f.takeUID()
	if err != nil {
		return err
	}
	defer free()
	priv.UID, priv.Groups = uid, accelGroups("kvm")
	m, err := supervisor.Start(ctx, supervisor.Spec{
		Binary: q.Path, Version: q.Version, Accel: "kvm", Guest: arch, Memory: f.opts.Memory, Image: img.Key(), Mark: f.Mark("probe"), Untraced: true,
	}, supervisor.Files{Kernel: kernel, Initramfs: initramfs}, quiet{}, priv)
	if err != nil {
		return err
	}
	defer m.Close()
	_, err = m.Poweron(ctx, machine.Identity{Identity: schemas.Identity{Hostname: "probe", MachineID: strings.Repeat("0", 32), MAC: "00:e0:4c:00:00:01"}})
	return err
}

// accelGroups are the groups that a machine's user needs for an accelerator:
// that of /dev/kvm, where it may open it. Root's own group is given to nobody.
func accelGroups(accel string) []uint32 {
	if accel != "kvm" {
		return nil
	}
	fi, err := os.Stat("/dev/kvm")
	if err != nil || fi.Mode().Perm()&0o060 != 0o060 {
		return nil
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Gid == 0 {
		return nil
	}
	return []uint32{st.Gid}
}

// quiet observes nothing.
type quiet struct{}

func (quiet) Event(machine.Event)                         {}
func (quiet) Data(schemas.Source, []byte)                 {}
func (quiet) End(schemas.Source, schemas.SourceCoverage)  {}
func (quiet) File(schemas.DroppedFile) machine.FileWriter { return nil }

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s[:min(len(s), 200)]
}

// cpuModel names the host's CPU.
func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if k, v, ok := strings.Cut(sc.Text(), ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// bootID is another after each start of the host.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
