// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"

	"github.com/petri-sandbox/petri/sandboxd/child"
)

// Privileges say what a supervisor is started as.
type Privileges struct {
	// Args are the arguments with which this program's main calls [Main]. The
	// mark is added as the last one.
	Args []string
	// UID is the user and group to become, if we are root; 0 stays root.
	UID int
	// Groups are further groups of that user: the one that may use KVM.
	Groups []uint32
}

// processNamespaces are what a supervisor is cut off in. Its process namespace
// also ends its QEMU with it, whatever ends it.
const processNamespaces = syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS

// startProcess starts a supervisor as unprivileged as we can: as root in
// namespaces and as a user of its own; else in namespaces of a user namespace;
// and where the kernel allows neither, as it is.
func startProcess(p Privileges, mark string, inherit []*os.File) (*child.Process, error) {
	var errs []error
	for _, attr := range attributes(p) {
		// Another user may not be let into the directory where we lie.
		cmd := exec.Command("/proc/self/exe", append(slices.Clone(p.Args), mark)...)
		cmd.Args[0] = os.Args[0]
		cmd.ExtraFiles, cmd.SysProcAttr = inherit, attr
		proc, err := child.Start(cmd)
		if err == nil {
			return proc, nil
		}
		errs = append(errs, err)
		if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EINVAL) {
			break
		}
	}
	err := fmt.Errorf("start a supervisor: %w", errors.Join(errs...))
	if errors.Is(err, syscall.EACCES) {
		err = fmt.Errorf("%w (machines run as another user, who must be able to run this program: chmod a+rx %s)", err, os.Args[0])
	}
	return nil, err
}

// attributes are the ways to start a supervisor, the best first.
func attributes(p Privileges) []*syscall.SysProcAttr {
	plain := &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		cut := &syscall.SysProcAttr{Cloneflags: processNamespaces}
		if p.UID != 0 {
			cut.Credential = &syscall.Credential{Uid: uint32(p.UID), Gid: uint32(p.UID), Groups: p.Groups}
			plain.Credential = cut.Credential
		}
		return []*syscall.SysProcAttr{cut, plain}
	}
	cut := &syscall.SysProcAttr{
		Cloneflags:  processNamespaces | syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}},
	}
	return []*syscall.SysProcAttr{cut, plain}
}
