// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// arch is what differs between guests' CPUs when an image is built.
type arch struct {
	name    string   // Debian's name
	kernel  string   // Debian's meta package of the newest kernel
	modules []string // to be loaded, without their dependencies
	libdir  string   // multiarch directory of the shared libraries
	// unpack turns Debian's vmlinuz into the kernel's ELF file. nil: QEMU loads
	// what Debian ships.
	unpack func(vmlinuz []byte) ([]byte, error)
}

// arches are the CPUs that this package can build for.
var arches = []arch{
	{
		name:    "amd64",
		kernel:  "linux-image-amd64",
		modules: []string{"virtio_pci", "virtio_console", "virtio_net", "overlay", "pvpanic-pci"},
		libdir:  "x86_64-linux-gnu",
		unpack:  unpackBzImage,
	},
}

// prepare turns Debian's vmlinuz into the file that QEMU loads, and into what
// the tracer must know of this kernel, or nil if the kernel does not say.
func (a arch) prepare(vmlinuz []byte) (kernel, offsets []byte, err error) {
	if a.unpack == nil {
		return vmlinuz, nil, nil
	}
	if kernel, err = a.unpack(vmlinuz); err != nil {
		return nil, nil, err
	}
	if offsets, err = KernelOffsets(kernel); err != nil && !errors.Is(err, ErrNoBTF) {
		return nil, nil, fmt.Errorf("read the kernel's types: %w", err)
	}
	kernel, err = trimSegments(kernel)
	return kernel, offsets, err
}

// Arches lists the architectures that can be built, by Debian's names.
func Arches() []string {
	var out []string
	for _, a := range arches {
		out = append(out, a.name)
	}
	return out
}

func lookup(name string) (arch, error) {
	i := slices.IndexFunc(arches, func(a arch) bool { return a.name == name })
	if i < 0 {
		return arch{}, fmt.Errorf("no guest for architecture %q (there are: %s)", name, strings.Join(Arches(), ", "))
	}
	return arches[i], nil
}

// rootPackages are what the sample's root file system is made of: what
// dynamically linked Debian programs commonly need, the same of musl's, the
// files that every Debian has, busybox for the commands, and the interpreters
// that scripts commonly ask for. guestd runs shared objects and kernel modules by
// perl.
var rootPackages = []string{
	"base-files", "netbase", "busybox-static",
	"libc6", "libc-bin", "libgcc-s1", "libpcre2-8-0", "libselinux1", "libssl3", "libstdc++6", "zlib1g",
	"musl",
	"bash", "libtinfo6", "perl-base", "libcrypt1",
}
