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
)

// A CPU is a kind of guest.
type CPU struct {
	Name string // Debian's name of the architecture
	// Go is what go build must be told to make the agent.
	Go  []string
	GNU string // GCC's name of the CPU and its ABI, by which cross compilers are called

	// Kernel is Debian's meta package of the newest kernel.
	Kernel string
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
	// Display says that one of the devices is a display.
	Display bool
	// Memory is what a guest has at least, in bytes; 0: whatever it is given.
	Memory int64
	// Cold is why there is no warm start; empty: there is.
	Cold string
	// KVM lists the hosts, as Go names them, that can run such a guest on their
	// own CPU.
	KVM []string
}

// Compiler is Debian's C compiler for the CPU.
func (c CPU) Compiler() string { return c.GNU + "-gcc" }

// virtio are the modules that every guest needs.
var virtio = []string{"virtio_pci", "virtio_console", "virtio_net", "overlay"}

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
		Kernel: "linux-image-armmp", Modules: virtio,
		Binary: "qemu-system-arm", Package: "qemu-system-arm", Machine: "virt,highmem=off", Model: "cortex-a15",
		Console: "ttyAMA0", Bus: "pci",
	},
	{
		Name: "mipsel", Go: []string{"GOARCH=mipsle", "GOMIPS=softfloat"}, GNU: "mipsel-linux-gnu",
		Kernel: "linux-image-4kc-malta", Modules: virtio,
		Binary: "qemu-system-mipsel", Package: "qemu-system-mips", Machine: "malta", Model: "24Kf",
		Console: "ttyS0", Bus: "pci",
	},
	{
		Name: "mips64el", Go: []string{"GOARCH=mips64le"}, GNU: "mips64el-linux-gnuabi64",
		Kernel: "linux-image-5kc-malta", Modules: virtio,
		Binary: "qemu-system-mips64el", Package: "qemu-system-mips", Machine: "malta", Model: "MIPS64R2-generic",
		Console: "ttyS0", Bus: "pci",
	},
	{
		Name: "ppc64el", Go: []string{"GOARCH=ppc64le"}, GNU: "powerpc64le-linux-gnu",
		Kernel: "linux-image-powerpc64le", Modules: virtio,
		Binary: "qemu-system-ppc64", Package: "qemu-system-ppc",
		// The firmware of QEMU's own starts in a third of the time. What emulation
		// does not have of the CPU's mitigations it would refuse to go without.
		Machine: "pseries,x-vof=on,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off", Model: "power9",
		Console: "hvc0", Bus: "pci",
		Memory: 512 << 20, // its pages have 64 KiB, and so the smallest files
		Cold:   "QEMU does not start the timer of a restored guest of this CPU",
	},
	{
		Name: "s390x", Go: []string{"GOARCH=s390x"}, GNU: "s390x-linux-gnu",
		Kernel: "linux-image-s390x", Modules: virtio,
		Binary: "qemu-system-s390x", Package: "qemu-system-misc", Machine: "s390-ccw-virtio", Model: "max",
		Console: "ttysclp0", Bus: "ccw",
	},
}

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

// Lookup finds a guest by its architecture.
func Lookup(name string) (CPU, error) {
	i := slices.IndexFunc(cpus, func(c CPU) bool { return c.Name == name })
	if i < 0 {
		return CPU{}, fmt.Errorf("no guest for architecture %q (there are: %s)", name, strings.Join(Names(), ", "))
	}
	return cpus[i], nil
}
