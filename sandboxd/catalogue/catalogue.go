// SPDX-License-Identifier: Apache-2.0

// Package catalogue knows the guests that there can be: for which programs each
// is, how its agent and image are built, and what machine QEMU makes for it.
//
// It is a table and a few pure functions over it. It looks at no file and starts
// nothing.
package catalogue

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A CPU is a kind of guest.
type CPU struct {
	Name string // Debian's name of the architecture
	// Go is what go build must be told to make the agent.
	Go  []string
	GNU string // GCC's name of the CPU and its ABI, by which cross compilers are called
	// Also is another architecture whose programs it runs, with libraries of theirs;
	// the zero value: none.
	Also Port

	// Kernel is Debian's meta package of the newest kernel, or the package of its
	// source.
	Kernel string
	// Source is how the kernel is compiled where Debian has a compiler for the CPU
	// and no port to it; nil: Debian has a port.
	Source *Source
	// Unpack says that the kernel is a bzImage, and is better given to QEMU as the
	// ELF file inside: it has an entry for virtual machines.
	Unpack bool
	// Modules are the kernel's modules to be loaded, without their dependencies.
	// What a kernel has built in need not be there.
	Modules []string

	Binary  string // QEMU's program
	Package string // Debian's package of it
	Machine string // QEMU's -machine
	Model   string // QEMU's -cpu
	Console string // the kernel's name of the first serial port
	Bus     string // what names of QEMU's virtio devices end in: pci or ccw
	Devices []string
	// Network is what the network device is told besides.
	Network string
	// Display says that one of the devices is a display.
	Display bool
	// Memory is what a guest has at least, in bytes; 0: whatever it is given.
	Memory int64
	// Cold is why there is no warm start; empty: there is.
	Cold string
	// Nudge is how often the guest must be sent something, because QEMU loses its
	// timer at times; 0: never.
	Nudge time.Duration
	// KVM lists the hosts, as Go names them, that can run such a guest on their
	// own CPU.
	KVM []string

	// With is what this guest has besides; the zero value: nothing.
	With Extra
}

// Guest is the guest's name: amd64, or amd64+python3.
func (c CPU) Guest() string { return With(c.Name, c.With.Name) }

// Compiler is Debian's C compiler for the CPU.
func (c CPU) Compiler() string { return c.GNU + "-gcc" }

// CompilerPackages are Debian's packages of the compiler and of what it links
// programs with.
func (c CPU) CompilerPackages() []string {
	return []string{"gcc-" + strings.ReplaceAll(c.GNU, "_", "-"), "libc6-dev-" + c.Name + "-cross"}
}

// A Port is an architecture to Debian and to its compilers, as [CPU] names it.
type Port struct{ Name, GNU string }

// A Source says how a guest's kernel is compiled.
type Source struct {
	Arch string // the kernel's name of the CPU
	// File is what QEMU boots, in the kernel's tree. What make must be told is its
	// last part.
	File string
	// Config is what this kernel needs besides what all do
	// (sandboxd/image/kernel.config).
	Config string
}

// virtio are the modules that every guest needs.
var virtio = []string{"virtio_pci", "virtio_console", "virtio_net", "overlay"}

// maltaSlot keeps the network's interrupt from the line of the agent's port, which is in
// the slot that QEMU takes first (18; gt64120_pci_map_irq in hw/pci-host/gt64120.c, and
// the lines in the board's firmware). QEMU's Malta has its interrupt controller take
// lines by their edges: one that two devices share stays up, and both are deaf, if the
// first wants service again before the second has had it.
const maltaSlot = ",addr=0x14"

// mipsNudge bounds how long a MIPS guest stands still because of a lost timer; without
// it that is for the rest of its counter's round, 26 s. QEMU 7.2 does not restore the
// timer, and sets it in the CPU's thread while another may be in its expiry, and then
// sets it anew from what was before (cpu_mips_timer_update in
// target/mips/sysemu/cp0_timer.c takes no lock).
const mipsNudge = 250 * time.Millisecond

var cpus = []CPU{
	{
		Name: "amd64", Go: []string{"GOARCH=amd64"}, GNU: "x86_64-linux-gnu",
		Kernel: "linux-image-amd64", Unpack: true, Modules: append(slices.Clone(virtio), "pvpanic-pci"),
		Binary: "qemu-system-x86_64", Package: "qemu-system-x86", Machine: "q35,usb=off,smm=off", Model: "max",
		Console: "ttyS0", Bus: "pci", Devices: []string{"VGA", "pvpanic-pci"}, Display: true, KVM: []string{"amd64"},
	},
	{
		Name: "i386", Go: []string{"GOARCH=386"}, GNU: "i686-linux-gnu",
		Kernel: "linux-image-686", Modules: append(slices.Clone(virtio), "pvpanic-pci"),
		Binary: "qemu-system-i386", Package: "qemu-system-x86", Machine: "q35,usb=off,smm=off", Model: "max",
		Console: "ttyS0", Bus: "pci", Devices: []string{"VGA", "pvpanic-pci"}, Display: true, KVM: []string{"amd64", "386"},
	},
	{
		Name: "arm64", Go: []string{"GOARCH=arm64"}, GNU: "aarch64-linux-gnu",
		Kernel: "linux-image-arm64", Modules: virtio,
		Binary: "qemu-system-aarch64", Package: "qemu-system-arm", Machine: "virt,gic-version=3", Model: "cortex-a57",
		Console: "ttyAMA0", Bus: "pci",
	},
	{
		Name: "armhf", Go: []string{"GOARCH=arm", "GOARM=7"}, GNU: "arm-linux-gnueabihf",
		Also:   Port{"armel", "arm-linux-gnueabi"},
		Kernel: "linux-image-armmp", Modules: virtio,
		Binary: "qemu-system-arm", Package: "qemu-system-arm", Machine: "virt,highmem=off", Model: "cortex-a15",
		Console: "ttyAMA0", Bus: "pci",
	},
	{
		Name: "mipsel", Go: []string{"GOARCH=mipsle", "GOMIPS=softfloat"}, GNU: "mipsel-linux-gnu",
		Kernel: "linux-image-4kc-malta", Modules: virtio,
		Binary: "qemu-system-mipsel", Package: "qemu-system-mips", Machine: "malta", Model: "24Kf",
		Console: "ttyS0", Bus: "pci", Network: maltaSlot, Nudge: mipsNudge,
	},
	{
		Name: "mips64el", Go: []string{"GOARCH=mips64le"}, GNU: "mips64el-linux-gnuabi64",
		Kernel: "linux-image-5kc-malta", Modules: virtio,
		Binary: "qemu-system-mips64el", Package: "qemu-system-mips", Machine: "malta", Model: "MIPS64R2-generic",
		Console: "ttyS0", Bus: "pci", Network: maltaSlot, Nudge: mipsNudge,
	},
	{
		Name: "ppc64el", Go: []string{"GOARCH=ppc64le"}, GNU: "powerpc64le-linux-gnu",
		Kernel: "linux-image-powerpc64le", Modules: virtio,
		Binary: "qemu-system-ppc64", Package: "qemu-system-ppc", Machine: pseries, Model: "power9",
		Console: "hvc0", Bus: "pci",
		Memory: 512 << 20, // its pages have 64 KiB, and so the smallest files
	},
	{
		Name: "s390x", Go: []string{"GOARCH=s390x"}, GNU: "s390x-linux-gnu",
		Kernel: "linux-image-s390x", Modules: virtio,
		Binary: "qemu-system-s390x", Package: "qemu-system-misc", Machine: "s390-ccw-virtio", Model: "max",
		Console: "ttysclp0", Bus: "ccw",
	},
	{
		Name: "mips", Go: []string{"GOARCH=mips", "GOMIPS=softfloat"}, GNU: "mips-linux-gnu",
		Kernel: kernelSource,
		Source: &Source{Arch: "mips", File: "vmlinux", Config: `
CONFIG_MIPS_MALTA=y
CONFIG_CPU_MIPS32_R2=y
CONFIG_CPU_BIG_ENDIAN=y
CONFIG_SERIAL_8250=y
CONFIG_SERIAL_8250_CONSOLE=y
CONFIG_RTC_DRV_CMOS=y
CONFIG_POWER_RESET=y
CONFIG_POWER_RESET_PIIX4_POWEROFF=y
`},
		Binary: "qemu-system-mips", Package: "qemu-system-mips", Machine: "malta", Model: "24Kf",
		Console: "ttyS0", Bus: "pci", Network: maltaSlot, Nudge: mipsNudge,
	},
	{
		Name: "riscv64", Go: []string{"GOARCH=riscv64"}, GNU: "riscv64-linux-gnu",
		Kernel: kernelSource,
		Source: &Source{Arch: "riscv", File: "arch/riscv/boot/Image", Config: `
CONFIG_SOC_VIRT=y
CONFIG_ARCH_RV64I=y
CONFIG_FPU=y
CONFIG_RISCV_ISA_C=y
CONFIG_PCI_HOST_GENERIC=y
CONFIG_SERIAL_8250=y
CONFIG_SERIAL_8250_CONSOLE=y
CONFIG_SERIAL_OF_PLATFORM=y
`},
		Binary: "qemu-system-riscv64", Package: "qemu-system-misc", Machine: "virt", Model: "rv64",
		Console: "ttyS0", Bus: "pci",
	},
	{
		Name: "ppc64", Go: []string{"GOARCH=ppc64"}, GNU: "powerpc64-linux-gnu",
		Also:   Port{"powerpc", "powerpc-linux-gnu"},
		Kernel: kernelSource,
		Source: &Source{Arch: "powerpc", File: "vmlinux", Config: `
CONFIG_PPC64=y
CONFIG_PPC_BOOK3S_64=y
CONFIG_CPU_BIG_ENDIAN=y
CONFIG_PPC_PSERIES=y
CONFIG_PPC_OF_BOOT_TRAMPOLINE=y
CONFIG_PPC_RADIX_MMU=y
CONFIG_PPC_4K_PAGES=y
CONFIG_ALTIVEC=y
CONFIG_VSX=y
CONFIG_COMPAT=y
CONFIG_HVC_CONSOLE=y
CONFIG_RTC_DRV_GENERIC=y
`},
		Binary: "qemu-system-ppc64", Package: "qemu-system-ppc", Machine: pseries, Model: "power9",
		Console: "hvc0", Bus: "pci",
	},
}

// pseries has the firmware of QEMU's own, which starts in a third of the time. What
// emulation does not have of the CPU's mitigations it would refuse to go without.
const pseries = "pseries,x-vof=on,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off"

// kernelSource is the kernel that is compiled. Another version needs other
// options.
const kernelSource = "linux-source-6.1"

// Default is the guest of whatever is no program of a certain CPU.
const Default = "amd64"

// All lists the guests that there can be, the default one first.
func All() []CPU { return slices.Clone(cpus) }

// Names lists their architectures, by Debian's names.
func Names() []string {
	var out []string
	for _, c := range cpus {
		out = append(out, c.Name)
	}
	return out
}

// Lookup finds a guest by its architecture, and by what it has besides: amd64,
// amd64+python3.
func Lookup(name string) (CPU, error) {
	arch, with, more := strings.Cut(name, "+")
	i := slices.IndexFunc(cpus, func(c CPU) bool { return c.Name == arch })
	if i < 0 {
		return CPU{}, fmt.Errorf("no guest for architecture %q (there are: %s)", arch, strings.Join(Names(), ", "))
	}
	c := cpus[i]
	if !more {
		return c, nil
	}
	j := slices.IndexFunc(extras, func(e Extra) bool { return e.Name == with })
	if j < 0 {
		return CPU{}, fmt.Errorf("no guest %s: it can have %s besides, not %q", name, strings.Join(extraNames(), ", "), with)
	}
	if c.Source != nil {
		return CPU{}, fmt.Errorf("no guest %s: Debian has no port to %s, and so no package of %s", name, arch, with)
	}
	c.With = extras[j]
	return c, nil
}
