// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"

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
