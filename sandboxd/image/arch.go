// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"slices"

	"github.com/petri-sandbox/petri/sandboxd/catalogue"
)

// prepare turns Debian's vmlinuz into the file that QEMU loads, and into what
// the tracer must know of this kernel, or nil if the kernel does not say.
func prepare(c catalogue.CPU, vmlinuz []byte) (kernel, offsets []byte, err error) {
	if !c.Unpack {
		return vmlinuz, nil, nil
	}
	if kernel, err = unpackBzImage(vmlinuz); err != nil {
		return nil, nil, err
	}
	if offsets, err = KernelOffsets(kernel); err != nil && !errors.Is(err, ErrNoBTF) {
		return nil, nil, fmt.Errorf("read the kernel's types: %w", err)
	}
	kernel, err = trimSegments(kernel)
	return kernel, offsets, err
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

// busyboxSource is the source of busybox-static.
const busyboxSource = "busybox"

// rootPackagesOf are those of a CPU's usual guest. Where Debian has no port to it, and for
// the other programs that it runs, there are the libraries that a cross compiler
// links them with.
func rootPackagesOf(c catalogue.CPU) []string {
	p := rootPackages
	if c.Source != nil {
		p = append([]string{"base-files", "netbase"}, crossPackages(c.Name)...)
	}
	if c.Also.Name != "" {
		p = slices.Concat(p, crossPackages(c.Also.Name))
	}
	return p
}

func crossPackages(arch string) []string {
	return []string{"libc6-" + arch + "-cross", "libgcc-s1-" + arch + "-cross", "libstdc++6-" + arch + "-cross"}
}

// packagesOf are all of a guest's but its kernel.
func packagesOf(c catalogue.CPU) []string {
	p := slices.Concat(rootPackagesOf(c), c.With.Packages)
	if c.Source != nil {
		p = append(p, busyboxSource)
	}
	return p
}

// aptArch is the architecture that packages are asked of. Those of a compiler are
// for all, and Debian's own files are taken of the default guest.
func aptArch(c catalogue.CPU) string {
	if c.Source == nil {
		return c.Name
	}
	return catalogue.Default
}
